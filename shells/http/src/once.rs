//! `Idempotency-Key`: names a write, so that it may be sent again and takes effect once.

use axum::http::{
    HeaderName,
    header::{CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH},
};
use bytes::Bytes;
use highwater_core::{ONCE_KEY_MAX, OnceKey};
use ring::digest::{Context, SHA256};

use crate::{extract::Call, problem::Problem};

/// The header of a request.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// The header of an answer that is that of an earlier request.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("highwater-replayed");

/// The key that came along.
pub(crate) fn key(call: &Call) -> Result<Option<Bytes>, Problem> {
    let mut lines = call.headers().get_all(HEADER).iter();
    let line = match (lines.next(), lines.next()) {
        (None, _) => return Ok(None),
        (Some(line), None) => line.as_bytes(),
        (Some(_), Some(_)) => return Err(Problem::bad_request("more than one Idempotency-Key")),
    };
    if !(1..=ONCE_KEY_MAX).contains(&line.len()) {
        return Err(Problem::bad_request("Idempotency-Key must have 1 to 128 bytes"));
    }
    Ok(Some(Bytes::copy_from_slice(line)))
}

/// A key together with what tells its request from another one: method, path, what is asked of the
/// record as it is, the media type and the body. How long the client waits is no part of it.
pub(crate) fn of(call: &Call, key: Bytes, path: &[&str], body: &[u8]) -> OnceKey {
    let mut sum = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        sum.update(&(bytes.len() as u64).to_le_bytes());
        sum.update(bytes);
    };
    part(call.method().as_bytes());
    path.iter().for_each(|name| part(name.as_bytes()));
    for name in [CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH] {
        let lines: Vec<_> = call.headers().get_all(name).iter().collect();
        part(&(lines.len() as u64).to_le_bytes());
        lines.iter().for_each(|line| part(line.as_bytes()));
    }
    part(body);
    let mut digest = [0; 16];
    digest.copy_from_slice(&sum.finish().as_ref()[..16]);
    OnceKey { key, digest }
}
