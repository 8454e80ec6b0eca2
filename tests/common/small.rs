//! Small filesystems that can be filled up. They need root.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{TestDir, open_to_all};

/// A small filesystem, unmounted at the end.
pub struct SmallFs {
    dir: TestDir,
    mountpoint: PathBuf,
}

impl SmallFs {
    /// A tmpfs of `bytes` bytes.
    pub fn tmpfs(bytes: u64) -> SmallFs {
        let dir = TestDir::new();
        let mountpoint = dir.directory("tmpfs");
        let data = CString::new(format!("size={bytes},mode=755")).unwrap();
        mount("tmpfs", &mountpoint, "tmpfs", MountFlags::empty(), data.as_c_str()).unwrap();
        SmallFs { dir, mountpoint }
    }

    /// An ext4 filesystem on a loop device of `bytes` bytes.
    pub fn ext4(bytes: u64) -> SmallFs {
        let dir = TestDir::new();
        let mountpoint = dir.directory("ext4");
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        // No reserved blocks: root is to meet the end as everybody does.
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-O", "^has_journal"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mountpoint));
        open_to_all(&mountpoint);
        SmallFs { dir, mountpoint }
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        // Lazily: a daemon that is just ending may still hold a descriptor.
        if let Err(err) = unmount(&self.mountpoint, UnmountFlags::DETACH) {
            eprintln!("{}: cannot unmount: {err}", self.mountpoint.display());
        }
    }
}

/// A directory that is shown at a second place, until the end.
pub struct Bound(PathBuf);

impl Bound {
    /// Shows `from` at `place`.
    pub fn new(from: &Path, place: &Path) -> Bound {
        rustix::mount::mount_bind(from, place).unwrap();
        Bound(place.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(err) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("{}: cannot unmount: {err}", self.0.display());
        }
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
