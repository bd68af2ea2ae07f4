//! Keys of the core's control writes that a shell may look for.

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::Lsn;

/// Before the LSN of a refused operation, as a big endian u64. The value is its answer.
const REFUSED: &[u8] = b"refused/";

/// The control key of an operation that was refused. Keys are in the order of LSNs.
#[must_use]
pub fn refused_key(lsn: Lsn) -> Bytes {
    let mut key = BytesMut::from(REFUSED);
    key.put_u64(lsn.0);
    key.freeze()
}

/// The LSN of such a key; `None` for any other key.
#[must_use]
pub fn refused_lsn(key: &[u8]) -> Option<Lsn> {
    let lsn = key.strip_prefix(REFUSED)?;
    Some(Lsn(u64::from_be_bytes(lsn.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_order_and_come_back() {
        let lsns = [0, 1, 255, 256, u64::MAX].map(Lsn);
        assert!(lsns.map(refused_key).is_sorted());
        assert_eq!(lsns.map(|lsn| refused_lsn(&refused_key(lsn))), lsns.map(Some));
        assert_eq!(refused_lsn(b"refused/1"), None);
        assert_eq!(refused_lsn(b"slot/12345678"), None);
    }
}
