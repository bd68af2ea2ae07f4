//! The bytes of a state file, frozen: a change here is a change of the format.

use std::fmt::Write as _;

use redb::{Builder, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

use super::*;
use crate::state::{StateFiles, checked::Checked};

const BYTE_KEYS: [&str; 2] = ["records", "control"];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[test]
fn the_layout_of_a_file_is_frozen() {
    let disk = MemDisk::default();
    let now = states(&disk, 4);
    let mut typed = put("a/typed", b"value");
    if let Action::Put { content_type, .. } = &mut typed.action {
        *content_type = Bytes::from_static(b"text/plain");
    }
    now.apply(GROUP, &[op_entry(1, vec![put("a", b"")]), op_entry(2, vec![typed])]).unwrap();
    let control = vec![
        (Bytes::from_static(b"key"), Bytes::from_static(b"value")),
        (Bytes::from_static(b"key 2"), Bytes::new()),
    ];
    now.freeze(GROUP, checkpoint(2, control.clone())).unwrap();
    now.flush(GROUP).unwrap();
    let rows = |prefixes: &[&'static [u8]]| {
        let prefixes: Vec<Bytes> = prefixes.iter().copied().map(Bytes::from_static).collect();
        now.control(GROUP, &prefixes).unwrap()
    };
    let at = |lsn| checkpoint(lsn, Vec::new()).at;
    assert_eq!(rows(&[b"key"]), (at(2), control.clone()));
    assert_eq!(rows(&[b"key ", b"z"]), (at(2), control[1..].to_vec()));
    assert_eq!(rows(&[b"key 3"]), (at(2), Vec::new()));
    let none = now.control(GroupId(77), &[Bytes::from_static(b"key")]).unwrap();
    assert_eq!(none, (Position::default(), Vec::new()));
    drop(now);

    let mut shown = String::new();
    for name in disk.names() {
        writeln!(shown, "file {name}").unwrap();
        let backend = disk.open(&name).unwrap().unwrap();
        let database = Builder::new().create_with_backend(Checked::new(backend).0).unwrap();
        let read = database.begin_read().unwrap();
        for table in read.list_tables().unwrap() {
            let name = table.name().to_string();
            writeln!(shown, "table {name}").unwrap();
            if BYTE_KEYS.contains(&name.as_str()) {
                let table: TableDefinition<&[u8], &[u8]> = TableDefinition::new(&name);
                for row in read.open_table(table).unwrap().iter().unwrap() {
                    let (key, row) = row.unwrap();
                    let key = String::from_utf8_lossy(key.value()).into_owned();
                    writeln!(shown, "  {key:?}: {}", hex(row.value())).unwrap();
                }
            } else {
                let table: TableDefinition<&str, &[u8]> = TableDefinition::new(&name);
                for row in read.open_table(table).unwrap().iter().unwrap() {
                    let (key, row) = row.unwrap();
                    writeln!(shown, "  {:?}: {}", key.value(), hex(row.value())).unwrap();
                }
            }
        }
    }
    insta::assert_snapshot!("layout", shown);
}
