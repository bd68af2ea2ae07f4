//! Finds the commands in a document that are promised to work as typed.

/// Stands on a line of its own before the fence of a tested block.
pub const MARK: &str = "<!-- test -->";

/// A fenced block that is marked as tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of its fence, from 1.
    pub line: usize,
    /// Its language: `sh`, or `console` for commands (after `$ `) with the output they give.
    pub language: String,
    /// Its text.
    pub text: String,
}

/// The marked blocks of a document.
///
/// # Errors
/// Where a mark is not followed by a fence, or a fence is not closed.
pub fn tested(document: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut lines = document.lines().enumerate().map(|(at, line)| (at + 1, line));
    while let Some((at, line)) = lines.next() {
        if line.trim() != MARK {
            continue;
        }
        let fence = lines.find(|(_, line)| !line.trim().is_empty());
        let Some((line, language)) =
            fence.and_then(|(at, line)| Some((at, line.trim().strip_prefix("```")?)))
        else {
            return Err(format!("line {at}: {MARK} is not followed by a fenced block"));
        };
        let mut text = String::new();
        loop {
            match lines.next() {
                None => return Err(format!("line {line}: the block is not closed")),
                Some((_, end)) if end.trim() == "```" => break,
                Some((_, inside)) => {
                    text.push_str(inside);
                    text.push('\n');
                }
            }
        }
        blocks.push(Block { line, language: language.trim().to_owned(), text });
    }
    Ok(blocks)
}

/// One step of a transcript.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The command.
    pub command: String,
    /// What it prints, as far as the document shows it.
    pub output: String,
}

/// The commands of a block, each with the output that the document shows for it. In a block of
/// shell there is none, and anything may be printed: it is one script.
#[must_use]
pub fn steps(block: &Block) -> Vec<Step> {
    if block.language != "console" {
        return vec![Step { command: block.text.clone(), output: "…".to_owned() }];
    }
    let mut steps: Vec<Step> = Vec::new();
    let mut continued = false;
    for line in block.text.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => {
                steps.push(Step { command: command.to_owned(), ..Step::default() });
                continued = command.ends_with('\\');
            }
            (None, Some(step)) if continued => {
                step.command = format!("{}\n{line}", step.command);
                continued = line.ends_with('\\');
            }
            (None, Some(step)) => step.output = format!("{}{line}\n", step.output),
            (None, None) => {}
        }
    }
    steps
}

/// Whether a printed text is what a document shows: `…` stands for anything within a line, a line
/// of its own for any lines.
#[must_use]
pub fn matches(shown: &str, printed: &str) -> bool {
    fn glob(shown: &[&str], printed: &str) -> bool {
        match shown {
            [] => printed.is_empty(),
            [last] => printed.ends_with(last),
            [first, rest @ ..] => {
                let mut at = 0;
                while let Some(found) = printed[at..].find(first) {
                    let end = at + found + first.len();
                    if glob(rest, &printed[end..]) {
                        return true;
                    }
                    at += found + printed[at + found..].chars().next().map_or(1, char::len_utf8);
                    if at > printed.len() {
                        return false;
                    }
                }
                false
            }
        }
    }
    let (shown, printed) = (shown.trim(), printed.trim());
    let parts: Vec<&str> = shown.split('…').collect();
    match parts.as_slice() {
        [only] => *only == printed,
        [first, rest @ ..] => printed.strip_prefix(first).is_some_and(|tail| glob(rest, tail)),
        [] => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_blocks_are_found() {
        let document = "a\n```sh\nno\n```\n<!-- test -->\n\n```sh\nyes \\\n  more\n```\nb\n";
        let blocks = tested(document).unwrap();
        assert_eq!(blocks.len(), 1);
        assert_eq!((blocks[0].line, blocks[0].text.as_str()), (7, "yes \\\n  more\n"));
        assert!(tested("<!-- test -->\ntext").is_err());
        assert!(tested("<!-- test -->\n```sh\nopen").is_err());
    }

    #[test]
    fn a_transcript_is_commands_and_what_they_print() {
        let block = Block {
            line: 1,
            language: "console".to_owned(),
            text: "$ a \\\n  b\none\ntwo\n$ c\n".to_owned(),
        };
        let steps = steps(&block);
        assert_eq!(steps[0], Step { command: "a \\\n  b".into(), output: "one\ntwo\n".into() });
        assert_eq!(steps[1], Step { command: "c".into(), output: String::new() });
    }

    #[test]
    fn an_ellipsis_stands_for_anything() {
        assert!(matches("a\n", "a"));
        assert!(!matches("a", "ab"));
        assert!(matches("a…", "abc"));
        assert!(matches("{\"lsn\":…,\"term\":…}", "{\"lsn\":12,\"term\":3}"));
        assert!(!matches("{\"lsn\":…}x", "{\"lsn\":12}"));
        assert!(matches("…b…b", "ab bb"));
        assert!(!matches("…é", "ée"));
    }
}
