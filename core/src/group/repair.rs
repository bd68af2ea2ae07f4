//! Entries that the oplog holds, but can't read: peers have them too. What is fetched is used for
//! what the load was for (applying, or a follower), and handed to the oplog to mend its copy. Until a
//! peer can help, whoever needs the entries waits, and the oplog is tried again as well.
//!
//! An LSN and a term name one entry, so an answer is checked against this log's own terms. That is
//! why peers also give what they do not know to be committed: a leader might need that to commit it.
//! Where nobody has such an entry it may never have been committed, and then only another leader can
//! replace it: this one makes way where the others could elect one of them, and does not campaign for a
//! while. Whoever is elected instead has it, if it was committed (§5.4.1).

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use super::{Group, Role};
use crate::{
    context::{Context, LoadFor, Reason},
    entry::Entry,
    io::{Effect, Notice},
    message::GroupMessage,
    types::{Lsn, NodeId},
};

/// What a group can't read, and what peers asked of it.
#[derive(Default)]
pub(super) struct Repair {
    /// By the first LSN.
    wanted: BTreeMap<Lsn, Wanted>,
    /// Rises whenever those who were asked did not help: then others are.
    turn: usize,
    /// Peers for which a load is under way: one each.
    serving: BTreeSet<NodeId>,
}

struct Wanted {
    to: Lsn,
    /// All of it is damaged; else only the first entry is known to be.
    whole: bool,
    /// How often a peer was asked.
    asked: usize,
}

/// Each peer is asked so often before a leader gives up what it can't read.
const ASKED_EACH: usize = 3;

/// What is forgotten beyond that is found again when it is read.
const WANTED_MAX: usize = 64;

impl Repair {
    /// Notes what can't be read. Whether nothing was known to be wrong from there on.
    fn wants(&mut self, from: Lsn, to: Lsn, whole: bool) -> bool {
        if let Some(wanted) = self.wanted.get_mut(&from) {
            wanted.to = wanted.to.max(to);
            wanted.whole |= whole;
            return false;
        }
        if self.wanted.len() >= WANTED_MAX {
            self.wanted.pop_last();
        }
        self.wanted.insert(from, Wanted { to, whole, asked: 0 });
        true
    }
}

impl Group {
    /// Entries can't be read: the first one, or (`whole`) all of them.
    pub(crate) fn on_unreadable(
        &mut self,
        ctx: &mut Context,
        (from, to): (Lsn, Lsn),
        whole: bool,
        reason: String,
    ) {
        ctx.set_timer_by(Reason::Repair(self.id), ctx.now.mono.plus(ctx.config.retry_us));
        if !whole && from < self.log.marks().first() {
            // It was pruned meanwhile.
            return;
        }
        let from = from.max(self.log.marks().first());
        let to = to.min(self.log.marks().appended());
        if from > to {
            return;
        }
        if self.repair.wants(from, to, whole) {
            ctx.notice(Notice::Unreadable { group: self.id, from, to, reason });
            self.fetch(ctx, from, to);
        }
    }

    /// The oplog could read these entries.
    pub(crate) fn on_readable(&mut self, entries: &[Entry]) {
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            self.repair.wanted.retain(|from, _| *from < first.lsn || *from > last.lsn);
        }
    }

    /// What comes before that is not in the log any more.
    pub(super) fn forget_wanted_before(&mut self, first: Lsn) {
        self.repair.wanted = self.repair.wanted.split_off(&first);
    }

    /// What begins there is truncated: others will be in its place.
    pub(super) fn forget_wanted(&mut self, first: Lsn) {
        self.repair.wanted.split_off(&first);
    }

    /// The group's repair deadline: asks again, of the next peer, and tries the oplog again.
    pub(crate) fn on_repair_due(&mut self, ctx: &mut Context) {
        let (appended, committed) = (self.log.marks().appended(), self.log.marks().committed());
        let enough = self.asks_enough();
        // Who made way for it for so long tries it again: it may have been the disk's mood.
        let lasts = |wanted: &Wanted| enough == 0 || wanted.asked < 2 * enough;
        self.repair
            .wanted
            .retain(|from, wanted| *from <= appended && (*from <= committed || lasts(wanted)));
        let next = self.log.marks().applied().next();
        if enough > 0 && self.repair.wanted.get(&next).is_some_and(|w| w.asked >= enough) {
            // Nobody has it any more: what comes after it is in a snapshot.
            self.want_snapshot(next);
        }
        if self.is_leader() && self.misses_uncommitted() && self.is_dispensable(ctx) {
            self.become_follower(ctx, self.term, None);
        }
        self.repair.turn += 1;
        let wanted: Vec<(Lsn, Lsn)> =
            self.repair.wanted.iter().map(|(from, wanted)| (*from, wanted.to)).collect();
        for (from, to) in &wanted {
            self.fetch(ctx, *from, *to);
        }
        if !wanted.is_empty() {
            ctx.set_timer_by(Reason::Repair(self.id), ctx.now.mono.plus(ctx.config.retry_us));
        }
        self.applying.unblock();
    }

    /// Whether the others could elect one of them.
    fn is_dispensable(&self, ctx: &Context) -> bool {
        let me = ctx.me();
        let others = self.voters.iter().filter(|v| **v != me && ctx.peers.is_alive(v.node));
        others.count() >= self.quorum(ctx)
    }

    /// So many questions, one after the other, have come to each peer often enough, where all are there.
    fn asks_enough(&self) -> usize {
        ASKED_EACH * self.voters.len().saturating_sub(1)
    }

    /// Whether nobody has what this replica can't read, and does not know to be committed.
    pub(super) fn misses_uncommitted(&self) -> bool {
        let enough = self.asks_enough();
        let mut beyond = self.repair.wanted.range(self.log.marks().committed().next()..);
        enough > 0 && beyond.any(|(_, wanted)| wanted.asked >= enough)
    }

    /// Asks the leader, or where that did not help the next one of those who are there.
    fn fetch(&mut self, ctx: &mut Context, from: Lsn, to: Lsn) {
        let leader = self.leader(ctx);
        let mut nodes: Vec<NodeId> =
            ctx.peers.iter().filter(|(_, peer)| peer.alive).map(|(node, _)| node).collect();
        nodes.sort_by_key(|node| Some(*node) != leader);
        if !nodes.is_empty() {
            let node = nodes[self.repair.turn % nodes.len()];
            self.send(ctx, node, GroupMessage::Fetch { from, to });
            if let Some(wanted) = self.repair.wanted.get_mut(&from) {
                wanted.asked += 1;
            }
        }
    }

    /// A peer can't read what this node may hold.
    pub(super) fn on_fetch(&mut self, ctx: &mut Context, node: NodeId, from: Lsn, to: Lsn) {
        let to = to.min(self.log.marks().durable());
        if from < self.log.marks().first() || from > to {
            return self.send(ctx, node, GroupMessage::Fetched { from, entries: Vec::new() });
        }
        let (bytes_max, entries_max) = (ctx.config.append_bytes_max, ctx.config.append_entries_max);
        if let Some(entries) = self.log.slice(from, to, bytes_max, entries_max) {
            self.send(ctx, node, GroupMessage::Fetched { from, entries });
        } else if self.repair.serving.insert(node) {
            let to = to.min(Lsn(from.0 + entries_max as u64 - 1));
            ctx.load(self.id, LoadFor::Peer(node), (from, to), bytes_max);
        }
    }

    /// Entries from disk for a peer that asked for them; none where they can't be read here either.
    pub(crate) fn on_loaded_for_peer(
        &mut self,
        ctx: &mut Context,
        node: NodeId,
        from: Lsn,
        mut entries: Vec<Entry>,
    ) {
        self.repair.serving.remove(&node);
        // They may have been replaced meanwhile.
        let gone = entries.iter().position(|e| self.log.term_at(e.lsn) != Some(e.term));
        entries.truncate(gone.unwrap_or(entries.len()));
        self.send(ctx, node, GroupMessage::Fetched { from, entries });
    }

    /// A peer's copies of what can't be read here.
    pub(super) fn on_fetched(
        &mut self,
        ctx: &mut Context,
        node: NodeId,
        from: Lsn,
        mut entries: Vec<Entry>,
    ) {
        let Some(wanted) = self.repair.wanted.get(&from) else { return };
        let (whole, to) = (wanted.whole, wanted.to);
        let in_order = entries.iter().zip(from.0..).all(|(e, lsn)| e.lsn == Lsn(lsn));
        if !in_order {
            return ctx.fault(node, "its entries are not those that were asked for");
        }
        // It may be the answer to a longer question, asked before a part of that was had.
        entries.retain(|e| e.lsn <= to);
        let differs = |e: &Entry| {
            let before = self.log.term_at(e.lsn.prev());
            self.log.term_at(e.lsn) != Some(e.term) || before != Some(e.prev_term)
        };
        // What is not known to be committed there may differ: one of the two will be replaced.
        let agree = entries.iter().position(differs).unwrap_or(entries.len());
        entries.truncate(agree);
        let Some(last) = entries.last().map(|e| e.lsn) else { return };
        self.repair.wanted.remove(&from);
        ctx.notice(Notice::Mended { group: self.id, from, to: last });
        ctx.emit(Effect::Mend { group: self.id, entries: entries.clone() });
        self.send_fetched(ctx, &entries);
        self.keep_for_apply(entries);
        ctx.touched.insert(self.id);
        if whole && last < to && self.repair.wants(last.next(), to, whole) {
            self.fetch(ctx, last.next(), to);
        }
    }

    /// Followers whose next entry could not be read get it now.
    fn send_fetched(&mut self, ctx: &mut Context, entries: &[Entry]) {
        let Role::Leader(leader) = &self.role else { return };
        let nodes: Vec<NodeId> = leader.progress.keys().copied().collect();
        for node in nodes {
            if ctx.is_reachable(node) {
                self.send_held(ctx, node, entries);
            }
        }
    }

    /// How many stretches of entries can't be read.
    pub(crate) fn unreadable(&self) -> usize {
        self.repair.wanted.len()
    }

    pub(super) fn check_repair(&self, ctx: &Context) {
        assert!(self.repair.wanted.len() <= WANTED_MAX, "what is to be fetched is bounded");
        let paced = ctx.has_timer(Reason::Repair(self.id));
        assert!(self.repair.wanted.is_empty() || paced, "what can't be read is asked for again");
    }
}
