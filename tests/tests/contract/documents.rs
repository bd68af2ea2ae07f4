//! What the README promises to work as typed.

use std::{fs, path::Path};

use highwater_tests::{
    PATIENCE, binary, eventually,
    markdown::{MARK, Step, matches, steps, tested},
    process::Recipe,
    scratch::Scratch,
};

/// Runs every marked block, in order, in one shell and one directory, beside a `dev` that keeps its
/// data there. The document's `highwater` is the binary under test.
#[test]
fn the_readme_works_as_typed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let document = fs::read_to_string(&path).expect("README.md");
    let blocks = tested(&document).unwrap_or_else(|error| panic!("README.md: {error}"));
    assert!(!blocks.is_empty(), "README.md has no block after a line {MARK}");

    let scratch = Scratch::new("readme");
    let bin = scratch.join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(binary::path(), bin.join("highwater")).unwrap();
    let (out, err) = (scratch.join("dev.out"), scratch.join("dev.err"));
    let dir = scratch.join("highwater-data");
    let _dev = binary::recipe(&["dev", "--dir", dir.to_str().unwrap()]).start(&out, &err);
    let welcome = eventually("dev says that it runs", PATIENCE, || {
        fs::read_to_string(&out).ok().filter(|text| text.contains("Ctrl-C"))
    });
    assert!(welcome.contains("http://127.0.0.1:"), "{welcome}");
    // One shell for all, as the reader has it: what one step defines, later ones use.
    let steps: Vec<(usize, Step)> = blocks
        .iter()
        .flat_map(|block| steps(block).into_iter().map(|step| (block.line, step)))
        .collect();
    let script: String = steps
        .iter()
        .enumerate()
        .map(|(at, (_, step))| format!("exec >step-{at}\n{}\n", step.command))
        .collect();
    let search = std::env::var("PATH").unwrap_or_default();
    let output = Recipe::new(["bash", "-euc", &script])
        .dir(scratch.path())
        .env("PATH", format!("{}:{search}", bin.display()))
        .run(PATIENCE);
    for (at, (line, Step { command, output: shown })) in steps.iter().enumerate() {
        let printed = fs::read_to_string(scratch.join(&format!("step-{at}")));
        let last = !scratch.join(&format!("step-{}", at + 1)).exists();
        assert!(
            printed.is_ok() && (output.status.success() || !last),
            "README.md, block at line {line}: `{command}` failed: {} {}",
            output.status,
            output.stderr
        );
        let printed = printed.unwrap_or_default();
        assert!(
            matches(shown, &printed),
            "README.md, block at line {line}: `{command}` is said to print\n{shown}but prints\n\
             {printed}"
        );
    }
}
