//! The command line: parse arguments, do what they say, print the outcome.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::error::Failure;
use crate::shown::{Clean, CleanLines};

pub mod args;
mod background;
mod diff;
mod doctor;
mod help;
pub mod invocation;
mod logging;
mod manual;
mod mount;
mod output;
mod plan;
mod ready;
mod scratches;
mod umount;
mod values;
mod verbs;

use args::Verb;
use invocation::Invocation;
use verbs::Verbs;

/// Does what the words of the command line say, the program's name among them. Prints a failure as
/// one line on standard error.
pub fn run(argv: &[OsString]) -> ExitCode {
    let code = invocation::parse(argv).and_then(|invocation| dispatch(invocation, argv));
    ExitCode::from(code.unwrap_or_else(|failure| tell(&failure)))
}

/// Prints a failure, and gives its exit code.
fn tell(failure: &Failure) -> u8 {
    // Nowhere is left to complain about standard error.
    let _ = writeln!(io::stderr(), "mmapfs: {}", Clean(&failure.to_string()));
    failure.exit_code()
}

fn dispatch(invocation: Invocation, argv: &[OsString]) -> Result<u8, Failure> {
    match invocation {
        Invocation::Verb(verb) => run_verb(verb, argv),
        Invocation::Helper(args) => mount::run_helper(&args, argv),
        Invocation::UmountHelper(args) => umount::run_helper(&args).map(|()| 0),
        Invocation::Text(text) => output::print(&text).map(|()| 0),
        Invocation::Nothing(text) => {
            let _ = write!(io::stderr(), "{}", CleanLines(&text));
            Ok(2)
        }
    }
}

fn run_verb(verb: Verb, argv: &[OsString]) -> Result<u8, Failure> {
    match verb {
        Verb::Mount(args) => mount::run(&args, argv),
        Verb::Umount(args) => umount::run(&args).map(|()| 0),
        Verb::Advise(args) => Verbs::new(&args.form).advise(&args),
        Verb::Flush(args) => Verbs::new(&args.form).flush(&args),
        Verb::Lock(args) => Verbs::new(&args.form).lock(&args),
        Verb::Unlock(args) => Verbs::new(&args.form).unlock(&args),
        Verb::Status(args) => Verbs::new(&args.form).status(&args),
        Verb::Diff(args) => Ok(diff::run(&args)),
        Verb::Maps(args) => Verbs::new(&args.form).maps(&args),
        Verb::Reload(args) => Verbs::new(&args.form).reload(&args),
        Verb::Log(args) => Verbs::new(&args.form).log(&args),
        Verb::Scratches(args) => scratches::run(&args),
        Verb::Doctor(args) => doctor::run(&args).map(|()| 0),
        Verb::Version(args) => Verbs::new(&args.form).version(&args),
        Verb::Man { dir } => manual::write(&dir).map(|()| 0),
        Verb::Completions { shell } => output::print(&manual::completions(shell)?).map(|()| 0),
    }
}
