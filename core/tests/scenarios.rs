//! Cluster stories, one idea each: `scenarios/*.txt`. A line that begins with `>` is a command, what
//! follows it is the trace that it caused, and `#` begins a comment. The commands are those of
//! [`script`]; `SCENARIOS=update` rewrites the traces. Rewrite them, but commit only a difference
//! that you understand.

mod cluster;
mod script;

use std::{fs, path::Path};

#[test]
fn stories() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = fs::read_dir(dir)
        .expect("the stories are there")
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    paths.sort();
    let only = std::env::var("SCENARIO").ok();
    let update = std::env::var("SCENARIOS").is_ok_and(|v| v == "update");
    let mut failed = Vec::new();
    for path in paths {
        let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let expected = fs::read_to_string(&path).expect("a story can be read");
        println!("{name}");
        let told = script::tell(&expected);
        if told == expected {
            continue;
        }
        if update {
            fs::write(&path, &told).expect("a story can be written");
        } else {
            println!("{}", difference(&expected, &told));
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "these stories go otherwise now: {failed:?}");
}

/// The first lines that differ.
fn difference(expected: &str, told: &str) -> String {
    let (mut old, mut new) = (expected.lines(), told.lines());
    for n in 1.. {
        let (a, b) = (old.next(), new.next());
        if a != b {
            let rest: Vec<_> = b.into_iter().chain(new.take(8)).collect();
            return format!("line {n}\n- {}\n+ {}", a.unwrap_or("(end)"), rest.join("\n+ "));
        }
        if a.is_none() {
            break;
        }
    }
    String::new()
}
