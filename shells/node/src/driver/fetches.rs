//! Snapshots that this node fetches: the deadlines of the questions, and what comes of them. What is
//! received goes to its worker. And when those that it gave are swept.

use std::time::Duration;

use highwater_core::{GroupId, Input, Instant, Lsn, NodeId};
use highwater_wire::peer::PeerMessage;

use super::{Driver, Due, micros};
use crate::{
    env::{Clock, Transport},
    transfer::{DonorJob, ReceiverJob},
};

/// How long a block of a snapshot may take before it is asked for again.
const BLOCK_PATIENCE: Duration = Duration::from_secs(2);
/// So often it is: to make a snapshot of a large state takes its time.
const BLOCK_ASKS_MAX: u32 = 60;
/// How often snapshots that nobody has asked for since the last time are removed: often enough in the
/// simulator for its runs to meet it.
const SWEEP: Duration = Duration::from_secs(if cfg!(madsim) { 5 } else { 600 });

/// A snapshot that is being received.
pub(super) struct Fetching {
    from: NodeId,
    /// When its next block is late.
    expires: Instant,
    /// How often that was so since the last one.
    late: u32,
}

impl<C: Clock, T: Transport> Driver<C, T> {
    pub(super) fn fetch(&mut self, group: GroupId, from: NodeId, above: Lsn) {
        let expires = self.now.plus(micros(BLOCK_PATIENCE));
        self.due.insert((expires, Due::Block(group)));
        self.fetches.insert(group, Fetching { from, expires, late: 0 });
        let job = ReceiverJob::Fetch { group, from, above };
        // Where that is full, it is late, and given up.
        let _ = self.hands.transfers.receiver.try_send(job);
    }

    pub(super) fn sweep_snapshots(&mut self) {
        // Where that is full, the next time will do.
        let _ = self.hands.transfers.donor.try_send(DonorJob::Sweep);
        self.await_sweep();
    }

    pub(super) fn await_sweep(&mut self) {
        self.due.insert((self.now.plus(micros(SWEEP)), Due::Sweep));
    }

    /// The answer came, or what to wait for it for.
    pub(super) fn on_block(&mut self, from: NodeId, message: PeerMessage, inputs: &mut Vec<Input>) {
        let (PeerMessage::SnapshotBlock { group, .. } | PeerMessage::SnapshotNone { group, .. }) =
            &message
        else {
            return;
        };
        let group = *group;
        let expires = self.now.plus(micros(BLOCK_PATIENCE));
        let Some(fetching) = self.fetches.get_mut(&group).filter(|f| f.from == from) else {
            return;
        };
        match message {
            PeerMessage::SnapshotBlock { id, number, blocks, bytes, content, .. } => {
                self.due.remove(&(fetching.expires, Due::Block(group)));
                (fetching.expires, fetching.late) = (expires, 0);
                self.due.insert((expires, Due::Block(group)));
                let job = ReceiverJob::Block { group, id, number, blocks, bytes, content };
                let _ = self.hands.transfers.receiver.try_send(job);
            }
            PeerMessage::SnapshotNone { reason, .. } => self.give_up_fetch(group, reason, inputs),
            _ => {}
        }
    }

    pub(super) fn block_is_late(&mut self, group: GroupId, inputs: &mut Vec<Input>) {
        let Some(fetching) = self.fetches.get_mut(&group) else { return };
        fetching.late += 1;
        if fetching.late > BLOCK_ASKS_MAX || !self.hands.node.is_in_touch(fetching.from) {
            let reason = format!("node {} does not answer", fetching.from);
            return self.give_up_fetch(group, reason, inputs);
        }
        fetching.expires = self.now.plus(micros(BLOCK_PATIENCE));
        self.due.insert((fetching.expires, Due::Block(group)));
        let _ = self.hands.transfers.receiver.try_send(ReceiverJob::AskAgain { group });
    }

    fn give_up_fetch(&mut self, group: GroupId, reason: String, inputs: &mut Vec<Input>) {
        if self.end_fetch(group) {
            let _ = self.hands.transfers.receiver.try_send(ReceiverJob::Forget { group });
            inputs.push(Input::SnapshotFailed { group, reason });
        }
    }

    /// Whether there was one.
    fn end_fetch(&mut self, group: GroupId) -> bool {
        let Some(Fetching { expires, .. }) = self.fetches.remove(&group) else { return false };
        self.due.remove(&(expires, Due::Block(group)));
        true
    }

    /// A worker has done something. What a fetch comes to counts once.
    pub(super) fn on_completed(&mut self, input: Input, inputs: &mut Vec<Input>) {
        let counts = match &input {
            Input::SnapshotReady { group, .. } | Input::SnapshotFailed { group, .. } => {
                self.end_fetch(*group)
            }
            _ => true,
        };
        if counts {
            inputs.push(input);
        }
    }
}
