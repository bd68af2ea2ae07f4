//! Keys and names: what is a valid one, and how they travel in a URL.

use bytes::Bytes;

use crate::problem::{Code, Problem};

/// A key's length in bytes at most.
const KEY_MAX: usize = 1024;
/// A name's length in bytes at most.
const NAME_MAX: usize = 63;

/// Percent-decodes once. `None` where a `%` is not followed by two hex digits.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    Some(out)
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// Checks a name.
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    if is_name(name) {
        return Ok(());
    }
    Err(Problem::new(
        Code::InvalidName,
        "the name of a database or a slot is 1 to 63 of a-z, 0-9, `_` and `-`, beginning with a \
         letter or digit",
    ))
}

/// Checks a key.
pub(crate) fn check_key(key: &str) -> Result<(), Problem> {
    let invalid = |detail: &'static str| Err(Problem::new(Code::InvalidKey, detail));
    if key.is_empty() {
        return invalid("the key is empty; it has 1 to 1024 bytes");
    }
    if key.len() > KEY_MAX {
        return invalid("the key is longer than 1024 bytes");
    }
    if key.split('/').any(|segment| matches!(segment, "." | "..")) {
        return invalid("a key must not have `.` or `..` between slashes");
    }
    Ok(())
}

/// The key of a record's URL, from what stands there percent-encoded.
pub(crate) fn key_of_path(raw: &str) -> Result<String, Problem> {
    let bytes = decode(raw, false).ok_or_else(|| {
        Problem::new(Code::InvalidKey, "the key has a `%` that is not followed by two hex digits")
    })?;
    let key = String::from_utf8(bytes)
        .map_err(|_| Problem::new(Code::InvalidKey, "the key is not UTF-8"))?;
    check_key(&key)?;
    Ok(key)
}

/// A key from a JSON document.
pub(crate) fn key_of_json(key: String) -> Result<Bytes, Problem> {
    check_key(&key)?;
    Ok(Bytes::from(key))
}

/// The name of a database or a slot, from what stands there percent-encoded.
pub(crate) fn name_of_path(raw: &str) -> Result<String, Problem> {
    let name = decode(raw, false).and_then(|bytes| String::from_utf8(bytes).ok());
    let name = name.unwrap_or_default();
    check_name(&name)?;
    Ok(name)
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= NAME_MAX
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(raw: &str) -> Result<String, Code> {
        key_of_path(raw).map_err(|problem| problem.code())
    }

    #[test]
    fn a_key_is_decoded_once() {
        assert_eq!(key("a%2Fb%252F").as_deref(), Ok("a/b%2F"));
        assert_eq!(key("a+b").as_deref(), Ok("a+b"));
        assert_eq!(key("%C3%A4").as_deref(), Ok("ä"));
        assert_eq!(key("ä//b/").as_deref(), Ok("ä//b/"));
        assert_eq!(key("%00").as_deref(), Ok("\0"));
        assert_eq!(key("...").as_deref(), Ok("..."));
    }

    #[test]
    fn a_bad_key_is_refused() {
        for raw in
            ["", "%", "%2", "%zz", "%+1", "%ff", "%C3", ".", "..", "a/../b", "a/%2e%2E", "./a"]
        {
            assert_eq!(key(raw), Err(Code::InvalidKey), "{raw}");
        }
        assert!(key(&"k".repeat(1024)).is_ok());
        assert_eq!(key(&"k".repeat(1025)), Err(Code::InvalidKey));
        assert!(key(&"%61".repeat(1024)).is_ok());
        assert_eq!(key(&"ä".repeat(513)), Err(Code::InvalidKey));
    }

    #[test]
    fn names_are_plain() {
        for name in ["a", "0", "a-b_c", &"a".repeat(63), "%61"] {
            assert!(name_of_path(name).is_ok(), "{name}");
        }
        for name in ["", "A", "-a", "_a", "a.b", "ä", &"a".repeat(64), "a%", "a%2Fb", "a%00"] {
            assert!(name_of_path(name).is_err(), "{name}");
        }
    }
}
