//! The core's bounds and periods.

/// Periods in microseconds, bounds in bytes or counts. Everything the core holds is bounded by one
/// of these.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Config {
    /// Between two heartbeats of a pair of nodes.
    pub heartbeat_us: u64,
    /// Silence after which a leader's node is held to be gone, and after which a leader that no
    /// quorum echoes steps down.
    pub election_timeout_us: u64,
    /// Elections start at random within this long after that.
    pub election_jitter_us: u64,
    /// Added to the jitter for each group that lost its leader at the same time, so that they do
    /// not all campaign at once.
    pub election_pace_us: u64,
    /// Without an answer for this long, a follower is asked again from what it confirmed.
    pub retry_us: u64,
    /// One operation's payload.
    pub payload_bytes_max: usize,
    /// Entries of one group appended but not committed; beyond: `Busy`.
    pub uncommitted_bytes_max: usize,
    /// Entries that a group keeps in memory for followers and apply.
    pub tail_bytes_max: usize,
    /// Entries that all groups together keep in memory beyond what must be.
    pub tails_bytes_max: usize,
    /// One append message.
    pub append_bytes_max: usize,
    /// One append message.
    pub append_entries_max: usize,
    /// Append messages under way to one follower.
    pub inflight_messages_max: usize,
    /// Append bytes under way to one follower.
    pub inflight_bytes_max: usize,
    /// While clients write, a follower is sent so many bytes a second of what it has missed, or twice
    /// what they write where that is more.
    pub catch_up_bytes_per_s: u64,
    /// One run of entries to apply.
    pub apply_bytes_max: usize,
    /// One run of entries to apply.
    pub apply_entries_max: usize,
    /// Reads of one group that wait for a round or for apply; beyond: `Busy`.
    pub reads_max: usize,
    /// A group's state is checkpointed once this much was applied since the last time, or eight times as
    /// much while there is more to apply; applying waits where that much comes in during a checkpoint.
    pub checkpoint_bytes: usize,
    /// When all groups together have this much applied but not checkpointed, the largest is
    /// checkpointed; at twice that, applying waits.
    pub dirty_bytes_max: usize,
    /// Checkpoints begun for that reason while as many are under way: none.
    pub checkpoints_max: usize,
    /// Databases in the catalog.
    pub databases_max: usize,
    /// Groups in one [`Message::Confirm`](crate::Message::Confirm) or
    /// [`Message::Recalled`](crate::Message::Recalled).
    pub confirm_groups_max: usize,
    /// What peers vouched for is made durable after this long, even if nothing else is written.
    pub acked_us: u64,
    /// A stamp further ahead of this node's wall clock is not believed beyond that.
    pub hlc_ahead_ms: u64,
    /// Below this much room in the oplog, operations are refused; votes still find room, and down
    /// to half of it what slots need.
    pub reserve_bytes: u64,
    /// A group's log is pruned once a quarter more than this is in it, in bytes of entries, down to about
    /// this, as far as slots and followers allow. Less than 4 KiB counts as that. 0: whatever its size.
    pub retention_bytes: u64,
    /// ... and of what is older than this, in milliseconds of log time. 0: whatever its age.
    pub retention_ms: u64,
    /// Operations that took effect are followed by an audit of their group after this long, or up to
    /// twice as long where another audit is under way.
    pub audit_us: u64,
    /// Slots of one group; beyond: `Busy`.
    pub slots_max: usize,
    /// Requests about one group's slots that have no answer; beyond: `Busy`.
    pub slot_requests_max: usize,
    /// Acknowledgements of a group's slots are gathered into one entry for this long.
    pub slot_ack_us: u64,
    /// While a group has a valid slot and takes operations, its log time is made part of the log at
    /// least this often; without operations, with a 64th of the shortest idle timeout where that is
    /// longer, and while keyed writes are remembered, with a 64th of their window. A sign of life that comes sooner than this after the one before it is no entry.
    pub slot_tick_us: u64,
    /// A slot is at risk in sight for at least this long before it is invalidated.
    pub slot_grace_us: u64,
    /// Bytes of effective operations that a slot may be behind, unless it was created with another
    /// limit.
    pub slot_lag_bytes: u64,
    /// Effective operations that a slot may be behind, unless it was created with another limit.
    pub slot_lag_ops: u64,
    /// Milliseconds of log time that a slot's consumer may be silent, unless it was created with
    /// another limit.
    pub slot_idle_ms: u64,
    /// Keyed writes of one group whose outcomes are remembered at a time; beyond: `KeysFull`.
    pub once_max: usize,
    /// Milliseconds of log time for which the outcome of a keyed write is remembered at least; at
    /// least 1.
    pub once_window_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            heartbeat_us: 60_000,
            election_timeout_us: 300_000,
            election_jitter_us: 150_000,
            election_pace_us: 500,
            retry_us: 200_000,
            payload_bytes_max: 17 << 20,
            uncommitted_bytes_max: 64 << 20,
            tail_bytes_max: 8 << 20,
            tails_bytes_max: 64 << 20,
            append_bytes_max: 512 << 10,
            append_entries_max: 4096,
            inflight_messages_max: 64,
            inflight_bytes_max: 4 << 20,
            catch_up_bytes_per_s: 8 << 20,
            apply_bytes_max: 1 << 20,
            apply_entries_max: 4096,
            reads_max: 16_384,
            checkpoint_bytes: 8 << 20,
            dirty_bytes_max: 128 << 20,
            checkpoints_max: 4,
            databases_max: 10_000,
            confirm_groups_max: 512,
            acked_us: 1_000_000,
            hlc_ahead_ms: 60_000,
            reserve_bytes: 4 << 20,
            retention_bytes: 1 << 30,
            retention_ms: 0,
            audit_us: 5_000_000,
            slots_max: 128,
            slot_requests_max: 4096,
            slot_ack_us: 5_000,
            slot_tick_us: 10_000_000,
            slot_grace_us: 10_000_000,
            slot_lag_bytes: 4 << 30,
            slot_lag_ops: 10_000_000,
            slot_idle_ms: 3 * 24 * 3_600_000,
            once_max: 10_000,
            once_window_ms: 24 * 3_600_000,
        }
    }
}

impl Config {
    /// What is applied of one group between two checkpoints, at most. With a checkpoint under way that
    /// is half of what all groups together may have applied: one does not hold up the others.
    pub(crate) fn checkpoint_bytes_max(&self) -> usize {
        (8 * self.checkpoint_bytes).min(self.dirty_bytes_max / 2).max(self.checkpoint_bytes)
    }
}
