//! Planted faults: real bugs, one `if` each, present only under `cfg(madsim)`, with which the
//! simulator is measured. The production binary contains none: [`is`] is a constant `false` there.
//!
//! A crate of its own, as the switch is state of the thread that runs a simulation: what the core
//! may not have.
#![no_std]

/// A bug that can be switched on in a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Planted {
    /// A leader counts its own entries before they are fsynced, and so does a follower.
    AckBeforeFsync = 1,
    /// A vote is given without being made durable.
    VoteNotPersisted = 2,
    /// An entry of an older term is committed by counting replicas (Raft §5.4.2).
    OldTermCommit = 3,
    /// A leader answers a read without a quorum round.
    ReadWithoutQuorum = 4,
    /// A forwarded write that may have been appended is sent again.
    ResendAfterAppend = 5,
    /// A truncated entry is reported as failed before another is committed in its place.
    TruncationAsFailure = 6,
    /// The applied LSN is stored in a transaction of its own, after the data.
    AppliedApart = 7,
    /// Recovery cuts a damaged log below `synced_upto` as if it were a torn tail.
    CutBelowSynced = 8,
    /// A voter ignores how up to date the candidate's log is (Raft §5.4.1).
    BlindVote = 9,
    /// A follower confirms its whole log, not only what it agreed on with this leader.
    AckUnverified = 10,
    /// A process-wide counter leaks into the schedule: the same seed does not replay.
    Nondeterminism = 11,
    /// A leader keeps what an earlier start of a follower confirmed.
    MatchedSurvivesBoot = 20,
    /// A group whose log has lost its end votes before it holds everything again.
    DoubtVotes = 21,
    /// What peers remember of this node is not compared with its disk.
    FenceIgnored = 22,
    /// A follower takes the leader's commit mark for all it has, agreed on or not.
    CommitBeyondAgreed = 23,
    /// A follower serves a read at its own commit mark, without asking the leader.
    StaleReadIndex = 24,
    /// A quorum is counted among the nodes that were heard lately.
    QuorumOfReachable = 25,
    /// What a wiped node confirms counts as if it were the member.
    LearnerCounts = 26,
    /// A follower confirms entries that it had no room for.
    AppendResultIgnored = 27,
    /// A successor is told to campaign before it has everything.
    TransferWithoutCatchUp = 28,
    /// Reads are served before a leader has committed an entry of its term.
    TermStartSkipped = 29,
    /// A vote is answered before it is fsynced.
    ReplyBeforeHardState = 30,
    /// A forwarded write without an answer in time is told as failed, not as unknown (failures 19).
    TimeoutAsFailure = 60,
    /// What a silent leader was asked for is asked again of the next one: the retry that made TiDB
    /// 2.1.7 apply writes twice (Jepsen, 2019).
    ForwardTwice = 61,
    /// A leader that drops a request at its deadline tells the asker that it was refused, though it
    /// may have been appended (failures 19).
    ExpiryAsRejection = 62,
    /// A local read does not wait for its bookmark.
    BookmarkIgnored = 63,
    /// A receipt is made of whatever was applied, refused or not (failures 15).
    RefusalAsAck = 64,
    /// A checkpoint names what is applied when it is written, not what was set aside for it: the
    /// mark runs ahead of the data, as etcd 3.5.0's consistent index did (2022; failures 53).
    CheckpointNewer = 65,
    /// A flush that ends clears what was applied meanwhile.
    OverlayDropped = 66,
    /// The state's transactions are not synced before they are reported (failures 17).
    CheckpointNotSynced = 67,
    /// A page that goes on after a key skips the first record behind it (failures 3).
    PageSkipsFirst = 68,
    /// A condition is judged by what is in memory; a record that was flushed counts as absent.
    PriorsFromMemory = 69,
    /// A flush writes what was put and forgets what was deleted (failures 43).
    DeleteNotFlushed = 70,
    /// Only the first condition of a batch is judged.
    BatchHalfJudged = 71,
    /// A condition with an empty list goes over the wire as no condition.
    EmptyListAsAbsent = 72,
    /// A run that the state could not apply is reported as applied (failures 1).
    ApplyFailureSkipped = 73,
    /// A flush that failed is reported as durable: the next one will write it, as PostgreSQL thought
    /// of its checkpoints until 2018 (failures 22).
    FlushFailureIgnored = 74,
    /// A state that is being rebuilt is read as it is.
    ServedWhileRebuilding = 75,
    /// A change stream shows what was refused.
    StreamShowsRefused = 76,
    /// A stream that resumes takes the op at its position for the one before (failures 2).
    StreamGuessesPrev = 77,
    /// A stream shows what is appended, applied or not (failures 9).
    StreamBeyondApplied = 78,
    /// A mismatch of roots is not acted on (semantics 13).
    AuditIgnored = 79,
    /// What is overwritten or deleted stays in the sums that roots are made of.
    LeafNotSubtracted = 80,
    /// The scrub says that it has read what it has not (failures 56).
    ScrubSkips = 81,
    /// The log is pruned beyond what a valid slot still needs (failures 5).
    PruneIgnoresSlots = 84,
    /// The log is pruned of what the state does not hold durably (failures 8).
    PruneBeforeCheckpoint = 85,
    /// A stream that is to begin before what the log has begins where it can, without a word (failures 6).
    StreamFromPruned = 87,
    /// A replica speaks of the log that a snapshot gave it before that is durable.
    SpeaksBeforeRebase = 86,
    /// A cut of what was fsynced does not note that the log lost its end.
    DoubtForgotten = 40,
    /// A new segment's directory entry is not fsynced.
    DirNotSynced = 41,
    /// A failed fsync of the oplog is tried again on the same file, and believed.
    FsyncRetried = 42,
    /// Recovery skips a damaged block and keeps the blocks behind it.
    TornTailKept = 43,
    /// What recovery keeps of the log's end is not fsynced again.
    RecoveredNotSynced = 44,
    /// `synced_upto` names a block of the very write that is not fsynced yet.
    SyncedUptoAhead = 45,
    /// A checkpoint leaves out which keyed writes are remembered.
    OnceNotCheckpointed = 100,
    /// A keyed write is forgotten as soon as log time rises.
    OnceForgottenEarly = 101,
    /// A leader takes keyed writes before it has applied what its log holds of them: the retry that
    /// follows a failover takes effect again.
    OnceBeforeTermStart = 102,
    /// Of keyed writes only those that took effect are remembered.
    RefusalNotRemembered = 103,
    /// What a cut leaves behind is not cleared away, and a block of it, of an earlier epoch, is taken for
    /// one of the log: either alone does no harm, as the other stands.
    WrongEpochAccepted = 46,
    /// A segment header's table omits votes.
    HeaderOmitsVotes = 47,
    /// A full disk half-writes, and the writer goes on.
    NoRoomIgnored = 48,
    /// A history file takes a segment's place before it is fsynced.
    SealedWithoutSync = 49,
    /// A segment goes although something in it still counts and is not sealed (failures 10).
    RecycledBeforeSealed = 50,
}

impl Planted {
    /// Every planted fault that breaks a promise; beside them is [`Planted::Nondeterminism`], which
    /// breaks the simulator's own.
    pub const ALL: [Planted; 62] = [
        Planted::AckBeforeFsync,
        Planted::VoteNotPersisted,
        Planted::OldTermCommit,
        Planted::ReadWithoutQuorum,
        Planted::ResendAfterAppend,
        Planted::TruncationAsFailure,
        Planted::AppliedApart,
        Planted::CutBelowSynced,
        Planted::BlindVote,
        Planted::AckUnverified,
        Planted::MatchedSurvivesBoot,
        Planted::DoubtVotes,
        Planted::FenceIgnored,
        Planted::CommitBeyondAgreed,
        Planted::StaleReadIndex,
        Planted::QuorumOfReachable,
        Planted::LearnerCounts,
        Planted::AppendResultIgnored,
        Planted::TransferWithoutCatchUp,
        Planted::TermStartSkipped,
        Planted::ReplyBeforeHardState,
        Planted::TimeoutAsFailure,
        Planted::ForwardTwice,
        Planted::ExpiryAsRejection,
        Planted::BookmarkIgnored,
        Planted::RefusalAsAck,
        Planted::CheckpointNewer,
        Planted::OverlayDropped,
        Planted::CheckpointNotSynced,
        Planted::PageSkipsFirst,
        Planted::PriorsFromMemory,
        Planted::DeleteNotFlushed,
        Planted::BatchHalfJudged,
        Planted::EmptyListAsAbsent,
        Planted::ApplyFailureSkipped,
        Planted::FlushFailureIgnored,
        Planted::ServedWhileRebuilding,
        Planted::StreamShowsRefused,
        Planted::StreamGuessesPrev,
        Planted::StreamBeyondApplied,
        Planted::OnceNotCheckpointed,
        Planted::OnceForgottenEarly,
        Planted::OnceBeforeTermStart,
        Planted::RefusalNotRemembered,
        Planted::AuditIgnored,
        Planted::LeafNotSubtracted,
        Planted::ScrubSkips,
        Planted::PruneIgnoresSlots,
        Planted::PruneBeforeCheckpoint,
        Planted::SpeaksBeforeRebase,
        Planted::StreamFromPruned,
        Planted::DoubtForgotten,
        Planted::DirNotSynced,
        Planted::FsyncRetried,
        Planted::TornTailKept,
        Planted::RecoveredNotSynced,
        Planted::SyncedUptoAhead,
        Planted::WrongEpochAccepted,
        Planted::HeaderOmitsVotes,
        Planted::NoRoomIgnored,
        Planted::SealedWithoutSync,
        Planted::RecycledBeforeSealed,
    ];
}

#[cfg(madsim)]
mod switch {
    extern crate std;

    use core::cell::Cell;

    use super::Planted;

    std::thread_local! {
        static SWITCH: Cell<Option<Planted>> = const { Cell::new(None) };
        static HOOK: Cell<Option<fn()>> = const { Cell::new(None) };
    }

    /// Switches one planted fault on for this thread, or all off. A run has a thread of its own.
    pub fn set(planted: Option<Planted>) {
        SWITCH.set(planted);
    }

    /// The one that is on.
    #[must_use]
    pub fn get() -> Option<Planted> {
        SWITCH.get()
    }

    /// Whether this planted fault is on.
    #[must_use]
    pub fn is(planted: Planted) -> bool {
        let on = SWITCH.get() == Some(planted);
        if on && let Some(hook) = HOOK.get() {
            hook();
        }
        on
    }

    /// Calls this whenever [`is`] was true on this thread: tells a test where the bug had its chance.
    pub fn on_act(hook: fn()) {
        HOOK.set(Some(hook));
    }
}

#[cfg(madsim)]
pub use switch::{get, is, on_act, set};

/// Whether this planted fault is on: never, in production.
#[cfg(not(madsim))]
#[must_use]
pub const fn is(_: Planted) -> bool {
    false
}
