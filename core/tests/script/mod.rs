//! The language of the stories. Nodes are `n1`, `n2` …; groups are `sys` and the names of databases;
//! spans end in `ms` or `s`.
//!
//! | command | what it does |
//! | --- | --- |
//! | `config BOUND VALUE` | before there are nodes: another bound than the default |
//! | `seed N` | before there are nodes: another course of chance |
//! | `blank N` | starts N nodes with blank data directories |
//! | `formed N [leader nX] [databases app web]` | a formed cluster; nX leads all groups; time begins |
//! | `show TOPIC…`, `hide TOPIC…` | what is traced: roles, commits, votes, appends, reads, recalls, fetches, audits, confirms, heartbeats, formation, disk, apply, replies, notices; roles, replies and notices from the start |
//! | `watch GROUP` | trace that group alone |
//! | `run SPAN` | lets time pass |
//! | `put nX DB K V`, `cas nX DB K OLD NEW`, `fill nX DB BYTES` | proposes an op on a node |
//! | `once KEY nX DB put\|cas …` | ... with a key |
//! | `read nX GROUP`, `create nX DB`, `transfer nX GROUP nY`, `drain nX`, `cancel nX rN` | other requests |
//! | `slot nX DB NAME [START] [ops=N] [bytes=N] [idle=SPAN]` | creates a slot: START is `earliest`, `latest` or an LSN |
//! | `ack nX DB NAME LSN`, `unslot nX DB NAME` | acknowledges, deletes a slot |
//! | `cut nX nY…`, `cut nX>nY`, `isolate nX…`, `heal` | the network between nodes, both ways or one |
//! | `lose nX>nY MESSAGE [N]`, `block nX>nY MESSAGE`, `allow nX>nY MESSAGE N` | the next N are lost, all are, all but N |
//! | `delay nX>nY SPAN` | how long messages take |
//! | `crash nX [keep N]`, `restart nX`, `wipe nX`, `pause nX SPAN` | processes; `keep` records that were not fsynced |
//! | `copy nX`, `restore nX` | its data directory is copied, and is again as it was then |
//! | `tear nX` | its log is damaged from where the copy ends; votes could be read |
//! | `damage nX DB FROM TO` | these entries can't be read |
//! | `heal-disk nX` | everything can be read again |
//! | `clock nX SPAN`, `rate nX PERMILLE` | its wall clock is set ahead; its monotonic one goes on at that rate |
//! | `lose-state nX DB` | its state of a database is damaged, and dropped |
//! | `alter nX DB K V` | its state of a database is changed behind its back |
//! | `stick nX`, `unstick nX` | fsyncs of a node do not come back, and do |
//! | `fail nX disk`, `fail nX DB`, `room nX BYTES` | the oplog fails; the next run fails to apply; its room |
//! | `forge nX>nY WHAT` | a message that no correct node sends |
//! | `status [GROUP]`, `logs DB`, `state nX DB`, `stamps nX DB`, `slots DB`, `keys DB` | what there is now |

mod forge;

use highwater_core::{
    Config, Entry, GroupId, Input, Lsn, NodeId, RememberedView, Request, RequestId, RoleView,
    SlotSettings, SlotStart, SlotsView,
};

use crate::cluster::{Cluster, Host, MS, text};

/// Runs a story; the story with its trace as it is now.
pub(crate) fn tell(story: &str) -> String {
    let mut script = Script { config: Config::default(), seed: 1, cluster: None };
    let mut out: Vec<String> = Vec::new();
    let mut last = ' ';
    for line in story.lines() {
        let kind = line.chars().next().unwrap_or(' ');
        if kind != '#' && kind != '>' {
            continue;
        }
        if last == 't'
            || (kind == '#' && last == '>')
            || (kind == '>' && last == '#' && out.len() == 1)
        {
            out.push(String::new());
        }
        out.push(line.to_owned());
        last = kind;
        if let Some(command) = line.strip_prefix("> ") {
            let trace = script.command(command);
            if !trace.is_empty() {
                last = 't';
            }
            out.extend(trace);
        }
    }
    out.push(String::new());
    out.join("\n")
}

struct Script {
    config: Config,
    seed: u64,
    cluster: Option<Cluster>,
}

fn node(word: &str) -> NodeId {
    let number = word.strip_prefix('n').and_then(|n| n.parse().ok());
    NodeId(number.unwrap_or_else(|| panic!("{word:?} is no node")))
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is no number"))
}

fn span(word: &str) -> u64 {
    if let Some(ms) = word.strip_suffix("ms") {
        number(ms) * MS
    } else if let Some(s) = word.strip_suffix('s') {
        number(s) * 1000 * MS
    } else {
        panic!("{word:?} is no span")
    }
}

/// `n1>n2`, or `n1` and `n2` both ways.
fn links(words: &[&str]) -> Vec<(NodeId, NodeId)> {
    if let [one] = words
        && let Some((from, to)) = one.split_once('>')
    {
        return vec![(node(from), node(to))];
    }
    let [first, rest @ ..] = words else { panic!("a link has two ends") };
    let first = node(first);
    rest.iter().flat_map(|to| [(first, node(to)), (node(to), first)]).collect()
}

impl Script {
    fn command(&mut self, command: &str) -> Vec<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["config", bound, value] => self.configure(bound, number(value)),
            ["seed", seed] => self.seed = number(seed),
            ["blank", count] => {
                let mut cluster = self.cluster(number(count));
                cluster.trace.on = true;
                cluster.start_all();
                self.cluster = Some(cluster);
            }
            ["formed", count, ref rest @ ..] => self.formed(number(count), rest),
            _ => {
                let cluster = self.cluster.as_mut().expect("there are nodes");
                let mut said = act(cluster, &words);
                let mut trace = std::mem::take(&mut cluster.trace.lines);
                trace.append(&mut said);
                return trace;
            }
        }
        Vec::new()
    }

    fn cluster(&self, count: u64) -> Cluster {
        let mut cluster = Cluster::new(self.seed, count, self.config.clone());
        cluster.trace.topics.extend(["roles", "replies", "notices"].map(str::to_owned));
        cluster
    }

    fn formed(&mut self, count: u64, words: &[&str]) {
        let leader = words.iter().position(|w| *w == "leader").map(|n| node(words[n + 1]));
        let databases = words.iter().position(|w| *w == "databases").map(|n| &words[n + 1..]);
        let mut cluster = self.cluster(count);
        cluster.start_all();
        let settle = |cluster: &mut Cluster| {
            cluster.run_for(100 * MS);
            assert!(cluster.run_until(5000 * MS, Cluster::is_led), "the cluster settles");
        };
        settle(&mut cluster);
        for name in databases.unwrap_or(&["app"]) {
            let system = cluster.leader(GroupId::SYSTEM).expect("it is led");
            let expires = cluster.deadline_of(system, 1000 * MS);
            let name = (*name).to_owned();
            cluster.request(system, Request::CreateDatabase { name, expires });
            settle(&mut cluster);
        }
        for group in cluster.names.keys().copied().collect::<Vec<_>>() {
            let leads = cluster.leader(group).expect("it is led");
            if let Some(to) = leader.filter(|to| *to != leads) {
                cluster.request(leads, Request::Transfer { group, to });
                settle(&mut cluster);
            }
        }
        // To the next whole second, when all is quiet.
        cluster.run_for(3_000 * MS - cluster.time % (1000 * MS));
        cluster.replies.clear();
        cluster.next_request = 0;
        cluster.trace.origin = cluster.time;
        cluster.trace.on = true;
        self.cluster = Some(cluster);
    }

    fn configure(&mut self, bound: &str, value: u64) {
        let config = &mut self.config;
        let size = value as usize;
        match bound {
            "payload_bytes_max" => config.payload_bytes_max = size,
            "uncommitted_bytes_max" => config.uncommitted_bytes_max = size,
            "tail_bytes_max" => config.tail_bytes_max = size,
            "append_entries_max" => config.append_entries_max = size,
            "append_bytes_max" => config.append_bytes_max = size,
            "inflight_messages_max" => config.inflight_messages_max = size,
            "apply_entries_max" => config.apply_entries_max = size,
            "confirm_groups_max" => config.confirm_groups_max = size,
            "tails_bytes_max" => config.tails_bytes_max = size,
            "reads_max" => config.reads_max = size,
            "checkpoint_bytes" => config.checkpoint_bytes = size,
            "databases_max" => config.databases_max = size,
            "election_jitter_us" => config.election_jitter_us = value,
            "retry_us" => config.retry_us = value,
            "retention_bytes" => config.retention_bytes = value,
            "retention_ms" => config.retention_ms = value,
            "slots_max" => config.slots_max = size,
            "slot_requests_max" => config.slot_requests_max = size,
            "slot_ack_us" => config.slot_ack_us = value,
            "audit_us" => config.audit_us = value,
            "slot_tick_us" => config.slot_tick_us = value,
            "slot_grace_us" => config.slot_grace_us = value,
            "once_max" => config.once_max = size,
            "once_window_ms" => config.once_window_ms = value,
            _ => panic!("{bound:?} is not settable here"),
        }
    }
}

fn act(cluster: &mut Cluster, words: &[&str]) -> Vec<String> {
    match words {
        ["show", topics @ ..] => {
            cluster.trace.topics.extend(topics.iter().map(|t| (*t).to_owned()));
        }
        ["hide", topics @ ..] => {
            cluster.trace.topics.retain(|t| !topics.contains(&t.as_str()));
        }
        ["watch", name] => cluster.trace.only = Some((*name).to_owned()),
        ["run", for_] => cluster.run_for(span(for_)),
        ["status"] => return status(cluster, None),
        ["status", name] => return status(cluster, Some(group(cluster, name))),
        ["logs", name] => return logs(cluster, group(cluster, name)),
        ["stamps", id, name] => return stamps(cluster, node(id), group(cluster, name)),
        ["keys", name] => return keys(cluster, group(cluster, name)),
        ["slots", name] => return slots(cluster, group(cluster, name)),
        ["state", id, name] => return state(cluster, node(id), group(cluster, name)),
        ["forge", link, what @ ..] => forge::forge(cluster, links(&[link])[0], what),
        [verb, ..] if REQUESTS.contains(verb) => {
            let id = request(cluster, words);
            cluster.flush();
            return vec![format!("{id:?}")];
        }
        _ => break_or_mend(cluster, words),
    }
    Vec::new()
}

const REQUESTS: [&str; 11] =
    ["once", "put", "cas", "fill", "read", "create", "transfer", "drain", "slot", "ack", "unslot"];

fn group(cluster: &Cluster, name: &str) -> GroupId {
    cluster.group_named(name).unwrap_or_else(|| panic!("{name:?} is no group"))
}

fn request(cluster: &mut Cluster, words: &[&str]) -> RequestId {
    if let ["once", key, id, db, op @ ..] = words {
        return cluster.propose_once(node(id), group(cluster, db), &op.join(" "), key);
    }
    let id = node(words[1]);
    match words {
        ["put", _, db, key, value] => {
            cluster.propose(id, group(cluster, db), &format!("put {key} {value}"))
        }
        ["cas", _, db, key, old, new] => {
            cluster.propose(id, group(cluster, db), &format!("cas {key} {old} {new}"))
        }
        ["fill", _, db, bytes] => {
            let value = "x".repeat(number(bytes) as usize);
            cluster.propose(id, group(cluster, db), &format!("put big {value}"))
        }
        ["read", _, name] => {
            let group = group(cluster, name);
            cluster.request(id, Request::Read { group })
        }
        ["create", _, name] => {
            let expires = cluster.deadline_of(id, 60_000 * MS);
            cluster.request(id, Request::CreateDatabase { name: (*name).to_owned(), expires })
        }
        ["slot", _, db, name, settings @ ..] => {
            let (group, name, settings) = (group(cluster, db), (*name).to_owned(), slot(settings));
            let expires = cluster.deadline_of(id, 60_000 * MS);
            cluster.request(id, Request::CreateSlot { group, name, settings, expires })
        }
        ["ack", _, db, name, lsn] => {
            let (group, name, lsn) = (group(cluster, db), (*name).to_owned(), Lsn(number(lsn)));
            let expires = cluster.deadline_of(id, 60_000 * MS);
            cluster.request(id, Request::AckSlot { group, name, lsn, expires })
        }
        ["unslot", _, db, name] => {
            let (group, name) = (group(cluster, db), (*name).to_owned());
            let expires = cluster.deadline_of(id, 60_000 * MS);
            cluster.request(id, Request::DeleteSlot { group, name, expires })
        }
        ["transfer", _, name, to] => {
            let group = group(cluster, name);
            cluster.request(id, Request::Transfer { group, to: node(to) })
        }
        ["drain", _] => cluster.request(id, Request::Drain),
        _ => panic!("{words:?} is no request"),
    }
}

/// What a slot is to be created with.
fn slot(words: &[&str]) -> SlotSettings {
    let mut settings = SlotSettings::default();
    for word in words {
        match word.split_once('=') {
            Some(("ops", n)) => settings.limits.lag_ops = Some(number(n)),
            Some(("bytes", n)) => settings.limits.lag_bytes = Some(number(n)),
            Some(("idle", ms)) => settings.limits.idle_ms = Some(span(ms) / MS),
            Some(_) => panic!("{word:?} is no limit"),
            None => {
                settings.from = match *word {
                    "earliest" => SlotStart::Earliest,
                    "latest" => SlotStart::Latest,
                    lsn => SlotStart::After(Lsn(number(lsn))),
                }
            }
        }
    }
    settings
}

fn break_or_mend(cluster: &mut Cluster, words: &[&str]) {
    match words {
        ["cut", ends @ ..] => {
            for (from, to) in links(ends) {
                cluster.net.link(from, to).cut = true;
            }
        }
        ["isolate", ids @ ..] => {
            let ids: Vec<NodeId> = ids.iter().map(|id| node(id)).collect();
            for other in cluster.ids().into_iter().filter(|other| !ids.contains(other)) {
                for id in &ids {
                    cluster.net.link(*id, other).cut = true;
                    cluster.net.link(other, *id).cut = true;
                }
            }
        }
        ["heal"] => cluster.net.heal(),
        ["lose", link, kind, rest @ ..] => {
            let count = rest.first().map_or(1, |n| number(n));
            let (from, to) = links(&[link])[0];
            let kinds = (0..count).map(|_| (*kind).to_owned());
            cluster.net.link(from, to).lose.extend(kinds);
        }
        ["block", link, kind] => {
            let (from, to) = links(&[link])[0];
            cluster.net.link(from, to).block.push((*kind).to_owned());
        }
        ["allow", link, kind, count] => {
            let (from, to) = links(&[link])[0];
            cluster.net.link(from, to).allow.insert((*kind).to_owned(), number(count));
        }
        ["delay", link, for_] => {
            let (from, to) = links(&[link])[0];
            cluster.net.link(from, to).delay_us = (span(for_), span(for_));
        }
        ["crash", id] => cluster.crash(node(id), 0),
        ["crash", id, "keep", records] => cluster.crash(node(id), number(records) as usize),
        ["restart", id] => {
            cluster.start(node(id));
            cluster.flush();
        }
        ["copy", id] => cluster.host_mut(node(id)).copy(),
        ["restore", id] => cluster.host_mut(node(id)).restore(),
        ["tear", id] => cluster.host_mut(node(id)).tear(),
        ["damage", id, db, from, to] => {
            let (group, from, to) = (group(cluster, db), Lsn(number(from)), Lsn(number(to)));
            cluster.host_mut(node(id)).disk.damage(group, from, to);
        }
        ["heal-disk", id] => cluster.host_mut(node(id)).disk.heal(),
        ["clock", id, ahead] => {
            cluster.host_mut(node(id)).clock.wall_ms += (span(ahead) / MS) as i64;
        }
        ["rate", id, permille] => {
            let time = cluster.time;
            cluster.host_mut(node(id)).clock.set_rate(time, number(permille));
            // Its deadlines are due at other times.
            cluster.pause(node(id), time);
            cluster.host_mut(node(id)).stepped = false;
            cluster.flush();
        }
        ["lose-state", id, db] => {
            let group = group(cluster, db);
            cluster.lose_state(node(id), group);
            cluster.flush();
        }
        ["alter", id, db, key, value] => {
            let group = group(cluster, db);
            cluster.oracle.altered.insert((node(id), group));
            let state = cluster.host_mut(node(id)).states.entry(group).or_default();
            state.keys.insert((*key).to_owned(), (*value).to_owned());
        }
        ["wipe", id] => cluster.wipe(node(id)),
        ["pause", id, for_] => cluster.pause(node(id), cluster.time + span(for_)),
        ["stick", id] => cluster.host_mut(node(id)).disk.stuck = true,
        ["unstick", id] => {
            let disk = &mut cluster.host_mut(node(id)).disk;
            disk.stuck = false;
            disk.syncing = 0;
            cluster.begin_sync(node(id));
        }
        ["fail", id, "disk"] => {
            cluster.input(node(id), Input::StorageFailed { reason: "fsync failed: EIO".into() });
            cluster.flush();
        }
        ["fail", id, db] => {
            cluster.poisoned.insert((node(id), group(cluster, db)));
        }
        ["room", id, bytes] => {
            let bytes = number(bytes);
            cluster.host_mut(node(id)).disk.room = bytes;
            cluster.input(node(id), Input::Room { bytes });
            cluster.flush();
        }
        ["cancel", id, request] => {
            let request = RequestId(number(request.trim_start_matches('r')));
            cluster.cancel(node(id), request);
            cluster.flush();
        }
        _ => panic!("{words:?} is no command"),
    }
}

fn status(cluster: &Cluster, only: Option<GroupId>) -> Vec<String> {
    let mut out = Vec::new();
    for (id, host) in &cluster.hosts {
        let Some(node) = &host.node else {
            out.push(format!("  {id:?} is down"));
            continue;
        };
        if let Some(reason) = node.halted() {
            out.push(format!("  {id:?} has halted: {reason}"));
        }
        for view in node.groups().filter(|v| only.is_none_or(|group| group == v.group)) {
            let m = view.watermarks;
            let role = match (view.role, view.leader) {
                (RoleView::Leader, _) => "leads".to_owned(),
                (_, Some(leader)) => format!("follows {leader:?}"),
                (role, None) => format!("{role:?}, no leader"),
            };
            let quarantined = if view.quarantined.is_some() { ", quarantined" } else { "" };
            let doubt = if view.in_doubt { ", in doubt" } else { "" };
            let pruned = match m.pruned().0 {
                0 => String::new(),
                lsn => format!(" pruned {lsn}"),
            };
            out.push(format!(
                "  {id:?} {} t{} {role}{quarantined}{doubt}: appended {} durable {} committed {} applied {} checkpointed {}{pruned}",
                cluster.name(view.group),
                view.term,
                m.appended(),
                m.durable(),
                m.committed(),
                m.applied(),
                m.checkpointed(),
            ));
        }
    }
    out
}

/// The slots of a group, as each node knows them.
fn slots(cluster: &Cluster, group: GroupId) -> Vec<String> {
    let mut out = Vec::new();
    for (id, host) in &cluster.hosts {
        match host.node.as_ref().map(|node| node.slots(group)) {
            None => out.push(format!("  {id:?} is down")),
            Some(None) => out.push(format!("  {id:?} does not know them")),
            Some(Some(view)) => {
                let horizon =
                    view.horizon.map_or("nothing".to_owned(), |lsn| format!("from {lsn}"));
                let SlotsView { lsn, time_ms, slots, .. } = view;
                out.push(format!("  {id:?} at {lsn}, {time_ms} ms, holds back {horizon}"));
                out.extend(slots.iter().map(|slot| format!("    {}", text::slot(slot))));
            }
        }
    }
    out
}

/// The keys that each node remembers of a group, with the LSNs of their entries.
fn keys(cluster: &Cluster, group: GroupId) -> Vec<String> {
    let line = |(id, host): (&NodeId, &Host)| match host.node.as_ref() {
        None => format!("  {id:?} is down"),
        Some(node) => match node.remembered(group) {
            None => format!("  {id:?} does not know them"),
            Some(RememberedView { lsn, time_ms, keys }) => {
                let key = |(key, lsn): &(&[u8], Lsn)| format!("{} of {lsn}", key.escape_ascii());
                let keys: Vec<String> = keys.iter().map(key).collect();
                format!("  {id:?} at {lsn}, {time_ms} ms: {}", keys.join(", "))
            }
        },
    };
    cluster.hosts.iter().map(line).collect()
}

/// Every node's log of a group as it is on its disk, by terms; `|` stands after what is committed.
fn logs(cluster: &Cluster, group: GroupId) -> Vec<String> {
    let mut out = Vec::new();
    for (id, host) in &cluster.hosts {
        let log = host.disk.written.groups.get(&group);
        let view = host.node.as_ref().and_then(|n| n.group(group));
        let committed = view.map_or(0, |v| v.watermarks.committed().0);
        let mut line = format!("  {id:?}:");
        for entry in log.map(|l| &l.entries[..]).unwrap_or_default() {
            line += &format!(" {}/t{}", entry.lsn, entry.term);
            if entry.lsn.0 == committed {
                line += " |";
            }
        }
        out.push(line);
    }
    out
}

/// How far the stamps of a node's entries are ahead of true time.
fn stamps(cluster: &Cluster, id: NodeId, group: GroupId) -> Vec<String> {
    let host = cluster.host(id);
    let true_ms = host.clock.now(cluster.time).wall_ms as i64 - host.clock.wall_ms;
    let log = host.disk.written.groups.get(&group);
    let entries = log.map(|l| &l.entries[..]).unwrap_or_default();
    let stamp = |e: &Entry| {
        let ahead = (e.hlc.0 >> 16) as i64 - true_ms;
        format!("{}/t{} {:+} s", e.lsn, e.term, (ahead + 500).div_euclid(1000))
    };
    vec![format!("  {id:?}: {}", entries.iter().map(stamp).collect::<Vec<_>>().join(", "))]
}

fn state(cluster: &Cluster, id: NodeId, group: GroupId) -> Vec<String> {
    let state = cluster.host(id).states.get(&group).cloned().unwrap_or_default();
    let keys: Vec<String> = state.keys.iter().map(|(k, v)| format!("{k} = {v}")).collect();
    vec![format!("  {id:?} at {}: {}", state.applied, keys.join(", "))]
}
