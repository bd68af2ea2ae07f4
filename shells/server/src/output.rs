//! What commands print on standard output: lines and tables.

use std::io::{self, BufWriter, Write};

use crate::failure::Failure;

/// Standard output whose reader may leave early, which is no failure.
pub(crate) struct Output {
    out: BufWriter<io::Stdout>,
    failed: Option<io::Error>,
}

impl Output {
    pub(crate) fn new() -> Output {
        Output { out: BufWriter::new(io::stdout()), failed: None }
    }

    pub(crate) fn line(&mut self, text: impl AsRef<[u8]>) {
        self.text(text);
        self.text("\n");
    }

    /// Text that has its line breaks.
    pub(crate) fn text(&mut self, text: impl AsRef<[u8]>) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(text.as_ref()).err();
        }
    }

    /// Whether anybody is left to see more, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        self.failed.is_none()
    }

    /// Shows what was printed so far; whether anybody is left to see more.
    pub(crate) fn flush(&mut self) -> bool {
        if self.failed.is_none() {
            self.failed = self.out.flush().err();
        }
        self.is_open()
    }

    /// # Errors
    /// Where it could not be printed, unless the reader has left.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.flush();
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::runtime(format!("can't write to standard output: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// Rows in columns, the first one being their heads.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}
