//! Standard output.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::error::Failure;
use crate::shown::{CleanLines, to_json};

/// Prints a text, with a newline at its end and without anything that a terminal obeys. A reader
/// that has gone away wants no more: that is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match write!(stdout, "{}{newline}", CleanLines(text)).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed("standard output", error))
        }
        _ => Ok(()),
    }
}

/// Prints bytes as they are, for programs.
pub fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed("standard output", error))
        }
        _ => Ok(()),
    }
}

/// Prints a value as one line of JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = to_json(value).map_err(|error| Failure::failed("JSON", error))?;
    print(&text)
}
