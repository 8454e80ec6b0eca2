use std::path::Path;

use super::*;
use crate::config::WatchMode;
use crate::flags::ViewOptions;
use crate::shown::Show;
use crate::sys::handle::handle_of;
use crate::tree::{Ino, Names};
use crate::volume::{Policy, VolumeOptions};

/// A volume of a directory with the file `known`, which was looked up, and its number.
fn volume(dir: &Path) -> (Volume, Ino) {
    std::fs::write(dir.join("known"), "x").unwrap();
    std::fs::write(dir.join("unknown"), "x").unwrap();
    let options = VolumeOptions {
        source: dir.to_owned(),
        only: None,
        root_is_file: false,
        reserved: None,
        policy: Policy {
            mode: ViewOptions::default().resolve().unwrap(),
            rules: crate::config::RuleSet::default(),
        },
        max_mappings: 10,
        keeps_atime: true,
        keeps_attributes: true,
    };
    let volume = Volume::open_source(options).unwrap();
    // Marked or not: it only has to keep handles.
    let _ = super::super::Watch::of(&volume, WatchMode::Auto, super::super::Changes::OfTheMount);
    let known = volume.lookup(Ino::ROOT, "known".as_ref()).unwrap().attr.ino;
    (volume, known)
}

fn event(dir: &Path, mask: u64, name: Option<&str>, object: Option<&std::ffi::CStr>) -> Event {
    let dir = std::fs::File::open(dir).unwrap();
    Event {
        mask,
        pid: 1,
        object: object.map(|name| handle_of(&dir, name).unwrap()),
        name: name.map(|name| (handle_of(&dir, c"").unwrap(), name.into())),
    }
}

fn shown(work: Vec<Work>) -> Vec<String> {
    let mut shown: Vec<_> = work
        .into_iter()
        .map(|work| match work {
            Work::Entry(parent, name, made) => {
                format!("{parent}/{}{}", name.shown(), if made { " made" } else { "" })
            }
            Work::Inode(ino, data) => format!("{ino} {}", if data { "data" } else { "attributes" }),
            Work::Directories(_) => String::from("directories"),
            Work::Everything => String::from("everything"),
        })
        .collect();
    shown.sort();
    shown
}

#[test]
fn what_the_kernel_knows_is_invalidated_once_for_many_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, known) = volume(dir.path());
    let mut batch = Batch::new(false);
    for mask in [libc::FAN_ATTRIB, libc::FAN_MODIFY, libc::FAN_ATTRIB] {
        batch.add(event(dir.path(), mask, Some("known"), Some(c"known")));
        batch.add(event(dir.path(), mask, Some("unknown"), Some(c"unknown")));
    }
    for mask in [libc::FAN_CREATE, libc::FAN_DELETE] {
        batch.add(event(dir.path(), mask, Some("name"), None));
    }
    assert_eq!(batch.written().count(), 2);
    let mut expected = vec!["1/name".into(), "1 data".into(), format!("{known} data")];
    expected.sort();
    assert_eq!(shown(batch.work(&volume)), expected);
    let counts = volume.watch_counts();
    assert_eq!(counts.events.load(Ordering::Relaxed), 8);
}

#[test]
fn attributes_alone_leave_content_cached_and_a_directory_is_named_by_a_dot() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, known) = volume(dir.path());
    let mut batch = Batch::new(false);
    batch.add(event(dir.path(), libc::FAN_ATTRIB, Some("known"), Some(c"known")));
    batch.add(event(dir.path(), libc::FAN_ATTRIB | libc::FAN_ONDIR, Some("."), None));
    let mut expected = vec![String::from("1 attributes"), format!("{known} attributes")];
    expected.sort();
    assert_eq!(shown(batch.work(&volume)), expected);
}

#[test]
fn our_own_changes_invalidate_nothing_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, _) = volume(dir.path());
    let mut batch = Batch::new(false);
    let own = Event {
        pid: std::process::id(),
        ..event(dir.path(), libc::FAN_MODIFY, Some("known"), Some(c"known"))
    };
    batch.add(own);
    assert_eq!(batch.written().count(), 0);
    assert!(batch.work(&volume).is_empty());
    assert_eq!(volume.watch_counts().events.load(Ordering::Relaxed), 1);
}

#[test]
fn when_changes_were_lost_everything_is_invalidated() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, _) = volume(dir.path());
    let mut batch = Batch::new(false);
    batch.add(event(dir.path(), libc::FAN_MODIFY, Some("known"), Some(c"known")));
    batch.add(Event { mask: libc::FAN_Q_OVERFLOW, pid: 0, object: None, name: None });
    assert_eq!(shown(batch.work(&volume)), ["everything"]);
    assert_eq!(volume.watch_counts().overflows.load(Ordering::Relaxed), 1);
}

#[test]
fn an_answer_during_which_changes_were_told_is_good_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, _) = volume(dir.path());
    let quiet = volume.lookup(Ino::ROOT, "known".as_ref()).unwrap();
    assert_ne!(quiet.attr.validity, crate::tree::Validity::Uncached);
    let told = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !told.load(Ordering::Relaxed) {
                volume.count_changes();
            }
        });
        let met = (0..1_000_000).any(|_| {
            let entry = volume.lookup(Ino::ROOT, "known".as_ref()).unwrap();
            entry.attr.validity == crate::tree::Validity::Uncached
        });
        told.store(true, Ordering::Relaxed);
        assert!(met);
    });
}
