//! The system group's state: which databases there are. Core-owned control state: applied here,
//! stored by the engine as opaque key-value writes at checkpoints.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::{GroupId, Incarnation, Member, NodeId};

/// What a `CreateDatabase` entry says. Layout, little endian: version (u8 = 1), name length (u8),
/// name, number of voters (u16), then node (u64) and incarnation (u128) of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CreateDatabase {
    pub(crate) name: String,
    pub(crate) voters: Vec<Member>,
}

const VERSION: u8 = 1;
/// The longest name that the layout holds.
pub(crate) const NAME_MAX: usize = 255;

impl CreateDatabase {
    pub(crate) fn encode(&self) -> Bytes {
        assert!(self.name.len() <= NAME_MAX, "a name fits its length byte");
        let mut out = BytesMut::with_capacity(4 + self.name.len() + self.voters.len() * 24);
        out.put_u8(VERSION);
        out.put_u8(self.name.len() as u8);
        out.put_slice(self.name.as_bytes());
        out.put_u16_le(self.voters.len() as u16);
        for voter in &self.voters {
            out.put_u64_le(voter.node.0);
            out.put_u128_le(voter.incarnation.0);
        }
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Option<CreateDatabase> {
        if bytes.remaining() < 2 || bytes.get_u8() != VERSION {
            return None;
        }
        let len = bytes.get_u8() as usize;
        if bytes.remaining() < len + 2 {
            return None;
        }
        let name = String::from_utf8(bytes.split_to(len).to_vec()).ok()?;
        let count = bytes.get_u16_le() as usize;
        if bytes.remaining() != count * 24 {
            return None;
        }
        let voters = (0..count)
            .map(|_| Member {
                node: NodeId(bytes.get_u64_le()),
                incarnation: Incarnation(bytes.get_u128_le()),
            })
            .collect();
        Some(CreateDatabase { name, voters })
    }
}

/// One database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Database {
    pub(crate) group: GroupId,
    pub(crate) voters: Vec<Member>,
}

/// Control keys of databases: this, then the name. The value is the group (u64 LE), then the
/// create entry's payload.
const KEY_PREFIX: &[u8] = b"database/";

/// Every database by name.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    databases: BTreeMap<String, Database>,
    /// Control writes since the last checkpoint.
    dirty: Vec<(Bytes, Bytes)>,
}

impl Catalog {
    /// From the control writes of the last checkpoint; `None` where one can't be read.
    pub(crate) fn recover(control: &[(Bytes, Bytes)]) -> Option<Catalog> {
        let mut catalog = Catalog::default();
        for (key, value) in control {
            if !key.starts_with(KEY_PREFIX) {
                continue;
            }
            let mut value = value.clone();
            if value.remaining() < 8 {
                return None;
            }
            let group = GroupId(value.get_u64_le());
            let CreateDatabase { name, voters } = CreateDatabase::decode(value)?;
            catalog.databases.insert(name, Database { group, voters });
        }
        Some(catalog)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Database> {
        self.databases.get(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.databases.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Database)> {
        self.databases.iter().map(|(name, database)| (name.as_str(), database))
    }

    /// Applies a create entry: the database's group, and whether it stood before.
    pub(crate) fn create(
        &mut self,
        lsn_as_group: GroupId,
        create: CreateDatabase,
    ) -> (GroupId, bool) {
        if let Some(found) = self.databases.get(&create.name) {
            return (found.group, true);
        }
        self.dirty.push(control_write(lsn_as_group, &create));
        let CreateDatabase { name, voters } = create;
        self.databases.insert(name, Database { group: lsn_as_group, voters });
        (lsn_as_group, false)
    }

    /// What was checkpointed is lost: all of it is due again.
    pub(crate) fn dirty_all(&mut self) {
        let write = |(name, database): (&String, &Database)| {
            let create = CreateDatabase { name: name.clone(), voters: database.voters.clone() };
            control_write(database.group, &create)
        };
        self.dirty = self.databases.iter().map(write).collect();
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn take_dirty(&mut self) -> Vec<(Bytes, Bytes)> {
        core::mem::take(&mut self.dirty)
    }
}

fn control_write(group: GroupId, create: &CreateDatabase) -> (Bytes, Bytes) {
    let mut key = BytesMut::from(KEY_PREFIX);
    key.put_slice(create.name.as_bytes());
    let mut value = BytesMut::new();
    value.put_u64_le(group.0);
    value.put_slice(&create.encode());
    (key.freeze(), value.freeze())
}
