//! What start-up does about a log whose end was fsynced and can't be read: it saves the votes behind
//! the damage, and cuts. The rules are in the [module above](super).

use bytes::Bytes;
use highwater_core::{
    Incarnation, Record,
    planted::{self, Planted},
};

use super::{
    Loss, OpenError, OplogOptions, file_name,
    format::{
        BlockFault, BlockKind, SECTOR, SEGMENT_VERSION, Salt, SegmentHeader, decode_record,
        is_vote, padded,
    },
    prepare,
    recover::{damaged, frame_failed, io_failed},
    scan::{Cursor, Expect},
    table::Table,
};
use crate::disk::Disk;

/// What is behind the first damaged block.
pub(crate) struct Behind {
    salt: Salt,
    /// The next block's sequence.
    sequence: u64,
    epoch: u64,
    synced_upto: u64,
    /// Blocks that can't be read: the first of a run, and whether a vote may have been in it.
    gone: Vec<(u64, bool)>,
    /// What was read, in order: everything but entries, and hints about what is lost.
    saved: Vec<Record>,
}

impl Behind {
    /// `expect` is the damaged block; every block up to `synced_upto` was fsynced.
    pub(crate) fn new(expect: &Expect, synced_upto: u64) -> Behind {
        Behind {
            salt: expect.salt,
            sequence: expect.sequence,
            epoch: expect.epoch,
            synced_upto,
            gone: Vec::new(),
            saved: Vec::new(),
        }
    }

    /// Reads what can be read in a part of a segment, in the order of the log.
    pub(crate) async fn walk<D: Disk>(
        &mut self,
        disk: &D,
        file: &D::File,
        segment: u64,
        from: u64,
        end: u64,
    ) -> Result<(), OpenError> {
        let failed = || io_failed("reading behind damage");
        let mut cursor = Cursor::new(disk, file, from, end);
        while cursor.at() < end {
            let at = cursor.at();
            let header = match cursor.head(self.salt).await.map_err(failed())? {
                Ok(header)
                    if header.segment == segment
                        && header.offset == at
                        && header.sequence >= self.sequence
                        && header.epoch >= self.epoch =>
                {
                    header
                }
                Err(BlockFault::Later(what)) => {
                    let (file, what) = (file_name(segment), format!("{what} is unknown"));
                    return Err(OpenError::Later { file, offset: at, what });
                }
                _ => {
                    cursor.seek(at + SECTOR);
                    continue;
                }
            };
            if header.sequence > self.sequence {
                self.gone.push((self.sequence, true));
            }
            self.synced_upto = self.synced_upto.max(header.synced_upto);
            (self.sequence, self.epoch) = (header.sequence, header.epoch);
            if header.kind == BlockKind::Marker {
                cursor.seek(at + SECTOR);
                continue;
            }
            self.sequence += 1;
            let (sequence, epoch) = (header.sequence, header.epoch);
            let mut expect = Expect { salt: self.salt, segment, sequence, epoch };
            match cursor.next(&mut expect).await.map_err(failed())? {
                Ok(block) => self.save(segment, at, block.body)?,
                Err(_) => {
                    self.gone.push((sequence, header.kind.may_hold_votes()));
                    cursor.seek(at + padded(header.len()));
                }
            }
        }
        Ok(())
    }

    fn save(&mut self, segment: u64, block: u64, mut body: Bytes) -> Result<(), OpenError> {
        while !body.is_empty() {
            match decode_record(&mut body).map_err(|error| frame_failed(segment, block, &error))? {
                Some(record) if is_vote(&record) => self.saved.push(record),
                Some(record @ (Record::Boot { .. } | Record::Acked { .. })) => {
                    self.saved.push(record);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn loss(&self) -> Loss {
        let vote = |(first, votes): &(u64, bool)| *votes && *first <= self.synced_upto;
        // Blocks that were fsynced, and of which nothing at all is left.
        let end = self.sequence <= self.synced_upto;
        if end || self.gone.iter().any(vote) { Loss::Votes } else { Loss::Entries }
    }
}

/// A log that must lose its end, and how.
pub(crate) struct Cut {
    /// What is wrong, and where.
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) what: &'static str,
    /// How much is cut, in bytes.
    pub(crate) bytes: u64,
    pub(crate) loss: Loss,
    /// Of the segment that takes the place of what is lost.
    header: SegmentHeader,
}

/// Where a log is cut.
#[derive(Default)]
pub(crate) struct Place {
    /// What is wrong, and where.
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) what: &'static str,
    pub(crate) bytes: u64,
    /// The last segment that stays, and where its blocks end; 0 if none does.
    pub(crate) newest: u64,
    pub(crate) end: u64,
    /// The first segment in use.
    pub(crate) oldest: u64,
    /// The sequence of the first block that is lost.
    pub(crate) sequence: u64,
}

impl Cut {
    /// `table` is what the log says up to there.
    pub(crate) fn plan(
        incarnation: Incarnation,
        mut table: Table,
        place: &Place,
        behind: &Behind,
    ) -> Result<Cut, OpenError> {
        let loss = behind.loss();
        // What no formation precedes belongs to a node that starts blank.
        let formed = |record: &Record| matches!(record, Record::Formation(_));
        if table.formation.is_some() || behind.saved.iter().any(formed) || loss == Loss::Entries {
            for record in &behind.saved {
                table
                    .apply(place.newest, record)
                    .map_err(|what| damaged(place.segment, place.offset, what))?;
            }
        }
        table.lose();
        let doubt = if planted::is(Planted::DoubtForgotten) { None } else { table.doubt };
        let header = SegmentHeader {
            version: SEGMENT_VERSION,
            oldest: place.oldest,
            segment: place.newest + 1,
            epoch: behind.epoch + 1,
            first_block: place.sequence,
            prev_end: place.end,
            incarnation,
            bytes: 0, // below
            complete: false,
            lost: Some(loss),
            doubt,
            formation: table.formation.clone(),
            boots: table.boots(),
            rows: table.rows(place.newest, false),
        };
        let Place { segment, offset, what, bytes, .. } = *place;
        Ok(Cut { segment, offset, what, bytes, loss, header })
    }

    /// Puts the new segment in its place, whole and durable, in one moment. What is lost stays where
    /// it is, unless it was in a segment of that number.
    pub(crate) async fn carry_out<D: Disk>(
        &mut self,
        disk: &D,
        options: OplogOptions,
    ) -> Result<(), OpenError> {
        let what = "cutting what is lost";
        let len = self.header.len();
        self.header.bytes = options.segment_bytes.max(2 * len);
        let (segment, bytes) = (self.header.segment, self.header.bytes);
        let made = prepare::make(disk, segment, bytes, Some(self.header.encode())).await;
        made.map(drop).map_err(io_failed(what))
    }

    /// Whether the cluster has no other node, which could have what is lost.
    pub(crate) fn is_alone(&self) -> bool {
        self.header.formation.as_ref().is_some_and(|formation| formation.members.len() == 1)
    }

    /// Where it is not carried out.
    pub(crate) fn refused(self) -> OpenError {
        damaged(self.segment, self.offset, self.what)
    }
}
