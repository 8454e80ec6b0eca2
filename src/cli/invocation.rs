//! The task of this process, from the words of the command line.
//!
//! Three forms: `mmapfs COMMAND ...`; `mmapfs SRC MNT ...`, which is `mmapfs mount`; and the form
//! of mount(8)'s helpers under the names `mount.mmapfs`, `mount.fuse.mmapfs`, `umount.mmapfs`
//! and `umount.fuse.mmapfs`. Only whether the
//! first word names an existing file is asked of the disk, and only where that decides.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::args::{Cli, HelperArgs, UmountHelperArgs, Verb};
use crate::error::Failure;
use crate::units::{nearest, quote};

#[cfg(test)]
mod tests;

/// The names under which mount(8) calls its helper.
const HELPERS: [&str; 2] = ["mount.mmapfs", "mount.fuse.mmapfs"];

/// The names under which umount(8) does.
const UMOUNT_HELPERS: [&str; 2] = ["umount.mmapfs", "umount.fuse.mmapfs"];

/// The task of this process.
#[derive(Debug)]
pub enum Invocation {
    /// A command.
    Verb(Verb),
    /// A mount for mount(8).
    Helper(HelperArgs),
    /// The end of a mount for umount(8).
    UmountHelper(UmountHelperArgs),
    /// A text that was asked for, `--help` or `--version`.
    Text(String),
    /// The help, since nothing was asked for: an error.
    Nothing(String),
}

/// Reads the words of the command line, the program's name among them.
///
/// # Errors
/// Kind `Usage`, as one line.
pub fn parse(argv: &[OsString]) -> Result<Invocation, Failure> {
    let name = argv.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    if HELPERS.iter().any(|helper| name == *helper) {
        return finish(HelperArgs::try_parse_from(argv).map(Invocation::Helper));
    }
    if UMOUNT_HELPERS.iter().any(|helper| name == *helper) {
        return finish(UmountHelperArgs::try_parse_from(argv).map(Invocation::UmountHelper));
    }
    let mut words = vec![OsString::from("mmapfs")];
    if let Some(first) = argv.get(1)
        && is_mount(first)?
    {
        words.push("mount".into());
    }
    words.extend(argv.iter().skip(1).cloned());
    finish(Cli::try_parse_from(words).map(|cli| Invocation::Verb(cli.verb)))
}

/// Whether the first word begins `SRC MNT` or the options before it, and not a command.
fn is_mount(first: &OsStr) -> Result<bool, Failure> {
    let command = Cli::command();
    let known: Vec<&str> = command
        .get_subcommands()
        .filter(|known| !known.is_hide_set())
        .map(clap::Command::get_name)
        .chain(["help"])
        .collect();
    let bytes = first.as_bytes();
    if matches!(bytes, b"-h" | b"--help" | b"-V" | b"--version")
        || command.find_subcommand(first).is_some()
        || bytes == b"help"
    {
        return Ok(false);
    }
    if bytes.starts_with(b"-")
        || bytes.contains(&b'/')
        || Path::new(first).symlink_metadata().is_ok()
    {
        return Ok(true);
    }
    let word = first.to_string_lossy();
    let reason = match nearest(&word, known.iter().copied()) {
        Some(near) => format!("there is no such command: did you mean `{near}`?"),
        None => "there is no such command, nor a source of that name to mount".into(),
    };
    Err(Failure::usage(quote(&word), reason))
}

fn finish(parsed: Result<Invocation, clap::Error>) -> Result<Invocation, Failure> {
    parsed.or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Ok(Invocation::Text(error.render().to_string()))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Ok(Invocation::Nothing(error.render().to_string()))
        }
        _ => Err(Failure::usage("", one_line(&error))),
    })
}

/// The error and its tips, without the usage that clap adds.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).replace(" tip: ", ": ")
}
