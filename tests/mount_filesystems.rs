//! Sources on filesystems of other kinds: the same calls have the same results on each plane as on
//! the filesystem itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use common::mapped::Mapped;
use common::*;
use rustix::fs::{FallocateFlags, OFlags, copy_file_range, fallocate};
use rustix::io::Errno;

const USER: u32 = 40_001;
const LEN: usize = 65_536;

/// A file as it is after a call: its size, and its content where that went well.
#[derive(Debug, PartialEq)]
struct After {
    what: String,
    result: Result<(), Errno>,
    size: u64,
    content: Vec<u8>,
}

impl After {
    fn new(what: String, result: Result<(), Errno>, path: &Path) -> After {
        let content = fs::read(path).unwrap();
        After { what, result, size: size(path), content }
    }
}

/// Opens, reads, writes, maps, cuts and copies in many ways.
fn use_files(dir: &Path) -> Vec<After> {
    let mut all = Vec::new();
    let mut note = |what: &str, result: Result<(), Errno>, path: &Path| {
        all.push(After::new(what.to_owned(), result, path));
    };
    let path = dir.join("file");
    let made = open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).unwrap();
    note("write", errno(made.write_all_at(&pattern(LEN), 0)), &path);
    let second = open(&path, OFlags::WRONLY | OFlags::APPEND).unwrap();
    note("append", errno(second.write_at(b"appended", 0).map(drop)), &path);
    let map = Mapped::shared(&made, LEN).unwrap();
    map.write(10, b"stored");
    note("store", errno(map.sync()), &path);
    note("write over the mapping", errno(made.write_all_at(b"written", 12)), &path);
    assert_eq!(map.read(10, 9), b"stwritten");
    drop(map);
    let (mut from, mut to) = (100, 30_000);
    let copied = copy_file_range(&made, Some(&mut from), &made, Some(&mut to), 5000);
    note("copy", copied.map(drop), &path);
    note("cut", errno(made.set_len(9000)), &path);
    note("grow", errno(made.set_len(20_000)), &path);
    let link = dir.join("link");
    fs::hard_link(&path, &link).unwrap();
    let by_link = open(&link, OFlags::RDWR | OFlags::TRUNC).unwrap();
    note("write by the second name", errno(by_link.write_all_at(b"linked", 3)), &path);
    assert_eq!(read_at(&made, 0, 9), b"\0\0\0linked");
    fs::remove_file(&path).unwrap();
    note("write when removed", errno(made.write_all_at(b"removed", 0)), &link);
    for (name, flags) in [("new direct", OFlags::DIRECT), ("new sync", OFlags::SYNC)] {
        let path = dir.join(name);
        let file = open(&path, flags | OFlags::RDWR | OFlags::CREATE).map(drop);
        note(name, file, &path);
        let again = open(&path, flags | OFlags::RDONLY).map(drop);
        note("again", again, &path);
        let plain = open(&path, OFlags::RDWR).unwrap();
        note("plain", errno(plain.write_all_at(b"plain", 0)), &path);
        note("with it open", open(&path, flags | OFlags::RDWR).map(drop), &path);
    }
    all
}

/// Every mode of fallocate(2), alone or not, at several places.
fn allocate(dir: &Path, who: &str) -> Vec<After> {
    let modes = [
        FallocateFlags::empty(),
        FallocateFlags::KEEP_SIZE,
        FallocateFlags::PUNCH_HOLE,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    ];
    let ranges =
        [(0, 4096), (100, 50), (4000, 9000), (60_000, 10_000), (65_536, 4096), (200_000, 1)];
    let mut all = Vec::new();
    for (index, mode) in modes.into_iter().enumerate() {
        for (offset, len) in ranges {
            let path = dir.join(format!("{who} {index} {offset}"));
            let file = create(&path);
            file.write_all_at(&pattern(LEN), 0).unwrap();
            let result = fallocate(&file, mode, offset, len);
            all.push(After::new(format!("{mode:?} {offset} {len} by {who}"), result, &path));
            let again = fallocate(&file, mode, offset, len);
            all.push(After::new(String::from("again"), again, &path));
        }
    }
    all
}

/// All of it, as root and as a user.
fn battery(dir: &Path) -> Vec<After> {
    let mut all = Vec::new();
    for (who, caller) in [("root", Caller::new(0)), ("user", Caller::new(USER))] {
        let own = dir.join(who);
        fs::create_dir(&own).unwrap();
        set_mode(&own, 0o777);
        all.extend(caller.run(|| {
            let mut all = use_files(&own);
            all.extend(allocate(&own, who));
            all
        }));
    }
    all
}

/// Preallocates as a user in files of root that have setuid or setgid; tells the results, and the
/// modes as they are in `bare`. They have to be seen in `dir` at once, or nearly.
fn allocate_in_privileged(dir: &Path, bare: &Path) -> Vec<(String, Result<(), Errno>, u32)> {
    let modes = [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE];
    let mut all = Vec::new();
    for (index, mode) in modes.into_iter().enumerate() {
        for bits in [0o666, 0o4777, 0o2777, 0o2766] {
            let name = format!("{index} {bits:o}");
            let path = dir.join(&name);
            fs::write(&path, pattern(LEN)).unwrap();
            set_mode(&path, bits);
            let result = Caller::new(USER).run(|| {
                let file = open(&path, OFlags::WRONLY)?;
                fallocate(&file, mode, 60_000, 20_000)
            });
            let left = common::mode(bare.join(&name));
            let seen = Duration::from_millis(500);
            assert!(wait_until(seen, || common::mode(&path) == left), "{name}: {left:o}");
            all.push((format!("{mode:?} {bits:o}"), result, left));
        }
    }
    all
}

#[test]
fn privileges_go_with_preallocation_where_they_go_on_the_filesystem_itself() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let makes: [fn() -> SmallFs; 3] =
        [|| SmallFs::tmpfs(8 << 20), || SmallFs::overlay(&[]), || SmallFs::ext4(16 << 20)];
    for make in makes {
        let bare = make();
        let expected = allocate_in_privileged(bare.path(), bare.path());
        for plane in PLANES {
            let source = make();
            let options = format!("access=write,allow_other,suid,attr_timeout=60,plane={plane}");
            let mounted = MountedFs::over(source.path(), &options);
            let actual = allocate_in_privileged(mounted.path(), source.path());
            assert_same_as_bare(&format!("plane={plane}"), &actual, &expected);
        }
    }
}

#[test]
fn a_tmpfs_is_served_as_it_is() {
    same_over(|| SmallFs::tmpfs(64 << 20), battery);
}

#[test]
fn a_ramfs_which_has_no_direct_io_is_served_as_it_is() {
    // The mapped plane does without: what is asked for there is that FUSE caches nothing.
    same_over_on(&["auto", "passthrough"], || SmallFs::of_memory("ramfs", "mode=755"), use_files);
}

#[test]
fn an_ext4_is_served_as_it_is() {
    if require_program("mkfs.ext4") {
        same_over(|| SmallFs::ext4(64 << 20), battery);
    }
}

#[test]
fn an_xfs_is_served_as_it_is() {
    if require_program("mkfs.xfs") {
        same_over(|| SmallFs::xfs(320 << 20), battery);
    }
}

#[test]
fn an_overlay_is_served_as_it_is() {
    same_over(|| SmallFs::overlay(&[]), battery);
}

/// Which plane the files that are open are on.
fn planes(root: &Path) -> Vec<String> {
    let status = ask(root, "json status").json();
    let open = status["open_files"].as_array().unwrap();
    open.iter().map(|file| file["plane"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn files_of_the_lower_layer_of_an_overlay_are_copied_up_under_open_descriptors() {
    let lower: [(&str, &[u8]); 2] = [("file", b"of the lower layer"), ("other", b"other")];
    same_over(
        || SmallFs::overlay(&lower),
        |dir| {
            let path = dir.join("file");
            let reader = open(&path, OFlags::RDONLY).unwrap();
            let before = read_at(&reader, 0, 18);
            let map = Mapped::shared_for_reading(&reader, 18).unwrap();
            let mapped_before = map.read(0, 18);
            let writer = open(&path, OFlags::RDWR).unwrap();
            writer.write_all_at(b"UP", 0).unwrap();
            let later = open(&path, OFlags::RDONLY).unwrap();
            let after = [&reader, &writer, &later].map(|file| read_at(file, 0, 18));
            drop((reader, writer, later));
            let content = fs::read(&path).unwrap();
            let cut = open(dir.join("other"), OFlags::WRONLY | OFlags::TRUNC).map(drop);
            (before, mapped_before, after, content, cut, size(dir.join("other")))
        },
    );
}

#[test]
fn the_kernel_reads_and_writes_files_of_an_overlay_itself() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for (small, what) in [(SmallFs::overlay(&[]), "overlay"), (SmallFs::tmpfs(1 << 20), "tmpfs")] {
        let mounted = MountedFs::over(small.path(), "access=write,plane=auto");
        let file = create(mounted.path().join("file"));
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(planes(mounted.path()), ["passthrough"], "{what}");
        drop(file);
    }
}

#[test]
fn an_overlay_can_be_put_on_a_mount() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mounted = MountedFs::new("access=write,suid,dev,plane=auto");
    fs::write(mounted.path().join("file"), b"below").unwrap();
    let held = create(mounted.path().join("file"));
    assert_eq!(planes(mounted.path()), ["passthrough"]);
    let parts = TestDir::new();
    let (upper, work) = (parts.directory("upper"), parts.directory("work"));
    let place = parts.directory("place");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        mounted.path().display(),
        upper.display(),
        work.display()
    );
    let data = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &place, "overlay", flags, data.as_c_str()).unwrap();
    let used = std::panic::catch_unwind(|| {
        assert_content(place.join("file"), b"below");
        fs::write(place.join("file"), b"above").unwrap();
        assert_content(place.join("file"), b"above");
    });
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::empty()).unwrap();
    used.unwrap();
    assert_content(mounted.path().join("file"), b"below");
    drop(held);
}

#[test]
fn a_mount_over_a_mount_serves_the_same_bytes_on_every_pair_of_planes() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for below in PLANES {
        for above in PLANES {
            let lower = MountedFs::new(&format!("access=write,plane={below}"));
            let source = lower.path().join("source");
            fs::create_dir(&source).unwrap();
            let upper = MountedFs::over(&source, &format!("access=write,plane={above}"));
            let all = use_files(upper.path());
            assert!(all.iter().all(|after| after.result.is_ok()), "{below} {above}: {all:?}");
            let file: File = create(upper.path().join("last"));
            file.write_all_at(&pattern(LEN), 0).unwrap();
            drop(file);
            assert_content(lower.backing().join("source/last"), &pattern(LEN));
            assert_eq!(fs::metadata(upper.path().join("last")).unwrap().nlink(), 1);
            upper.unmount();
        }
    }
}
