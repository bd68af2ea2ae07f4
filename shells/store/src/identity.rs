//! Who this data directory is: cluster, node, incarnation, and how often it was started.
//!
//! The file `identity` holds the same record twice, 4096 bytes apart, so that a damaged sector
//! does not lose it. It is replaced as a whole (written beside, synced, renamed, the directory
//! synced), so that a crash leaves the old one or the new one. One record:
//!
//! | offset | size | what |
//! | --- | --- | --- |
//! | 0 | 8 | `HWIDENT1` |
//! | 8 | 4 | CRC-32C of everything from 12 to 88 |
//! | 12 | 4 | version: 1 |
//! | 16 | 16 | cluster |
//! | 32 | 8 | node |
//! | 40 | 16 | incarnation |
//! | 56 | 8 | boot counter |
//! | 64 | 8 | boot nonce |
//! | 72 | 8 | 1 once an oplog was made, else 0 |
//! | 80 | 8 | zero |

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater_core::{Boot, ClusterId, Incarnation, Member, NodeId};

use crate::{disk::Disk, oplog};

const FILE: &str = "identity";
const FILE_NEW: &str = "identity.tmp";
const MAGIC: [u8; 8] = *b"HWIDENT1";
const VERSION: u32 = 1;
const LEN: usize = 88;
const COPY: usize = 4096;

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
    boot: Boot,
    /// An oplog was made: from now on its absence is damage.
    logged: bool,
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
) -> Result<(Member, Boot), IdentityError> {
    let nonce = mix(random);
    let record = match read(disk).await? {
        Some(found) if found.cluster != cluster => {
            return Err(IdentityError::OtherCluster { found: found.cluster, wanted: cluster });
        }
        Some(found) if found.member.node != node => {
            return Err(IdentityError::OtherNode { found: found.member.node, wanted: node });
        }
        Some(found) => {
            Record { boot: Boot { counter: found.boot.counter.saturating_add(1), nonce }, ..found }
        }
        None => {
            let files = disk.list(oplog::DIR).await.map_err(failed("looked for"))?;
            if !files.is_empty() {
                return Err(IdentityError::Missing);
            }
            let low = random & ((1 << 80) - 1);
            let incarnation = Incarnation((u128::from(wall_ms) << 80) | low);
            Record {
                cluster,
                member: Member { node, incarnation },
                boot: Boot { counter: 1, nonce },
                logged: false,
            }
        }
    };
    write(disk, &record).await?;
    Ok((record.member, record.boot))
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
    out.put_u64_le(0);
    let sum = crc32c::crc32c(&out[12..LEN]);
    out[8..12].copy_from_slice(&sum.to_le_bytes());
    out.freeze()
}

fn decode(bytes: &[u8]) -> Result<Record, IdentityError> {
    let mut bytes = bytes.get(..LEN).ok_or(IdentityError::Damaged)?;
    let sum = crc32c::crc32c(&bytes[12..]);
    if bytes[..8] != MAGIC {
        return Err(IdentityError::Damaged);
    }
    bytes.advance(8);
    if bytes.get_u32_le() != sum {
        return Err(IdentityError::Damaged);
    }
    let version = bytes.get_u32_le();
    if version != VERSION {
        return Err(IdentityError::Version(version));
    }
    let cluster = ClusterId(bytes.get_u128_le());
    let node = NodeId(bytes.get_u64_le());
    let incarnation = Incarnation(bytes.get_u128_le());
    let boot = Boot { counter: bytes.get_u64_le(), nonce: bytes.get_u64_le() };
    let logged = bytes.get_u64_le() != 0;
    Ok(Record { cluster, member: Member { node, incarnation }, boot, logged })
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::*;
    use crate::oplog::tests::mem::{MemDisk, Rng};

    const CLUSTER: ClusterId = ClusterId(0xc1);

    async fn start(disk: &MemDisk, random: u128) -> Result<(Member, Boot), IdentityError> {
        open(disk, CLUSTER, NodeId(2), 0x0199_0000_0000, random).await
    }

    #[test]
    fn bytes_are_frozen() {
        let record = Record {
            cluster: CLUSTER,
            member: Member { node: NodeId(2), incarnation: Incarnation(0x0199 << 80 | 5) },
            boot: Boot { counter: 3, nonce: mix(7) },
            logged: true,
        };
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

    #[tokio::test]
    async fn each_start_counts() {
        let disk = MemDisk::new();
        let (member, first) = start(&disk, 0xabcd).await.expect("a blank disk");
        assert_eq!(member.incarnation, Incarnation(0x0199_0000_0000 << 80 | 0xabcd));
        assert_eq!(first.counter, 1);
        let disk = disk.power_cut(&mut Rng(1), 0);
        let (again, second) = start(&disk, 0xef01).await.expect("it stands");
        assert_eq!((again, second.counter), (member, 2));
        assert_ne!(first.nonce, second.nonce);
    }

    #[tokio::test]
    async fn a_power_cut_at_any_step_keeps_who_it_is() {
        for step in 1..40 {
            let disk = MemDisk::new();
            let (member, _) = start(&disk, 1).await.expect("a blank disk");
            let now = disk.world().steps;
            disk.world().cut_at = Some(now + step);
            let mut counted = 1;
            while let Ok((_, boot)) = start(&disk, 2).await {
                counted = boot.counter;
            }
            let disk = disk.power_cut(&mut Rng(step), 50);
            let (again, boot) = start(&disk, 3).await.expect("it stands");
            assert_eq!(again, member);
            assert!(boot.counter > counted, "a boot was counted twice");
        }
    }

    #[tokio::test]
    async fn what_is_anothers_or_damaged_is_refused() {
        let disk = MemDisk::new();
        let (member, _) = start(&disk, 1).await.expect("a blank disk");
        let before = disk.contents();
        let other = open(&disk, ClusterId(9), NodeId(2), 1, 1).await;
        assert!(matches!(other, Err(IdentityError::OtherCluster { found: CLUSTER, .. })));
        let other = open(&disk, CLUSTER, NodeId(3), 1, 1).await;
        assert!(matches!(other, Err(IdentityError::OtherNode { found: NodeId(2), .. })));
        assert!(disk.contents() == before, "a refusal changed something");
        // One copy may go, not both.
        disk.edit(FILE, |bytes| bytes[..512].fill(0xff));
        assert_eq!(start(&disk, 1).await.expect("the other copy stands").0, member);
        disk.edit(FILE, |bytes| bytes[COPY..].fill(0));
        assert_eq!(start(&disk, 1).await.expect("the first copy stands").0, member);
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
