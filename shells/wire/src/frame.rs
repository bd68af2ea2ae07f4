//! The frame around every message, and how frames are found in a stream.
//!
//! A frame is a 16-byte header, a control part (rkyv, see `v1`), and for some types a tail of raw
//! bytes. All numbers are little endian. `docs/FORMATS.md` draws it.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor::{Failure, Panic, ResultExt},
    ser::{allocator::ArenaHandle, writer::IoWriter},
};

use crate::entry::EntryError;

/// The longest frame, header included, in bytes.
pub const FRAME_MAX: usize = 24 << 20;

/// Length of the header, in bytes: length, checksum, version, type, two zero bytes, control length.
pub const FRAME_HEADER: usize = 16;

/// The version that is written. Length and checksum keep their place in every version.
const VERSION: u8 = 1;

/// Where the checksummed part begins.
const CHECKED_FROM: usize = 8;

/// What a frame holds. The numbers never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameType {
    Heartbeat = 1,
    Nodes = 2,
    Group = 3,
    Append = 4,
    Forward = 5,
    ForwardReply = 6,
    StatusQuery = 7,
    StatusReply = 8,
    Hello = 9,
    Fetched = 10,
    Recall = 11,
    Recalled = 12,
    Root = 13,
    SnapshotAsk = 14,
    SnapshotBlock = 15,
    SnapshotNone = 16,
}

impl FrameType {
    fn from_u8(n: u8) -> Option<FrameType> {
        match n {
            1 => Some(FrameType::Heartbeat),
            2 => Some(FrameType::Nodes),
            3 => Some(FrameType::Group),
            4 => Some(FrameType::Append),
            5 => Some(FrameType::Forward),
            6 => Some(FrameType::ForwardReply),
            7 => Some(FrameType::StatusQuery),
            8 => Some(FrameType::StatusReply),
            9 => Some(FrameType::Hello),
            10 => Some(FrameType::Fetched),
            11 => Some(FrameType::Recall),
            12 => Some(FrameType::Recalled),
            13 => Some(FrameType::Root),
            14 => Some(FrameType::SnapshotAsk),
            15 => Some(FrameType::SnapshotBlock),
            16 => Some(FrameType::SnapshotNone),
            _ => None,
        }
    }

    /// Whether the checksum covers the tail. One that is made of entry frames carries their own.
    fn covers_tail(self) -> bool {
        !matches!(self, FrameType::Append | FrameType::Fetched)
    }
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame's length is below its header's, above the bound, or not that of the bytes at hand.
    #[error("a frame states {stated} bytes, which cannot be")]
    Length {
        /// As the frame has it.
        stated: u32,
    },
    /// Fewer bytes than a header.
    #[error("a frame is cut off after {0} bytes")]
    Truncated(usize),
    /// Damaged.
    #[error("a frame is damaged: its checksum does not match")]
    Checksum,
    /// Intact, but written by a later release.
    #[error("a frame has version {0}, which this release does not know: run a later one")]
    Version(u8),
    /// Intact, but of a type from a later release, or not expected here.
    #[error("a frame has type {0}, which is not expected here")]
    Type(u8),
    /// Intact, but its contents are not what its type demands.
    #[error("a frame's contents are malformed: {0}")]
    Malformed(&'static str),
    /// An append's entry.
    #[error(transparent)]
    Entry(#[from] EntryError),
}

/// What a control part must be able to do.
pub(crate) trait Control:
    Archive<
        Archived: for<'a> CheckBytes<HighValidator<'a, Failure>>
                      + Deserialize<Self, HighDeserializer<Failure>>,
    > + Sized
{
}

impl<T> Control for T where
    T: Archive<
        Archived: for<'a> CheckBytes<HighValidator<'a, Failure>>
                      + Deserialize<T, HighDeserializer<Failure>>,
    >
{
}

/// Where control parts are written to.
type Out<'o> = IoWriter<bytes::buf::Writer<&'o mut BytesMut>>;

/// Appends one frame to `out`: the control part, then what `tail` writes.
///
/// # Panics
/// If it gets longer than [`FRAME_MAX`]: what nodes say is bounded by the core's configuration.
pub(crate) fn put<C>(
    kind: FrameType,
    control: &C,
    out: &mut BytesMut,
    tail: impl FnOnce(&mut BytesMut),
) where
    C: for<'o, 'a> Serialize<HighSerializer<Out<'o>, ArenaHandle<'a>, Panic>>,
{
    let start = out.len();
    out.put_bytes(0, CHECKED_FROM); // length and checksum, below
    out.put_u8(VERSION);
    out.put_u8(kind as u8);
    out.put_u16_le(0);
    out.put_u32_le(0); // control length, below
    let body = start + FRAME_HEADER;
    // Writing to memory does not fail; `Panic` says so to the type system.
    rkyv::api::high::to_bytes_in::<_, Panic>(control, IoWriter::new(out.writer())).always_ok();
    let control_end = out.len();
    out[body - 4..body].copy_from_slice(&((control_end - body) as u32).to_le_bytes());
    tail(out);
    let len = out.len() - start;
    assert!(len <= FRAME_MAX, "a message of {len} bytes was to be sent");
    let checked_end = if kind.covers_tail() { out.len() } else { control_end };
    let sum = crc32c::crc32c(&out[start + CHECKED_FROM..checked_end]);
    out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
}

/// An intact frame, taken apart. Both parts share the memory of the frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: FrameType,
    pub(crate) control: Bytes,
    pub(crate) tail: Bytes,
}

impl Frame {
    /// Checks everything that all types share.
    pub(crate) fn open(mut frame: Bytes) -> Result<Frame, DecodeError> {
        let have = frame.len();
        let Some(mut header) = frame.get(..FRAME_HEADER) else {
            return Err(DecodeError::Truncated(have));
        };
        let stated = header.get_u32_le();
        if stated as usize != have || have > FRAME_MAX {
            return Err(DecodeError::Length { stated });
        }
        let sum = header.get_u32_le();
        let version = header.get_u8();
        let kind = header.get_u8();
        let reserved = header.get_u16_le();
        let control_end = FRAME_HEADER.saturating_add(header.get_u32_le() as usize);
        let kind_known = FrameType::from_u8(kind);
        let checked_end = match kind_known {
            Some(kind) if !kind.covers_tail() => control_end,
            _ => have,
        };
        let checked = frame.get(CHECKED_FROM..checked_end).ok_or(DecodeError::Checksum)?;
        if crc32c::crc32c(checked) != sum {
            return Err(DecodeError::Checksum);
        }
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let kind = kind_known.ok_or(DecodeError::Type(kind))?;
        if reserved != 0 {
            return Err(DecodeError::Malformed("the reserved bytes are not zero"));
        }
        if control_end > have {
            return Err(DecodeError::Malformed("the control part is longer than the frame"));
        }
        let tail = frame.split_off(control_end);
        frame.advance(FRAME_HEADER);
        Ok(Frame { kind, control: frame, tail })
    }

    /// The control part, validated.
    pub(crate) fn control<C: Control>(&self) -> Result<C, DecodeError> {
        rkyv::from_bytes::<C, Failure>(&self.control)
            .map_err(|_| DecodeError::Malformed("the control part is not of its type"))
    }

    /// For types that have no tail.
    pub(crate) fn no_tail(&self) -> Result<(), DecodeError> {
        if self.tail.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Malformed("there are bytes after the control part"))
        }
    }
}

/// Finds frames in a stream of chunks. Holds no more than what was pushed; a frame that lies in one
/// chunk shares its memory, any other is copied once, when all of it is there.
///
/// After an error the stream cannot be read any further: the error repeats.
#[derive(Debug, Default)]
pub struct FrameReader {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    held: usize,
}

impl FrameReader {
    /// An empty one.
    #[must_use]
    pub fn new() -> FrameReader {
        FrameReader::default()
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.held += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// The next whole frame, for [`decode`](crate::message::decode); `None` where more bytes are
    /// needed.
    ///
    /// # Errors
    /// Where its length is none that a frame can have.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, DecodeError> {
        let Some(stated) = self.stated_len() else {
            return Ok(None);
        };
        let len = stated as usize;
        if !(FRAME_HEADER..=FRAME_MAX).contains(&len) {
            return Err(DecodeError::Length { stated });
        }
        if self.held < len {
            return Ok(None);
        }
        Ok(Some(self.take(len)))
    }

    /// The first four bytes, which may lie in several chunks.
    fn stated_len(&self) -> Option<u32> {
        let mut bytes = [0u8; 4];
        let mut from = self.chunks.iter().flat_map(|c| c.iter());
        for b in &mut bytes {
            *b = *from.next()?;
        }
        Some(u32::from_le_bytes(bytes))
    }

    /// The first `len` bytes, which are held.
    fn take(&mut self, len: usize) -> Bytes {
        self.held -= len;
        let mut assembled = BytesMut::new();
        while let Some(front) = self.chunks.front_mut() {
            let missing = len - assembled.len();
            let part = front.split_to(missing.min(front.len()));
            if front.is_empty() {
                self.chunks.pop_front();
            }
            if part.len() == len {
                return part;
            }
            if assembled.is_empty() {
                assembled.reserve(len);
            }
            assembled.extend_from_slice(&part);
            if assembled.len() == len {
                break;
            }
        }
        assembled.freeze()
    }
}
