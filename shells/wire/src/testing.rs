//! Helpers for the tests of formats.

use bytes::Bytes;

/// Bytes as hex, 32 to a line, for snapshots.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let line = |c: &[u8]| c.iter().map(|b| format!("{b:02x}")).collect::<String>();
    bytes.chunks(32).map(line).collect::<Vec<_>>().join("\n")
}

/// Calls `check` with `whole` cut at every length, and with each of its bits flipped.
pub(crate) fn mutations(whole: &Bytes, mut check: impl FnMut(Bytes)) {
    for len in 0..whole.len() {
        check(Bytes::copy_from_slice(&whole[..len]));
    }
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        check(Bytes::from(bytes));
    }
}
