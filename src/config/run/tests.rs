use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const DEV: (u32, u32) = (0, 77);

#[test]
fn a_daemon_is_found_by_its_device_until_its_note_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let daemons = Daemons::below(&dir.path().join("run"));
    assert_eq!(daemons.find(DEV), None);
    let note = daemons.note(DEV).unwrap().unwrap();
    assert_eq!(daemons.find(DEV), Some(Identity::own().unwrap()));
    assert_eq!(daemons.find((0, 78)), None);
    let path = dir.path().join("run/daemons/0:77");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    drop(note);
    assert!(!path.exists());
}

#[test]
fn the_note_of_a_later_daemon_of_the_same_device_stays() {
    let dir = tempfile::tempdir().unwrap();
    let daemons = Daemons::below(dir.path());
    let note = daemons.note(DEV).unwrap().unwrap();
    let later = "1 1 1\n";
    fs::write(&note.path, later).unwrap();
    let path = note.path.clone();
    drop(note);
    assert_eq!(fs::read_to_string(&path).unwrap(), later);
    // It is of a daemon that was killed: the next one of this device takes its place.
    let note = daemons.note(DEV).unwrap().unwrap();
    assert_eq!(daemons.find(DEV), Some(note.identity));
}

#[test]
fn only_a_file_that_holds_an_identity_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let daemons = Daemons::below(dir.path());
    let place = daemons.place(DEV).unwrap();
    fs::create_dir(place.parent().unwrap()).unwrap();
    for text in ["", "\n", "1 1 1", "1 1\n", "1 1 1\n\n"] {
        fs::write(&place, text).unwrap();
        assert_eq!(daemons.find(DEV), None, "{text:?}");
    }
    let other = dir.path().join("other");
    fs::write(&other, "1 1 1\n").unwrap();
    fs::remove_file(&place).unwrap();
    symlink(&other, &place).unwrap();
    assert_eq!(daemons.find(DEV), None);
    fs::remove_file(&place).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &place,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(daemons.find(DEV), None);
}

#[test]
fn without_a_run_directory_nothing_is_noted() {
    let daemons = Daemons { dir: None };
    assert!(daemons.note(DEV).unwrap().is_none());
    assert_eq!(daemons.find(DEV), None);
}
