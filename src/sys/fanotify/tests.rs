use std::fs::{self, File};

use super::*;
use crate::sys::handle::handle_of;

fn info(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, 0];
    record.extend((12 + body.len() as u16).to_ne_bytes());
    record.extend([7; 8]); // fsid
    record.extend(body);
    record
}

fn file_handle(bytes: &[u8]) -> Vec<u8> {
    let mut handle = (bytes.len() as u32).to_ne_bytes().to_vec();
    handle.extend(1_i32.to_ne_bytes());
    handle.extend(bytes);
    handle
}

fn message(mask: u64, records: &[u8]) -> Vec<u8> {
    let mut bytes = (METADATA as u32 + records.len() as u32).to_ne_bytes().to_vec();
    bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
    bytes.extend((METADATA as u16).to_ne_bytes());
    bytes.extend(mask.to_ne_bytes());
    bytes.extend((-1_i32).to_ne_bytes());
    bytes.extend(42_u32.to_ne_bytes());
    bytes.extend(records);
    bytes
}

fn parsed(bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    parse(bytes, &mut |event| events.push(event));
    events
}

#[test]
fn a_notice_tells_mask_process_directory_name_and_file() {
    let mut named = file_handle(&[1, 2, 3, 4]);
    named.extend(b"name\0\0\0\0");
    let mut records = info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &named);
    records.extend(info(libc::FAN_EVENT_INFO_TYPE_FID, &file_handle(&[5; 8])));
    let mut bytes = message(libc::FAN_CREATE, &records);
    bytes.extend(message(libc::FAN_Q_OVERFLOW, &[]));
    let events = parsed(&bytes);
    assert_eq!(
        events[0],
        Event {
            mask: libc::FAN_CREATE,
            pid: 42,
            object: Some(FileHandle::new(1, &[5; 8])),
            name: Some((FileHandle::new(1, &[1, 2, 3, 4]), "name".into())),
        }
    );
    assert!(events[0].is_of_a_name() && !events[0].is_of_content() && !events[0].is_overflow());
    assert!(events[1].is_overflow());
    assert_eq!(events.len(), 2);
}

#[test]
fn what_is_cut_short_or_claims_too_much_is_not_read_past_its_end() {
    let mut named = file_handle(&[1; 12]);
    named.extend(b"name\0");
    let whole = message(libc::FAN_CREATE, &info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &named));
    for len in 0..whole.len() {
        assert_eq!(parsed(&whole[..len]), []);
    }
    // Every byte in turn claims the most that it can: no panic and no endless loop.
    for at in 0..whole.len() {
        for value in [0, 0x7f, 0xff] {
            let mut wrong = whole.clone();
            wrong[at] = value;
            assert!(parsed(&wrong).len() <= 1);
        }
    }
}

#[test]
fn the_changes_of_a_directory_are_told_with_the_handles_that_its_files_have() {
    let queue = match Fanotify::new(true) {
        Ok(queue) => queue,
        Err(err) => return eprintln!("SKIPPED: fanotify_init: {err}"),
    };
    let temporary = tempfile::tempdir().unwrap();
    let dir = File::open(temporary.path()).unwrap();
    if let Err(err) = queue.mark_directory(&dir) {
        return eprintln!("SKIPPED: fanotify_mark: {err}");
    }
    let mut buffer = [0; 4096];
    assert_eq!(queue.read(&mut buffer, |_| panic!("nothing has changed")), Ok(false));
    fs::write(temporary.path().join("file"), "content").unwrap();
    let (of_dir, of_file) = (handle_of(&dir, c"").unwrap(), handle_of(&dir, c"file").unwrap());
    let mut events = Vec::new();
    assert_eq!(queue.read(&mut buffer, |event| events.push(event)), Ok(true));
    let find = |mask| events.iter().find(|event| event.mask & mask != 0).unwrap();
    let created = find(libc::FAN_CREATE);
    assert_eq!(created.name, Some((of_dir, "file".into())));
    assert_eq!(created.object.as_ref(), Some(&of_file));
    assert_eq!(created.pid, std::process::id());
    assert_eq!(find(libc::FAN_MODIFY).object, Some(of_file));
    queue.unmark_directory(&dir).unwrap();
    fs::write(temporary.path().join("file"), "other").unwrap();
    assert_eq!(queue.read(&mut buffer, |_| ()), Ok(false));
}
