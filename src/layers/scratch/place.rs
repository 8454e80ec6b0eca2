//! Places of scratches: directories in memory, and the registry of links to scratches on disk.

use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::layout::Layout;
use super::metadata_reserve::RESERVE;
use super::opened::{Opened, TMPFS_MAGIC};
use super::state::{Kind, State};
use super::{SHARE_OF_MEMORY, share, told};
use crate::config::{Limit, ScratchConfig, may_mount, run};
use crate::error::Failure;
use crate::shown::Show;

/// Least number of inodes of a tmpfs of its own.
const LEAST_INODES: u64 = 65_536;

/// Mount flags of the tmpfs of a scratch. MS_NODEV does not prevent whiteouts: device files can be
/// made and listed.
const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// The directories below which scratches are made and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Parent of the tmpfs of each scratch, for processes that may mount.
    mounted: PathBuf,
    /// Directories in a shared tmpfs, best first, for processes that may not mount.
    shared: Vec<PathBuf>,
    /// Directory of links to scratches on disk; each link is named by the id.
    registry: Option<PathBuf>,
}

impl Places {
    /// Places of this process: MMAPFS_RUN_DIR and MMAPFS_STATE_DIR if they are set, else
    /// `/run/mmapfs` and `/var/lib/mmapfs` for root, and the directories of the XDG base directory
    /// specification for other users.
    pub fn of_process() -> Places {
        let user = rustix::process::geteuid();
        let dir = run::directory_named_by;
        let state = run::state_directory();
        let shm = PathBuf::from(format!("/dev/shm/mmapfs-{}", user.as_raw()));
        let (run, shared) = match run::given_directory() {
            Some(run) => (run.clone(), vec![run.join("scratches")]),
            None => {
                let of_user = dir("XDG_RUNTIME_DIR").map(|dir| dir.join("mmapfs/scratches"));
                ("/run/mmapfs".into(), of_user.into_iter().chain([shm]).collect())
            }
        };
        Places {
            mounted: run.join("scratches"),
            shared,
            registry: state.map(|state| state.join("scratches")),
        }
    }

    /// Places below one directory, which should be in memory.
    pub fn below(dir: &Path) -> Places {
        let run = dir.join("run/scratches");
        let registry = Some(dir.join("state/scratches"));
        Places { mounted: run.clone(), shared: vec![run], registry }
    }

    /// Directories that contain the scratches in memory.
    pub(super) fn in_memory(&self) -> Vec<&Path> {
        let mut dirs = vec![self.mounted.as_path()];
        dirs.extend(self.shared.iter().map(PathBuf::as_path).filter(|dir| *dir != self.mounted));
        dirs
    }

    /// Directory of the links to scratches on disk.
    pub(super) fn registry(&self) -> Option<&Path> {
        self.registry.as_deref()
    }

    /// Directory below which a scratch in memory would be made.
    pub(super) fn memory_outlook(
        &self,
        base: &Path,
        mountpoint: &Path,
    ) -> Result<PathBuf, Failure> {
        let found = match may_mount() {
            true => Some(&self.mounted),
            false => self.shared.iter().find(|dir| is_in_memory(dir)),
        };
        let dir = found.ok_or_else(no_memory)?;
        check_memory(dir, base, mountpoint)?;
        Ok(dir.clone())
    }

    /// Makes a directory in memory for the scratch `id` of at most `max` bytes.
    pub(super) fn make_in_memory(
        &self,
        id: &str,
        max: Option<u64>,
        base: &Path,
        mountpoint: &Path,
    ) -> Result<(Layout, Kind), Failure> {
        if may_mount() {
            let dir = self.mounted.join(id);
            check_memory(&dir, base, mountpoint)?;
            match mount_tmpfs(&dir, max) {
                Ok(()) => return Ok((Layout::at(dir), Kind::OwnTmpfs)),
                Err(failure) => log::debug!("no tmpfs for the scratch: {failure}"),
            }
        }
        let mut last = None;
        for shared in self.shared.iter().filter(|dir| is_in_memory(dir)) {
            let dir = shared.join(id);
            check_memory(&dir, base, mountpoint)?;
            match make_private(shared).and_then(|()| make_one(&dir)) {
                Ok(()) => return Ok((Layout::at(dir), Kind::SharedMemory)),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(no_memory))
    }

    /// Links a scratch on disk into the registry. A failure is logged: the scratch works, and is
    /// not listed.
    pub(super) fn register(&self, layout: &Layout, state: &State) {
        let Some(registry) = self.registry() else { return };
        let listed = self.in_memory().iter().any(|dir| layout.dir().parent() == Some(dir));
        if listed {
            return;
        }
        let link = registry.join(&state.id);
        if fs::read_link(&link).is_ok_and(|target| target == layout.dir()) {
            return;
        }
        let linked = make_all(registry).and_then(|()| {
            match fs::remove_file(&link) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => symlink(layout.dir(), &link),
            }
            .map_err(|error| told(&link, "linking the scratch", error))
        });
        if let Err(failure) = linked {
            log::warn!("{failure}: `mmapfs scratches` will not list {}", layout.dir().shown());
        }
    }

    /// Whether another scratch has this id, since one was copied from the other.
    pub(super) fn is_taken(&self, id: &str, layout: &Layout) -> bool {
        let Some(target) = self.registry().and_then(|dir| fs::read_link(dir.join(id)).ok()) else {
            return false;
        };
        let other = Layout::at(target);
        other.dir() != layout.dir()
            && Opened::at(&other)
                .and_then(|other| State::read(&other))
                .is_ok_and(|state| state.is_some_and(|state| state.id == id))
    }
}

fn no_memory() -> Failure {
    let reason = "there is no place for it in memory: neither can a tmpfs be mounted, nor are \
                  $XDG_RUNTIME_DIR or /dev/shm there as one; give scratch= a directory";
    Failure::failed("scratch", reason)
}

fn check_memory(dir: &Path, base: &Path, mountpoint: &Path) -> Result<(), Failure> {
    ScratchConfig::check_place(dir, base, mountpoint).map_err(|failure| Failure {
        reason: format!("{}; give scratch= another place", failure.reason),
        ..failure
    })
}

/// Whether a directory, or its closest existing parent, is in a tmpfs.
fn is_in_memory(dir: &Path) -> bool {
    let found = dir.ancestors().find_map(|above| rustix::fs::statfs(above).ok());
    found.is_some_and(|found| found.f_type == TMPFS_MAGIC)
}

fn make_all(dir: &Path) -> Result<(), Failure> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(dir).map_err(|error| told(dir, "making it", error))
}

fn make_one(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new().mode(0o700).create(dir).map_err(|error| told(dir, "making it", error))
}

/// Makes a directory with mode 0700. An existing one has to be a directory of this user that nobody
/// else can write: everybody can make names in /dev/shm.
fn make_private(dir: &Path) -> Result<(), Failure> {
    if let Some(above) = dir.parent() {
        make_all(above)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(told(dir, "making it", error));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(dir).map_err(|error| told(dir, "looking at it", error))?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    if found.is_dir() && own && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Failure::failed(dir.shown(), "it is not a directory that is this user's alone"))
}

fn mount_tmpfs(dir: &Path, max: Option<u64>) -> Result<(), Failure> {
    if let Some(above) = dir.parent() {
        make_all(above)?;
    }
    make_one(dir)?;
    let data = tmpfs_data(max).map_err(|error| told(dir, "mounting it", error))?;
    rustix::mount::mount("mmapfs-scratch", dir, "tmpfs", FLAGS, data.as_c_str()).map_err(|errno| {
        // The directory is empty; the failure of the mount is the one to report.
        let _ = fs::remove_dir(dir);
        told(dir, "mounting a tmpfs", errno.into())
    })
}

/// Mount options of the tmpfs of a scratch of `max` bytes: its size, with the metadata reserve on
/// top, and one inode per page, so that the limit in bytes is reached before the one of inodes.
fn tmpfs_data(max: Option<u64>) -> io::Result<CString> {
    let size = max.map_or(0, |max| max.saturating_add(RESERVE));
    let inodes = max.map_or(0, |max| (max / 4096).max(LEAST_INODES));
    Ok(CString::new(format!("mode=0700,size={size},nr_inodes={inodes}"))?)
}

/// Changes the size of the tmpfs of a scratch.
///
/// # Errors
/// The tmpfs holds more, or the process may not remount it.
pub(super) fn resize(layout: &Layout, max: Option<u64>) -> Result<(), Failure> {
    let failed = |error: io::Error| told(layout.dir(), "giving its tmpfs another size", error);
    let data = tmpfs_data(max).map_err(failed)?;
    rustix::mount::mount_remount(layout.dir(), FLAGS, data.as_c_str())
        .map_err(|errno| failed(errno.into()))
}

/// Unmounts the tmpfs of a scratch and removes its mount point. The memory of files that are open
/// is freed when they are closed.
pub(super) fn unmount(layout: &Layout) -> Result<(), Failure> {
    let dir = layout.dir();
    let unmount = |flags| rustix::mount::unmount(dir, flags | UnmountFlags::NOFOLLOW);
    unmount(UnmountFlags::empty())
        .or_else(|_| unmount(UnmountFlags::DETACH))
        .map_err(|errno| told(dir, "unmounting it", errno.into()))?;
    fs::remove_dir(dir).map_err(|error| told(dir, "removing it", error))
}

/// Limit of a scratch in memory in bytes; the default is half of the available memory.
pub(super) fn limit_in_memory(limit: Option<Limit>) -> Result<Option<u64>, Failure> {
    match limit.unwrap_or(Limit::Percent(SHARE_OF_MEMORY)) {
        Limit::None => Ok(None),
        Limit::Bytes(bytes) => Ok(Some(bytes)),
        Limit::Percent(percent) => Ok(Some(share(memory_available()?, percent))),
    }
}

/// MemAvailable of /proc/meminfo (proc_meminfo(5)), in bytes.
fn memory_available() -> Result<u64, Failure> {
    const MEMINFO: &str = "/proc/meminfo";
    let text = fs::read_to_string(MEMINFO)
        .map_err(|error| told(Path::new(MEMINFO), "reading it", error))?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.map(|kib| kib.saturating_mul(1024))
        .ok_or_else(|| Failure::failed(MEMINFO, "it does not say how much memory is available"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(shared: &Path) -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        // No directories can be made in /proc.
        let mounted = PathBuf::from("/proc/self/scratches");
        (dir, Places { mounted, shared: vec![shared.to_owned()], registry: None })
    }

    #[test]
    fn whoever_may_not_mount_has_a_directory_in_a_shared_tmpfs() {
        let shared = tempfile::Builder::new().prefix("mmapfs-test-").tempdir_in("/dev/shm");
        let Ok(shared) = shared else {
            eprintln!("SKIPPED: nothing can be made in /dev/shm");
            return;
        };
        let (dir, places) = world(&shared.path().join("mine"));
        let config = ScratchConfig { max: Some(Limit::Bytes(1 << 20)), ..ScratchConfig::default() };
        let open = || {
            let (base, mountpoint) = (dir.path().join("base"), dir.path().join("mnt"));
            super::super::Scratch::open(&config, &base, &mountpoint, &places)
        };
        if !is_in_memory(shared.path()) {
            assert!(open().unwrap_err().to_string().contains("no place for it in memory"));
            return;
        }
        let scratch = open().unwrap();
        let place = scratch.layout().dir().to_owned();
        assert_eq!(scratch.state().kind, Kind::SharedMemory);
        assert_eq!(fs::metadata(shared.path().join("mine")).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(scratch.quota_ledger().limit(), Some(1 << 20));
        assert_eq!(scratch.quota_ledger().reserve(2 << 20), Err(rustix::io::Errno::NOSPC));
        assert!(scratch.space().unwrap().total <= 1 << 20);
        assert_eq!(super::super::list(&places).len(), 1);
        drop(scratch);
        assert!(!place.exists());

        // Somebody else's directory, by mode or by link, is not used.
        let mine = shared.path().join("mine");
        fs::remove_dir_all(&mine).unwrap();
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        symlink(other.path(), &mine).unwrap();
        assert!(open().unwrap_err().to_string().contains("this user's alone"));
        fs::remove_file(&mine).unwrap();
        fs::create_dir(&mine).unwrap();
        fs::set_permissions(&mine, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(open().unwrap_err().to_string().contains("this user's alone"));
    }

    #[test]
    fn a_scratch_in_memory_that_would_lie_in_its_base_asks_for_another_place() {
        let (dir, places) = world(Path::new("/dev/shm/none"));
        let base = Path::new("/dev/shm");
        let failure = places.make_in_memory("id", None, base, &dir.path().join("mnt"));
        let line = failure.unwrap_err().to_string();
        let told = line.contains("inside the source") && line.contains("give scratch= another");
        assert!(told || line.contains("no place"), "{line}");
    }

    #[test]
    fn half_of_what_is_available_is_less_than_all_of_it() {
        let all = limit_in_memory(Some(Limit::Percent(100))).unwrap().unwrap();
        let half = limit_in_memory(None).unwrap().unwrap();
        assert!(half > 0 && half < all, "{half} of {all}");
        assert_eq!(limit_in_memory(Some(Limit::None)), Ok(None));
    }
}
