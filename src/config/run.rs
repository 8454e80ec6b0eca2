//! The run directory: what lasts only as long as the system runs.
//!
//! A daemon notes there which process serves its mount, in `daemons/MAJOR:MINOR` by the device of
//! the mount. Programs that wait for its end so find it without a request to the mount, which may
//! not be answered.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::shown::Show;
use crate::sys::process::Identity;

#[cfg(test)]
mod tests;

/// The longest note that is read, in bytes: three numbers.
const LONGEST: u64 = 80;

/// The directory that a variable of the environment names by an absolute path.
pub fn directory_named_by(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The run directory that MMAPFS_RUN_DIR names.
pub fn given_directory() -> Option<PathBuf> {
    directory_named_by("MMAPFS_RUN_DIR")
}

/// The run directory of this process: MMAPFS_RUN_DIR, or `/run/mmapfs` for root and
/// `$XDG_RUNTIME_DIR/mmapfs` for everybody else.
fn directory() -> Option<PathBuf> {
    given_directory().or_else(|| match rustix::process::geteuid().is_root() {
        true => Some("/run/mmapfs".into()),
        false => directory_named_by("XDG_RUNTIME_DIR").map(|dir| dir.join("mmapfs")),
    })
}

/// The directory of this process for what outlasts the system's running: MMAPFS_STATE_DIR, or
/// `/var/lib/mmapfs` for root and `$XDG_STATE_HOME/mmapfs` for everybody else.
pub fn state_directory() -> Option<PathBuf> {
    let user = || {
        directory_named_by("XDG_STATE_HOME")
            .or_else(|| directory_named_by("HOME").map(|home| home.join(".local/state")))
    };
    directory_named_by("MMAPFS_STATE_DIR").or_else(|| match rustix::process::geteuid().is_root() {
        true => Some("/var/lib/mmapfs".into()),
        false => user().map(|dir| dir.join("mmapfs")),
    })
}

/// Where the log of daemons in the background goes when there is no system log: a file that they
/// share, in the run directory, or in that for the state.
pub fn log_places() -> Vec<PathBuf> {
    [directory(), state_directory()].into_iter().flatten().map(|dir| dir.join("log")).collect()
}

/// The daemons that are noted in a run directory.
pub struct Daemons {
    dir: Option<PathBuf>,
}

impl Daemons {
    /// The daemons of the run directory of this process. Where it has none, none is found or noted.
    pub fn of_process() -> Daemons {
        Daemons { dir: directory().map(|run| run.join("daemons")) }
    }

    /// The daemons of this run directory.
    pub fn below(run: &Path) -> Daemons {
        Daemons { dir: Some(run.join("daemons")) }
    }

    fn place(&self, dev: (u32, u32)) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(format!("{}:{}", dev.0, dev.1)))
    }

    /// Notes that this process serves the mount of this device.
    ///
    /// # Errors
    /// The note cannot be written, or /proc does not tell what belongs into it.
    pub fn note(&self, dev: (u32, u32)) -> io::Result<Option<Note>> {
        let Some(path) = self.place(dev) else { return Ok(None) };
        let identity = Identity::own()?;
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        }
        // A device number is given anew: the note of a daemon that was killed is in the way.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let note = Note { path, identity };
        file.write_all(format!("{identity}\n").as_bytes())?;
        Ok(Some(note))
    }

    /// The process that is noted for the mount of this device. It may have ended without removing
    /// its note.
    pub fn find(&self, dev: (u32, u32)) -> Option<Identity> {
        read(&self.place(dev)?)
    }
}

fn read(path: &Path) -> Option<Identity> {
    // Not what somebody else may have put there: a link, or a pipe that nobody writes to.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path).ok()?;
    parse(file)
}

fn parse(file: File) -> Option<Identity> {
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    Identity::parse(text.strip_suffix('\n')?)
}

/// The note of this process, removed when it is dropped.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
    identity: Identity,
}

impl Drop for Note {
    fn drop(&mut self) {
        // The device may belong to another mount already, with a note of its own daemon.
        if read(&self.path) != Some(self.identity) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            log::info!("{}: removing it: {error}", self.path.shown());
        }
    }
}
