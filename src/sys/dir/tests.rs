use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use super::*;

const FILES: usize = 3000; // More than one buffer holds.

fn stream(path: &Path) -> DirStream {
    DirStream::new(std::sync::Arc::new(std::fs::File::open(path).unwrap().into()))
}

fn many_files() -> (tempfile::TempDir, BTreeSet<OsString>) {
    let dir = tempfile::tempdir().unwrap();
    let names: BTreeSet<OsString> =
        (0..FILES).map(|number| format!("file-{number:06}").into()).collect();
    for name in &names {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    (dir, names)
}

/// Takes up to `count` entries, `.` and `..` left out: names with the cookies after them.
fn take(stream: &mut DirStream, count: usize) -> Vec<(OsString, u64)> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let Some(entry) = stream.peek().unwrap() else { break };
        if entry.name != "." && entry.name != ".." {
            taken.push((entry.name.to_owned(), entry.next));
        }
        stream.advance();
    }
    taken
}

fn names(entries: &[(OsString, u64)]) -> Vec<&OsString> {
    entries.iter().map(|(name, _)| name).collect()
}

#[test]
fn every_entry_comes_once() {
    let (dir, expected) = many_files();
    let taken = take(&mut stream(dir.path()), usize::MAX);
    assert_eq!(taken.len(), FILES);
    assert_eq!(taken.into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>(), expected);
}

#[test]
fn looking_does_not_take() {
    let (dir, _) = many_files();
    let mut stream = stream(dir.path());
    for _ in 0..100 {
        let first = stream.peek().unwrap().map(|entry| (entry.ino, entry.name.to_owned()));
        let again = stream.peek().unwrap().map(|entry| (entry.ino, entry.name.to_owned()));
        assert_eq!(first, again);
        stream.advance();
    }
}

#[test]
fn entries_tell_inode_and_type() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
    let mut stream = stream(dir.path());
    let mut seen = 0;
    while let Some(entry) = stream.peek().unwrap() {
        let stat = rustix::fs::lstat(dir.path().join(entry.name)).unwrap();
        if entry.name != ".." {
            assert_eq!(entry.ino, stat.st_ino, "{entry:?}");
        }
        let kind = (stat.st_mode >> 12) as u8;
        assert!(entry.kind == kind || entry.kind == libc::DT_UNKNOWN, "{entry:?}");
        seen += 1;
        stream.advance();
    }
    assert_eq!(seen, 5);
    assert_eq!(stream.peek(), Ok(None), "the end stays the end");
}

#[test]
fn a_cookie_resumes_exactly_behind_its_entry() {
    let (dir, _) = many_files();
    let mut stream = stream(dir.path());
    let all = take(&mut stream, usize::MAX);
    for at in [0, 1, 2, 500, 1499, FILES - 2, FILES - 1, 0] {
        stream.seek(all[at].1).unwrap();
        let rest = take(&mut stream, 5);
        let end = FILES.min(at + 6);
        assert_eq!(names(&rest), names(&all[at + 1..end]), "behind entry {at}");
    }
    let again = take(&mut self::stream(dir.path()), usize::MAX);
    assert_eq!(names(&again), names(&all), "another stream has the same order");
}

#[test]
fn cookies_resume_exactly_while_entries_are_removed() {
    let (dir, _) = many_files();
    let all = take(&mut stream(dir.path()), usize::MAX);
    let mut stream = stream(dir.path());
    let mut cookie = 0;
    let mut seen = Vec::new();
    // As a client that reads seven entries at a time and removes what it got, some of it by a
    // new position for every call, some by going on.
    loop {
        stream.seek(cookie).unwrap();
        let part = take(&mut stream, 7);
        let Some(last) = part.last() else { break };
        cookie = last.1;
        for (name, _) in &part {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        if seen.len() % 2 == 0 {
            let _ = take(&mut stream, 3); // Looked at and given up: the next seek comes back.
        }
        seen.extend(part);
    }
    assert_eq!(names(&seen), names(&all));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_start_lists_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut stream = stream(dir.path());
    assert!(take(&mut stream, 10).is_empty());
    std::fs::write(dir.path().join("later"), "").unwrap();
    stream.seek(0).unwrap();
    assert_eq!(names(&take(&mut stream, 10)), ["later"]);
    std::fs::remove_file(dir.path().join("later")).unwrap();
    stream.seek(0).unwrap();
    assert!(take(&mut stream, 10).is_empty());
}

#[test]
fn names_need_not_be_text() {
    let dir = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"\xff\xfe\n \x01");
    let long = OsString::from("n".repeat(255));
    std::fs::write(dir.path().join(name), "").unwrap();
    std::fs::write(dir.path().join(&long), "").unwrap();
    let taken = take(&mut stream(dir.path()), 10);
    let taken: BTreeSet<_> = taken.iter().map(|(name, _)| name.as_os_str()).collect();
    assert_eq!(taken, BTreeSet::from([name, &long]));
}

#[test]
fn a_removed_directory_has_no_entries_to_list() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let mut stream = stream(&inner);
    std::fs::remove_dir(&inner).unwrap();
    assert_eq!(stream.peek(), Err(Errno::NOENT));
}

#[test]
fn an_answer_that_makes_no_sense_is_an_error() {
    let mut good = vec![0; 24];
    good[16] = 24;
    good[19] = b'a';
    assert_eq!(entry(&good).map(|(entry, len)| (entry.name.len(), len)), Ok((1, 24)));
    let mut unended = good.clone();
    unended[19..].fill(b'a');
    let mut too_long = good.clone();
    too_long[16] = 25;
    let mut too_short = good.clone();
    too_short[16] = 19;
    for bad in [&good[..17], &good[..0], &unended, &too_long, &too_short] {
        assert_eq!(entry(bad).err(), Some(Errno::IO), "{bad:?}");
    }
    too_short[16] = 0;
    assert_eq!(entry(&too_short).err(), Some(Errno::IO), "an entry of no length has no next");
}

#[test]
fn a_stream_that_began_at_the_end_can_be_rewound() {
    let (dir, expected) = many_files();
    let small = tempfile::tempdir().unwrap();
    std::fs::write(small.path().join("one"), "").unwrap();
    for (path, count) in [(dir.path(), expected.len()), (small.path(), 1)] {
        let end = take(&mut stream(path), usize::MAX).last().unwrap().1;
        let mut stream = stream(path);
        stream.seek(end).unwrap();
        assert_eq!(take(&mut stream, usize::MAX), []);
        stream.seek(0).unwrap();
        assert_eq!(take(&mut stream, usize::MAX).len(), count);
    }
}
