//! `mmapfs scratches`.

use std::ffi::OsStr;
use std::fmt::Write;

use serde::Serialize;

use super::args::{RemoveArgs, ScratchesArgs, ScratchesVerb};
use super::{output, tell};
use crate::error::Failure;
use crate::layers::scratch::{self, Listed, Places};
use crate::shown::{Clean, Name};
use crate::units::human_size;

/// The heads of the columns.
const HEADS: [&str; 6] = ["ID", "BASE", "SIZE", "AGE", "MOUNTED ON", "PLACE"];

/// The answer as JSON.
#[derive(Serialize)]
#[serde(tag = "report", rename = "scratches")]
struct Report {
    scratches: Vec<Listed>,
}

/// Lists or removes. Returns the exit code; what fails of several is told one by one.
pub fn run(args: &ScratchesArgs) -> Result<u8, Failure> {
    let places = Places::of_process();
    if let Some(ScratchesVerb::Remove(args)) = &args.verb {
        return Ok(remove(&places, args));
    }
    let scratches = scratch::list(&places);
    match args.form.json {
        true => output::print_json(&Report { scratches }),
        false if scratches.is_empty() => output::print("there are no scratches"),
        false => output::print(&table(&scratches)),
    }
    .map(|()| 0)
}

fn remove(places: &Places, args: &RemoveArgs) -> u8 {
    let one = |word: &OsStr| scratch::remove(places, word).map(drop);
    let mut code = 0;
    let mut done = |result: Result<(), Failure>| {
        if let Err(failure) = result {
            code = tell(&failure);
        }
    };
    args.scratches.iter().for_each(|word| done(one(word)));
    if args.left_behind {
        scratch::unused(places).iter().for_each(|dir| done(one(dir.as_os_str())));
    }
    code
}

/// One line to a scratch, in columns as wide as they need.
fn table(scratches: &[Listed]) -> String {
    let mut rows = vec![HEADS.map(String::from)];
    rows.extend(scratches.iter().map(row));
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..HEADS.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // A string takes everything that is written into it.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(listed: &Listed) -> [String; 6] {
    let size = match (listed.bytes, listed.max_bytes) {
        (Some(bytes), Some(max)) => format!("{} of {}", human_size(bytes), human_size(max)),
        (Some(bytes), None) => human_size(bytes),
        (None, _) => "?".into(),
    };
    let mounted = match (&listed.trouble, &listed.mountpoint, listed.mounted) {
        (Some(trouble), ..) => Clean(trouble).to_string(),
        (None, Some(mountpoint), true) => mountpoint.to_string(),
        (None, None, true) => "yes".into(),
        (None, _, false) => "no".into(),
    };
    [
        Clean(&listed.id).to_string(),
        listed.base.as_ref().map_or_else(|| "?".into(), Name::to_string),
        size,
        listed.age_s.map_or_else(|| "?".into(), age),
        mounted,
        listed.place.to_string(),
    ]
}

/// A time in its largest unit.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
