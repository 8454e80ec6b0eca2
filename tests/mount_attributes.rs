//! Attributes: permissions, owners, times, sizes, extended attributes, access lists, flags.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io::IsTerminal;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::mapped::Mapped;
use common::*;
use rustix::fs::{AtFlags, CWD, IFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::fs::{XattrFlags, lremovexattr, lsetxattr, utimensat};
use rustix::io::Errno;

#[test]
fn permissions_are_set_in_every_bit() {
    on_both(|dir| {
        fs::write(dir.join("file"), b"x").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        let file = File::open(dir.join("file")).unwrap();
        for bits in [0o0, 0o777, 0o644, 0o4711, 0o2755, 0o1777, 0o7777] {
            set_mode(dir.join("file"), bits);
            set_mode(dir.join("dir"), bits);
            assert_eq!((mode(dir.join("file")), mode(dir.join("dir"))), (bits, bits));
            file.set_permissions(PermissionsExt::from_mode(bits ^ 0o1)).unwrap();
            assert_eq!(mode(dir.join("file")), bits ^ 0o1);
        }
    });
}

#[test]
fn owners_are_set_one_by_one_and_together() {
    if !require_root() {
        return;
    }
    on_both(|dir| {
        let path = dir.join("file");
        fs::write(&path, b"x").unwrap();
        let owner = || {
            let meta = fs::symlink_metadata(&path).unwrap();
            (meta.uid(), meta.gid())
        };
        chown(&path, Some(1001), Some(1002)).unwrap();
        assert_eq!(owner(), (1001, 1002));
        chown(&path, None, Some(1003)).unwrap();
        assert_eq!(owner(), (1001, 1003));
        chown(&path, Some(0), None).unwrap();
        assert_eq!(owner(), (0, 1003));
        let before = fs::metadata(&path).unwrap().ctime_nsec();
        chown(&path, None, None).unwrap();
        assert!(owner() == (0, 1003) && before >= 0);
        symlink("file", dir.join("link")).unwrap();
        lchown(dir.join("link"), Some(7), Some(8)).unwrap();
        let link = fs::symlink_metadata(dir.join("link")).unwrap();
        assert_eq!((link.uid(), link.gid()), (7, 8));
        assert_eq!(owner(), (0, 1003));
        chown(dir.join("link"), Some(9), None).unwrap();
        assert_eq!(owner(), (9, 1003));
    });
}

fn time(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds }
}

fn set_times(path: &Path, access: Timespec, modified: Timespec) -> Result<(), Errno> {
    let times = Timestamps { last_access: access, last_modification: modified };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[test]
fn times_are_kept_to_the_nanosecond_before_and_after_1970() {
    same_on_both(|dir| {
        fs::write(dir.join("file"), b"x").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        symlink("file", dir.join("link")).unwrap();
        let times = [
            time(1_234_567_890, 123_456_789),
            time(0, 0),
            time(0, 1),
            time(-1, 999_999_999),
            time(-2_000_000_000, 5),
            time(1 << 32, 7),
            time(1 << 35, 0),
        ];
        let mut kept = Vec::new();
        for name in ["file", "dir", "link"] {
            for modified in times {
                let access = time(modified.tv_sec.saturating_sub(100), 17);
                set_times(&dir.join(name), access, modified).unwrap();
                let meta = fs::symlink_metadata(dir.join(name)).unwrap();
                kept.push((meta.mtime(), meta.mtime_nsec(), meta.atime(), meta.atime_nsec()));
            }
        }
        assert_eq!(kept[3], (-1, 999_999_999, -101, 17));
        kept
    });
}

#[test]
fn a_time_that_is_to_stay_stays_and_now_is_now() {
    on_both(|dir| {
        let path = dir.join("file");
        fs::write(&path, b"x").unwrap();
        let (keep, now) = (time(0, UTIME_OMIT), time(0, UTIME_NOW));
        let seen = || {
            let meta = fs::metadata(&path).unwrap();
            (meta.atime(), meta.mtime())
        };
        set_times(&path, time(1000, 1), time(2000, 2)).unwrap();
        set_times(&path, keep, time(3000, 3)).unwrap();
        assert_eq!(seen(), (1000, 3000));
        set_times(&path, time(4000, 4), keep).unwrap();
        assert_eq!(seen(), (4000, 3000));
        set_times(&path, keep, keep).unwrap();
        assert_eq!(seen(), (4000, 3000));
        // File times are taken from a coarse clock.
        let before = SystemTime::now() - Duration::from_millis(50);
        set_times(&path, keep, now).unwrap();
        assert_eq!(seen().0, 4000);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(modified >= before && modified <= SystemTime::now());
        set_times(&path, now, time(5000, 5)).unwrap();
        assert!(fs::metadata(&path).unwrap().accessed().unwrap() >= before);
        assert_eq!(seen().1, 5000);
    });
}

#[test]
fn writing_and_truncating_move_the_modification_time() {
    on_both(|dir| {
        let path = dir.join("file");
        let file = create(&path);
        let moved = |what: &str, change: &dyn Fn()| {
            set_times(&path, time(1000, 0), time(1000, 0)).unwrap();
            change();
            let meta = fs::metadata(&path).unwrap();
            assert!(meta.mtime() > 1000, "{what} leaves the modification time");
            assert!(meta.ctime() > 1000, "{what} leaves the change time");
        };
        moved("write", &|| file.write_all_at(b"content", 0).unwrap());
        moved("an overwrite", &|| file.write_all_at(b"CONTENT", 0).unwrap());
        moved("truncation", &|| file.set_len(3).unwrap());
        moved("growth", &|| file.set_len(300).unwrap());
        moved("opening with O_TRUNC", &|| drop(File::create(&path).unwrap()));
        set_times(dir, time(1000, 0), time(1000, 0)).unwrap();
        fs::write(dir.join("another"), b"").unwrap();
        assert!(fs::metadata(dir).unwrap().mtime() > 1000, "a new name leaves the directory");
    });
}

#[test]
fn reading_and_statting_leave_the_modification_time() {
    on_both(|dir| {
        let path = dir.join("file");
        fs::write(&path, pattern(10_000)).unwrap();
        set_times(&path, time(1000, 1), time(2000, 2)).unwrap();
        assert_content(&path, &pattern(10_000));
        let file = create(&path);
        read_at(&file, 0, 100);
        file.sync_all().unwrap();
        drop(file);
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (2000, 2));
    });
}

#[test]
fn a_path_is_truncated_as_the_bare_filesystem_does_it() {
    same_on_both(|dir| {
        fs::write(dir.join("file"), pattern(10_000)).unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        let cut = |name: &str, len| {
            let file = open(dir.join(name), rustix::fs::OFlags::WRONLY)?;
            rustix::fs::ftruncate(&file, len)
        };
        let outcomes = [cut("file", 100), cut("file", 20_000), cut("dir", 0), cut("no", 0)];
        (outcomes, fs::read(dir.join("file")).unwrap(), size(dir.join("file")))
    });
}

#[test]
fn blocks_and_their_size_are_those_of_the_bare_filesystem() {
    same_on_both(|dir| {
        fs::write(dir.join("file"), pattern(100_000)).unwrap();
        create(dir.join("file")).sync_all().unwrap();
        let meta = fs::metadata(dir.join("file")).unwrap();
        (meta.blocks(), meta.size(), meta.blksize())
    });
}

#[test]
fn the_time_of_birth_is_that_of_the_backing_file_or_unknown() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    fs::write(mounted.path().join("file"), b"x").unwrap();
    let backing = fs::metadata(mounted.backing().join("file")).unwrap().created();
    match fs::metadata(mounted.path().join("file")).unwrap().created() {
        Ok(born) => assert_eq!(born, backing.unwrap()),
        Err(err) => eprintln!("unknown: {err}"),
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
    lsetxattr(path, name, value, flags)
}

#[test]
fn extended_attributes_are_set_read_listed_and_removed() {
    on_both(|dir| {
        let path = dir.join("file");
        fs::write(&path, b"x").unwrap();
        let any = XattrFlags::empty();
        for (name, value) in [("user.one", &b"1"[..]), ("user.empty", b""), ("user.bin", b"\0\xff")]
        {
            set_xattr(&path, name, value, any).unwrap();
            assert_eq!(xattr(&path, name).unwrap(), value);
        }
        set_xattr(&path, "user.one", b"changed", any).unwrap();
        assert_eq!(xattr(&path, "user.one").unwrap(), b"changed");
        let named = |names: Vec<String>| {
            names.into_iter().filter(|name| name.starts_with("user.")).collect::<Vec<_>>()
        };
        assert_eq!(named(xattr_names(&path).unwrap()), ["user.bin", "user.empty", "user.one"]);
        lremovexattr(&path, "user.one").unwrap();
        assert_eq!(xattr(&path, "user.one"), Err(Errno::NODATA));
        assert_eq!(named(xattr_names(&path).unwrap()), ["user.bin", "user.empty"]);
    });
}

#[test]
fn extended_attributes_are_refused_as_the_bare_filesystem_refuses_them() {
    same_on_both(|dir| {
        let path = dir.join("file");
        fs::write(&path, b"x").unwrap();
        symlink("file", dir.join("link")).unwrap();
        let any = XattrFlags::empty();
        set_xattr(&path, "user.there", b"0123456789", any).unwrap();
        let get = |name: &str, len: usize| {
            let mut value = vec![0; len];
            rustix::fs::lgetxattr(&path, name, &mut value[..])
        };
        let set = [
            set_xattr(&path, "user.there", b"x", XattrFlags::CREATE),
            set_xattr(&path, "user.new", b"x", XattrFlags::REPLACE),
            set_xattr(&path, "nonsense.x", b"x", any),
            set_xattr(&path, "user.", b"x", any),
            set_xattr(&path, "plain", b"x", any),
            set_xattr(&path, &format!("user.{}", "n".repeat(251)), b"x", any),
            set_xattr(&path, "user.big", &[b'v'; 3000], any),
            set_xattr(&path, "user.huge", &[b'v'; 65_536], any),
            set_xattr(&path, "user.too", &[b'v'; 65_537], any),
            set_xattr(&dir.join("link"), "user.x", b"x", any),
            set_xattr(&dir.join("missing"), "user.x", b"x", any),
            lremovexattr(&path, "user.missing"),
            lremovexattr(&path, "nonsense.x"),
        ];
        let got = [get("user.there", 9), get("user.there", 10), get("user.missing", 10)];
        let mut small = [0; 3];
        let listed = rustix::fs::llistxattr(&path, &mut small[..]);
        let sizes = (
            rustix::fs::lgetxattr_query(&path, "user.there"),
            rustix::fs::llistxattr_query(&path),
            rustix::fs::llistxattr_query(dir.join("link")),
        );
        (set, got, listed, sizes)
    });
}

#[test]
fn every_namespace_of_attributes_is_open_to_root() {
    if !require_root() {
        return;
    }
    on_both(|dir| {
        fs::write(dir.join("file"), b"x").unwrap();
        symlink("file", dir.join("link")).unwrap();
        let any = XattrFlags::empty();
        for (at, name) in [
            ("file", "trusted.overlay.test"),
            ("link", "trusted.test"),
            ("file", "security.test"),
            ("", "user.of-the-root"),
        ] {
            let path = dir.join(at);
            set_xattr(&path, name, b"value", any).unwrap();
            assert_eq!(xattr(&path, name).unwrap(), b"value");
            assert!(xattr_names(&path).unwrap().iter().any(|listed| listed == name), "{name}");
        }
    });
}

fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} {}: {error}", path.display());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn access_lists_are_set_inherited_and_changed_by_chmod() {
    if !require_program("setfacl") {
        return;
    }
    same_on_both(|dir| {
        let at = |name: &str| dir.join(name);
        let list = |name: &str| run("getfacl", &["-cpn"], &at(name));
        fs::write(at("file"), b"x").unwrap();
        run("setfacl", &["-m", "u:1234:rwx,g:4321:r"], &at("file"));
        let mut lists = vec![list("file")];
        set_mode(at("file"), 0o640);
        lists.push(list("file"));
        lists.push(format!("{:o}", mode(at("file"))));
        run("setfacl", &["-x", "u:1234"], &at("file"));
        lists.push(list("file"));
        run("setfacl", &["-b"], &at("file"));
        lists.push(list("file"));
        fs::create_dir(at("dir")).unwrap();
        run("setfacl", &["-m", "d:u:1234:rw,d:g::r,d:o::-"], &at("dir"));
        fs::write(at("dir/file"), b"x").unwrap();
        fs::create_dir(at("dir/sub")).unwrap();
        fs::write(at("dir/sub/file"), b"x").unwrap();
        symlink("file", at("dir/link")).unwrap();
        for name in ["dir", "dir/file", "dir/sub", "dir/sub/file"] {
            lists.push(list(name));
            lists.push(format!("{:o}", mode(at(name))));
        }
        run("setfacl", &["-k"], &at("dir"));
        lists.push(list("dir"));
        lists
    });
}

#[test]
fn a_file_is_copied_with_all_its_attributes() {
    on_both(|dir| {
        let bytes = pattern(50_000);
        fs::write(dir.join("file"), &bytes).unwrap();
        let any = XattrFlags::empty();
        set_xattr(&dir.join("file"), "user.kept", b"value", any).unwrap();
        set_mode(dir.join("file"), 0o751);
        set_times(&dir.join("file"), time(1000, 1), time(2000, 2)).unwrap();
        let status = Command::new("cp")
            .arg("-a")
            .args([dir.join("file"), dir.join("copy")])
            .status()
            .unwrap();
        assert!(status.success());
        let meta = fs::metadata(dir.join("copy")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o751, 2000, 2));
        assert_eq!(xattr(dir.join("copy"), "user.kept").unwrap(), b"value");
        assert_content(dir.join("copy"), &bytes);
    });
}

#[test]
fn inode_flags_are_those_of_the_bare_filesystem() {
    same_on_both(|dir| {
        fs::write(dir.join("file"), b"x").unwrap();
        let file = File::open(dir.join("file")).unwrap();
        let flags = errno(rustix::fs::ioctl_getflags(&file));
        let directory = errno(rustix::fs::ioctl_getflags(open_directory(dir)));
        assert!(!file.is_terminal());
        (flags, directory)
    });
}

#[test]
fn an_immutable_file_is_left_alone() {
    if !require_root() {
        return;
    }
    on_both(|dir| {
        let path = dir.join("file");
        fs::write(&path, b"content").unwrap();
        let file = File::open(&path).unwrap();
        let Ok(flags) = rustix::fs::ioctl_getflags(&file) else {
            return eprintln!("no inode flags on this filesystem");
        };
        if let Err(err) = rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE) {
            return eprintln!("inode flags cannot be set here: {err}");
        }
        let write = errno(File::options().write(true).open(&path).map(drop));
        let chmod = errno(fs::set_permissions(&path, PermissionsExt::from_mode(0o600)));
        let unlink = errno(fs::remove_file(&path));
        rustix::fs::ioctl_setflags(&file, flags).unwrap();
        assert_eq!([write, chmod, unlink], [Err(Errno::PERM); 3]);
        fs::remove_file(&path).unwrap();
    });
}

/// Reads a file, a program, a directory and a link in every way. Those that are not there are left
/// out.
fn read_everything(dir: &Path) {
    let large = File::open(dir.join("large")).unwrap();
    assert_eq!(read_at(&large, 1 << 19, 10).len(), 10);
    let map = Mapped::shared_for_reading(&File::open(dir.join("mapped")).unwrap(), 100).unwrap();
    assert_eq!(map.read(0, 3), pattern(3));
    assert_content(dir.join("small"), &pattern(100));
    let place = TestDir::new();
    let mut copied = create(place.path().join("copied"));
    std::io::copy(&mut File::open(dir.join("sent")).unwrap(), &mut copied).unwrap();
    assert!(Command::new(dir.join("program")).status().unwrap().success());
    assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("small"));
    assert!(names(dir.join("dir")).contains(&String::from("entry")));
}

const TO_READ: [&str; 7] = ["large", "mapped", "small", "sent", "program", "link", "dir"];

fn make_to_read(dir: &Path) {
    fs::write(dir.join("large"), pattern(1 << 20)).unwrap();
    for name in ["mapped", "small", "sent"] {
        fs::write(dir.join(name), pattern(100)).unwrap();
    }
    // By another process: a child that a test beside this one starts would hold it open.
    assert!(
        Command::new("cp").arg("/bin/true").arg(dir.join("program")).status().unwrap().success()
    );
    symlink("small", dir.join("link")).unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    fs::write(dir.join("dir/entry"), b"").unwrap();
}

/// Sets times of access that are due to be moved by any read.
fn set_access_times(dir: &Path) {
    for name in TO_READ {
        let times = Timestamps { last_access: time(1, 0), last_modification: time(2, 0) };
        utimensat(CWD, dir.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// What was accessed since, by name.
fn accessed(dir: &Path) -> Vec<&'static str> {
    let atime = |name: &&str| fs::symlink_metadata(dir.join(name)).unwrap().atime();
    TO_READ.into_iter().filter(|name| atime(name) != 1).collect()
}

#[test]
fn nothing_that_is_read_through_a_mount_with_noatime_is_accessed() {
    let bare = TestDir::new();
    make_to_read(bare.path());
    set_access_times(bare.path());
    read_everything(bare.path());
    let moved = accessed(bare.path());
    if moved.is_empty() || !require_fuse() {
        return eprintln!("SKIPPED: this filesystem keeps no times of access");
    }
    let check = |options: &str| {
        let source = TestDir::new();
        make_to_read(source.path());
        set_access_times(source.path());
        let mounted = MountedFs::over(source.path(), &format!("noatime,suid,dev,{options}"));
        let dir = mounted.path();
        assert!(names(dir).contains(&String::from("large")));
        read_everything(dir);
        assert_eq!(accessed(source.path()), Vec::<&str>::new(), "{options}");
        assert_eq!(accessed(dir), Vec::<&str>::new(), "{options}");
        if !options.contains("access=read") {
            // It can still be written, and is not accessed then.
            let file = create(dir.join("small"));
            file.write_all_at(b"x", 0).unwrap();
            assert_eq!(read_at(&file, 0, 1), b"x");
            assert_eq!(fs::metadata(dir.join("small")).unwrap().atime(), 1, "{options}");
        }
    };
    for plane in PLANES {
        for access in ["read", "write", "copy"] {
            check(&format!("access={access},plane={plane}"));
        }
    }
    check("access=read,open=none");
}

#[test]
fn nothing_on_a_mount_inside_the_source_is_accessed_with_noatime() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let inner = SmallFs::ext4(32 << 20);
    make_to_read(inner.path());
    let source = TestDir::new();
    let _bound = Bound::new(inner.path(), &source.directory("inner"));
    for plane in PLANES {
        let options = format!("noatime,access=write,plane={plane},suid,dev");
        let mounted = MountedFs::over(source.path(), &options);
        set_access_times(inner.path());
        read_everything(&mounted.path().join("inner"));
        let moved = accessed(inner.path());
        // A symbolic link of another mount is read by its name.
        assert!(moved.is_empty() || moved == ["link"], "{options}: {moved:?}");
    }
}
