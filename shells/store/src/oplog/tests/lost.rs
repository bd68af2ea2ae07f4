//! Damage at the end of the log: it is cut, and never again taken for whole; votes that can still be
//! read are kept, and where one may be lost the data directory is fenced (failures 32, 51).

use highwater_core::{Boot, ClusterId, Doubt, GroupId, Lsn, Member, NodeId, Record, Term};

use super::{
    damage::{flip, look},
    mem::{MemDisk, Rng},
    model::{Model, SMALL, entry, member},
};
use crate::{
    identity,
    oplog::{BlockInfo, BlockKind, Found, Loss, OpenError, Opened, open},
};

pub(super) async fn try_start(disk: &MemDisk, random: u128) -> Result<Opened<MemDisk>, OpenError> {
    let start = identity::open(disk, ClusterId(1), NodeId(1), 0x0199_0000_0000, random).await?;
    open(disk.clone(), &start, SMALL).await
}

/// As after a reboot.
pub(super) async fn start(disk: &MemDisk) -> Opened<MemDisk> {
    let steps = disk.world().steps;
    try_start(disk, u128::from(steps) << 3 | 5).await.expect("it starts")
}

/// One block that was written, and what was in it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) file: String,
    pub(super) block: BlockInfo,
    pub(super) records: Vec<Record>,
}

/// A log at rest, and everything in it.
pub(super) struct AtRest {
    pub(super) disk: MemDisk,
    pub(super) member: Member,
    pub(super) blocks: Vec<Written>,
}

impl AtRest {
    /// So many writes, of all sorts, with a restart within the newest segment.
    pub(super) async fn of(seed: u64, writes: u64) -> AtRest {
        let (disk, mut rng) = (MemDisk::new(), Rng(seed));
        let mut log = start(&disk).await;
        let (member, mut records) = (log.member, Vec::new());
        for n in 0..writes {
            if n == writes - 6 {
                log = start(&disk).await;
            }
            log.preparer.fill().await.expect("the disk is fine");
            let batch: Vec<_> = match n {
                // Blocks with entries only, so that both sorts are there.
                n if n % 3 == 2 => {
                    let model = Model::of(&records);
                    let last = model.last(GroupId(6)).0;
                    (1..4).map(|lsn| entry(6, last + lsn, 1, vec![7; 700])).collect()
                }
                _ => Model::of(&records).batch(&mut rng, 3000),
            };
            log.writer.write(batch.clone()).await.expect("there is room");
            records.extend(batch);
        }
        log.writer.close_marker().await.expect("the disk is fine");
        drop(log);
        let blocks = AtRest::blocks_of(&disk).await;
        assert_eq!(blocks.iter().map(|b| b.records.len()).sum::<usize>(), records.len());
        AtRest { disk, member, blocks }
    }

    pub(super) async fn blocks_of(disk: &MemDisk) -> Vec<Written> {
        let mut blocks: Vec<Written> = Vec::new();
        let mut file = String::new();
        for found in look(disk).await.0 {
            match found {
                Found::Segment(header) => file.clone_from(&header.file),
                Found::Block(block) if block.kind != BlockKind::Marker => {
                    blocks.push(Written { file: file.clone(), block, records: Vec::new() });
                }
                Found::Frame { record, .. } => {
                    blocks.last_mut().expect("frames are in blocks").records.push(record);
                }
                _ => {}
            }
        }
        blocks
    }

    /// The blocks of the newest segment.
    pub(super) fn newest(&self) -> std::ops::Range<usize> {
        let last = &self.blocks.last().expect("there are blocks").file;
        let first = self.blocks.iter().position(|block| block.file == *last).expect("it is there");
        first..self.blocks.len()
    }

    pub(super) fn model(&self) -> Model {
        let records = self.blocks.iter().flat_map(|block| block.records.clone());
        Model::of(&records.collect::<Vec<_>>())
    }

    /// What must be known once these blocks are damaged, the first of which starts what is lost.
    fn expected(&self, first: usize, damaged: &[usize]) -> Model {
        let all = |blocks: &[Written]| -> Vec<Record> {
            blocks.iter().flat_map(|block| block.records.clone()).collect()
        };
        let mut model = Model::of(&all(&self.blocks[..first]));
        let behind = (first..self.blocks.len()).filter(|at| !damaged.contains(at));
        let behind: Vec<_> = behind.flat_map(|at| self.blocks[at].records.clone()).collect();
        model.lose(&behind);
        model
    }
}

/// What happens to a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Harm {
    Header,
    Body,
    Blank,
}

impl Harm {
    pub(super) fn done(self, disk: &MemDisk, Written { file, block, .. }: &Written, rng: &mut Rng) {
        let len = 64 + u64::from(block.body_len);
        match self {
            Harm::Header => flip(disk, file, block.offset + rng.below(64)),
            Harm::Body => flip(disk, file, block.offset + 64 + rng.below(len - 64)),
            Harm::Blank => disk.edit(file, |bytes| {
                bytes[block.offset as usize..(block.offset + len) as usize].fill(0);
            }),
        }
    }

    fn loss(self, block: &Written) -> Loss {
        match (self, block.block.kind) {
            (Harm::Body, BlockKind::Entries) => Loss::Entries,
            _ => Loss::Votes,
        }
    }
}

fn worse(one: Loss, other: Loss) -> Loss {
    if [one, other].contains(&Loss::Votes) { Loss::Votes } else { Loss::Entries }
}

/// A start of the log says what it must, and so does each one after it; the log goes on.
async fn goes_on(mut log: Opened<MemDisk>, disk: &MemDisk, mut model: Model, rng: &mut Rng) {
    let member = log.member;
    assert!(model.matches(&log.recovered), "{model:#?}\n{:#?}", log.recovered);
    model.check_loads(&log.reader, 9000).await;
    let mut disk = disk.clone();
    for round in 0..3 {
        for _ in 0..4 {
            log.preparer.fill().await.expect("the disk is fine");
            let batch = model.batch(rng, 3000);
            log.writer.write(batch.clone()).await.expect("there is room");
            batch.iter().for_each(|record| model.apply(record));
        }
        if round == 2 {
            // Past a few segment headers.
            for _ in 0..6 {
                log.preparer.fill().await.expect("the disk is fine");
                let lsn = model.last(GroupId(9)).0 + 1;
                let batch: Vec<_> = (lsn..lsn + 6).map(|n| entry(9, n, 1, vec![1; 5000])).collect();
                log.writer.write(batch.clone()).await.expect("there is room");
                batch.iter().for_each(|record| model.apply(record));
            }
        }
        disk = disk.power_cut(rng, 50);
        log = start(&disk).await;
        assert_eq!((log.member, &log.recovered.lost), (member, &None), "it was cut once more");
        assert!(log.recovered.doubt.is_some(), "the doubt is forgotten");
        assert!(model.matches(&log.recovered));
        model.check_loads(&log.reader, 1 << 20).await;
    }
    assert_eq!(look(&disk).await.1.damages, 0, "the inspection sees damage where it was cut");
}

/// Every run of up to three damaged blocks, in every way.
#[tokio::test]
async fn what_is_lost_is_cut_and_never_forgotten() {
    let (mut entries, mut votes) = (0, 0);
    for seed in 0..4 {
        let rest = AtRest::of(seed, 24).await;
        let mut rng = Rng(seed + 100);
        for first in rest.newest() {
            for (harm, more) in [
                (Harm::Header, 0),
                (Harm::Body, 0),
                (Harm::Blank, 0),
                (Harm::Body, 1),
                (Harm::Header, 1),
                (Harm::Body, 2),
            ] {
                let damaged: Vec<_> = (first..=first + more)
                    .filter(|at| rest.blocks.get(*at).is_some())
                    .filter(|at| harm != Harm::Body || rest.blocks[*at].block.body_len > 0)
                    .collect();
                let Some(cut) = damaged.first().copied() else { continue };
                let disk = rest.disk.copy();
                let mut loss = Loss::Entries;
                for at in &damaged {
                    harm.done(&disk, &rest.blocks[*at], &mut rng);
                    loss = worse(loss, harm.loss(&rest.blocks[*at]));
                }
                let log = start(&disk).await;
                let lost = log.recovered.lost.clone().expect("it is told");
                assert_eq!(
                    (&lost.file, lost.offset, lost.loss),
                    (&rest.blocks[cut].file, rest.blocks[cut].block.offset, loss),
                    "{harm:?} of {damaged:?}"
                );
                let fenced = log.member.incarnation > rest.member.incarnation;
                assert_eq!(fenced, loss == Loss::Votes, "{harm:?} of {damaged:?}");
                *if fenced { &mut votes } else { &mut entries } += 1;
                goes_on(log, &disk, rest.expected(cut, &damaged), &mut rng).await;
            }
        }
    }
    assert!(entries > 10 && votes > 40, "{entries} without a fence, {votes} with one");
}

/// A crash at every step of the start that cuts: the next one comes to the same.
#[tokio::test]
async fn a_crash_while_cutting_forgets_nothing() {
    let mut crashes = 0;
    for seed in 0..3 {
        let rest = AtRest::of(seed, 24).await;
        let newest = rest.newest();
        let mut rng = Rng(seed + 7);
        for harm in [Harm::Body, Harm::Header] {
            let first = newest.start + rng.below(newest.len() as u64) as usize;
            if harm == Harm::Body && rest.blocks[first].block.body_len == 0 {
                continue;
            }
            let loss = harm.loss(&rest.blocks[first]);
            let model = rest.expected(first, &[first]);
            let harmed = rest.disk.copy();
            harm.done(&harmed, &rest.blocks[first], &mut rng);
            for step in 1.. {
                let mut disk = harmed.copy();
                disk.world().cut_at = Some(step);
                if try_start(&disk, 77).await.is_ok() {
                    break;
                }
                crashes += 1;
                // And once more, somewhere in the next start.
                disk = disk.power_cut(&mut rng, [0, 50, 100][(step % 3) as usize]);
                let now = disk.world().steps;
                disk.world().cut_at = Some(now + 1 + rng.below(60));
                let _ = try_start(&disk, 78).await.map(|_| ());
                disk = if rng.chance(50) { disk.kill() } else { disk.power_cut(&mut rng, 50) };
                let log = start(&disk).await;
                let fenced = log.member.incarnation > rest.member.incarnation;
                assert!(fenced || loss == Loss::Entries, "the fence is forgotten");
                assert!(!fenced || loss == Loss::Votes, "fenced for nothing");
                assert!(model.matches(&log.recovered), "{model:#?}\n{:#?}", log.recovered);
                let disk = disk.power_cut(&mut rng, 0);
                let log = start(&disk).await;
                assert_eq!(log.recovered.lost, None);
                assert!(model.matches(&log.recovered));
            }
        }
    }
    assert!(crashes > 100, "only {crashes} crashes");
}

/// The newest segment's header only repeats what the records before it say: without it, no vote is
/// lost, as long as the blocks can be read. Also where it is the only segment.
#[tokio::test]
async fn a_damaged_header_of_the_newest_segment_is_survived() {
    for (seed, writes) in [(0, 24), (3, 24), (2, 8)] {
        let rest = AtRest::of(seed, writes).await;
        let newest = rest.newest();
        assert_eq!(newest.start == 0, writes == 8, "one segment, or some");
        let file = &rest.blocks[newest.start].file;
        let mut rng = Rng(seed);
        for harm in 0..4 {
            let disk = rest.disk.copy();
            match harm {
                0 => flip(&disk, file, rng.below(80)),
                1 => disk.edit(file, |bytes| bytes[..4096].fill(0)),
                2 => disk.edit(file, |bytes| bytes[..512].fill(0xaa)),
                // With the first blocks behind it.
                _ => {
                    let upto = rest.blocks[newest.start + 2].block.offset as usize;
                    disk.edit(file, |bytes| bytes[..upto].fill(0));
                }
            }
            let damaged: Vec<_> =
                if harm == 3 { vec![newest.start, newest.start + 1] } else { Vec::new() };
            let loss = if harm == 3 { Loss::Votes } else { Loss::Entries };
            let harmed = disk.copy();
            let log = start(&disk).await;
            let lost = log.recovered.lost.clone().expect("it is told");
            assert_eq!(lost.loss, loss, "{lost:?}");
            let fenced = log.member.incarnation > rest.member.incarnation;
            assert_eq!(fenced, loss == Loss::Votes);
            let mut model = rest.expected(newest.start, &damaged);
            if newest.start == 0 && harm == 3 {
                // Not even who votes is known: like a blank node, but in doubt.
                model = Model::default();
                model.lose(&[]);
            }
            goes_on(log, &disk, model.clone(), &mut rng).await;
            for step in 1.. {
                let disk = harmed.copy();
                disk.world().cut_at = Some(step);
                if try_start(&disk, 77).await.is_ok() {
                    break;
                }
                let log = start(&disk.power_cut(&mut rng, 50)).await;
                assert!(model.matches(&log.recovered), "step {step}");
                assert_eq!(log.member.incarnation > rest.member.incarnation, loss == Loss::Votes);
            }
        }
    }
}

/// What was found sound stays so until the log loses something again.
#[tokio::test]
async fn doubt_ends_group_by_group() {
    let rest = AtRest::of(5, 24).await;
    let last = rest.blocks.last().expect("there are blocks");
    let harm = |disk: &MemDisk, blocks: &[Written]| {
        let last = blocks.iter().rev().find(|block| block.block.body_len > 0);
        Harm::Body.done(disk, last.expect("blocks with bodies"), &mut Rng(1));
    };
    harm(&rest.disk, &rest.blocks);
    assert!(last.block.body_len > 0);
    let mut log = start(&rest.disk).await;
    assert_eq!(log.recovered.doubt, Some(Doubt { bound: None }));
    let sound = |group, lsn| Record::Sound { group: GroupId(group), committed: Lsn(lsn) };
    log.writer.write(vec![sound(0, 40), sound(2, 3)]).await.expect("there is room");
    for turn in 0..2 {
        if turn == 1 {
            let lsn = 1;
            log.preparer.fill().await.expect("the disk is fine");
            let many: Vec<_> = (lsn..lsn + 9).map(|n| entry(9, n, 1, vec![1; 9000])).collect();
            log.writer.write(many).await.expect("there is room");
            log.writer.close_marker().await.expect("the disk is fine");
        }
        log = start(&rest.disk).await;
        assert_eq!(log.recovered.doubt, Some(Doubt { bound: Some(Lsn(40)) }));
        let groups = log.recovered.groups.iter().filter(|group| group.sound);
        assert_eq!(groups.map(|group| group.group.0).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(look(&rest.disk).await.1.doubt, log.recovered.doubt);
    }
    // Twice.
    let vote = Record::HardState { group: GroupId(2), term: Term(99), vote: Some(member(2)) };
    let boot = Record::Boot { member: member(1), boot: Boot { counter: 7, nonce: 7 } };
    for record in [sound(3, 1), entry(9, 10, 1, "gone"), vote, boot] {
        log.writer.write(vec![record]).await.expect("there is room");
    }
    log.writer.close_marker().await.expect("the disk is fine");
    let (found, _) = look(&rest.disk).await;
    let gone = found.iter().rev().filter_map(|one| match one {
        Found::Block(block) if block.kind == BlockKind::Entries => Some(*block),
        _ => None,
    });
    let file = found.iter().rev().find_map(|one| match one {
        Found::Segment(header) => Some(header.file.clone()),
        _ => None,
    });
    // Neither the start met nor the vote are in it.
    let (block, file) = (gone.clone().nth(1).expect("a block"), file.expect("a segment"));
    flip(&rest.disk, &file, block.offset + 70);
    let log = start(&rest.disk).await;
    assert_eq!(log.recovered.lost.as_ref().expect("it is told").loss, Loss::Entries);
    assert_eq!(log.recovered.doubt, Some(Doubt { bound: None }));
    assert!(log.recovered.groups.iter().all(|group| !group.sound));
    let group = log.recovered.groups.iter().find(|group| group.group == GroupId(2));
    assert_eq!(group.map(|group| (group.term, group.vote)), Some((Term(99), Some(member(2)))));
    assert!(log.recovered.boots.contains(&(member(1), Boot { counter: 7, nonce: 7 })));
}
