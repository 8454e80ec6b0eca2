//! What is refused for reasons of the backing file, on each plane as on the bare filesystem: files
//! that are executed, leased, immutable, append-only, on a read-only mount; misaligned direct I/O.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::mapped::Mapped;
use common::raw;
use common::*;
use rustix::fs::{FallocateFlags, OFlags, XattrFlags, fallocate};
use rustix::io::Errno;

/// A program that runs until the value goes.
struct Running(Child);

impl Running {
    /// Executes a file, as `sleep`.
    fn start(path: &Path) -> Result<Running, Errno> {
        let mut command = Command::new(path);
        command.arg("1000").stdin(Stdio::null());
        errno(command.spawn()).map(Running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The ways to open an existing file.
const OPENS: [OFlags; 9] = [
    OFlags::RDONLY,
    OFlags::WRONLY,
    OFlags::RDWR,
    OFlags::WRONLY.union(OFlags::APPEND),
    OFlags::RDWR.union(OFlags::APPEND),
    OFlags::WRONLY.union(OFlags::TRUNC),
    OFlags::RDONLY.union(OFlags::TRUNC),
    OFlags::WRONLY.union(OFlags::APPEND).union(OFlags::TRUNC),
    OFlags::RDONLY.union(OFlags::NOATIME),
];

/// A result as a line: what was done, and what came of it.
fn line<T: std::fmt::Debug>(what: impl std::fmt::Debug, result: Result<T, Errno>) -> String {
    match result {
        Ok(value) => format!("{what:?}: {value:?}"),
        Err(err) => format!("{what:?}: errno {}", err.raw_os_error()),
    }
}

/// Everything that changes a file, or its name.
fn try_all(path: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for flags in OPENS {
        match open(path, flags) {
            Err(err) => lines.push(line(flags, Err::<(), _>(err))),
            Ok(file) => lines.extend(try_open_file(&file).map(|line| format!("{flags:?} {line}"))),
        }
        lines.push(line("size", errno(fs::metadata(path).map(|meta| meta.len()))));
    }
    let dir = path.parent().unwrap();
    let any = XattrFlags::empty();
    lines.extend([
        line("truncate", raw::truncate(path, 100)),
        line("chmod", errno(fs::set_permissions(path, PermissionsExt::from_mode(0o755)))),
        line("chown", errno(std::os::unix::fs::chown(path, Some(0), Some(0)))),
        line("setxattr", rustix::fs::lsetxattr(path, "user.x", b"x", any)),
        line("link", errno(fs::hard_link(path, dir.join("link")))),
        line("make", errno(fs::write(dir.join("new"), b"x"))),
        line("rename", errno(fs::rename(path, dir.join("new")))),
        line("unlink", errno(fs::remove_file(path))),
    ]);
    lines
}

/// Everything that changes a file through a descriptor. An append-only file cannot be mapped for
/// writing: that the FUSE client of the kernel does not know.
fn try_open_file(file: &File) -> [String; 7] {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let allocate = |mode| line(mode, fallocate(file, mode, 0, 8192));
    [
        line("write", errno(file.write_at(b"0123456789", 4096))),
        line("truncate", rustix::fs::ftruncate(file, 5000)),
        allocate(FallocateFlags::empty()),
        allocate(FallocateFlags::KEEP_SIZE),
        allocate(punch),
        allocate(FallocateFlags::ZERO_RANGE),
        line("map", errno(Mapped::shared(file, 4096).map(drop))),
    ]
}

#[test]
fn a_file_that_is_executed_cannot_be_written() {
    if !require_program("sleep") {
        return;
    }
    same_on_each_plane(|dir| {
        let path = dir.join("program");
        fs::copy("/bin/sleep", &path).unwrap();
        // Another test may be starting a child, which then has the descriptor of the copy.
        let mut running = None;
        wait_for("the program to start", || {
            running = Running::start(&path).ok();
            running.is_some()
        });
        let opened = OPENS.map(|flags| open(&path, flags).map(drop));
        let cut = raw::truncate(&path, 100);
        assert_eq!(opened[1], Err(Errno::TXTBSY));
        drop(running);
        (opened, cut, open(&path, OFlags::RDWR).map(drop))
    });
}

#[test]
fn a_file_that_is_open_for_writing_cannot_be_executed() {
    if !require_program("sleep") {
        return;
    }
    same_on_each_plane(|dir| {
        let path = dir.join("program");
        fs::copy("/bin/sleep", &path).unwrap();
        let writer = open(&path, OFlags::RDWR).unwrap();
        let busy = Running::start(&path).map(drop);
        assert_eq!(busy, Err(Errno::TXTBSY));
        drop(writer);
        wait_for("the program to start", || Running::start(&path).is_ok());
        let reader = open(&path, OFlags::RDONLY).unwrap();
        wait_for("the program to start", || Running::start(&path).is_ok());
        drop(reader);
    });
}

/// Runs a test below a directory of the backing filesystem, with the directory as it is seen, and
/// as it is: to do there what only the bare filesystem does.
fn seen_and_bare<T: PartialEq + std::fmt::Debug>(test: impl Fn(&Path, &Path) -> T) {
    if !(require_fuse() && require_root()) {
        return;
    }
    let bare = TestDir::new();
    let expected = test(bare.path(), bare.path());
    for plane in PLANES {
        let mounted = MountedFs::new(&format!("access=write,suid,dev,plane={plane}"));
        let actual = test(mounted.path(), mounted.backing());
        assert_same_as_bare(&format!("plane={plane}"), &actual, &expected);
    }
}

/// Gives attributes of chattr(1) to a file until the value goes.
struct Attribute(PathBuf, &'static str);

impl Attribute {
    fn new(path: &Path, letter: &'static str) -> Attribute {
        let attribute = Attribute(path.to_owned(), letter);
        attribute.change("+");
        attribute
    }

    fn change(&self, sign: &str) {
        let mut command = Command::new("chattr");
        command.arg(format!("{sign}{}", self.1)).arg(&self.0);
        assert!(command.status().unwrap().success(), "{command:?}");
    }
}

impl Drop for Attribute {
    fn drop(&mut self) {
        self.change("-");
    }
}

#[test]
fn immutable_and_append_only_files_are_guarded() {
    if !require_program("chattr") {
        return;
    }
    for letter in ["i", "a"] {
        seen_and_bare(|dir, bare| {
            fs::write(bare.join("file"), pattern(10_000)).unwrap();
            let attribute = Attribute::new(&bare.join("file"), letter);
            let mut lines = try_all(&dir.join("file"));
            lines.retain(|line| letter == "i" || !line.contains("map"));
            drop(attribute);
            (lines, fs::read(bare.join("file")).unwrap())
        });
    }
}

#[test]
fn a_file_that_becomes_immutable_or_append_only_while_it_is_open_is_guarded() {
    if !require_program("chattr") {
        return;
    }
    for letter in ["i", "a"] {
        seen_and_bare(|dir, bare| {
            fs::write(bare.join("file"), pattern(10_000)).unwrap();
            let held = [OFlags::RDONLY, OFlags::RDWR].map(|flags| open(dir.join("file"), flags));
            let attribute = Attribute::new(&bare.join("file"), letter);
            let file = held[1].as_ref().unwrap();
            let mut lines = try_open_file(file).to_vec();
            lines.extend(try_all(&dir.join("file")));
            lines.retain(|line| letter == "i" || !line.contains("map"));
            drop(attribute);
            lines
        });
    }
}

#[test]
fn an_append_only_file_keeps_its_bytes_when_it_is_mapped() {
    if !require_program("chattr") {
        return;
    }
    seen_and_bare(|dir, bare| {
        fs::write(bare.join("file"), pattern(10_000)).unwrap();
        let attribute = Attribute::new(&bare.join("file"), "a");
        let file = open(dir.join("file"), OFlags::RDWR | OFlags::APPEND).unwrap();
        assert_bytes(&read_at(&file, 0, 10_000), &pattern(10_000));
        if let Ok(map) = Mapped::shared(&file, 4096) {
            map.write(0, b"overwritten");
            assert!(map.sync().is_err(), "the store was taken for written");
        }
        drop(file);
        drop(attribute);
        assert_content(bare.join("file"), &pattern(10_000));
    });
}

#[test]
fn a_read_only_mount_below_the_source_is_read_only() {
    seen_and_bare(|dir, bare| {
        let (real, place) = (bare.join("real"), bare.join("place"));
        fs::create_dir(&real).unwrap();
        fs::create_dir(&place).unwrap();
        fs::write(real.join("file"), pattern(10_000)).unwrap();
        let bound = Bound::new(&real, &place);
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,bind,ro"]).arg(&place);
        assert!(remount.status().unwrap().success());
        let outcomes = try_all(&dir.join("place/file"));
        assert_content(dir.join("place/file"), &pattern(10_000));
        // The same inode, where it may be written.
        let reader = open(dir.join("place/file"), OFlags::RDONLY).unwrap();
        let writer = open(dir.join("real/file"), OFlags::RDWR).unwrap();
        writer.write_all_at(b"written", 5).unwrap();
        let again = open(dir.join("place/file"), OFlags::RDWR).map(drop);
        // It is another inode of the mount, to which this is a change from outside.
        wait_for("the change to be seen", || read_at(&reader, 5, 7) == b"written");
        drop((reader, writer));
        drop(bound);
        (outcomes, again)
    });
}

#[test]
fn a_file_that_is_leased_is_opened_when_its_holder_gives_way() {
    raw::ignore_signal(libc::SIGIO);
    let kinds = [
        (libc::F_RDLCK, OFlags::WRONLY),
        (libc::F_WRLCK, OFlags::RDONLY),
        (libc::F_WRLCK, OFlags::RDWR),
        (libc::F_WRLCK, OFlags::WRONLY.union(OFlags::TRUNC)),
        (libc::F_RDLCK, OFlags::RDONLY),
    ];
    for (kind, flags) in kinds {
        seen_and_bare(|dir, bare| {
            fs::write(bare.join("file"), pattern(10_000)).unwrap();
            let path = dir.join("file");
            // Another test may be starting a child, which then has a descriptor of the file.
            let holder = open(bare.join("file"), OFlags::RDONLY).unwrap();
            wait_for("the lease", || raw::set_lease(&holder, kind).is_ok());
            let conflicts = (kind, flags) != (libc::F_RDLCK, OFlags::RDONLY);
            let at_once = open(&path, flags | OFlags::NONBLOCK).map(drop);
            if conflicts {
                assert_eq!(at_once, Err(Errno::AGAIN));
            }
            let patient = std::thread::scope(|scope| {
                let opener = scope.spawn(|| open(&path, flags));
                if conflicts {
                    let asked = || raw::lease(&holder).unwrap() != kind;
                    wait_for("the holder to be asked to give way", asked);
                    assert!(!opener.is_finished());
                }
                raw::set_lease(&holder, libc::F_UNLCK).unwrap();
                opener.join().unwrap()
            });
            let opened = patient.map(|file| errno(file.write_at(b"x", 0)));
            (at_once, opened, fs::read(&path).unwrap())
        });
    }
}

/// A buffer of `len` bytes that starts `offset` bytes behind a page.
fn with_buffer<T>(offset: usize, len: usize, call: impl FnOnce(&mut [u8]) -> T) -> T {
    let page = page() as usize;
    let mut bytes = vec![b'.'; len + 2 * page];
    let start = bytes.as_ptr().align_offset(page) + offset;
    call(&mut bytes[start..start + len])
}

#[test]
fn misaligned_direct_io_is_refused_where_the_kernel_reads_and_writes() {
    let test = |dir: &Path| {
        fs::write(dir.join("file"), pattern(64 << 10)).unwrap();
        let file = open(dir.join("file"), OFlags::RDWR | OFlags::DIRECT).unwrap();
        let at = |file: &File, memory: usize, len: usize, offset: u64| {
            let read = with_buffer(memory, len, |bytes| errno(file.read_at(bytes, offset)));
            let written = with_buffer(memory, len, |bytes| errno(file.write_at(bytes, offset)));
            (read, written)
        };
        let mut outcomes = Vec::new();
        for (memory, len, offset) in [
            (0, 4096, 0),
            (0, 4096, 4096),
            (0, 8192, 64 << 10),
            (0, 4096, 1 << 20),
            (1, 4096, 0),
            (0, 100, 0),
            (0, 4096, 100),
            (512, 4096, 4096),
            (3, 77, 5),
        ] {
            outcomes.push((memory, len, offset, at(&file, memory, len, offset)));
        }
        (outcomes, fs::read(dir.join("file")).unwrap())
    };
    // plane=auto answers such requests by the daemon, which is not as strict: what is opened with
    // O_DIRECT may be taken out of it by fcntl(2), and the kernel's backing file would not be.
    same_on_both_with("access=write,plane=passthrough", test);
}

#[test]
fn aligned_direct_io_does_the_same_on_each_plane() {
    same_on_each_plane(|dir| {
        fs::write(dir.join("file"), pattern(64 << 10)).unwrap();
        let flags = OFlags::RDWR | OFlags::DIRECT;
        let file = open(dir.join("file"), flags).unwrap();
        let appending = open(dir.join("file"), flags | OFlags::APPEND).unwrap();
        let read = with_buffer(0, 8192, |bytes| {
            (errno(file.read_at(bytes, 60 << 10)), bytes[..4096].to_vec())
        });
        let past = with_buffer(0, 4096, |bytes| errno(file.read_at(bytes, 64 << 10)));
        let appended = with_buffer(0, 4096, |bytes| errno(appending.write_at(bytes, 0)));
        let made = open(dir.join("new"), flags | OFlags::CREATE).unwrap();
        let written = with_buffer(0, 4096, |bytes| errno(made.write_at(bytes, 8192)));
        let contents = ["file", "new"].map(|name| fs::read(dir.join(name)).unwrap());
        (read, past, appended, written, contents)
    });
}
