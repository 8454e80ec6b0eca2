//! The router over a volume and its control tree, asked as the kernel asks it.

use std::fs;
use std::path::Path;

use super::*;
use crate::control::testing::{NAME, caller, router};

fn on_a_router(visibility: ControlVisibility, test: impl FnOnce(&Router, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), b"of the source").unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    test(&router(dir.path(), visibility), dir.path());
}

fn ino(router: &Router, parent: Ino, name: &str) -> Ino {
    router.lookup(parent, name.as_ref()).unwrap().attr.ino
}

/// The names of the root from `offset` on, and the offset after the last of them.
fn list(router: &Router, id: HandleId, offset: u64, most: usize) -> (Vec<String>, u64, bool) {
    let (mut names, mut next) = (Vec::new(), offset);
    let ended = router
        .list((Ino::ROOT, id), offset, false, &mut |item| {
            if names.len() == most {
                return true;
            }
            names.push(item.name.to_str().unwrap().to_owned());
            next = item.next;
            false
        })
        .unwrap();
    (names, next, ended)
}

#[test]
fn the_name_of_the_control_tree_leads_to_it_in_the_root_only() {
    on_a_router(ControlVisibility::Hidden, |router, _| {
        let control = ino(router, Ino::ROOT, NAME);
        assert_eq!(control, ControlTree::ROOT);
        let sub = ino(router, Ino::ROOT, "sub");
        assert_eq!(router.lookup(sub, NAME.as_ref()).unwrap_err(), Errno::NOENT);
        assert_eq!(router.lookup(control, "data".as_ref()).unwrap_err(), Errno::NOENT);
        let status = ino(router, control, "status");
        assert_eq!(router.path_of_inode(status), Some(Path::new(NAME).join("status")));
        let data = ino(router, Ino::ROOT, "data");
        assert_eq!(router.path_of_inode(data), Some(PathBuf::from("data")));
        assert_eq!(router.attr(data, None).unwrap().stat.size, 13);
        router.forget(control, 1);
        assert_eq!(ino(router, Ino::ROOT, NAME), control);
    });
}

#[test]
fn a_control_tree_that_is_off_has_no_name() {
    on_a_router(ControlVisibility::Off, |router, _| {
        assert_eq!(router.lookup(Ino::ROOT, NAME.as_ref()).unwrap_err(), Errno::NOENT);
        let value = router.get_xattr(Ino::ROOT, XATTR.as_ref(), &mut []);
        assert!(matches!(value, Err(Errno::NODATA | Errno::NOTSUP)), "{value:?}");
    });
}

#[test]
fn the_root_tells_the_name_of_the_control_tree() {
    on_a_router(ControlVisibility::Hidden, |router, _| {
        let ask = |ino, buffer: &mut [u8]| router.get_xattr(ino, XATTR.as_ref(), buffer);
        assert_eq!(ask(Ino::ROOT, &mut []), Ok(NAME.len()));
        assert_eq!(ask(Ino::ROOT, &mut [0; 3]), Err(Errno::RANGE));
        let mut buffer = [0; 64];
        let len = ask(Ino::ROOT, &mut buffer).unwrap();
        assert_eq!(&buffer[..len], NAME.as_bytes());
        assert_eq!(ask(ControlTree::ROOT, &mut buffer), Err(Errno::NODATA));
        assert!(ask(ino(router, Ino::ROOT, "data"), &mut buffer).is_err());
    });
}

#[test]
fn the_root_lists_the_control_tree_last_and_once_and_only_on_request() {
    on_a_router(ControlVisibility::Visible, |router, _| {
        let id = router.open_dir(Ino::ROOT).unwrap();
        let (mut names, _, ended) = list(router, id, 0, 99);
        assert!(ended);
        assert_eq!(names.pop().unwrap(), NAME);
        names.sort();
        assert_eq!(names, [".", "..", "data", "sub"]);
        // Full before it, and full after it.
        let (names, next, ended) = list(router, id, 0, 4);
        assert_eq!((names.len(), ended), (4, false));
        let (names, next, ended) = list(router, id, next, 1);
        assert_eq!((names, ended), (vec![NAME.to_owned()], true));
        assert_eq!(list(router, id, next, 99), (vec![], next, true));
        router.release_dir(id).unwrap();
    });
    on_a_router(ControlVisibility::Hidden, |router, _| {
        let id = router.open_dir(Ino::ROOT).unwrap();
        assert!(!list(router, id, 0, 99).0.contains(&NAME.to_owned()));
    });
}

#[test]
fn handles_lead_to_the_tree_that_gave_them() {
    on_a_router(ControlVisibility::Hidden, |router, _| {
        let who = caller(1);
        let register = |_: std::os::fd::BorrowedFd<'_>| Err(std::io::Error::other("no session"));
        let open = |ino| {
            let how = Open { read: true, write: true, ..Open::default() };
            router.open(ino, how, &who, &register).unwrap().id
        };
        let (data, control) = (ino(router, Ino::ROOT, "data"), ControlTree::ROOT);
        let commands = ino(router, control, "control");
        let (file, session) = (open(data), open(commands));
        assert!(file.0 < FIRST_RESERVED && session.0 >= FIRST_RESERVED);
        let waiting = WriteRequest { wait: true, ..WriteRequest::default() };
        assert_eq!(router.write(file, 0, b"OF", waiting, &who), Ok(2));
        assert_eq!(router.write(session, 0, b"version\n", waiting, &who), Ok(8));
        let read = |ino, id| {
            let mut bytes = Vec::new();
            router.read(ino, id, 0, 100, &mut |part| bytes.extend_from_slice(part)).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(read(data, file), "OF the source");
        assert!(read(commands, session).starts_with("mmapfs"));
        let copied = router.copy_range((session, 0), (file, 0), 1, &who);
        assert_eq!(copied, Err(Errno::BADF));
        let directory = router.open_dir(control).unwrap();
        assert_eq!(router.release_dir(directory), Ok(()));
        assert_eq!((router.release(file), router.release(session)), (Ok(()), Ok(())));
        assert_eq!((router.release(file), router.release(session)), (BAD, BAD));
    });
}

const BAD: Result<(), Errno> = Err(Errno::BADF);

#[test]
fn nothing_is_renamed_or_linked_from_one_tree_to_the_other() {
    on_a_router(ControlVisibility::Hidden, |router, source| {
        let (data, control) = (ino(router, Ino::ROOT, "data"), ControlTree::ROOT);
        let status = ino(router, control, "status");
        let (name, new) = (OsStr::new("data"), OsStr::new("new"));
        let rename = |from, to| router.rename(from, to, RenameFlags::empty(), &caller(1));
        assert_eq!(rename((Ino::ROOT, name), (control, new)), Err(Errno::PERM));
        assert_eq!(rename((control, "status".as_ref()), (Ino::ROOT, new)), Err(Errno::PERM));
        assert_eq!(rename((control, "status".as_ref()), (control, new)), Err(Errno::PERM));
        assert_eq!(router.link(data, control, new).unwrap_err(), Errno::PERM);
        assert_eq!(router.link(status, Ino::ROOT, new).unwrap_err(), Errno::PERM);
        assert_eq!(rename((Ino::ROOT, name), (Ino::ROOT, new)), Ok(()));
        assert!(source.join("new").exists() && !source.join("data").exists());
        // The name of the control tree is not free in the root either.
        assert!(rename((Ino::ROOT, new), (Ino::ROOT, NAME.as_ref())).is_err());
        assert!(router.remove(Ino::ROOT, NAME.as_ref(), true).is_err());
    });
}

#[test]
fn the_control_tree_has_the_room_of_the_root() {
    on_a_router(ControlVisibility::Hidden, |router, _| {
        let of = |ino| router.statistics(ino).unwrap().f_blocks;
        assert_eq!(of(ControlTree::ROOT), of(Ino::ROOT));
    });
}
