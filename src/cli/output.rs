//! Standard output.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::error::Failure;

/// Prints a text, with a newline at its end. A reader that has gone away wants no more: that is no
/// failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match write!(stdout, "{text}{newline}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed("standard output", error))
        }
        _ => Ok(()),
    }
}

/// Prints a value as one line of JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::failed("JSON", error))?;
    print(&text)
}
