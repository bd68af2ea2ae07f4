//! What took effect in a run: a fault counts only when it did something, a branch only when it was
//! taken. A fault that never takes effect proves nothing.

use std::collections::BTreeMap;

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
    /// A crash lost at least one byte that was not synced.
    LostUnsynced: "crash lost unsynced bytes", Some(80);
    /// A crash lost at least one record of the oplog that was not synced.
    LostRecords: "crash lost unsynced records", Some(50);
    /// A crash left part of a write.
    TornWrite: "crash tore a write", Some(0);
    /// A crash lost a directory entry.
    LostName: "crash lost a directory entry", Some(0);
    /// A damaged log was refused.
    DamageRefused: "damaged oplog refused", Some(0);
    /// Entries that could not be read were had from a peer.
    Mended: "damaged entries fetched from a peer", None;
    /// A node was paused while others ran.
    Paused: "node paused", Some(0);
    /// A symmetric partition stopped a message.
    PartitionBlocked: "partition blocked messages", Some(0);
    /// A one-way partition stopped a message.
    OneWayBlocked: "one-way partition blocked messages", Some(0);
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
    /// A clock changed its pace.
    ClockDrift: "clock drifts", Some(0);
    /// A wall clock jumped.
    WallJump: "wall clock jumps", Some(0);
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
    StateRebuilt: "state rebuilt from the oplog", None;
    /// A segment of the oplog was filled.
    SegmentRolled: "oplog segment rolled", Some(0);
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
    /// A database was created under faults.
    LateDatabase: "database created under faults", Some(0);
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

    /// What was seen in fewer runs than is due. Few runs prove nothing about rare things: from
    /// `Totals::ENOUGH` runs on it is asked.
    pub(crate) fn missing(&self) -> Vec<Seen> {
        let short = |seen: &&Seen| {
            let (_, seeds) = self.get(**seen);
            seen.due_percent().is_some_and(|p| seeds == 0 || seeds * 100 < p * self.seeds)
        };
        if self.seeds < Totals::ENOUGH {
            return Vec::new();
        }
        Seen::ALL.iter().filter(short).copied().collect()
    }

    /// From so many runs on, everything that is due must have been seen.
    pub(crate) const ENOUGH: u64 = 50;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_and_a_small_share_are_missing() {
        let mut totals = Totals::default();
        let mut stats = Stats::default();
        for seen in Seen::ALL {
            if !matches!(seen, Seen::Paused | Seen::LostUnsynced) {
                stats.add(*seen, 2);
            }
        }
        let lossy = {
            let mut stats = stats.clone();
            stats.add(Seen::LostUnsynced, 1);
            stats
        };
        for i in 0..Totals::ENOUGH {
            assert_eq!(totals.missing(), []);
            totals.add(if i % 2 == 0 { &lossy } else { &stats });
        }
        assert_eq!(totals.missing(), [Seen::LostUnsynced, Seen::Paused]);
        assert_eq!(totals.get(Seen::LostUnsynced), (25, 25));
        assert_eq!(totals.get(Seen::Batch), (100, 50));
    }
}
