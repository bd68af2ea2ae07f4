//! Keys as maps of many hold them.

use std::{borrow::Borrow, cmp::Ordering, fmt, ops::Deref};

use bytes::Bytes;

/// The longest key that lies in the map itself: what is free in the size of a [`Bytes`].
const SHORT_MAX: usize = 23;

/// A key. Short ones lie in the map, so that a search among many does not fetch each that it meets from
/// somewhere else; others are slices of the payloads that they came in.
#[derive(Clone)]
pub(super) enum Key {
    Short { len: u8, bytes: [u8; SHORT_MAX] },
    Long(Bytes),
}

impl From<Bytes> for Key {
    fn from(key: Bytes) -> Key {
        let mut bytes = [0; SHORT_MAX];
        match bytes.get_mut(..key.len()) {
            Some(short) => {
                short.copy_from_slice(&key);
                Key::Short { len: key.len() as u8, bytes }
            }
            None => Key::Long(key),
        }
    }
}

impl From<Key> for Bytes {
    fn from(key: Key) -> Bytes {
        match key {
            Key::Short { .. } => Bytes::copy_from_slice(&key),
            Key::Long(bytes) => bytes,
        }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Key::Short { len, bytes } => &bytes[..usize::from(*len)],
            Key::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        **self == **other
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_they_were_and_in_the_same_order() {
        let texts: Vec<Bytes> = ["", "a", "a\0", "b"]
            .into_iter()
            .map(Bytes::from)
            .chain([22, 23, 24, 1024].map(|len| Bytes::from(vec![b'x'; len])))
            .collect();
        assert!(texts.is_sorted());
        let keys: Vec<Key> = texts.iter().cloned().map(Key::from).collect();
        assert!(keys.is_sorted());
        assert!(matches!((&keys[5], &keys[6]), (Key::Short { .. }, Key::Long(_))));
        assert_eq!(keys.into_iter().map(Bytes::from).collect::<Vec<_>>(), texts);
    }

    #[test]
    fn a_key_takes_no_more_room_than_a_slice() {
        assert_eq!(size_of::<Key>(), size_of::<Bytes>());
    }
}
