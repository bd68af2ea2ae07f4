//! The whole surface between the core and a shell: [`Input`]s in, [`Effect`]s out. Both are
//! exhaustive, so that a new one breaks every shell at compile time.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use bytes::Bytes;

use crate::{
    entry::{Entry, Formation, Outcome, Position, Record},
    message::Message,
    once::OnceKey,
    retention::Base,
    slots::{SlotCause, SlotOutcome, SlotSettings},
    types::{
        Boot, ClusterId, GroupId, Hlc, Incarnation, Instant, LoadId, Lsn, Member, NodeId, Peer,
        RequestId, Term, WriteId,
    },
};

/// What happened in the world. A step takes many at once.
#[derive(Clone, Debug)]
pub enum Input {
    /// A peer said something.
    Message {
        /// Who, as the transport vouches.
        from: Peer,
        /// What.
        message: Message,
    },
    /// A client of this node wants something.
    Request {
        /// The shell's name for it.
        id: RequestId,
        /// What.
        request: Request,
    },
    /// The shell gave up on a request: no reply is wanted any more. What was appended stays.
    Cancel {
        /// Which.
        id: RequestId,
    },
    /// A [`Effect::Persist`] and all before it are fsynced.
    Persisted {
        /// The last one that is.
        write: WriteId,
    },
    /// How many bytes the oplog can still take for certain, once the writes that are complete are in
    /// it. Sent whenever that has changed, before the completion of the write that changed it.
    Room {
        /// Bytes.
        bytes: u64,
    },
    /// A [`Effect::Load`] is done: entries from its `from` on, at least one.
    Loaded {
        /// Which.
        load: LoadId,
        /// Contiguous.
        entries: Vec<Entry>,
    },
    /// A [`Effect::Load`] could not be done: its first entry is damaged, or could not be read just
    /// now. It is asked for again, of the oplog and of peers.
    LoadFailed {
        /// Which.
        load: LoadId,
        /// For the operator.
        reason: String,
    },
    /// Entries of a group that the oplog holds can't be read: they are to be had from a peer.
    Damaged {
        /// Whose.
        group: GroupId,
        /// The first one.
        from: Lsn,
        /// The last one.
        to: Lsn,
    },
    /// A [`Effect::Apply`] is done.
    Applied {
        /// Whose.
        group: GroupId,
        /// Applied up to here.
        upto: Lsn,
        /// One for each entry of the run that [has one](crate::Kind::has_outcome), in order.
        outcomes: Vec<Outcome>,
    },
    /// A [`Effect::Apply`], [`Effect::Checkpoint`] or [`Effect::ReadControl`] failed: the group is
    /// quarantined here.
    StateFailed {
        /// Whose.
        group: GroupId,
        /// For the operator.
        reason: String,
    },
    /// A group's state was damaged, and is gone: nothing of it is left, on disk or in memory, and no
    /// [`Effect::Apply`], [`Effect::Checkpoint`] or [`Effect::ReadControl`] for it is carried out
    /// before its [`Effect::Reopen`]. None of those before is answered.
    StateLost {
        /// Whose.
        group: GroupId,
        /// For the operator.
        reason: String,
    },
    /// A [`Effect::Bootstrap`] is done: a snapshot of the group is here, durable and whole, but not in
    /// use.
    SnapshotReady {
        /// Whose.
        group: GroupId,
        /// What it stands at.
        at: Position,
    },
    /// A [`Effect::Bootstrap`] could not be done. Tried again, with another node.
    SnapshotFailed {
        /// Whose.
        group: GroupId,
        /// For the operator.
        reason: String,
    },
    /// A [`Effect::Checkpoint`] is durable.
    Checkpointed {
        /// Whose.
        group: GroupId,
        /// Durable up to here.
        lsn: Lsn,
    },
    /// A [`Effect::ReadControl`] or an [`Effect::Install`] is done.
    Control {
        /// Whose.
        group: GroupId,
        /// What the state stands at: at least what was asked for.
        at: Position,
        /// Every row whose key has one of the prefixes.
        rows: Vec<(Bytes, Bytes)>,
    },
    /// The oplog failed (a write or fsync): the node halts.
    StorageFailed {
        /// For the operator.
        reason: String,
    },
}

/// What a client of this node may ask of the core.
#[derive(Clone, Debug)]
pub enum Request {
    /// Append an operation. Answered only by the leader.
    Propose {
        /// Where.
        group: GroupId,
        /// For the state machine; at most [`Config::payload_bytes_max`](crate::Config::payload_bytes_max).
        payload: Bytes,
        /// Has it take effect once at most: while a leader remembers the key, the same request is
        /// answered with what came of the first one, and another one is refused.
        once: Option<OnceKey>,
        /// Dropped before the append once this has passed.
        expires: Instant,
    },
    /// A linearizable read point; answered on any node. Holds for the state and for the group's
    /// [slots](crate::Node::slots).
    Read {
        /// Where.
        group: GroupId,
    },
    /// Create a database. Answered only by the system group's leader.
    CreateDatabase {
        /// Its name; the shell has validated it.
        name: String,
        /// Dropped before the append once this has passed.
        expires: Instant,
    },
    /// Create a slot. Answered only by the leader.
    CreateSlot {
        /// Where.
        group: GroupId,
        /// Its name, of at most [`SLOT_NAME_MAX`](crate::SLOT_NAME_MAX) bytes; the shell has
        /// validated it.
        name: String,
        /// Where it begins, and its limits.
        settings: SlotSettings,
        /// Dropped before the append once this has passed.
        expires: Instant,
    },
    /// A slot's consumer has everything up to an LSN. Answered only by the leader, after at most
    /// [`Config::slot_ack_us`](crate::Config::slot_ack_us) and a commit.
    AckSlot {
        /// Where.
        group: GroupId,
        /// Which slot.
        name: String,
        /// Up to here.
        lsn: Lsn,
        /// Dropped before the append once this has passed.
        expires: Instant,
    },
    /// Delete a slot. Answered only by the leader.
    DeleteSlot {
        /// Where.
        group: GroupId,
        /// Which slot.
        name: String,
        /// Dropped before the append once this has passed.
        expires: Instant,
    },
    /// Hand leadership to a node. Answered only by the leader.
    Transfer {
        /// Of which group.
        group: GroupId,
        /// To whom.
        to: NodeId,
    },
    /// Hand over every group this node leads and lead none from now on; answered once it is so, or
    /// when no other node is there to take over.
    Drain,
}

/// The answer to a [`Request`]. Each request gets exactly one, unless cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// [`Request::Propose`]: committed and applied here.
    Applied {
        /// Where.
        lsn: Lsn,
        /// In which term.
        term: Term,
        /// With which result.
        outcome: Outcome,
        /// It is the result of an earlier request with the same key.
        replayed: bool,
    },
    /// [`Request::CreateDatabase`]: committed and applied here.
    Created {
        /// The database's group.
        group: GroupId,
        /// It stood before.
        existed: bool,
    },
    /// [`Request::Read`]: this node's state, as it is now, may answer.
    Readable {
        /// The read index; applied here.
        lsn: Lsn,
    },
    /// [`Request::CreateSlot`], [`Request::AckSlot`] and [`Request::DeleteSlot`]: this came of it.
    /// Whatever it says of the slot is committed, and applied here.
    Slot {
        /// The entry that it is the outcome of; of a sign of life that was worth no entry, what is
        /// applied here.
        lsn: Lsn,
        /// The first LSN that the log still has: where a consumer whose slot is invalidated may
        /// begin anew, after a snapshot.
        first: Lsn,
        /// What came of it.
        outcome: SlotOutcome,
    },
    /// [`Request::Transfer`] and [`Request::Drain`]: done.
    Transferred {
        /// The term in which the new leader was seen; the old one for a drain.
        term: Term,
    },
    /// It was appended, and a snapshot has taken its place in the log: whether it took effect, and what
    /// came of it, can't be told.
    Unknown,
    /// Definite: it had no effect and will have none.
    Rejected(Reject),
}

/// Why a request had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// This node does not lead the group; try the leader, if it is known.
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// No such group in the catalog applied here.
    NoSuchGroup,
    /// A bound is reached; try again later.
    Busy,
    /// The oplog has no room left.
    StorageFull,
    /// `expires` had passed before the append.
    Expired,
    /// The payload, or a name, is too large.
    TooLarge,
    /// Its entry can't be committed any more: another one is at its LSN, or one of a later term
    /// before it.
    Superseded,
    /// The group is quarantined on this node.
    Quarantined,
    /// Leadership is being handed over; try again shortly.
    Transferring,
    /// [`Request::Transfer`]: no such voter, or it did not take over in time.
    TransferFailed,
    /// The node has not been formed yet, or has halted.
    NotReady,
    /// Another request had the same key.
    KeyMismatch,
    /// As many keys are remembered as may be, and none is forgotten early; try again later.
    KeysFull,
    /// The leader does not know yet which keys its log holds; try again shortly.
    KeysUnknown,
}

/// What the shell must do. Safe to carry out the moment it is emitted.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make durable, in order of `write`; answer [`Input::Persisted`].
    Persist {
        /// Rises by one.
        write: WriteId,
        /// Never empty.
        records: Vec<Record>,
    },
    /// Read entries back; answer [`Input::Loaded`] or [`Input::LoadFailed`].
    Load {
        /// Names it.
        load: LoadId,
        /// Whose.
        group: GroupId,
        /// First LSN wanted.
        from: Lsn,
        /// Last LSN wanted; fewer is fine, none is not.
        to: Lsn,
        /// About how many bytes; at least one entry comes whatever its size.
        max_bytes: usize,
    },
    /// Good copies of entries that the oplog could not read: it puts them in place of the damage. No
    /// answer.
    Mend {
        /// Whose.
        group: GroupId,
        /// Contiguous; each the very entry that the log has there.
        entries: Vec<Entry>,
    },
    /// Read control writes back as the last checkpoint left them; answer [`Input::Control`], or
    /// [`Input::StateFailed`]. Asked for once in a run, before a group's first [`Effect::Apply`]. A
    /// state that stands below `lsn` is lost.
    ReadControl {
        /// Whose.
        group: GroupId,
        /// How their keys begin.
        prefixes: Vec<Bytes>,
        /// The oplog knows of a checkpoint here.
        lsn: Lsn,
    },
    /// Apply a run of committed, durable entries; answer [`Input::Applied`] or
    /// [`Input::StateFailed`]. At most one per group is in flight. Entries that the state holds
    /// already (after a restart) are to be skipped, with default outcomes.
    Apply {
        /// Whose.
        group: GroupId,
        /// Contiguous.
        entries: Vec<Entry>,
    },
    /// Fetch a snapshot of a group from a node: its state at an LSN that is not below `above`, with the
    /// core's control writes, made durable beside the state that is in use. Answer
    /// [`Input::SnapshotReady`] or [`Input::SnapshotFailed`]. At most one per group is under way.
    Bootstrap {
        /// Whose.
        group: GroupId,
        /// From whom.
        from: NodeId,
        /// At least from here on the log is to be had.
        above: Lsn,
    },
    /// Put the snapshot that is ready in the place of the group's state, in one moment, durably; what
    /// was not checkpointed is gone. Nothing of the group is being applied or checkpointed. Answer as an
    /// [`Effect::ReadControl`].
    Install {
        /// Whose.
        group: GroupId,
        /// What the snapshot stands at.
        at: Position,
        /// Of the keys of control writes that came with it.
        prefixes: Vec<Bytes>,
    },
    /// A group's state begins anew, from nothing: what follows for it counts. Not to be read from
    /// before it is applied up to here again.
    Reopen {
        /// Whose.
        group: GroupId,
        /// What was applied before.
        upto: Lsn,
    },
    /// A group's state is of no use any more, be it that it is not what the others have: it is served no
    /// more, from now on, and dropped; answer [`Input::StateLost`], as of any other loss.
    DropState {
        /// Whose.
        group: GroupId,
        /// For the operator.
        reason: String,
    },
    /// Make the state durable at exactly what is applied now, with these control writes in
    /// the same transaction; answer [`Input::Checkpointed`] or [`Input::StateFailed`]. Later
    /// [`Effect::Apply`]s may come before that.
    Checkpoint {
        /// Whose.
        group: GroupId,
        /// What is applied.
        at: Position,
        /// Outcomes of refused operations up to here, among the control writes, are to be forgotten:
        /// see [`refused_key`](crate::control::refused_key).
        pruned: Lsn,
        /// Key-value writes of the core; opaque to the engine.
        control: Vec<(Bytes, Bytes)>,
    },
    /// Say something to a node. May be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Answer a request.
    Reply {
        /// Which.
        request: RequestId,
        /// With what.
        reply: Reply,
    },
    /// News for the shell's routing and metrics: this node's view of a group's leader changed, or
    /// the group is new.
    Leader {
        /// Which group.
        group: GroupId,
        /// The term.
        term: Term,
        /// The leader; `None` where unknown.
        leader: Option<NodeId>,
    },
    /// Something for the operator's log; changes nothing.
    Notice(Notice),
    /// This data directory has lost votes or acknowledgements: stop, give it a new incarnation
    /// (durably), and start anew; the node then follows without a vote. Nothing comes after it.
    Fence {
        /// For the operator.
        reason: String,
        /// Peers have met this one: only a later one is heard.
        beyond: Incarnation,
    },
    /// Stop using this node: nothing it says can be relied on any more.
    Halt {
        /// For the operator.
        reason: String,
    },
}

/// What an operator wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This node founded or joined a formed cluster.
    Formed {
        /// Whether it is a member, or follows without a vote because its data directory is not
        /// the one that was founded.
        member: bool,
    },
    /// A group was quarantined.
    Quarantined {
        /// Which.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// A group's state was damaged, and is rebuilt from the oplog: until that is done the group is
    /// quarantined.
    Rebuilding {
        /// Which.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// ... which is done.
    Rebuilt {
        /// Which.
        group: GroupId,
    },
    /// A group's log can't be brought up to date from other logs, which begin further on: it comes as a
    /// snapshot.
    Bootstrapping {
        /// Which.
        group: GroupId,
        /// From whom.
        from: NodeId,
        /// The snapshot is not below this.
        above: Lsn,
    },
    /// ... which is in use now.
    Bootstrapped {
        /// Which.
        group: GroupId,
        /// What it stands at.
        at: Lsn,
    },
    /// A group's log begins further on.
    Pruned {
        /// Which.
        group: GroupId,
        /// The first entry that it has.
        first: Lsn,
    },
    /// A replica's state is not what a majority has: it leaves service, and is rebuilt.
    Diverged {
        /// Of which group.
        group: GroupId,
        /// The audit that found it.
        lsn: Lsn,
    },
    /// This node leads a group whose replicas differ.
    RootsDiffer {
        /// Which group.
        group: GroupId,
        /// The audit that found it.
        lsn: Lsn,
    },
    /// A group whose log had lost its end holds everything again: it votes as before.
    Sound {
        /// Which.
        group: GroupId,
    },
    /// Entries can't be read: peers are asked for them.
    Unreadable {
        /// Whose.
        group: GroupId,
        /// The first one.
        from: Lsn,
        /// The last one, or later.
        to: Lsn,
        /// Why.
        reason: String,
    },
    /// Entries that could not be read were had from a peer.
    Mended {
        /// Whose.
        group: GroupId,
        /// The first one.
        from: Lsn,
        /// The last one.
        to: Lsn,
    },
    /// This node leads a group in which a slot has used three quarters of a limit.
    SlotAtRisk {
        /// Which group.
        group: GroupId,
        /// Which slot.
        name: String,
        /// Of which limit.
        cause: SlotCause,
    },
    /// ... and is invalidated.
    SlotInvalidated {
        /// Which group.
        group: GroupId,
        /// Which slot.
        name: String,
        /// Why.
        cause: SlotCause,
    },
    /// A peer sent something that no correct node sends; it was dropped.
    PeerFault {
        /// Who.
        node: NodeId,
        /// What.
        reason: &'static str,
    },
}

/// What the shell found on disk.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The founding configuration, if this node was formed.
    pub formation: Option<Formation>,
    /// Every group that the oplog knows.
    pub groups: Vec<RecoveredGroup>,
    /// The system group's control writes, as its last checkpoint left them, in key order, and the
    /// LSN of that checkpoint.
    pub system_control: Vec<(Bytes, Bytes)>,
    /// The LSN that `system_control` stands at.
    pub system_applied: Lsn,
    /// How many bytes the oplog can take for certain.
    pub room: u64,
    /// The last start of each member's data directory that this node has met.
    pub boots: Vec<(Member, Boot)>,
    /// The oplog lost entries that may have been acknowledged, at this start or an earlier one.
    pub doubt: Option<Doubt>,
}

impl Recovered {
    /// Whether a group may lack entries that this node has acknowledged.
    #[must_use]
    pub fn is_in_doubt(&self, group: &RecoveredGroup) -> bool {
        self.doubt.is_some_and(|doubt| doubt.covers(group.group, group.sound))
    }

    /// Groups whose state holds more than what is left of their log, and up to where. The shell drops these states
    /// before it starts the node, which applies their logs again, from the first entry on.
    #[must_use]
    pub fn lost_states(&self) -> BTreeMap<GroupId, Lsn> {
        let applied = |group: &RecoveredGroup| match group.group {
            GroupId::SYSTEM => self.system_applied,
            _ => group.checkpointed,
        };
        let lost = self.groups.iter().filter(|g| self.is_in_doubt(g) && applied(g) > g.last);
        lost.map(|group| (group.group, applied(group))).collect()
    }

    /// Forgets what the [lost](Self::lost_states) states held.
    pub(crate) fn take_lost_states(&mut self) -> Vec<GroupId> {
        let lost = self.lost_states();
        for group in self.groups.iter_mut().filter(|group| lost.contains_key(&group.group)) {
            group.checkpointed = Lsn(0);
            if group.group == GroupId::SYSTEM {
                self.system_applied = Lsn(0);
                self.system_control.clear();
            }
        }
        lost.into_keys().collect()
    }
}

/// Every group may lack entries that this node has acknowledged, unless it is
/// [sound](RecoveredGroup::sound) or was created after `bound`. What is in doubt does not vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// The system group's commit mark when that group was found sound; `None` before.
    pub bound: Option<Lsn>,
}

impl Doubt {
    /// Whether a group may lack entries, given whether it was found sound.
    #[must_use]
    pub fn covers(&self, group: GroupId, sound: bool) -> bool {
        !sound && self.bound.is_none_or(|bound| group.0 <= bound.0)
    }
}

/// One group as the oplog has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// Which.
    pub group: GroupId,
    /// The highest term.
    pub term: Term,
    /// The vote in it.
    pub vote: Option<Member>,
    /// The state is durable at least up to here.
    pub checkpointed: Lsn,
    /// The log begins after this; of an unpruned one it is zero.
    pub base: Base,
    /// The last LSN; that of `base` for an empty log.
    pub last: Lsn,
    /// Where each term starts: `(first LSN, term)`, rising in both, from the first entry on. Empty
    /// for an empty log.
    pub terms: Vec<(Lsn, Term)>,
    /// Found sound since the oplog last lost entries.
    pub sound: bool,
    /// What other members have acknowledged to this node: who, in which term, up to which LSN.
    pub acked: Vec<(Member, Term, Lsn)>,
    /// The last entry's stamp; zero where it is not known.
    pub hlc: Hlc,
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The cluster, as configured.
    pub cluster: ClusterId,
    /// The node and its data directory.
    pub member: Member,
    /// This start.
    pub boot: Boot,
    /// Starts of this data directory before this one, in any order, as many as are remembered: where
    /// a peer has met another in the place of one of these, the directory was rolled back since.
    pub starts: Vec<Boot>,
    /// Every configured node, this one included, in order. Fixes who must be present to found.
    pub nodes: Vec<NodeId>,
}
