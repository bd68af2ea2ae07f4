//! Of snapshots.

use highwater_core::{GroupId, Incarnation, Lsn};
use rkyv::{Archive, Deserialize, Serialize};

use super::PositionV1;
use crate::peer::{PeerMessage, SnapshotAsk, SnapshotId};

/// [`SnapshotId`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct SnapshotIdV1 {
    at: PositionV1,
    maker: u128,
}

impl From<SnapshotId> for SnapshotIdV1 {
    fn from(id: SnapshotId) -> SnapshotIdV1 {
        SnapshotIdV1 { at: id.at.into(), maker: id.maker.0 }
    }
}

impl From<SnapshotIdV1> for SnapshotId {
    fn from(v: SnapshotIdV1) -> SnapshotId {
        SnapshotId { at: v.at.into(), maker: Incarnation(v.maker) }
    }
}

/// [`PeerMessage::SnapshotAsk`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct SnapshotAskV1 {
    group: u64,
    above: u64,
    /// Of which snapshot, and which block.
    block: Option<(SnapshotIdV1, u32)>,
}

impl SnapshotAskV1 {
    pub(crate) fn new(group: GroupId, ask: SnapshotAsk) -> SnapshotAskV1 {
        let (above, block) = match ask {
            SnapshotAsk::Above(above) => (above, None),
            SnapshotAsk::Block { id, number, above } => (above, Some((id.into(), number))),
        };
        SnapshotAskV1 { group: group.0, above: above.0, block }
    }
}

impl From<SnapshotAskV1> for PeerMessage {
    fn from(v: SnapshotAskV1) -> PeerMessage {
        let above = Lsn(v.above);
        let ask = match v.block {
            None => SnapshotAsk::Above(above),
            Some((id, number)) => SnapshotAsk::Block { id: id.into(), number, above },
        };
        PeerMessage::SnapshotAsk { group: GroupId(v.group), ask }
    }
}

/// [`PeerMessage::SnapshotBlock`] without its content, which is the frame's tail.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct SnapshotBlockV1 {
    pub(crate) group: u64,
    pub(crate) id: SnapshotIdV1,
    pub(crate) number: u32,
    pub(crate) blocks: u32,
    pub(crate) bytes: u64,
}

/// [`PeerMessage::SnapshotNone`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct SnapshotNoneV1 {
    pub(crate) group: u64,
    pub(crate) reason: String,
}
