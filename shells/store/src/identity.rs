//! Who this data directory is: cluster, node, incarnation, and how often it was started.
//!
//! A directory that has lost votes is **fenced**: it takes a new incarnation ([`renew`]), and counts
//! for nothing from then on, like a blank one. Its files stay, so what its oplog's checksums are
//! salted with stays too, and is a number of its own.
//!
//! The file `identity` holds the same record twice, 4096 bytes apart, so that a damaged sector
//! does not lose it. It is replaced as a whole (written beside, synced, renamed, the directory
//! synced), so that a crash leaves the old one or the new one. One record:
//!
//! | offset | size | what |
//! | --- | --- | --- |
//! | 0 | 8 | `HWIDENT1` |
//! | 8 | 4 | CRC-32C of everything from 12 to 88 |
//! | 12 | 4 | version: 3 |
//! | 16 | 16 | cluster |
//! | 32 | 8 | node |
//! | 40 | 16 | incarnation |
//! | 56 | 8 | boot counter |
//! | 64 | 8 | boot nonce |
//! | 72 | 8 | 1 once an oplog was made, else 0 |
//! | 80 | 4 | CRC-32C of everything from 88 to the end |
//! | 84 | 4 | zero |
//! | 88 | 16 | incarnation of the oplog: the first one this directory had |
//! | 104 | 128 | the starts before this one, the latest first: counter and nonce of each, or zeros |
//!
//! Version 2 ends at 104. Version 1 ends at 88, with zeros from 80 on: there both incarnations are the
//! same.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater_core::{Boot, ClusterId, Incarnation, Member, NodeId};

use crate::{disk::Disk, oplog};

const FILE: &str = "identity";
const FILE_NEW: &str = "identity.tmp";
const MAGIC: [u8; 8] = *b"HWIDENT1";
const VERSION: u32 = 3;
/// What every version has, and the length of version 1.
const BASE: usize = 88;
/// The length of version 2.
const LEN_2: usize = 104;
/// So many starts before the present one are remembered.
const STARTS: usize = 8;
const LEN: usize = LEN_2 + STARTS * 16;
const COPY: usize = 4096;
/// An incarnation ends in so many random bits.
const RANDOM_BITS: u32 = 80;
const RANDOM: u128 = (1 << RANDOM_BITS) - 1;

/// Why a data directory does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// It belongs to another cluster.
    #[error(
        "the data directory belongs to cluster {found}, not to {wanted}: nothing was changed; give \
         this node its own data directory, or correct the configured cluster"
    )]
    OtherCluster {
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        wanted: ClusterId,
    },
    /// It belongs to another node.
    #[error(
        "the data directory belongs to node {found}, not to {wanted}: nothing was changed; give \
         this node its own data directory, or correct the configured node number"
    )]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Whose it should be.
        wanted: NodeId,
    },
    /// Both copies of the record are unreadable.
    #[error(
        "the file `identity` in the data directory is damaged: the node can't prove who it is and \
         must not vote; nothing was changed. Restore the file, or start with an empty data \
         directory to follow without a vote until this node is replaced"
    )]
    Damaged,
    /// The record was written by a later release.
    #[error(
        "the file `identity` has version {0}, which this release does not know: run a later one"
    )]
    Version(u32),
    /// There is an oplog, but no identity.
    #[error(
        "the data directory holds an oplog but no file `identity`: it was not left by this \
         program. Nothing was changed. Restore the file, or start with an empty data directory"
    )]
    Missing,
    /// The operating system refused.
    #[error("the file `identity` in the data directory can't be {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    cluster: ClusterId,
    member: Member,
    log: Incarnation,
    boot: Boot,
    /// An oplog was made: from now on its absence is damage.
    logged: bool,
    /// Before the present one, the latest first.
    starts: [Option<Boot>; STARTS],
}

impl Record {
    /// The next start, with this nonce.
    fn next(self, nonce: u64) -> Record {
        let mut starts = [Some(self.boot); STARTS];
        starts[1..].copy_from_slice(&self.starts[..STARTS - 1]);
        Record {
            boot: Boot { counter: self.boot.counter.saturating_add(1), nonce },
            starts,
            ..self
        }
    }
}

/// Who a data directory is, at one start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// What counts for a quorum.
    pub member: Member,
    /// This start.
    pub boot: Boot,
    /// Those before it, the latest first: a few.
    pub starts: Vec<Boot>,
    /// What the oplog was made with, and its checksums are salted with.
    pub log: Incarnation,
    /// What the directory becomes if its oplog turns out to have lost votes.
    pub(crate) spare: Incarnation,
}

/// Opens the identity of a data directory for one start: makes it where the directory is blank,
/// and counts the boot durably. `wall_ms` is Unix time; `random` must be fresh at each start.
///
/// # Errors
/// Where the directory is another's, damaged, or can't be written.
pub async fn open<D: Disk>(
    disk: &D,
    cluster: ClusterId,
    node: NodeId,
    wall_ms: u64,
    random: u128,
) -> Result<Start, IdentityError> {
    let nonce = mix(random);
    let spare = incarnation(wall_ms, random);
    let record = match read(disk).await? {
        Some(found) if found.cluster != cluster => {
            return Err(IdentityError::OtherCluster { found: found.cluster, wanted: cluster });
        }
        Some(found) if found.member.node != node => {
            return Err(IdentityError::OtherNode { found: found.member.node, wanted: node });
        }
        Some(found) => found.next(nonce),
        None => {
            let files = disk.list(oplog::DIR).await.map_err(failed("looked for"))?;
            if !files.is_empty() {
                return Err(IdentityError::Missing);
            }
            Record {
                cluster,
                member: Member { node, incarnation: spare },
                log: spare,
                boot: Boot { counter: 1, nonce },
                logged: false,
                starts: [None; STARTS],
            }
        }
    };
    write(disk, &record).await?;
    let starts = record.starts.into_iter().flatten().collect();
    Ok(Start { member: record.member, boot: record.boot, starts, log: record.log, spare })
}

/// Fences a data directory that has lost votes: gives it a new incarnation, higher than its own and
/// than `beyond`, which peers have met of its node; durably. The node is from then on like one with a
/// blank directory, and follows without a vote. To be followed by a new start.
///
/// # Errors
/// Where the identity can't be read or written.
pub async fn renew<D: Disk>(
    disk: &D,
    wall_ms: u64,
    random: u128,
    beyond: Incarnation,
) -> Result<Member, IdentityError> {
    rise(disk, incarnation(wall_ms, random), beyond).await
}

/// [`renew`], to this incarnation or, where it is no higher than the present one, one like it.
pub(crate) async fn fence<D: Disk>(disk: &D, spare: Incarnation) -> Result<Member, IdentityError> {
    rise(disk, spare, Incarnation(0)).await
}

async fn rise<D: Disk>(
    disk: &D,
    spare: Incarnation,
    beyond: Incarnation,
) -> Result<Member, IdentityError> {
    let record = read(disk).await?.ok_or(IdentityError::Missing)?;
    // The wall clock may have fallen back.
    let after = record.member.incarnation.max(beyond).0 >> RANDOM_BITS;
    let wall = (after + 1).max(spare.0 >> RANDOM_BITS).min(u128::MAX >> RANDOM_BITS);
    let incarnation = Incarnation(wall << RANDOM_BITS | spare.0 & RANDOM);
    let member = Member { incarnation, ..record.member };
    write(disk, &Record { member, ..record }).await?;
    Ok(member)
}

fn incarnation(wall_ms: u64, random: u128) -> Incarnation {
    Incarnation(u128::from(wall_ms) << RANDOM_BITS | random & RANDOM)
}

/// Whether this directory once had an oplog.
pub(crate) async fn logged<D: Disk>(disk: &D) -> Result<bool, IdentityError> {
    Ok(read(disk).await?.is_some_and(|record| record.logged))
}

/// Notes that this directory has an oplog now. Without an identity there is nothing to note.
pub(crate) async fn set_logged<D: Disk>(disk: &D) -> Result<(), IdentityError> {
    match read(disk).await? {
        Some(record) if !record.logged => write(disk, &Record { logged: true, ..record }).await,
        _ => Ok(()),
    }
}

/// 64 bits that differ from those of the incarnation (splitmix64's finalizer over both halves).
fn mix(random: u128) -> u64 {
    let mut z = ((random >> 64) as u64) ^ (random as u64).rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::Io { what, source }
}

async fn read<D: Disk>(disk: &D) -> Result<Option<Record>, IdentityError> {
    let names = disk.list("").await.map_err(failed("looked for"))?;
    if !names.iter().any(|name| name == FILE) {
        return Ok(None);
    }
    let file = disk.open(FILE, false).await.map_err(failed("opened"))?;
    let bytes = disk.read_at(&file, 0, 2 * COPY).await.map_err(failed("read"))?;
    let first = decode(&bytes);
    match (first, decode(bytes.get(COPY..).unwrap_or_default())) {
        (Ok(record), _) | (_, Ok(record)) => Ok(Some(record)),
        (Err(version @ IdentityError::Version(_)), _) => Err(version),
        (_, Err(error)) => Err(error),
    }
}

async fn write<D: Disk>(disk: &D, record: &Record) -> Result<(), IdentityError> {
    let mut bytes = BytesMut::zeroed(2 * COPY);
    let one = encode(record);
    bytes[..LEN].copy_from_slice(&one);
    bytes[COPY..COPY + LEN].copy_from_slice(&one);
    let file = disk.open(FILE_NEW, true).await.map_err(failed("made"))?;
    disk.write_at(&file, 0, bytes.freeze()).await.map_err(failed("written"))?;
    disk.sync(&file).await.map_err(failed("synced"))?;
    drop(file);
    disk.rename(FILE_NEW, FILE).await.map_err(failed("renamed"))?;
    disk.sync_dir("").await.map_err(failed("synced"))
}

fn encode(record: &Record) -> Bytes {
    let mut out = BytesMut::with_capacity(LEN);
    out.put_slice(&MAGIC);
    out.put_u32_le(0); // the checksum, below
    out.put_u32_le(VERSION);
    out.put_u128_le(record.cluster.0);
    out.put_u64_le(record.member.node.0);
    out.put_u128_le(record.member.incarnation.0);
    out.put_u64_le(record.boot.counter);
    out.put_u64_le(record.boot.nonce);
    out.put_u64_le(u64::from(record.logged));
    out.put_u64_le(0); // a checksum, below
    out.put_u128_le(record.log.0);
    for start in record.starts {
        let Boot { counter, nonce } = start.unwrap_or_default();
        out.put_u64_le(counter);
        out.put_u64_le(nonce);
    }
    let sum = crc32c::crc32c(&out[BASE..]);
    out[BASE - 8..BASE - 4].copy_from_slice(&sum.to_le_bytes());
    // As far as version 1 goes, so that a release that knows only that one sees a later version.
    let sum = crc32c::crc32c(&out[12..BASE]);
    out[8..12].copy_from_slice(&sum.to_le_bytes());
    out.freeze()
}

fn decode(bytes: &[u8]) -> Result<Record, IdentityError> {
    let mut at = bytes.get(..BASE).ok_or(IdentityError::Damaged)?;
    let sum = crc32c::crc32c(&at[12..]);
    if at[..8] != MAGIC {
        return Err(IdentityError::Damaged);
    }
    at.advance(8);
    if at.get_u32_le() != sum {
        return Err(IdentityError::Damaged);
    }
    let version = at.get_u32_le();
    if !(1..=VERSION).contains(&version) {
        return Err(IdentityError::Version(version));
    }
    let cluster = ClusterId(at.get_u128_le());
    let node = NodeId(at.get_u64_le());
    let incarnation = Incarnation(at.get_u128_le());
    let boot = Boot { counter: at.get_u64_le(), nonce: at.get_u64_le() };
    let logged = at.get_u64_le() != 0;
    let (mut log, mut starts) = (incarnation, [None; STARTS]);
    if version > 1 {
        let end = if version == 2 { LEN_2 } else { LEN };
        let mut rest = bytes.get(BASE..end).ok_or(IdentityError::Damaged)?;
        if at.get_u32_le() != crc32c::crc32c(rest) {
            return Err(IdentityError::Damaged);
        }
        log = Incarnation(rest.get_u128_le());
        for start in starts.iter_mut().filter(|_| version > 2) {
            let boot = Boot { counter: rest.get_u64_le(), nonce: rest.get_u64_le() };
            *start = Some(boot).filter(|boot| boot.counter > 0);
        }
    }
    Ok(Record { cluster, member: Member { node, incarnation }, log, boot, logged, starts })
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::*;
    use crate::oplog::tests::mem::{MemDisk, Rng};

    const CLUSTER: ClusterId = ClusterId(0xc1);

    async fn start(disk: &MemDisk, random: u128) -> Result<Start, IdentityError> {
        open(disk, CLUSTER, NodeId(2), 0x0199_0000_0000, random).await
    }

    #[test]
    fn bytes_are_frozen() {
        let record = Record {
            cluster: CLUSTER,
            member: Member { node: NodeId(2), incarnation: Incarnation(0x019a << 80 | 6) },
            log: Incarnation(0x0199 << 80 | 5),
            boot: Boot { counter: 3, nonce: mix(7) },
            logged: true,
            starts: [None; STARTS],
        };
        let record = record.next(mix(8)).next(mix(9));
        let encoded = encode(&record);
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let hex: Vec<_> = encoded.chunks(16).map(line).collect();
        insta::assert_snapshot!("identity", hex.join("\n"));
        assert_eq!(decode(&encoded).ok(), Some(record));
        for at in 0..LEN * 8 {
            let mut damaged = encoded.to_vec();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(decode(&damaged).is_err(), "a flip at {at} went unseen");
        }
    }

    /// As the first release wrote it, with one incarnation.
    #[tokio::test]
    async fn version_1_is_read() {
        let hex = "48574944454e5431a1ffb1f101000000c1000000000000000000000000000000020000000000000005\
                   0000000000000000009901000000000300000000000000\
                   6a49bc645ce731b601000000000000000000000000000000";
        let mut old: Vec<u8> = (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex"))
            .collect();
        let incarnation = Incarnation(0x0199 << 80 | 5);
        let record = decode(&old).expect("version 1");
        assert_eq!((record.member.incarnation, record.log), (incarnation, incarnation));
        assert_eq!((record.boot.counter, record.logged), (3, true));

        let disk = MemDisk::new();
        disk.open(FILE, true).await.expect("makes it");
        old.resize(2 * COPY, 0);
        disk.edit(FILE, |bytes| *bytes = old);
        let found = start(&disk, 1).await.expect("version 1");
        assert_eq!((found.log, found.boot.counter), (incarnation, 4));
        assert!(logged(&disk).await.expect("it stands"));
    }

    #[tokio::test]
    async fn each_start_counts() {
        let disk = MemDisk::new();
        let first = start(&disk, 0xabcd).await.expect("a blank disk");
        assert_eq!(first.member.incarnation, Incarnation(0x0199_0000_0000 << 80 | 0xabcd));
        assert_eq!((first.log, first.boot.counter), (first.member.incarnation, 1));
        let disk = disk.power_cut(&mut Rng(1), 0);
        let second = start(&disk, 0xef01).await.expect("it stands");
        assert_eq!((second.member, second.log, second.boot.counter), (first.member, first.log, 2));
        assert_ne!(first.boot.nonce, second.boot.nonce);
        assert_eq!((first.starts, second.starts), (Vec::new(), vec![first.boot]));
        for n in 3..20 {
            let next = start(&disk, n).await.expect("it stands");
            let before: Vec<u64> = next.starts.iter().map(|boot| boot.counter).collect();
            let n = n as u64;
            assert_eq!(
                before,
                (n.saturating_sub(STARTS as u64).max(1)..n).rev().collect::<Vec<_>>()
            );
        }
    }

    #[tokio::test]
    async fn a_power_cut_at_any_step_keeps_who_it_is() {
        for step in 1..40 {
            let disk = MemDisk::new();
            let member = start(&disk, 1).await.expect("a blank disk").member;
            let now = disk.world().steps;
            disk.world().cut_at = Some(now + step);
            let mut counted = 1;
            while let Ok(Start { boot, .. }) = start(&disk, 2).await {
                counted = boot.counter;
            }
            let disk = disk.power_cut(&mut Rng(step), 50);
            let again = start(&disk, 3).await.expect("it stands");
            assert_eq!(again.member, member);
            assert!(again.boot.counter > counted, "a boot was counted twice");
        }
    }

    #[tokio::test]
    async fn a_fence_rises_and_is_durable_once_it_is_told() {
        for step in 1..20 {
            let disk = MemDisk::new();
            let first = start(&disk, 1).await.expect("a blank disk");
            let now = disk.world().steps;
            disk.world().cut_at = Some(now + step);
            let mut last = first.member;
            // The clock stands still, and falls back.
            for wall in [0x0199_0000_0000, 0x0199_0000_0000, 5] {
                let met = Incarnation(last.incarnation.0 + (u128::from(step) << RANDOM_BITS));
                let Ok(member) = renew(&disk, wall, 9, met).await else { break };
                assert!(member.incarnation > met && member.node == last.node);
                last = member;
            }
            let disk = disk.power_cut(&mut Rng(step), 50);
            let again = start(&disk, 3).await.expect("it stands");
            assert!(again.member.incarnation >= last.incarnation, "a fence was forgotten");
            assert_eq!((again.log, again.boot.counter), (first.log, 2));
        }
        let nobody = renew(&MemDisk::new(), 1, 1, Incarnation(0)).await;
        assert!(matches!(nobody, Err(IdentityError::Missing)));
    }

    #[tokio::test]
    async fn what_is_anothers_or_damaged_is_refused() {
        let disk = MemDisk::new();
        let member = start(&disk, 1).await.expect("a blank disk").member;
        let before = disk.contents();
        let other = open(&disk, ClusterId(9), NodeId(2), 1, 1).await;
        assert!(matches!(other, Err(IdentityError::OtherCluster { found: CLUSTER, .. })));
        let other = open(&disk, CLUSTER, NodeId(3), 1, 1).await;
        assert!(matches!(other, Err(IdentityError::OtherNode { found: NodeId(2), .. })));
        assert!(disk.contents() == before, "a refusal changed something");
        // One copy may go, not both.
        disk.edit(FILE, |bytes| bytes[..512].fill(0xff));
        assert_eq!(start(&disk, 1).await.expect("the other copy stands").member, member);
        disk.edit(FILE, |bytes| bytes[COPY..].fill(0));
        assert_eq!(start(&disk, 1).await.expect("the first copy stands").member, member);
        disk.edit(FILE, |bytes| (bytes[20], bytes[COPY + 20]) = (!bytes[20], !bytes[COPY + 20]));
        assert!(matches!(start(&disk, 1).await, Err(IdentityError::Damaged)));
        disk.edit(FILE, Vec::clear);
        assert!(matches!(start(&disk, 1).await, Err(IdentityError::Damaged)));
    }

    #[tokio::test]
    async fn a_log_without_an_identity_is_refused() {
        let disk = MemDisk::new();
        disk.open("oplog/000000000001", true).await.expect("makes it");
        assert!(matches!(start(&disk, 1).await, Err(IdentityError::Missing)));
    }
}
