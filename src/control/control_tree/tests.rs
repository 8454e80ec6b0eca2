//! The control tree, asked as the kernel asks it.

use std::io;

use super::*;
use crate::control::testing::{caller, control_tree, volume};
use crate::sys::file::ANSWER;
use crate::tree::{
    Attributes, Directories, Files, Ioctl, Names, NewNode, Open, Opened, PageCache, SetAttr,
    WriteRequest, Xattrs,
};

fn on_a_tree(silent: bool, test: impl FnOnce(&ControlTree)) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("data"), b"x").unwrap();
    test(&control_tree(volume(dir.path()), silent));
}

fn ino(tree: &ControlTree, name: &str) -> Ino {
    tree.lookup(ControlTree::ROOT, name.as_ref()).unwrap().attr.ino
}

fn open(tree: &ControlTree, name: &str, write: bool) -> Result<Opened, Errno> {
    let how = Open { read: true, write, ..Open::default() };
    let register = |_: std::os::fd::BorrowedFd<'_>| Err(io::ErrorKind::Unsupported.into());
    tree.open(ino(tree, name), how, &caller(1), &register)
}

fn read(tree: &ControlTree, name: &str, id: HandleId, offset: u64, len: usize) -> String {
    let mut text = Vec::new();
    tree.read(ino(tree, name), id, offset, len, &mut |bytes| text.extend_from_slice(bytes))
        .unwrap();
    String::from_utf8(text).unwrap()
}

fn ioctl(tree: &ControlTree, id: HandleId, data: &[u8], process: u32) -> Result<String, Errno> {
    // The numbers of linux/ioctl.h for a command of these bytes, and for its answer.
    let len = (data.len() as u32) << 16;
    let command = if data.is_empty() { ANSWER } else { (ANSWER & 0xff00) | 1 << 30 | len | 1 };
    let request = Ioctl { command, data, out_size: 4096, wait: true };
    let control = ino(tree, "control");
    let (_, answer) = tree.ioctl(control, id, &request, &caller(process))?;
    Ok(String::from_utf8(answer).unwrap())
}

const WAITING: WriteRequest = WriteRequest {
    append: false,
    durable: None,
    kill_privileges: false,
    lock_owner: Some(5),
    wait: true,
};

#[test]
fn names_have_inodes_and_handles_of_the_reserved_range() {
    on_a_tree(false, |tree| {
        let mut listed = Vec::new();
        let ended = tree.list((ControlTree::ROOT, DIRECTORY), 0, true, &mut |item| {
            listed.push((item.name.to_owned(), item.ino, item.next));
            false
        });
        assert_eq!(ended, Ok(true));
        let names: Vec<_> = listed.iter().map(|(name, ..)| name.to_str().unwrap()).collect();
        assert_eq!(names, [".", "control", "status", "status.json", "maps"]);
        for (name, number, _) in listed.iter().skip(1) {
            let attr = tree.lookup(ControlTree::ROOT, name).unwrap().attr;
            assert_eq!((attr.ino, attr.stat.uid, attr.stat.gid), (*number, 7, 8));
            let id = open(tree, name.to_str().unwrap(), false).unwrap().id;
            assert!(number.0 > FIRST_RESERVED && id.0 > FIRST_RESERVED);
            assert_eq!(tree.path_of_inode(*number).unwrap().as_os_str(), name);
        }
        let mut rest = Vec::new();
        let mut add = |item: &crate::tree::DirItem<'_>| {
            rest.push(item.ino);
            true
        };
        assert_eq!(tree.list((ControlTree::ROOT, DIRECTORY), 3, false, &mut add), Ok(false));
        assert_eq!(rest, [listed[3].1]);
        let missing = tree.lookup(ControlTree::ROOT, "data".as_ref());
        assert_eq!(missing.unwrap_err(), Errno::NOENT);
        assert_eq!(tree.attr(Ino(FIRST_RESERVED + 99), None).unwrap_err(), Errno::STALE);
    });
}

#[test]
fn a_report_is_what_it_was_when_it_was_opened() {
    on_a_tree(false, |tree| {
        let opened = open(tree, "status", false).unwrap();
        assert_eq!(opened.cache, PageCache::Bypassed);
        let first = read(tree, "status", opened.id, 0, 1 << 20);
        assert!(first.contains("/source"), "{first}");
        let again = read(tree, "status", opened.id, 5, 1 << 20);
        assert_eq!(again, first[5..]);
        assert_eq!(read(tree, "status", opened.id, 1 << 20, 10), "");
        assert_eq!(open(tree, "status", true).map(|_| ()), Err(Errno::ACCESS));
        tree.release(opened.id).unwrap();
        assert_eq!(tree.release(opened.id), Err(Errno::BADF));
    });
}

#[test]
fn a_command_is_not_run_on_a_thread_that_may_not_wait() {
    on_a_tree(false, |tree| {
        let id = open(tree, "control", true).unwrap().id;
        let at_once = WriteRequest { wait: false, ..WAITING };
        let write = |data: &[u8], request| tree.write(id, 0, data, request, &caller(1));
        assert_eq!(write(b"version\n", at_once), Err(Errno::AGAIN));
        assert_eq!(read(tree, "control", id, 0, 100), "", "nothing has run");
        assert_eq!(write(b"version\n", WAITING), Ok(8));
        // The offset means nothing.
        let answer = read(tree, "control", id, 8, 100);
        assert!(answer.contains(env!("CARGO_PKG_VERSION")), "{answer}");
        assert_eq!(write(b"no such\n", WAITING), Err(Errno::INVAL));
    });
}

#[test]
fn a_line_without_its_end_is_run_when_its_writer_closes_the_file() {
    on_a_tree(false, |tree| {
        let number = ino(tree, "control");
        let id = open(tree, "control", true).unwrap().id;
        assert_eq!(tree.close(number, id, 5, false), Ok(()), "nothing is left to run");
        tree.write(id, 0, b"version", WAITING, &caller(1)).unwrap();
        assert_eq!(tree.close(number, id, 5, false), Err(Errno::AGAIN));
        assert_eq!(tree.close(number, id, 6, true), Ok(()), "a copy of a forked process");
        assert_eq!(read(tree, "control", id, 0, 100), "");
        assert_eq!(tree.close(number, id, 5, true), Ok(()));
        assert!(read(tree, "control", id, 0, 100).starts_with("mmapfs"));
    });
}

#[test]
fn a_process_without_a_handle_gets_its_own_answer() {
    on_a_tree(true, |tree| {
        for id in [HandleId::NONE, DIRECTORY] {
            assert_eq!(ioctl(tree, id, b"", 1), Err(Errno::BADF));
            ioctl(tree, id, b"version\n", 1).unwrap();
            ioctl(tree, id, b"json version\n", 2).unwrap();
            assert!(ioctl(tree, id, b"", 2).unwrap().starts_with('{'));
            assert!(ioctl(tree, id, b"", 1).unwrap().starts_with("mmapfs"));
            assert_eq!(ioctl(tree, id, b"", 1), Err(Errno::BADF), "it was taken");
        }
        assert!(tree.open.read().is_empty());
    });
}

#[test]
fn a_report_without_a_handle_has_the_size_of_what_is_read() {
    on_a_tree(true, |tree| {
        let attr = tree.attr(ino(tree, "status"), None).unwrap();
        assert_eq!(attr.validity, Validity::Uncached);
        let text = read(tree, "status", HandleId::NONE, 0, 1 << 20);
        assert_eq!(text.len() as u64, attr.stat.size);
        let control = ino(tree, "control");
        let mut none = |_: &[u8]| panic!("nothing is delivered");
        assert_eq!(tree.read(control, HandleId::NONE, 0, 10, &mut none), Err(Errno::BADF));
        // A listing makes no reports: its attributes are not used again.
        let root = (ControlTree::ROOT, HandleId::NONE);
        let mut validities = Vec::new();
        let mut add = |item: &crate::tree::DirItem<'_>| {
            validities.extend(item.entry.map(|entry| (entry.validity, entry.attr.validity)));
            false
        };
        assert_eq!(tree.list(root, 0, true, &mut add), Ok(true));
        assert_eq!(validities, [(Validity::Uncached, Validity::Uncached); 5]);
    });
}

#[test]
fn nothing_in_it_can_be_made_or_changed() {
    on_a_tree(false, |tree| {
        let (root, who) = (ControlTree::ROOT, caller(1));
        let new = NewNode { mode: 0o600, umask: 0, caller: &who };
        let name = OsStr::new("new");
        assert_eq!(tree.make_dir(root, name, &new).unwrap_err(), Errno::PERM);
        assert_eq!(tree.make_symlink(root, name, name, &who).unwrap_err(), Errno::PERM);
        assert_eq!(tree.remove(root, "status".as_ref(), false), Err(Errno::PERM));
        assert_eq!(tree.link(ino(tree, "status"), root, name).unwrap_err(), Errno::PERM);
        assert_eq!(tree.remove_xattr(root, name), Err(Errno::PERM));
        assert_eq!(tree.get_xattr(root, name, &mut []), Err(Errno::NODATA));
        let control = ino(tree, "control");
        let change = |change| tree.set_attr(control, None, change, &who).map(|attr| attr.ino);
        // O_TRUNC of a shell's `>`.
        assert_eq!(change(SetAttr { size: Some(0), ..SetAttr::default() }), Ok(control));
        assert_eq!(change(SetAttr { mode: Some(0), ..SetAttr::default() }), Err(Errno::PERM));
        assert_eq!(change(SetAttr { uid: Some(0), ..SetAttr::default() }), Err(Errno::PERM));
    });
}
