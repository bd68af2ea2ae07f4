//! The production directory, on the machine's own file system.

use std::{fs, path::PathBuf};

use super::*;
use crate::state::{RealFiles, StateError};

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> TempDir {
        let dir =
            std::env::temp_dir().join(format!("highwater-state-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
    fn states(&self) -> States {
        let files = RealFiles::open(self.0.join("state")).unwrap();
        States::new(Box::new(files), StateOptions::default()).unwrap()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn states_come_back_from_a_real_directory() {
    let dir = TempDir::new("back");
    let now = dir.states();
    now.apply(GROUP, &[op_entry(1, vec![put("a", b"1"), put("b", b"1")])]).unwrap();
    flush_at(&now, GROUP, 1);
    now.apply(GROUP, &[op_entry(2, vec![put("a", b"2"), delete("b")])]).unwrap();
    flush_at(&now, GROUP, 2);
    drop(now);
    // What a crash before the rename leaves.
    fs::write(dir.0.join("state/8.redb.tmp"), b"half").unwrap();

    let now = dir.states();
    assert!(!dir.0.join("state/8.redb.tmp").exists());
    assert_eq!(now.applied(GROUP).unwrap(), Lsn(2));
    assert_eq!(now.get(GROUP, b"a").unwrap().1.unwrap().value, "2");
    assert_eq!(now.get(GROUP, b"b").unwrap().1, None);
    assert_eq!(now.applied(GroupId(8)).unwrap(), Lsn(0));
}

#[test]
fn a_file_in_use_by_another_process_is_refused() {
    let dir = TempDir::new("in-use");
    let now = dir.states();
    now.apply(GROUP, &[op_entry(1, vec![put("a", b"1")])]).unwrap();
    flush_at(&now, GROUP, 1);
    let error = dir.states().applied(GROUP).unwrap_err();
    assert!(matches!(error, StateError::InUse { .. }), "{error}");
    assert_eq!(now.get(GROUP, b"a").unwrap().1.unwrap().value, "1");
}

#[test]
fn a_file_that_cannot_be_opened_is_not_absent() {
    let dir = TempDir::new("directory");
    let now = dir.states();
    fs::create_dir(dir.0.join("state/7.redb")).unwrap();
    let error = now.applied(GROUP).unwrap_err();
    assert!(matches!(error, StateError::Io { doing: "opening", .. }), "{error}");
    assert!(now.apply(GROUP, &[op_entry(1, vec![put("a", b"1")])]).is_err());
}
