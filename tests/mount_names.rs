//! Names: making, removing, linking and renaming, and files that stay in use meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

fn rename(dir: &Path, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, dir.join(from), CWD, dir.join(to), flags)
}

#[test]
fn names_are_made_and_removed() {
    on_both(|dir| {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/f"), b"1").unwrap();
        symlink("f", dir.join("d/s")).unwrap();
        fs::hard_link(dir.join("d/f"), dir.join("d/h")).unwrap();
        assert_eq!(names(dir.join("d")), ["f", "h", "s"]);
        assert_eq!(links(dir), 3, "a directory in it counts as a link");
        for name in ["d/f", "d/h", "d/s"] {
            fs::remove_file(dir.join(name)).unwrap();
            assert_eq!(error(fs::symlink_metadata(dir.join(name))), Errno::NOENT);
        }
        fs::remove_dir(dir.join("d")).unwrap();
        assert_eq!(names(dir), Vec::<String>::new());
        assert_eq!(links(dir), 2);
    });
}

#[test]
fn wrong_names_are_refused_as_the_bare_filesystem_refuses_them() {
    same_on_both(|dir| {
        let at = |name: &str| dir.join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::create_dir(at("full")).unwrap();
        fs::write(at("full/file"), b"x").unwrap();
        symlink("dir", at("link")).unwrap();
        let long = "n".repeat(256);
        [
            errno(fs::create_dir(at("dir"))),
            errno(fs::create_dir(at("full/file/below"))),
            errno(fs::create_dir(at("missing/below"))),
            errno(fs::create_dir(at(&long))),
            errno(fs::write(at(&long), b"x")),
            errno(fs::remove_dir(at("full"))),
            errno(fs::remove_dir(at("full/file"))),
            errno(fs::remove_dir(at("missing"))),
            errno(fs::remove_dir(at("link"))),
            errno(fs::remove_dir(at("dir/."))),
            errno(fs::remove_file(at("dir"))),
            errno(fs::remove_file(at("missing"))),
            errno(fs::remove_file(at("full/file/below"))),
            errno(symlink("x", at("dir"))),
            errno(symlink("", at("empty"))),
            errno(symlink("t".repeat(4096), at("target"))),
            errno(fs::hard_link(at("dir"), at("dir2"))),
            errno(fs::hard_link(at("missing"), at("new"))),
            errno(fs::hard_link(at("full/file"), at("dir"))),
            errno(fs::read_link(at("full/file")).map(drop)),
            errno(fs::symlink_metadata(at(&long)).map(drop)),
        ]
    });
}

#[test]
fn names_of_255_bytes_and_of_any_bytes_are_kept() {
    on_both(|dir| {
        let long = [b'n'; 255];
        let odd: [&[u8]; 6] =
            [&long, b"\xff\xfe\x80", b"with blank", b"new\nline", b"-\\\"'$", b"\x01\x7f"];
        for name in odd {
            fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
            symlink(OsStr::from_bytes(name), dir.join("link")).unwrap();
            assert_eq!(fs::read_link(dir.join("link")).unwrap().as_os_str().as_bytes(), name);
            assert_content(dir.join("link"), name);
            fs::remove_file(dir.join("link")).unwrap();
        }
        let mut expected: Vec<Vec<u8>> = odd.iter().map(|name| name.to_vec()).collect();
        expected.sort();
        let found: Vec<Vec<u8>> = list(dir).into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, expected);
    });
}

#[test]
fn symlinks_keep_targets_of_any_length_that_the_bare_filesystem_takes() {
    same_on_both(|dir| {
        [1, 59, 60, 61, 255, 1000, 4094].map(|len| {
            let target = "t".repeat(len);
            let link = dir.join(format!("{len}"));
            errno(symlink(&target, &link))?;
            assert_eq!(fs::read_link(&link).unwrap().to_str().unwrap(), target);
            assert_eq!(size(&link), len as u64);
            Ok::<_, Errno>(())
        })
    });
}

#[test]
fn a_file_can_be_used_after_its_name_is_gone() {
    on_both(|dir| {
        let path = dir.join("file");
        let file = create(&path);
        file.write_all_at(&pattern(20_000), 0).unwrap();
        let before = file.metadata().unwrap();
        fs::remove_file(&path).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.nlink(), meta.ino(), meta.len()), (0, before.ino(), 20_000));
        file.write_all_at(b"still", 30_000).unwrap();
        assert_bytes(&read_at(&file, 0, 20_000), &pattern(20_000));
        assert_eq!(read_at(&file, 30_000, 5), b"still");
        file.set_len(10).unwrap();
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        rustix::fs::fsetxattr(&file, "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let mut value = [0; 8];
        assert_eq!(rustix::fs::fgetxattr(&file, "user.x", &mut value[..]).unwrap(), 1);
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777, meta.mtime()), (10, 0o600, 0));
        file.sync_all().unwrap();
        assert_eq!(names(dir), Vec::<String>::new(), "no hidden file takes its place");
        fs::write(&path, b"another").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 10);
    });
}

#[test]
fn a_file_whose_names_are_gone_one_by_one_keeps_its_data() {
    on_both(|dir| {
        let (one, two) = (dir.join("one"), dir.join("two"));
        fs::write(&one, b"content").unwrap();
        fs::hard_link(&one, &two).unwrap();
        let file = create(&one);
        fs::remove_file(&one).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 1);
        file.write_all_at(b"C", 0).unwrap();
        assert_content(&two, b"Content");
        fs::remove_file(&two).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(read_at(&file, 0, 7), b"Content");
    });
}

#[test]
fn a_removed_directory_that_is_open_is_empty_and_takes_nothing() {
    same_on_both(|dir| {
        fs::create_dir(dir.join("d")).unwrap();
        let open = open_directory(dir.join("d"));
        fs::remove_dir(dir.join("d")).unwrap();
        let flags = OFlags::CREATE | OFlags::WRONLY;
        let made = rustix::fs::openat(&open, "new", flags, Mode::from_raw_mode(0o644)).map(drop);
        let listed = rustix::fs::Dir::read_from(&open).map(|dir| dir.count());
        (made, listed, open.metadata().unwrap().nlink())
    });
}

#[test]
fn hard_links_are_one_file() {
    on_both(|dir| {
        let (one, two) = (dir.join("one"), dir.join("two"));
        let file = create(&one);
        assert_eq!(links(&one), 1);
        fs::hard_link(&one, &two).unwrap();
        assert_eq!((links(&one), links(&two)), (2, 2));
        assert_eq!(inode(&one), inode(&two));
        file.write_all_at(b"through one", 0).unwrap();
        assert_content(&two, b"through one");
        set_mode(&two, 0o640);
        assert_eq!(mode(&one), 0o640);
        File::options().write(true).open(&two).unwrap().set_len(3).unwrap();
        assert_eq!(size(&one), 3);
        symlink("one", dir.join("link")).unwrap();
        fs::hard_link(dir.join("link"), dir.join("link2")).unwrap();
        assert_eq!(inode(dir.join("link")), inode(dir.join("link2")));
        fs::remove_file(&one).unwrap();
        assert_eq!(links(&two), 1);
    });
}

#[test]
fn an_open_file_is_followed_by_its_descriptor_through_renames() {
    on_both(|dir| {
        fs::create_dir(dir.join("sub")).unwrap();
        let file = create(dir.join("a"));
        file.write_all_at(b"first", 0).unwrap();
        fs::rename(dir.join("a"), dir.join("sub/b")).unwrap();
        file.write_all_at(b"FIRST", 0).unwrap();
        assert_content(dir.join("sub/b"), b"FIRST");
        fs::write(dir.join("c"), b"victim").unwrap();
        let victim = create(dir.join("c"));
        fs::rename(dir.join("sub/b"), dir.join("c")).unwrap();
        assert_eq!(victim.metadata().unwrap().nlink(), 0);
        assert_eq!(read_at(&victim, 0, 6), b"victim");
        assert_content(dir.join("c"), b"FIRST");
        assert_eq!(inode(dir.join("c")), file.metadata().unwrap().ino());
    });
}

#[test]
fn a_directory_with_open_files_can_be_renamed() {
    on_both(|dir| {
        fs::create_dir_all(dir.join("old/deep/er")).unwrap();
        let file = create(dir.join("old/deep/er/file"));
        let inside = open_directory(dir.join("old/deep"));
        fs::rename(dir.join("old"), dir.join("new")).unwrap();
        file.write_all_at(b"moved along", 0).unwrap();
        assert_content(dir.join("new/deep/er/file"), b"moved along");
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(&inside, "made", flags, Mode::from_raw_mode(0o644)).unwrap();
        assert_eq!(names(dir.join("new/deep")), ["er", "made"]);
        assert_eq!(error(fs::metadata(dir.join("old"))), Errno::NOENT);
        fs::rename(dir.join("new/deep"), dir.join("up")).unwrap();
        assert_eq!((links(dir.join("new")), links(dir)), (2, 4));
        let parent = rustix::fs::statat(&inside, "..", AtFlags::empty()).unwrap();
        assert_eq!(parent.st_ino, inode(dir));
    });
}

#[test]
fn rename_does_what_the_bare_filesystem_does() {
    same_on_both(|dir| {
        for name in ["dir", "empty", "full", "full/sub"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        for name in ["file", "other"] {
            fs::write(dir.join(name), name).unwrap();
        }
        symlink("file", dir.join("link")).unwrap();
        fs::hard_link(dir.join("file"), dir.join("hard")).unwrap();
        let plain = RenameFlags::empty();
        let calls = [
            ("dir", "full", plain),
            ("dir", "file", plain),
            ("file", "dir", plain),
            ("full", "full/sub/below", plain),
            ("full/sub", "full", plain),
            ("missing", "file", plain),
            ("file", "missing/below", plain),
            ("file", "hard", plain),
            ("file", "file", plain),
            ("dir", "empty", plain),
            ("link", "other", plain),
            ("file", "hard", RenameFlags::NOREPLACE),
            ("file", "renamed", RenameFlags::NOREPLACE),
            ("renamed", "full", RenameFlags::EXCHANGE),
            ("renamed", "missing", RenameFlags::EXCHANGE),
            ("full/sub", "renamed/x", RenameFlags::EXCHANGE),
            ("empty", "renamed/sub", RenameFlags::EXCHANGE),
            ("renamed", "renamed/sub", RenameFlags::EXCHANGE),
            ("full", "other", RenameFlags::EXCHANGE | RenameFlags::NOREPLACE),
        ];
        let outcomes = calls.map(|(from, to, flags)| {
            let outcome = rename(dir, from, to, flags);
            format!("{from} -> {to} {flags:?}: {outcome:?}")
        });
        (outcomes, names(dir), names(dir.join("renamed")), mode(dir.join("full")))
    });
}

#[test]
fn exchanged_names_keep_their_open_files() {
    on_both(|dir| {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/inside"), b"in").unwrap();
        let file = create(dir.join("f"));
        let inodes = (inode(dir.join("d")), inode(dir.join("f")));
        rename(dir, "d", "f", RenameFlags::EXCHANGE).unwrap();
        assert_eq!((inode(dir.join("f")), inode(dir.join("d"))), inodes);
        file.write_all_at(b"file", 0).unwrap();
        assert_content(dir.join("d"), b"file");
        assert_content(dir.join("f/inside"), b"in");
    });
}

#[test]
fn fifos_sockets_and_devices_are_made_and_used() {
    if !require_root() {
        return;
    }
    on_both(|dir| {
        let make = |name: &str, kind, device| {
            let mode = Mode::from_raw_mode(0o640);
            rustix::fs::mknodat(CWD, dir.join(name), kind, mode, device).unwrap();
            fs::symlink_metadata(dir.join(name)).unwrap()
        };
        let null = rustix::fs::makedev(1, 3);
        assert!(make("fifo", FileType::Fifo, 0).file_type().is_fifo());
        assert!(make("socket", FileType::Socket, 0).file_type().is_socket());
        assert!(make("file", FileType::RegularFile, 0).file_type().is_file());
        let device = make("char", FileType::CharacterDevice, null);
        assert!(device.file_type().is_char_device());
        assert_eq!((device.rdev(), device.mode() & 0o777), (null, 0o640));
        assert!(make("block", FileType::BlockDevice, 7 << 8).file_type().is_block_device());
        fs::hard_link(dir.join("fifo"), dir.join("fifo2")).unwrap();
        set_mode(dir.join("fifo2"), 0o600);
        assert_eq!(mode(dir.join("fifo")), 0o600);
    });
}

#[test]
fn a_fifo_carries_bytes_and_a_socket_takes_connections() {
    on_both(|dir| {
        let fifo = dir.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| fs::write(&fifo, b"through the fifo").unwrap());
            assert_eq!(fs::read(&fifo).unwrap(), b"through the fifo");
        });
        let socket = dir.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let _client = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        listener.accept().unwrap();
    });
}

#[test]
fn paths_longer_than_the_kernel_takes_are_reached_step_by_step() {
    on_both(|dir| {
        let name = "d".repeat(200);
        let mut at = open_directory(dir);
        let step = |from: &File| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            File::from(rustix::fs::openat(from, &name, flags, Mode::empty()).unwrap())
        };
        let mut all = Vec::new();
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
            let next = step(&at);
            all.push(std::mem::replace(&mut at, next));
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let file = File::from(rustix::fs::openat(&at, "bottom", flags, mode).unwrap());
        file.write_all_at(b"deep", 0).unwrap();
        rustix::fs::renameat(&at, "bottom", &all[0], "top").unwrap();
        assert_content(dir.join("top"), b"deep");
        drop(at);
        for parent in all.iter().rev() {
            rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR).unwrap();
        }
    });
}

#[test]
fn inode_numbers_are_those_of_the_backing_tree() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    let (mount, backing) = (mounted.path(), mounted.backing());
    fs::create_dir_all(backing.join("a/b")).unwrap();
    fs::write(backing.join("a/b/file"), b"x").unwrap();
    symlink("file", mount.join("a/b/link")).unwrap();
    for name in ["", "a", "a/b", "a/b/file", "a/b/link"] {
        assert_eq!(inode(mount.join(name)), inode(backing.join(name)), "{name}");
    }
    assert_eq!(list(mount.join("a/b")), list(backing.join("a/b")));
    let file = File::open(mount.join("a/b/file")).unwrap();
    fs::rename(mount.join("a/b"), mount.join("moved")).unwrap();
    assert_eq!(file.metadata().unwrap().ino(), inode(backing.join("moved/file")));
}

#[test]
fn an_inode_number_used_again_is_a_new_file() {
    on_both(|dir| {
        // ext4 gives the number of a removed file to the next one, of whatever kind.
        for round in 0..30 {
            let path = dir.join("name");
            fs::write(&path, format!("{round}")).unwrap();
            assert_content(&path, format!("{round}").as_bytes());
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert!(fs::metadata(&path).unwrap().is_dir());
            fs::remove_dir(&path).unwrap();
            symlink("target", &path).unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
            fs::remove_file(&path).unwrap();
        }
    });
}

#[test]
fn a_tree_made_by_many_threads_is_whole() {
    on_both(|dir| {
        std::thread::scope(|scope| {
            for maker in 0..4 {
                scope.spawn(move || {
                    for index in 0..50 {
                        let sub = dir.join(format!("{}", index % 10));
                        match fs::create_dir(&sub) {
                            Err(err) if err.kind() != std::io::ErrorKind::AlreadyExists => {
                                panic!("{err}")
                            }
                            _ => (),
                        }
                        fs::write(sub.join(format!("{maker}-{index}.tmp")), b"x").unwrap();
                        let made = sub.join(format!("{maker}-{index}"));
                        fs::rename(sub.join(format!("{maker}-{index}.tmp")), made).unwrap();
                    }
                });
            }
        });
        assert_eq!(snapshot(dir).len(), 1 + 10 + 200);
    });
}
