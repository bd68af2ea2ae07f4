//! A node: its groups, and what they share. The whole surface of the core.
//!
//! * **Construct**: [`Node::recover`].
//! * **Feed**: [`Node::step`], with as many inputs as there are, and again when
//!   [`Node::deadline`] comes.
//! * **Look**: [`Node::groups`], [`Node::databases`], [`Node::check`] and the other getters.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use crate::{
    catalog::{Catalog, CreateDatabase, NAME_MAX},
    config::Config,
    context::{Context, Load, LoadFor, Reason},
    entry::{Formation, Kind, Record},
    formation::Forming,
    group::{Consequences, Group},
    io::{Effect, Identity, Input, Recovered, RecoveredGroup, Reject, Reply, Request},
    slots::SlotChange,
    types::{GroupId, Incarnation, Instant, LoadId, Lsn, NodeId, Now, RequestId, Term, WriteId},
};

/// A node of a cluster. See the [module's head](crate) for how it is driven.
pub struct Node {
    pub(crate) ctx: Context,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) catalog: Catalog,
    /// Groups that the oplog knows and the catalog does not, yet.
    pub(crate) unclaimed: BTreeMap<GroupId, RecoveredGroup>,
    pub(crate) forming: Forming,
    /// Entries in memory, by group.
    tails: BTreeMap<GroupId, usize>,
    tails_bytes: usize,
    drain_request: Option<RequestId>,
    halted: Option<String>,
}

/// Why a node can't start from what was found on disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The catalog's control writes can't be read.
    #[error("the catalog in the system group's state is unreadable")]
    Catalog,
    /// The state of a group holds entries that the oplog does not have: one of the two was lost
    /// or replaced.
    #[error("the state of group {group} stands at LSN {applied}, but its oplog ends at {last}")]
    StateAhead {
        /// Which.
        group: GroupId,
        /// The state.
        applied: Lsn,
        /// The oplog.
        last: Lsn,
    },
    /// The oplog holds a group's entries, but not the founding configuration.
    #[error("the oplog holds entries, but not the cluster's founding configuration")]
    NoFormation,
}

impl Node {
    /// A node from what its disk holds. Nothing is sent or persisted before the first step.
    ///
    /// # Errors
    /// Where the parts of the disk contradict each other.
    pub fn recover(
        config: Config,
        identity: Identity,
        seed: u64,
        now: Now,
        recovered: Recovered,
    ) -> Result<Node, RecoverError> {
        let mut recovered = recovered;
        if recovered.formation.is_none() && !recovered.groups.is_empty() {
            return Err(RecoverError::NoFormation);
        }
        let mut ctx = Context::new(config, identity, seed, now, &recovered.boots);
        ctx.room = recovered.room;
        ctx.doubt = recovered.doubt;
        ctx.recall.found(&recovered);
        for group in recovered.take_lost_states() {
            // The hint of an earlier start is wrong from now on.
            ctx.persist_hint(Record::Checkpointed { group, lsn: Lsn(0) });
        }
        let catalog = Catalog::recover(&recovered.system_control).ok_or(RecoverError::Catalog)?;
        let mut unclaimed = BTreeMap::new();
        for mut group in recovered.groups {
            if group.group == GroupId::SYSTEM {
                // Its state was read, and is no hint.
                group.checkpointed = recovered.system_applied;
            }
            if group.checkpointed > group.last {
                let (applied, last) = (group.checkpointed, group.last);
                return Err(RecoverError::StateAhead { group: group.group, applied, last });
            }
            unclaimed.insert(group.group, group);
        }
        let mut node = Node {
            ctx,
            groups: BTreeMap::new(),
            catalog,
            unclaimed,
            forming: Forming::default(),
            tails: BTreeMap::new(),
            tails_bytes: 0,
            drain_request: None,
            halted: None,
        };
        node.ctx.set_timer(Reason::Heartbeat, now.mono);
        if let Some(formation) = recovered.formation {
            node.start_groups(formation);
        }
        Ok(node)
    }

    /// Opens the system group and every group of the catalog.
    pub(crate) fn start_groups(&mut self, formation: Formation) {
        let known: Vec<(GroupId, Vec<_>)> =
            self.catalog.iter().map(|(_, db)| (db.group, db.voters.clone())).collect();
        let count = known.len() as u64;
        self.open_group(GroupId::SYSTEM, formation.members.clone(), 0);
        for (group, voters) in known {
            self.open_group(group, voters, count);
        }
        self.forming.done(formation);
    }

    fn open_group(&mut self, id: GroupId, voters: Vec<crate::types::Member>, together_with: u64) {
        let found = self.unclaimed.remove(&id).unwrap_or_default();
        let applied = found.checkpointed;
        let mut group = Group::new(id, voters, &found, applied, &self.ctx);
        group.arm_first_election(&mut self.ctx, together_with);
        self.ctx.emit(Effect::Leader { group: id, term: group.term(), leader: None });
        self.groups.insert(id, group);
    }

    /// Takes what has happened until `now`, and says what to do. Inputs come before deadlines, so
    /// that a busy node does not mistake its own delay for a peer's silence.
    ///
    /// # Panics
    /// On a bug: a broken invariant, or a shell that completes what it was not asked for.
    pub fn step(
        &mut self,
        now: Now,
        inputs: impl IntoIterator<Item = Input>,
        effects: &mut Vec<Effect>,
    ) {
        self.advance_clock(now);
        for input in inputs {
            if self.halted.is_some() {
                self.refuse(input);
            } else {
                self.take(input);
            }
        }
        if self.halted.is_none() {
            while let Some(reason) = self.ctx.due() {
                self.on_due(reason);
            }
            self.finish_step();
        }
        self.ctx.drain_effects(effects);
    }

    /// When to step again at the latest, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, Reason)> {
        if self.halted.is_some() { None } else { self.ctx.deadline() }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Message { from, message } => self.on_message(from, message),
            Input::Request { id, request } => self.on_request(id, request),
            Input::Cancel { id } => {
                self.ctx.requests.remove(&id);
            }
            Input::Persisted { write } => self.on_persisted(write),
            Input::Room { bytes } => self.ctx.room = bytes,
            Input::Loaded { load, entries } => self.on_loaded(load, Ok(entries)),
            Input::LoadFailed { load, reason } => self.on_loaded(load, Err(reason)),
            Input::Damaged { group, from, to } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    let reason = String::from("a block of the oplog is damaged");
                    g.on_unreadable(&mut self.ctx, (from, to), true, reason);
                }
            }
            Input::Applied { group, upto, outcomes } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    g.on_applied(&mut self.ctx, upto, outcomes);
                    self.ctx.touched.insert(group);
                }
            }
            Input::StateFailed { group, reason } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    g.quarantine(&mut self.ctx, reason);
                    self.ctx.touched.insert(group);
                }
            }
            Input::StateLost { group, reason } => self.on_state_lost(group, reason),
            Input::Checkpointed { group, lsn } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    g.on_checkpointed(&mut self.ctx, lsn);
                    self.ctx.touched.insert(group);
                }
            }
            Input::SnapshotReady { group, at } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    g.on_snapshot_ready(&mut self.ctx, at);
                    self.ctx.touched.insert(group);
                }
            }
            Input::SnapshotFailed { group, reason: _ } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    g.on_snapshot_failed(&mut self.ctx);
                    self.ctx.touched.insert(group);
                }
            }
            Input::Control { group, at, rows } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    g.on_control(&mut self.ctx, at, &rows);
                    self.ctx.touched.insert(group);
                }
            }
            Input::StorageFailed { reason } => {
                self.ctx.emit(Effect::Halt { reason: reason.clone() });
                self.halted = Some(reason);
            }
        }
    }

    /// The catalog is in memory in full, so that the system group's state is there again with the next
    /// checkpoint.
    fn on_state_lost(&mut self, id: GroupId, reason: String) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.on_state_lost(&mut self.ctx, reason);
        self.ctx.touched.insert(id);
        if id == GroupId::SYSTEM {
            self.catalog.dirty_all();
            self.checkpoint_catalog();
        }
    }

    /// This data directory has lost what it promised: the node stops, to come back without a vote, in
    /// an incarnation beyond this one.
    pub(crate) fn fence(&mut self, reason: String, beyond: Incarnation) {
        self.ctx.emit(Effect::Fence { reason: reason.clone(), beyond });
        self.halted = Some(reason);
    }

    /// A halted node answers requests with a refusal, and nothing else.
    fn refuse(&mut self, input: Input) {
        if let Input::Request { id, .. } = input {
            self.ctx.requests.insert(id);
            self.ctx.reject(id, Reject::NotReady);
        }
    }

    fn on_persisted(&mut self, write: WriteId) {
        let Some(groups) = self.ctx.persisted(write) else {
            panic!("the shell completes writes once and in order");
        };
        self.on_formation_persisted();
        for id in groups {
            if let Some(group) = self.groups.get_mut(&id) {
                group.on_persisted(&mut self.ctx, write);
                self.ctx.touched.insert(id);
            }
        }
    }

    fn on_loaded(&mut self, load: LoadId, result: Result<Vec<crate::Entry>, String>) {
        let Some(Load { purpose, group: id, from, to }) = self.ctx.loads.remove(&load) else {
            panic!("the shell completes only what it was asked for");
        };
        let Some(group) = self.groups.get_mut(&id) else { return };
        self.ctx.touched.insert(id);
        let ctx = &mut self.ctx;
        let mut consequences = Consequences::default();
        match result {
            Ok(entries) => {
                group.on_readable(&entries);
                match purpose {
                    LoadFor::Follower(node) => group.on_loaded_for(ctx, node, load, entries),
                    LoadFor::Apply => group.on_loaded_for_apply(ctx, entries, &mut consequences),
                    LoadFor::Peer(node) => group.on_loaded_for_peer(ctx, node, from, entries),
                }
            }
            Err(reason) => {
                match purpose {
                    LoadFor::Follower(node) => group.on_load_failed_for(ctx, node, load),
                    LoadFor::Apply => group.on_load_for_apply_failed(),
                    LoadFor::Peer(node) => group.on_loaded_for_peer(ctx, node, from, Vec::new()),
                }
                group.on_unreadable(ctx, (from, to), false, reason);
            }
        }
        self.carry_out(consequences);
    }

    fn on_request(&mut self, id: RequestId, request: Request) {
        self.ctx.requests.insert(id);
        if self.groups.is_empty() {
            return self.ctx.reject(id, Reject::NotReady);
        }
        let group = match &request {
            Request::Propose { group, .. }
            | Request::Read { group }
            | Request::CreateSlot { group, .. }
            | Request::AckSlot { group, .. }
            | Request::DeleteSlot { group, .. }
            | Request::Transfer { group, .. } => *group,
            Request::CreateDatabase { .. } => GroupId::SYSTEM,
            Request::Drain => return self.drain(id),
        };
        let Some(g) = self.groups.get_mut(&group) else {
            return self.ctx.reject(id, Reject::NoSuchGroup);
        };
        self.ctx.touched.insert(group);
        match request {
            Request::Propose { payload, once, expires, .. } => {
                if group == GroupId::SYSTEM {
                    // The control plane takes no ops.
                    return self.ctx.reject(id, Reject::NoSuchGroup);
                }
                if self.ctx.now.mono >= expires {
                    return self.ctx.reject(id, Reject::Expired);
                }
                match once {
                    None => g.propose(&mut self.ctx, id, Kind::Op, payload),
                    Some(once) => g.propose_once(&mut self.ctx, id, once, payload),
                }
            }
            Request::Read { .. } => g.read(&mut self.ctx, id),
            Request::CreateSlot { name, settings, expires, .. } => {
                g.ask_slot(&mut self.ctx, id, SlotChange::Create { name, settings }, expires);
            }
            Request::AckSlot { name, lsn, expires, .. } => {
                g.ask_slot(&mut self.ctx, id, SlotChange::Ack { name, lsn }, expires);
            }
            Request::DeleteSlot { name, expires, .. } => {
                g.ask_slot(&mut self.ctx, id, SlotChange::Delete { name }, expires);
            }
            Request::Transfer { to, .. } => g.transfer(&mut self.ctx, id, to),
            Request::CreateDatabase { name, expires } => {
                if self.ctx.now.mono >= expires {
                    return self.ctx.reject(id, Reject::Expired);
                }
                self.create_database(id, name);
            }
            Request::Drain => unreachable!("handled above"),
        }
    }

    fn create_database(&mut self, id: RequestId, name: String) {
        if name.len() > NAME_MAX {
            return self.ctx.reject(id, Reject::TooLarge);
        }
        let under_way = self.groups.get(&GroupId::SYSTEM).map_or(0, Group::proposals);
        let databases = self.catalog.len() + under_way;
        if self.catalog.get(&name).is_none() && databases >= self.ctx.config.databases_max {
            return self.ctx.reject(id, Reject::Busy);
        }
        let voters = self.forming.members();
        let payload = CreateDatabase { name, voters }.encode();
        if let Some(system) = self.groups.get_mut(&GroupId::SYSTEM) {
            system.propose(&mut self.ctx, id, Kind::CreateDatabase, payload);
        }
    }

    fn drain(&mut self, id: RequestId) {
        if self.drain_request.is_some() {
            return self.ctx.reject(id, Reject::Busy);
        }
        self.ctx.draining = true;
        self.drain_request = Some(id);
        for group in self.groups.values_mut() {
            group.stop_campaigning(&mut self.ctx);
            group.hand_over(&mut self.ctx);
        }
    }

    /// Carries out what the system group's entries decided.
    fn carry_out(&mut self, consequences: Consequences) {
        for (lsn, term, create) in consequences.created {
            let Some(system) = self.groups.get_mut(&GroupId::SYSTEM) else { return };
            let leads = system.is_leader();
            let voters = create.voters.clone();
            let (group, existed) = self.catalog.create(GroupId(lsn.0), create);
            system.on_created(&mut self.ctx, (lsn, term), group, existed);
            if existed {
                continue;
            }
            self.open_group(group, voters, 0);
            if leads && let Some(new) = self.groups.get_mut(&group) {
                new.arm_election_now(&mut self.ctx);
            }
        }
        self.checkpoint_catalog();
    }

    /// The catalog is small: it is checkpointed whenever it changed.
    fn checkpoint_catalog(&mut self) {
        if !self.catalog.is_dirty() {
            return;
        }
        if let Some(system) = self.groups.get_mut(&GroupId::SYSTEM)
            && !system.is_checkpointing()
        {
            let control = self.catalog.take_dirty();
            system.begin_checkpoint(&mut self.ctx, control);
        }
    }

    fn on_due(&mut self, reason: Reason) {
        match reason {
            Reason::Heartbeat => self.on_heartbeat_due(),
            Reason::PeerExpiry(node) => self.on_peer_expiry_due(node),
            Reason::Election(id) => {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.on_election_due(&mut self.ctx);
                    self.ctx.touched.insert(id);
                }
            }
            Reason::Repair(id) => {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.on_repair_due(&mut self.ctx);
                    self.ctx.touched.insert(id);
                }
            }
            Reason::Slots(id) | Reason::Audit(id) | Reason::Bootstrap(id) => {
                self.ctx.touched.insert(id);
            }
            Reason::Retry(id) => {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.on_retry(&mut self.ctx);
                    self.ctx.touched.insert(id);
                }
            }
        }
    }

    /// Ends a step: every touched group does what batches, then the bounds that span groups.
    fn finish_step(&mut self) {
        self.bound_dirty();
        while let Some(id) = self.ctx.touched.pop_first() {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let mut consequences = Consequences::default();
            group.finish_step(&mut self.ctx, &mut consequences);
            let bytes = group.log().tail_bytes();
            self.note_tail(id, bytes);
            if id == GroupId::SYSTEM {
                self.carry_out(consequences);
            }
        }
        self.bound_tails();
        if let Some(request) = self.drain_request
            && (self.leads_nothing() || !self.ctx.peers.iter().any(|(_, peer)| peer.alive))
        {
            self.drain_request = None;
            self.ctx.reply(request, Reply::Transferred { term: Term(0) });
        }
        self.persist_acks();
        self.ctx.flush_batch();
    }

    fn leads_nothing(&self) -> bool {
        self.ctx.led_by.get(&self.ctx.me().node).is_none_or(|led| led.is_empty())
    }

    fn note_tail(&mut self, id: GroupId, bytes: usize) {
        let before = if bytes == 0 { self.tails.remove(&id) } else { self.tails.insert(id, bytes) };
        self.tails_bytes = self.tails_bytes + bytes - before.unwrap_or(0);
    }

    fn bound_tails(&mut self) {
        if self.tails_bytes <= self.ctx.config.tails_bytes_max {
            return;
        }
        let ids: Vec<GroupId> = self.tails.keys().copied().collect();
        for id in ids {
            if let Some(group) = self.groups.get_mut(&id) {
                group.shrink_tail(0);
                let bytes = group.log().tail_bytes();
                self.note_tail(id, bytes);
            }
            // Half is kept, so that this is not repeated at once.
            if self.tails_bytes <= self.ctx.config.tails_bytes_max / 2 {
                break;
            }
        }
    }

    fn bound_dirty(&mut self) {
        let config = &self.ctx.config;
        if self.ctx.dirty_bytes <= config.dirty_bytes_max
            || self.ctx.checkpoints >= config.checkpoints_max
        {
            return;
        }
        let dirtiest = self.groups.values_mut().max_by_key(|group| group.dirty_bytes());
        if let Some(group) = dirtiest.filter(|group| group.dirty_bytes() > 0) {
            group.want_checkpoint(&mut self.ctx);
        }
    }

    /// Held in memory by all groups' tails, in bytes.
    pub(crate) fn tails_bytes(&self) -> usize {
        self.tails_bytes
    }

    /// Why this node has halted, if it has.
    #[must_use]
    pub fn halted(&self) -> Option<&str> {
        self.halted.as_deref()
    }

    /// Whether a group's leader is this node.
    pub(crate) fn leader_of(&self, id: GroupId) -> Option<NodeId> {
        self.groups.get(&id).and_then(|group| group.leader(&self.ctx))
    }
}
