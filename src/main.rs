//! The `mmapfs` program. All it does is in the library.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    mmapfs::cli::run(&argv)
}
