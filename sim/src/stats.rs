//! What took effect in a run: a fault counts only when it did something, a branch only when it was
//! taken. A fault that never takes effect proves nothing.

use std::collections::BTreeMap;

use crate::plan::Profile;

macro_rules! seen {
    ($($(#[doc = $doc:literal])+ $name:ident: $text:literal, $share:expr;)+) => {
        /// Something worth counting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Seen { $($(#[doc = $doc])+ $name,)+ }

        impl Seen {
            /// All there is to see, in order.
            pub(crate) const ALL: &'static [Seen] = &[$(Seen::$name,)+];

            /// As it stands in reports.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Seen::$name => $text,)+ }
            }

            /// In how many percent of the seeds it is due; 0 asks for one seed. `None`: whenever.
            pub(crate) fn due_percent(self) -> Option<u64> {
                match self { $(Seen::$name => $share,)+ }
            }
        }
    };
}

seen! {
    /// A process was killed; the page cache stayed.
    ProcessKilled: "process killed", Some(0);
    /// A machine lost power.
    PowerCut: "power cut", Some(0);
    /// All machines lost power at once.
    PowerCutAll: "power cut of all nodes", Some(0);
    /// A crash in the middle of a sync.
    CrashInSync: "crash in a sync", Some(0);
    /// A crash in the sync of a write of several blocks.
    CrashInLongWrite: "crash in a long write", Some(0);
    /// A crash at some other call to the oplog's disk.
    CrashAtLogCall: "crash at an oplog call", Some(0);
    /// A crash at a call to the storage backend of the state.
    CrashAtStateCall: "crash at a state call", Some(0);
    /// A crash at an await of the driver.
    CrashAtAwait: "crash at an await", Some(0);
    /// A crash of a process that had not recovered yet.
    CrashInRecovery: "crash during recovery", Some(0);
    /// A crash of all nodes shortly after an election.
    CrashAfterElection: "power cut just after an election", Some(0);
    /// A process was asked to stop, handed its leaderships over, and stopped.
    Drained: "node drained", Some(0);
    /// A process started with other limits than the one before.
    OtherLimits: "restart with other limits", Some(0);
    /// A node's disk was wiped, and it followed without a vote.
    Wiped: "wiped node follows without a vote", Some(0);
    /// A node's disk was rolled back, and it met a peer that remembers more.
    RolledBack: "rolled-back disk found out by a peer", Some(0);
    /// A crash lost at least one byte that was not synced.
    LostUnsynced: "crash lost unsynced bytes", Some(80);
    /// A crash lost at least one record of the oplog that was not synced.
    LostRecords: "crash lost unsynced records", Some(50);
    /// A crash left part of a write.
    TornWrite: "crash tore a write", Some(0);
    /// ... so that its end is there and its beginning is not.
    TornSubset: "crash lost a write's beginning, not its end", Some(0);
    /// A crash lost a directory entry.
    LostName: "crash lost a directory entry", Some(0);
    /// A crash lost what a failed sync had left in the page cache.
    LostDropped: "crash lost pages of a failed sync", Some(0);
    /// A node was paused while others ran.
    Paused: "node paused", Some(0);
    /// A symmetric partition stopped a message.
    PartitionBlocked: "partition blocked messages", Some(0);
    /// A one-way partition stopped a message.
    OneWayBlocked: "one-way partition blocked messages", Some(0);
    /// Two halves that only one node hears both of: a message was stopped.
    BridgeBlocked: "bridge partition blocked messages", Some(0);
    /// Nodes hear their neighbours only: a message was stopped.
    ChainBlocked: "chain partition blocked messages", Some(0);
    /// All hear one node only: a message was stopped.
    StarBlocked: "quorum-loss partition blocked messages", Some(0);
    /// A link that comes and goes stopped a message.
    FlapBlocked: "flapping link blocked messages", Some(0);
    /// A message waited for 5 ms on a narrow link.
    LinkNarrow: "message queued on a narrow link", Some(0);
    /// A narrow link's queue was full.
    LinkFull: "narrow link overflowed", Some(0);
    /// A leader was cut off.
    LeaderIsolated: "leader isolated", Some(0);
    /// A message was lost.
    MessageLost: "message lost", Some(0);
    /// A message was delivered twice.
    MessageDuplicated: "message delivered twice", Some(0);
    /// A message overtook another.
    MessageReordered: "message overtaken", Some(0);
    /// A message was under way for more than 100 ms.
    MessageLate: "message late by 100 ms", Some(0);
    /// A message for an earlier process was dropped.
    StaleSession: "message to a dead process dropped", Some(0);
    /// Nodes connected by the production transport. Seeds have it by turns: see `Plan::quic`.
    RealQuic: "real QUIC", Some(5);
    /// ... and connected again after a connection was lost.
    QuicReconnected: "QUIC connection lost and made again", Some(0);
    /// A datagram was lost.
    DatagramLost: "QUIC datagram lost", Some(0);
    /// A disk call took at least 20 ms.
    SlowIo: "slow disk call", Some(0);
    /// A disk call was stuck.
    StuckIo: "stuck disk call", Some(0);
    /// A sync of the oplog failed, and dirty pages were dropped.
    LogSyncFailed: "oplog sync failed", Some(0);
    /// A sync of a state file failed, and dirty pages were dropped.
    StateSyncFailed: "state sync failed", Some(0);
    /// A full disk refused something to the oplog.
    LogFull: "disk full for the oplog", Some(0);
    /// A full disk refused something to a state file.
    StateFull: "disk full for the state", Some(0);
    /// The oplog could not be read.
    LogReadFailed: "oplog read failed", Some(0);
    /// A state file could not be read.
    StateReadFailed: "state read failed", Some(0);
    /// A flipped bit in a block of entries was read.
    FlippedEntries: "flipped bit read: newest segment, entries", Some(0);
    /// A flipped bit in a block that holds votes was read.
    FlippedVotes: "flipped bit read: newest segment, votes", Some(0);
    /// A flipped bit in an older segment was read.
    FlippedOlder: "flipped bit read: older segment", Some(0);
    /// A flipped bit in a state file was read.
    FlippedState: "flipped bit read: state", Some(0);
    /// A flipped bit in the identity was read.
    FlippedIdentity: "flipped bit read: identity", Some(0);
    /// What a misdirected write hit or missed in the oplog was read.
    StrayLog: "misdirected write read: oplog", Some(0);
    /// What a misdirected write hit or missed in a state file was read.
    StrayState: "misdirected write read: state", Some(0);
    /// What a misdirected write hit or missed in the identity was read.
    StrayIdentity: "misdirected write read: identity", Some(0);
    /// A node stopped since its oplog could not be written.
    Halted: "node halted by its disk", Some(0);
    /// A node did not start since its disk failed.
    StartFailed: "start failed by the disk", Some(0);
    /// A write was refused since the oplog has no room.
    RefusedFull: "write refused for want of room", Some(0);
    /// A clock changed its pace.
    ClockDrift: "clock drifts", Some(0);
    /// A wall clock jumped.
    WallJump: "wall clock jumps", Some(0);
    /// ... back.
    WallBack: "wall clock steps back", Some(0);
    /// A database's group changed its leader.
    LeaderChange: "leader change", Some(0);
    /// ... while clients wrote to it.
    LeaderChangeUnderLoad: "leader change under load", Some(80);
    /// A replica dropped entries that another leader overwrote.
    Truncated: "log truncated", Some(0);
    /// Entries were read back from the oplog.
    Loaded: "entries loaded from disk", Some(0);
    /// A database's state was made durable.
    Checkpointed: "state checkpointed", Some(0);
    /// Recovery cut a torn tail.
    TailCut: "torn tail cut", Some(0);
    /// A damaged state was dropped and applied again.
    StateRebuilt: "state rebuilt from the oplog", Some(0);
    /// A segment of the oplog was filled.
    SegmentRolled: "oplog segment rolled", Some(0);
    /// A segment's entries became history.
    SegmentSealed: "oplog segment sealed", Some(0);
    /// A segment that nothing counted in any more was removed.
    SegmentRecycled: "oplog segment recycled", Some(0);
    /// Entries were read back from history.
    HistoryRead: "entries read from history", Some(0);
    /// A write was acknowledged.
    WriteAcked: "write acknowledged", Some(100);
    /// A write was acknowledged on a node that does not lead.
    WriteForwarded: "write acknowledged through a follower", Some(0);
    /// A write's outcome stayed unknown.
    WriteUnknown: "write with unknown outcome", Some(0);
    /// ... and it took effect all the same.
    UnknownTookEffect: "unknown write that took effect", Some(0);
    /// A write failed for certain.
    WriteFailed: "write failed definitely", Some(0);
    /// ... although an entry of it was in some log.
    SupersededWrite: "failed write that had reached a log", None;
    /// A condition did not hold.
    Refused: "precondition refused", Some(0);
    /// A compare-and-swap took effect.
    Swapped: "compare-and-swap done", Some(0);
    /// An op of several keys took effect.
    Batch: "batch done", Some(0);
    /// A linearizable read was answered by a leader.
    LinearizableRead: "linearizable read", Some(100);
    /// ... by a node that does not lead.
    FollowerIndexRead: "linearizable read on a follower", Some(0);
    /// A read from local state.
    LocalRead: "local read", Some(0);
    /// A read with a bookmark.
    BookmarkRead: "read with a bookmark", Some(0);
    /// A read that was told to be behind.
    Behind: "read refused as behind", None;
    /// A list was answered.
    Listed: "list", Some(0);
    /// A leadership was handed over.
    Transferred: "leadership handed over", Some(0);
    /// A consumer read a part of a change stream.
    Streamed: "part of a change stream read", Some(0);
    /// ... and went on where it had been before, where there was more.
    StreamResumed: "change stream resumed", Some(0);
    /// A consumer was told that what it wants to read on after is pruned.
    StreamPruned: "change stream refused as pruned", Some(0);
    /// A slot was created.
    SlotCreated: "slot created", Some(0);
    /// A slot's consumer acknowledged something.
    SlotAcked: "slot acknowledged", Some(0);
    /// ... and read on where it was.
    SlotRead: "change stream read for a slot", Some(0);
    /// A slot was deleted.
    SlotDeleted: "slot deleted", Some(0);
    /// A slot's consumer was told of it, and another node led than when it was told before.
    SlotOutlived: "slot outlived a leader", Some(0);
    /// A keyed write was answered.
    OnceAnswered: "keyed write answered", Some(0);
    /// ... with what came of an earlier attempt, which had been applied before this one.
    OnceReplayed: "retry answered from the table", Some(0);
    /// ... which was under way when this one came.
    OnceJoined: "retry joined one in flight", Some(0);
    /// ... and another node led than when it was first asked for.
    OnceOutlived: "retry answered after a failover", Some(0);
    /// A key was used for another request.
    OnceMismatch: "key of another request refused", Some(0);
    /// A replica learned that a majority agrees with its root.
    AuditVerified: "audit verified by a majority", Some(90);
    /// A replica that differed left service, was rebuilt, and returned.
    DivergedReturned: "replica diverged, was rebuilt and returned", Some(0);
    /// A log was cut where it began too early.
    Pruned: "log pruned", Some(0);
    /// A replica went on from a snapshot.
    Bootstrapped: "replica went on from a snapshot", Some(0);
    /// The scrub was the first to find damage.
    ScrubFound: "damage found by the scrub", Some(0);
    /// A state was changed above its checksums.
    Tampered: "state changed above its checksums", Some(0);
    /// Two nodes' whole states were compared at one LSN.
    RootsCompared: "states of two nodes compared", Some(0);
    /// A key's history that the search left undecided.
    HistoryUndecided: "key's history left undecided", None;
    /// A database was created under faults.
    LateDatabase: "database created under faults", Some(0);
    /// A leader that no quorum answered stepped down.
    SteppedDown: "leader stepped down for want of a quorum", Some(0);
    /// A node asked peers for entries that it can't read.
    Fetch: "unreadable entries asked of a peer", Some(0);
    /// ... and put them in place of the damage.
    Mended: "damaged entries mended", Some(0);
    /// A group was found to have lost the end of its log.
    InDoubt: "group in doubt after a cut", Some(0);
    /// ... and held everything again.
    Sound: "group sound again", Some(0);
    /// A data directory was fenced.
    Fenced: "data directory fenced", Some(0);
    /// A node asked peers at its start what they remember of it.
    Recalled: "peers asked what they remember", Some(0);
    /// The cluster converged without a node that was dead for good.
    LivedWithDead: "converged beside a dead node", Some(0);
    /// ... that was cut off.
    LivedWithCut: "converged beside a node that was cut off", Some(0);
    /// ... that was cut off one way.
    LivedWithOneWay: "converged beside a node cut off one way", Some(0);
    /// ... that stood still.
    LivedWithPaused: "converged beside a paused node", Some(0);
    /// ... whose disk was slow.
    LivedWithSlow: "converged beside a slow disk", Some(0);
    /// The cluster converged with all nodes.
    Healed: "all nodes converged", Some(0);
}

impl Seen {
    /// What only the swarm brings about.
    const SWARM: &'static [Seen] = &[
        Seen::LostDropped,
        Seen::Drained,
        Seen::OtherLimits,
        Seen::Wiped,
        Seen::RolledBack,
        Seen::BridgeBlocked,
        Seen::ChainBlocked,
        Seen::StarBlocked,
        Seen::FlapBlocked,
        Seen::LinkNarrow,
        Seen::LinkFull,
        Seen::StuckIo,
        Seen::LogSyncFailed,
        Seen::StateSyncFailed,
        Seen::LogFull,
        Seen::StateFull,
        Seen::LogReadFailed,
        Seen::StateReadFailed,
        Seen::FlippedEntries,
        Seen::FlippedVotes,
        Seen::StrayLog,
        Seen::FlippedOlder,
        Seen::FlippedState,
        Seen::FlippedIdentity,
        Seen::StrayState,
        Seen::StrayIdentity,
        Seen::Halted,
        Seen::StartFailed,
        Seen::RefusedFull,
        Seen::Fetch,
        Seen::Mended,
        Seen::InDoubt,
        Seen::Sound,
        Seen::Fenced,
        Seen::Recalled,
        Seen::StateRebuilt,
        Seen::Pruned,
        Seen::StreamPruned,
        Seen::Bootstrapped,
        Seen::DivergedReturned,
        Seen::ScrubFound,
        Seen::Tampered,
        Seen::SegmentSealed,
        Seen::SegmentRecycled,
        Seen::HistoryRead,
        Seen::LivedWithDead,
        Seen::LivedWithCut,
        Seen::LivedWithOneWay,
        Seen::LivedWithPaused,
        Seen::LivedWithSlow,
        Seen::Healed,
    ];

    /// What only clients with slots and keys bring about.
    const OPLOG: &'static [Seen] = &[
        Seen::SlotCreated,
        Seen::SlotAcked,
        Seen::SlotRead,
        Seen::SlotDeleted,
        Seen::SlotOutlived,
        Seen::OnceAnswered,
        Seen::OnceReplayed,
        Seen::OnceJoined,
        Seen::OnceOutlived,
        Seen::OnceMismatch,
    ];

    /// In how many percent of a profile's seeds it is due. The swarm owes each thing in one percent.
    pub(crate) fn due_in(self, profile: Profile) -> Option<u64> {
        let percent = self.due_percent()?;
        match profile {
            Profile::Default => {
                let not_here = Seen::SWARM.contains(&self) || Seen::OPLOG.contains(&self);
                Some(percent).filter(|_| !not_here)
            }
            Profile::Swarm => Some(percent.max(1)).filter(|_| !Seen::OPLOG.contains(&self)),
            Profile::Oplog => Some(percent.max(1)),
        }
    }
}

/// How often each thing was seen in one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stats {
    counts: [u64; Seen::ALL.len()],
}

impl Default for Stats {
    fn default() -> Stats {
        Stats { counts: [0; Seen::ALL.len()] }
    }
}

impl Stats {
    pub(crate) fn add(&mut self, seen: Seen, n: u64) {
        self.counts[seen as usize] += n;
    }

    pub(crate) fn get(&self, seen: Seen) -> u64 {
        self.counts[seen as usize]
    }
}

/// Sums over many runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    /// Runs counted.
    pub(crate) seeds: u64,
    counts: BTreeMap<Seen, (u64, u64)>,
}

impl Totals {
    pub(crate) fn add(&mut self, stats: &Stats) {
        self.seeds += 1;
        for seen in Seen::ALL {
            let n = stats.get(*seen);
            if n > 0 {
                let (total, seeds) = self.counts.entry(*seen).or_default();
                *total += n;
                *seeds += 1;
            }
        }
    }

    /// How often in all, and in how many runs at least once.
    pub(crate) fn get(&self, seen: Seen) -> (u64, u64) {
        self.counts.get(&seen).copied().unwrap_or((0, 0))
    }

    /// What was seen in fewer runs than is due, with the percentage that is. Few runs prove nothing
    /// about rare things: a share is asked for once ten runs are due.
    pub(crate) fn missing(&self, profile: Profile) -> Vec<(Seen, u64)> {
        let short = |seen: Seen| {
            let (percent, (_, seeds)) = (seen.due_in(profile)?, self.get(seen));
            let none = seeds == 0 && self.seeds >= Totals::enough(profile);
            let few = percent * self.seeds >= 1_000 && seeds * 100 < percent * self.seeds;
            (none || few).then_some((seen, percent))
        };
        Seen::ALL.iter().filter_map(|seen| short(*seen)).collect()
    }

    /// From so many runs on, everything that is due must have been seen.
    fn enough(profile: Profile) -> u64 {
        match profile {
            Profile::Default => 50,
            Profile::Swarm | Profile::Oplog => 500,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_and_a_small_share_are_missing() {
        let rare = [Seen::Paused, Seen::LostUnsynced];
        let stats = |also: &[Seen]| {
            let mut stats = Stats::default();
            Seen::ALL.iter().filter(|seen| !rare.contains(seen)).for_each(|s| stats.add(*s, 2));
            also.iter().for_each(|seen| stats.add(*seen, 1));
            stats
        };
        let mut totals = Totals::default();
        for i in 0..50 {
            // From 13 runs on, ten of them owe what is due in 80 percent.
            if i < 13 {
                assert_eq!(totals.missing(Profile::Default), []);
            }
            totals.add(&stats(&[Seen::LostUnsynced][..1 - i % 2]));
        }
        let due = [(Seen::LostUnsynced, 80), (Seen::Paused, 0)];
        assert_eq!(totals.missing(Profile::Default), due);
        assert_eq!(totals.missing(Profile::Swarm), due[..1], "too few for one percent");
        assert_eq!(totals.get(Seen::LostUnsynced), (25, 25));
        assert_eq!(totals.get(Seen::Batch), (100, 50));
        for i in 0..950 {
            totals.add(&stats(if i < 9 { &rare } else { &rare[1..] }));
        }
        assert_eq!(totals.missing(Profile::Default), []);
        assert_eq!(totals.missing(Profile::Swarm), [(Seen::Paused, 1)]);
    }
}
