//! Planted faults: real bugs, one `if` each, present only under `cfg(madsim)`, with which the
//! simulator is measured. The production binary contains none: [`is`] is a constant `false` there.

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
    /// A block of an earlier epoch, left over from a cut, is taken for one of the log.
    WrongEpochAccepted = 46,
    /// A segment header's table omits votes that changed since the header before.
    HeaderVotesStale = 47,
    /// A full disk half-writes, and the writer goes on.
    NoRoomIgnored = 48,
}

impl Planted {
    /// Every planted fault that breaks a promise ([`Planted::Nondeterminism`] breaks the
    /// simulator's own).
    pub const ALL: [Planted; 19] = [
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
        Planted::DoubtForgotten,
        Planted::DirNotSynced,
        Planted::FsyncRetried,
        Planted::TornTailKept,
        Planted::RecoveredNotSynced,
        Planted::SyncedUptoAhead,
        Planted::WrongEpochAccepted,
        Planted::HeaderVotesStale,
        Planted::NoRoomIgnored,
    ];
}

#[cfg(madsim)]
static SWITCH: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(0);

/// Switches one planted fault on for this process, or all off.
#[cfg(madsim)]
pub fn set(planted: Option<Planted>) {
    SWITCH.store(planted.map_or(0, |p| p as u8), core::sync::atomic::Ordering::SeqCst);
}

/// Whether this planted fault is on.
#[cfg(madsim)]
#[must_use]
pub fn is(planted: Planted) -> bool {
    SWITCH.load(core::sync::atomic::Ordering::Relaxed) == planted as u8
}

/// Whether this planted fault is on: never, in production.
#[cfg(not(madsim))]
#[must_use]
pub const fn is(_: Planted) -> bool {
    false
}
