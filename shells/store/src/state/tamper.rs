//! Damage above the checksums, for tests and the simulator: the file is changed as a whole, by redb,
//! so that every block is what its checksum says, and what it holds is not what was written.

use super::{
    layout::{self, META, RECORDS, SUMS},
    leaf::Leaves,
    table::{Table, TableError},
    *,
};

/// What is to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// A bit of a record.
    Record,
    /// A bit of the sums.
    Sums,
}

/// Flips a bit in a group's state file, which nobody has open; which one is for `random` to say.
/// Whether there was something to change.
pub fn tamper(files: &dyn StateFiles, group: GroupId, what: Tamper, random: u64) -> bool {
    let change = || -> Result<bool, TableError> {
        let backend = files.open(&layout::file_name(group)).map_err(redb::Error::Io)?;
        let Some(backend) = backend else { return Ok(false) };
        Table::open(backend, 1 << 20, Leaves::of(group))?.tamper(what, random)
    };
    change().unwrap_or(false)
}

impl Table {
    fn tamper(&self, what: Tamper, random: u64) -> Result<bool, TableError> {
        use redb::{ReadableTable, ReadableTableMetadata};
        let transaction = self.begin_write()?;
        match what {
            Tamper::Record => {
                let mut records = transaction.open_table(RECORDS)?;
                let Some(nth) = random.checked_rem(records.len()?) else { return Ok(false) };
                let found = records.iter()?.nth(nth as usize).transpose()?;
                let Some((key, mut row)) =
                    found.map(|(key, row)| (key.value().to_vec(), row.value().to_vec()))
                else {
                    return Ok(false);
                };
                flip(&mut row, random);
                records.insert(key.as_slice(), row.as_slice())?;
            }
            Tamper::Sums => {
                let mut meta = transaction.open_table(META)?;
                let Some(mut row) = meta.get(SUMS)?.map(|row| row.value().to_vec()) else {
                    return Ok(false);
                };
                flip(&mut row, random);
                meta.insert(SUMS, row.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(true)
    }
}

fn flip(row: &mut [u8], random: u64) {
    let at = (random >> 8) as usize % row.len();
    row[at] ^= 1 << (random % 8);
}
