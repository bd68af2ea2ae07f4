//! A run as a file: the plan in full, so that it replays by itself, whatever seeds come to mean.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// A plan, and what it is to bring about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Script {
    /// Of this layout.
    pub(crate) version: u32,
    /// What it shows, for a reader.
    #[serde(default)]
    pub(crate) about: String,
    /// The planted fault to switch on, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) planted: Option<String>,
    /// Of every stream of randomness.
    pub(crate) seed: u64,
    pub(crate) plan: Plan,
}

/// The layout that this release writes and reads.
pub(crate) const VERSION: u32 = 1;

/// Reads a script.
///
/// # Errors
/// What is wrong with the file, for a person.
pub(crate) fn read(path: &Path) -> Result<Script, String> {
    let failed = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
    let script: Script = serde_json::from_str(&text).map_err(|error| failed(&error))?;
    if script.version == VERSION {
        Ok(script)
    } else {
        Err(failed(&format_args!("version {} is unknown, {VERSION} is known", script.version)))
    }
}

/// Writes a script.
///
/// # Errors
/// As the file system has them.
pub(crate) fn write(path: &Path, script: &Script) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(script).map_err(io::Error::other)?;
    text.push('\n');
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;

    #[test]
    fn a_script_is_the_plan() {
        let path = std::env::temp_dir().join(format!("script-{}.json", std::process::id()));
        for seed in 0..20 {
            let plan = Plan::draw(Profile::Default, seed);
            let script =
                Script { version: VERSION, about: String::new(), planted: None, seed, plan };
            write(&path, &script).unwrap();
            let again = read(&path).unwrap();
            assert_eq!(format!("{script:?}"), format!("{again:?}"));
        }
        fs::write(&path, r#"{"version": 9, "seed": 1}"#).unwrap();
        assert!(read(&path).is_err());
        fs::remove_file(&path).unwrap();
    }
}
