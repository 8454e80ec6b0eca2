//! `mmapfs umount` and what it waits for.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};

use super::*;
use crate::common::mounted::run;

#[test]
fn the_disk_of_a_scratch_and_that_of_its_base_are_free_when_umount_has_returned() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for round in 0..10 {
        let background = Background::new();
        let (disk, base) = (SmallFs::tmpfs(16 << 20), SmallFs::tmpfs(16 << 20));
        fs::write(base.path().join("file"), vec![b'x'; 1 << 20]).unwrap();
        let options = format!("access=copy,scratch={}/scratch", disk.path().display());
        let mounted = Command::new(program())
            .args(["mount", "-o", &options])
            .args([base.path(), &background.mountpoint])
            .env("MMAPFS_STATE_DIR", background.path("state"))
            .output()
            .unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        fs::write(background.mountpoint.join("file"), b"changed").unwrap();
        let output = run(&["umount".as_ref(), background.mountpoint.as_os_str()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for place in [disk.path(), base.path()] {
            let free = unmount(place, UnmountFlags::empty());
            assert_eq!(free, Ok(()), "round {round}: {}", place.display());
            rustix::mount::mount("none", place, "tmpfs", rustix::mount::MountFlags::empty(), None)
                .unwrap();
        }
    }
}

#[test]
fn the_name_umount_fuse_mmapfs_takes_the_words_of_umount() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let background = Background::new();
    let helper = background.path("umount.fuse.mmapfs");
    symlink(program(), &helper).unwrap();
    let mounts: [&[&str]; 3] = [&[], &["-n", "-v", "-t", "fuse.mmapfs"], &["-l"]];
    for words in mounts {
        let output = background.command(&[], "access=write").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = Command::new(&helper).arg(&background.mountpoint).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!is_mounted(&background.mountpoint), "{words:?}");
    }
}
