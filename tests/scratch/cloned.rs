//! A scratch beside its base on a filesystem that clones files (XFS): a file that is opened to be
//! written shares the blocks of the base, and is whole from then on.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::common::*;

const SIZE: usize = 8 << 20;

/// A base and its scratch on an XFS of their own.
struct Cloning {
    filesystem: SmallFs,
    mounted: Option<MountedFs>,
}

impl Cloning {
    fn new(options: &str) -> Cloning {
        let filesystem = SmallFs::xfs(320 << 20);
        let base = filesystem.path().join("base");
        fs::create_dir(&base).unwrap();
        open_to_all(&base);
        fs::write(base.join("file"), pattern(SIZE)).unwrap();
        fs::write(base.join("small"), pattern(5000)).unwrap();
        let mut cloning = Cloning { filesystem, mounted: None };
        cloning.mount(options);
        cloning
    }

    fn mount(&mut self, options: &str) {
        let scratch = self.filesystem.path().join("scratch");
        let options = format!("access=copy,scratch={},{options}", scratch.display());
        self.mounted = Some(MountedFs::over(&self.base(), &options));
    }

    fn unmount(&mut self) {
        self.mounted.take().unwrap().unmount();
    }

    fn base(&self) -> PathBuf {
        self.filesystem.path().join("base")
    }

    fn root(&self) -> &Path {
        self.mounted.as_ref().unwrap().path()
    }

    fn status(&self) -> serde_json::Value {
        ask(self.root(), "json status").json()
    }
}

impl Drop for Cloning {
    fn drop(&mut self) {
        drop(self.mounted.take()); // Before the filesystem.
    }
}

fn can_clone() -> bool {
    require_fuse() && require_root() && require_program("mkfs.xfs")
}

fn changed(mut content: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

#[test]
fn a_file_that_is_opened_to_be_written_is_a_clone_that_the_kernel_reads_and_writes_itself() {
    if !can_clone() {
        return;
    }
    let mut cloning = Cloning::new("plane=auto");
    let used = || rustix::fs::statvfs(cloning.filesystem.path()).unwrap().f_bfree;
    File::open(cloning.base()).unwrap().sync_all().unwrap();
    rustix::fs::sync();
    let before = used();
    let file = File::options().read(true).write(true).open(cloning.root().join("file")).unwrap();
    file.write_all_at(b"changed", 1_000_000).unwrap();
    let status = cloning.status();
    assert_eq!(status["scratch"]["guard"]["cloned_files"], 1, "{status}");
    assert_eq!(status["scratch"]["partial_files"], 0, "{status}");
    assert_eq!(status["scratch"]["guard"]["leased"], 0, "{status}");
    let planes = ask(cloning.root(), "json status file").json();
    assert!(planes.to_string().contains("passthrough"), "{planes}");
    rustix::fs::sync();
    let taken = (before - used()) * 4096;
    assert!(taken < 1 << 20, "a clone shares its blocks: {taken} bytes were taken");
    // The base is changed by others in any way, and the copy is what it was at first touch.
    let expected = changed(pattern(SIZE), 1_000_000, b"changed");
    fs::write(cloning.base().join("file"), b"another").unwrap();
    assert_bytes(&fs::read(cloning.root().join("file")).unwrap(), &expected);
    drop(file);
    for _ in 0..2 {
        assert_bytes(&fs::read(cloning.root().join("file")).unwrap(), &expected);
        cloning.unmount();
        cloning.mount("");
    }
    assert_eq!(fs::read(cloning.base().join("file")).unwrap(), b"another");
}

#[test]
fn descriptors_that_were_open_before_the_first_write_see_it() {
    if !can_clone() {
        return;
    }
    let mut cloning = Cloning::new("");
    let path = cloning.root().join("file");
    let early = open(&path, OFlags::RDONLY).unwrap();
    let mut byte = [0; 7];
    early.read_exact_at(&mut byte, 4096).unwrap();
    let writer = File::options().write(true).open(&path).unwrap();
    writer.write_all_at(b"changed", 4096).unwrap();
    early.read_exact_at(&mut byte, 4096).unwrap();
    assert_eq!(&byte, b"changed");
    fs::write(cloning.base().join("file"), b"").unwrap();
    let expected = changed(pattern(SIZE), 4096, b"changed");
    assert_bytes(&fs::read(&path).unwrap(), &expected);
    drop((early, writer));
    assert_bytes(&fs::read(&path).unwrap(), &expected);
    cloning.unmount();
    cloning.mount("");
    assert_bytes(&fs::read(cloning.root().join("file")).unwrap(), &expected);
}

#[test]
fn nothing_is_cloned_for_attributes_names_and_links_and_no_clone_is_left_behind() {
    if !can_clone() {
        return;
    }
    let mut cloning = Cloning::new("");
    let root = || cloning.root().to_owned();
    fs::set_permissions(root().join("small"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(root().join("file"), root().join("moved")).unwrap();
    assert_eq!(cloning.status()["scratch"]["guard"]["cloned_files"], 0);
    for _ in 0..2 {
        let found = fs::metadata(cloning.root().join("small")).unwrap();
        assert_eq!((found.len(), found.mode() & 0o7777), (5000, 0o600));
        assert_bytes(&fs::read(cloning.root().join("moved")).unwrap(), &pattern(SIZE));
        cloning.unmount();
        let work = fs::read_dir(cloning.filesystem.path().join("scratch/work")).unwrap();
        assert_eq!(work.count(), 0);
        cloning.mount("");
    }
    // Several at once: one clone is used, and the others go.
    fs::write(cloning.base().join("wanted"), pattern(SIZE)).unwrap();
    let wanted = cloning.root().join("wanted");
    wait_for("the new file", || wanted.exists());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let wanted = &wanted;
            scope.spawn(move || {
                let file = File::options().write(true).open(wanted).unwrap();
                file.write_all_at(&[thread], u64::from(thread)).unwrap();
            });
        }
    });
    let expected = changed(pattern(SIZE), 0, &[0, 1, 2, 3, 4, 5, 6, 7]);
    assert_bytes(&fs::read(&wanted).unwrap(), &expected);
    let work = fs::read_dir(cloning.filesystem.path().join("scratch/work")).unwrap();
    assert_eq!(work.count(), 0);
}

#[test]
fn a_scratch_that_is_bounded_by_counting_copies_pages() {
    if !can_clone() {
        return;
    }
    let cloning = Cloning::new("scratch_max=1M");
    let file = File::options().write(true).open(cloning.root().join("file")).unwrap();
    file.write_all_at(b"changed", 1_000_000).unwrap();
    let status = cloning.status();
    assert_eq!(status["scratch"]["guard"]["cloned_files"], 0, "{status}");
    assert_eq!(status["scratch"]["partial_files"], 1, "{status}");
    let expected = changed(pattern(SIZE), 1_000_000, b"changed");
    assert_bytes(&fs::read(cloning.root().join("file")).unwrap(), &expected);
}
