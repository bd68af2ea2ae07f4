//! The text of `Highwater-Bookmark`: opaque to clients, checked here.

use axum::http::{HeaderName, HeaderValue};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use highwater_core::{ClusterId, GroupId, Lsn, Term};
use highwater_node::api::Bookmark;

use crate::problem::Problem;

/// The header's name.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("highwater-bookmark");

const VERSION: u8 = 1;
/// Version, group, term, LSN, checksum.
const LENGTH: usize = 1 + 8 + 8 + 8 + 4;

/// The checksum covers the cluster as well, so that a bookmark of another cluster is not mistaken
/// for one of ours, whose groups have the same numbers.
fn checksum(cluster: ClusterId, body: &[u8]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(&cluster.0.to_le_bytes()), body).to_le_bytes()
}

/// The header's value for a position.
pub(crate) fn encode(cluster: ClusterId, bookmark: &Bookmark) -> HeaderValue {
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.push(VERSION);
    bytes.extend_from_slice(&bookmark.group.0.to_le_bytes());
    bytes.extend_from_slice(&bookmark.term.0.to_le_bytes());
    bytes.extend_from_slice(&bookmark.lsn.0.to_le_bytes());
    let sum = checksum(cluster, &bytes);
    bytes.extend_from_slice(&sum);
    // base64url is always a valid header value.
    HeaderValue::try_from(URL_SAFE_NO_PAD.encode(bytes))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The position that a header's value stands for.
pub(crate) fn decode(cluster: ClusterId, value: &[u8]) -> Result<Bookmark, Problem> {
    parse(cluster, value).ok_or_else(|| {
        Problem::bad_request(
            "Highwater-Bookmark is not one that this cluster gave out; send it as it was received",
        )
    })
}

fn parse(cluster: ClusterId, value: &[u8]) -> Option<Bookmark> {
    let bytes: [u8; LENGTH] = URL_SAFE_NO_PAD.decode(value).ok()?.try_into().ok()?;
    let (body, sum) = bytes.split_at(LENGTH - 4);
    if checksum(cluster, body) != sum || body[0] != VERSION {
        return None;
    }
    let number = |at: usize| body[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    Some(Bookmark { group: GroupId(number(1)?), term: Term(number(9)?), lsn: Lsn(number(17)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    #[test]
    fn what_goes_out_comes_back() {
        let bookmark = Bookmark { group: GroupId(3), term: Term(u64::MAX), lsn: Lsn(1 << 60) };
        let value = encode(CLUSTER, &bookmark);
        assert_eq!(decode(CLUSTER, value.as_bytes()).unwrap(), bookmark);
        assert!(decode(ClusterId(8), value.as_bytes()).is_err());
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let bookmark = Bookmark { group: GroupId(3), term: Term(2), lsn: Lsn(9) };
        let value = encode(CLUSTER, &bookmark).as_bytes().to_vec();
        for at in 0..value.len() {
            for byte in [b'A', b'_', b' ', 0xff] {
                let mut other = value.clone();
                other[at] = byte;
                assert!(other == value || decode(CLUSTER, &other).is_err());
            }
            assert!(decode(CLUSTER, &value[..at]).is_err());
        }
    }
}
