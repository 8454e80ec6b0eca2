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
        SmallFs::of_memory("tmpfs", &format!("size={bytes},mode=755"))
    }

    /// A filesystem that needs no device, of this type and with these options.
    #[track_caller]
    pub fn of_memory(kind: &str, options: &str) -> SmallFs {
        let dir = TestDir::new();
        let mountpoint = dir.directory(kind);
        let data = CString::new(options).unwrap();
        mount("none", &mountpoint, kind, MountFlags::empty(), data.as_c_str()).unwrap();
        SmallFs { dir, mountpoint }
    }

    /// An overlayfs of two directories of a tmpfs, with these files in the lower one.
    #[track_caller]
    pub fn overlay(lower: &[(&str, &[u8])]) -> SmallFs {
        let below = SmallFs::tmpfs(64 << 20);
        let part = |name: &str| {
            let path = below.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (low, up, work) = (part("lower"), part("upper"), part("work"));
        for (name, content) in lower {
            std::fs::write(low.join(name), content).unwrap();
        }
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            low.display(),
            up.display(),
            work.display()
        );
        let data = CString::new(data).unwrap();
        // In the place of the tmpfs, which it keeps.
        mount("none", below.path(), "overlay", MountFlags::empty(), data.as_c_str()).unwrap();
        below
    }

    /// An XFS on a loop device of `bytes` bytes, at least 300 MiB.
    #[track_caller]
    pub fn xfs(bytes: u64) -> SmallFs {
        let dir = TestDir::new();
        let mountpoint = dir.directory("xfs");
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.xfs").arg("-q").arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mountpoint));
        open_to_all(&mountpoint);
        SmallFs { dir, mountpoint }
    }

    /// An ext4 filesystem on a loop device of `bytes` bytes.
    pub fn ext4(bytes: u64) -> SmallFs {
        // No reserved blocks: root is to meet the end as everybody does.
        SmallFs::ext4_with_reserve(bytes, 0)
    }

    /// The same, with a share reserved for root, in percent.
    pub fn ext4_with_reserve(bytes: u64, percent: u32) -> SmallFs {
        let dir = TestDir::new();
        let mountpoint = dir.directory("ext4");
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let reserved = percent.to_string();
        let options = ["-q", "-m", &reserved, "-O", "^has_journal"];
        run(Command::new("mkfs.ext4").args(options).arg(&image));
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
        // Lazily: a daemon that is just ending may still hold a descriptor. An overlayfs has its
        // tmpfs below it.
        for round in 0.. {
            match unmount(&self.mountpoint, UnmountFlags::DETACH) {
                Ok(()) => {}
                Err(_) if round > 0 => break,
                Err(err) => {
                    eprintln!("{}: cannot unmount: {err}", self.mountpoint.display());
                    break;
                }
            }
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
