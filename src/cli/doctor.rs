//! `mmapfs doctor`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};

use super::args::DoctorArgs;
use super::output;
use crate::doctor::Examination;
use crate::error::Failure;

/// Examines the machine and prints what was found.
///
/// # Errors
/// The directory cannot be opened; or no mount can be made, which is told after the report.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    // An interruption must not leave the probing mount behind; all of it takes a moment only.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|error| Failure::failed("signals", format!("taking them in: {error}")))?;
    }
    let dir = args.dir.as_deref().unwrap_or(Path::new("."));
    let examination = Examination::of(dir)?;
    if args.form.json {
        output::print_json(&examination)?;
    } else {
        output::print(&examination.text(args.verbose).to_string())?;
    }
    examination.refusal().map_or(Ok(()), Err)
}
