//! What the README promises to work as typed.

use std::{fs, path::Path};

use highwater_tests::{
    PATIENCE, binary, eventually,
    markdown::{MARK, matches, steps, tested},
    process::Recipe,
    scratch::Scratch,
};

/// Runs every marked block against a `dev` of its own, in order, in one directory. The document's
/// `highwater` is the binary under test; its addresses are those that `dev` printed.
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
    let nodes: Vec<&str> = welcome
        .lines()
        .filter(|line| line.trim().starts_with("node "))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("http://")))
        .collect();
    assert_eq!(nodes.len(), 3, "{welcome}");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    for block in &blocks {
        for step in steps(block) {
            let script = format!("set -eu\n{}", step.command);
            let mut recipe = Recipe::new(["bash", "-c", &script])
                .dir(scratch.path())
                .env("PATH", path.as_str());
            for (name, node) in ["NODE1", "NODE2", "NODE3"].iter().zip(&nodes) {
                recipe = recipe.env(name, *node);
            }
            let output = recipe.run(PATIENCE);
            let line = block.line;
            assert!(
                output.status.success(),
                "README.md, block at line {line}: `{}` failed: {}{}",
                step.command,
                output.stdout,
                output.stderr
            );
            assert!(
                step.output.is_empty() || matches(&step.output, &output.stdout),
                "README.md, block at line {line}: `{}` is said to print\n{}but prints\n{}",
                step.command,
                step.output,
                output.stdout
            );
        }
    }
}
