//! `mmapfs diff`.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::args::DiffArgs;
use super::{output, tell};
use crate::client::Client;
use crate::control::report::{ChangeReport, ChangeWord, DiffReport, Report};
use crate::error::Failure;
use crate::shown::Name;

/// The exit code with differences.
const DIFFERENT: u8 = 1;

/// The exit code when the differences cannot be told.
const TROUBLE: u8 = 2;

/// Prints the differences of each path. Returns the exit code.
pub fn run(args: &DiffArgs) -> u8 {
    let one = |client: Result<Client, Failure>| {
        let report =
            client.and_then(|client| client.diff(args.ranges || args.stat, args.expand))?;
        print(args, &report)?;
        let unknown = report.changes.iter().any(|change| change.error.is_some());
        Ok(match report.changes.is_empty() {
            _ if unknown => TROUBLE,
            true => 0,
            false => DIFFERENT,
        })
    };
    let done = |result: Result<u8, Failure>| {
        result.unwrap_or_else(|failure| {
            tell(&failure);
            TROUBLE
        })
    };
    match &args.paths[..] {
        [] => done(one(Client::of_only_mount())),
        paths => paths.iter().map(|path| done(one(Client::open(path)))).max().unwrap_or(0),
    }
}

fn print(args: &DiffArgs, report: &DiffReport) -> Result<(), Failure> {
    let changes = &report.changes;
    match () {
        () if args.form.json => output::print_json(&Report::Diff(report.clone())),
        () if args.null => output::print_bytes(&records(args, changes)),
        () if args.summary => output::print(&summary(changes)),
        () if changes.is_empty() => Ok(()),
        () if args.name_only => output::print(&lines(changes, |change| in_mount(&change.path))),
        () if args.docker => output::print(&docker(changes)),
        () if args.stat => output::print(&stat(changes)),
        () => output::print(&report.to_string()),
    }
}

fn lines(changes: &[ChangeReport], line: impl Fn(&ChangeReport) -> String) -> String {
    changes.iter().map(|change| line(change) + "\n").collect()
}

fn in_mount(path: &Name) -> String {
    match path.as_path().as_os_str().is_empty() {
        true => String::from("."),
        false => path.to_string(),
    }
}

/// Letter, path, and of a rename both paths, each ended by a NUL.
fn records(args: &DiffArgs, changes: &[ChangeReport]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut field = |field: &[u8]| {
        bytes.extend_from_slice(field);
        bytes.push(0);
    };
    let path = |path: &Name| match path.as_path().as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => path.as_path().to_owned(),
    };
    for change in changes {
        if args.docker {
            for (letter, path) in docker_changes(change) {
                field(&[letter]);
                field(path.as_os_str().as_bytes());
            }
            continue;
        }
        if !args.name_only {
            field(&[change.change.letter() as u8]);
            if let Some(from) = &change.from {
                field(path(from).as_os_str().as_bytes());
            }
        }
        field(path(&change.path).as_os_str().as_bytes());
    }
    bytes
}

/// The letters of docker, which knows no renames.
fn docker_changes(change: &ChangeReport) -> Vec<(u8, &Path)> {
    let path = change.path.as_path();
    match change.change {
        ChangeWord::Added => vec![(b'A', path)],
        ChangeWord::Deleted => vec![(b'D', path)],
        ChangeWord::Renamed => {
            let from = change.from.as_ref().map(|from| (b'D', from.as_path()));
            from.into_iter().chain([(b'A', path)]).collect()
        }
        ChangeWord::Modified | ChangeWord::Type | ChangeWord::Metadata => vec![(b'C', path)],
    }
}

fn docker(changes: &[ChangeReport]) -> String {
    let line = |(letter, path): (u8, &Path)| {
        format!("{} {}\n", letter as char, Name::from(&Path::new("/").join(path)))
    };
    changes.iter().flat_map(docker_changes).map(line).collect()
}

/// How many bytes of each file differ.
fn stat(changes: &[ChangeReport]) -> String {
    let names: Vec<String> = changes.iter().map(|change| change.to_string()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (change, name) in changes.iter().zip(&names) {
        let bytes = match (change.old_size, change.new_size) {
            (None, None) => String::new(),
            _ if change.change == ChangeWord::Metadata => String::from("0 bytes"),
            (old, new) => {
                let size = new.or(old).unwrap_or(0);
                format!("{} of {size} bytes", change.bytes())
            }
        };
        let line = format!("{name:width$} | {bytes}");
        text += line.trim_end();
        text.push('\n');
    }
    text + &summary(changes)
}

/// How many changes of each kind there are.
fn summary(changes: &[ChangeReport]) -> String {
    let mut parts = Vec::new();
    for kind in ChangeWord::ALL {
        let count = changes.iter().filter(|change| change.change == kind).count();
        if count > 0 {
            parts.push(format!("{count} {}", kind.name()));
        }
    }
    let conflicts = changes.iter().filter(|change| change.base.is_some()).count();
    if conflicts > 0 {
        parts.push(format!("{conflicts} over a changed base"));
    }
    let mut text = String::new();
    // A string takes everything that is written into it.
    let _ = match parts.is_empty() {
        true => writeln!(text, "no differences"),
        false => writeln!(text, "{}", parts.join(", ")),
    };
    text
}
