//! A mount that only finds out what the kernel offers.
//!
//! It is made on an empty directory of its own below the directory for temporary files, with the
//! means of any other mount, answers the first request (INIT), and goes again: the connection
//! ends before the mount does, so that whoever runs into it meanwhile gets an error and waits for
//! nobody. Nothing here looks at a file of the mount.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::InitFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::mount::{Mounted, PROGRAMS, mount};
use crate::config::{MountConfig, MountOptions};
use crate::error::Failure;
use crate::shown::Show;
use crate::sys;

mod init;

pub use init::Offer;

/// Time that INIT may take: it lies in the descriptor as soon as the mount is made.
const PATIENCE: Duration = Duration::from_secs(2);

/// The readahead that is tried, in KiB.
const READ_AHEAD_KIB: u32 = 1024;

/// The kernel's FILESYSTEM_MAX_STACK_DEPTH.
const DEEPEST: u32 = 2;

/// The findings about a mount: what it has, or could have.
#[derive(Debug)]
pub struct Found {
    /// The kernel's offer.
    pub offer: Offer,
    /// Whether the readahead of the mount could be set.
    pub read_ahead: Result<(), io::Error>,
    /// The result of passthrough to the file that was given: the stack depth that it takes, or the
    /// kernel's errno. `None` without a file, or where it is not offered.
    pub passthrough: Option<Result<u32, Errno>>,
}

/// Mounts, asks, and unmounts. `backing` is a file that passthrough is tried with.
///
/// # Errors
/// Why no mount could be made, or why it did not answer.
pub fn probe(backing: Option<BorrowedFd<'_>>) -> Result<Found, Failure> {
    let place = Place::new()?;
    let mut found = ask(&place, backing, 1)?;
    for depth in 2..=DEEPEST {
        if found.passthrough == Some(Err(Errno::LOOP)) {
            found.passthrough = ask(&place, backing, depth)?.passthrough;
        }
    }
    Ok(found)
}

fn ask(place: &Place, backing: Option<BorrowedFd<'_>>, depth: u32) -> Result<Found, Failure> {
    let mut options = MountOptions::default();
    // Another type than that of real mounts, so that nobody takes it for one.
    options.kernel.subtype = "mmapfs-doctor".into();
    let config = MountConfig::prepare(&place.source(), &place.mountpoint(), options)?;
    let (device, mounted) = mount(&config).map_err(|failure| place.forget(failure))?;
    let connection = Connection { device: Some(device), mounted };
    let failed = |error: io::Error| {
        Failure::failed("/dev/fuse", format_args!("talking with the kernel: {error}"))
    };
    let offer = connection.agree(depth).map_err(failed)?;
    let offers = offer.has(InitFlags::FUSE_PASSTHROUGH);
    let passthrough = match (&connection.device, backing.filter(|_| offers)) {
        (Some(device), Some(file)) => Some(sys::probe::open_backing(device, file).map(|_| depth)),
        _ => None,
    };
    Ok(Found { offer, read_ahead: connection.mounted.raise_readahead(READ_AHEAD_KIB), passthrough })
}

/// A mount and its end of the connection, which goes first.
struct Connection {
    device: Option<OwnedFd>,
    mounted: Mounted,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.device = None;
    }
}

impl Connection {
    /// Reads INIT and answers it.
    fn agree(&self, depth: u32) -> io::Result<Offer> {
        let device = self.device.as_ref().ok_or(Errno::BADF)?;
        let mut ready = [PollFd::new(device, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        if rustix::io::retry_on_intr(|| poll(&mut ready, Some(&patience)))? == 0 {
            return Err(Errno::TIMEDOUT.into());
        }
        let mut request = vec![0; init::ROOM];
        let len = rustix::io::retry_on_intr(|| rustix::io::read(device, &mut *request))?;
        let (offer, unique) = request
            .get(..len)
            .and_then(init::parse)
            .ok_or_else(|| io::Error::other("the first request is not INIT"))?;
        rustix::io::write(device, &init::answer(&offer, unique, depth))?;
        Ok(offer)
    }
}

/// Two empty directories of its own, which go at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Place, Failure> {
        let above = std::env::temp_dir();
        let failed = |error: io::Error| {
            let reason = format_args!("making a directory in it to mount on: {error}");
            Failure::failed(above.shown(), reason)
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("mmapfs-doctor-{}-{}", std::process::id(), now.as_nanos());
        let path = above.join(name);
        let make = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
        make(&path).map_err(failed)?;
        let place = Place(path);
        make(&place.source()).and_then(|()| make(&place.mountpoint())).map_err(failed)?;
        Ok(place)
    }

    fn source(&self) -> PathBuf {
        self.0.join("source")
    }

    /// Leaves the path out of a failure: nobody knows it, and it is gone when it could be read.
    fn forget(&self, failure: Failure) -> Failure {
        if !failure.subject.starts_with(&*self.0.to_string_lossy()) {
            return failure;
        }
        let reason = failure.reason.strip_prefix("mounting it: ").unwrap_or(&failure.reason);
        Failure { subject: "no mount can be made".into(), reason: reason.into(), ..failure }
    }

    fn mountpoint(&self) -> PathBuf {
        self.0.join("mount")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for path in [&self.source(), &self.mountpoint(), &self.0] {
            if let Err(error) = fs::remove_dir(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("{}: removing it: {error}", path.shown());
            }
        }
    }
}

/// The fusermount3 that mounts for users.
#[derive(Debug)]
pub struct Helper {
    /// Where it is.
    pub path: PathBuf,
    /// Its mode and its owner give it root's rights.
    pub is_setuid_root: bool,
    /// The version that it reports.
    pub version: Option<String>,
}

/// Looks for fusermount3 where a mount does.
pub fn helper() -> Option<Helper> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let in_path = |name: &str| std::env::split_paths(&search).map(|dir| dir.join(name)).collect();
    let places = |name: &'static str| match name.contains('/') {
        true => vec![PathBuf::from(name)],
        false => in_path(name),
    };
    let path = PROGRAMS.into_iter().flat_map(places).find(|path| {
        fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })?;
    let stat = rustix::fs::stat(&path).ok()?;
    let said = std::process::Command::new(&path).arg("--version").output().ok();
    let said = said.and_then(|output| String::from_utf8(output.stdout).ok());
    let version =
        said.as_deref().and_then(|text| text.split_whitespace().last()).map(str::to_owned);
    Some(Helper { path, is_setuid_root: stat.st_mode & 0o4000 != 0 && stat.st_uid == 0, version })
}
