//! Attributes of files that the kernel reads and writes itself: nobody tells of a store through a
//! mapping, so while one may be there they are not trusted for long, and for long otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::mapped::Mapped;
use common::*;

/// A mount with passthrough whose source is watched, or none where that is not permitted.
fn lending() -> Option<MountedFs> {
    if !(require_fuse() && require_root()) {
        return None;
    }
    let mounted = MountedFs::new("access=write,watch=on");
    let features = status(mounted.path())["kernel"]["features"].clone();
    let lends =
        |feature: &serde_json::Value| feature["name"] == "passthrough" && feature["in_use"] == true;
    features.as_array().unwrap().iter().any(lends).then_some(mounted)
}

fn status(root: &Path) -> serde_json::Value {
    ask(root, "json status").json()
}

/// Times and blocks, which a store through a mapping moves.
fn moved(path: &Path) -> [i64; 5] {
    let stat = fs::metadata(path).unwrap();
    [stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec(), stat.blocks() as i64]
}

fn getattrs(mounted: &MountedFs) -> u64 {
    status(mounted.path())["requests"]["getattr"].as_u64().unwrap_or(0)
}

#[test]
fn stores_through_a_mapping_show_in_the_attributes_open_or_closed() {
    for closed in [false, true] {
        let Some(mounted) = lending() else { return };
        let (path, source) = (mounted.path().join("file"), mounted.backing().join("file"));
        fs::write(&path, []).unwrap();
        let file = create(&path);
        file.set_len(1 << 20).unwrap();
        let map = Mapped::shared(&file, 1 << 20).unwrap();
        let _open = (!closed).then_some(file);
        for round in 0..3 {
            let _ = moved(&path);
            wait_for("the clock to move on", || {
                // A page that is clean moves the times when it is stored to.
                map.sync().unwrap();
                let before = moved(&source);
                map.write(round * 40_960, b"x");
                map.sync().unwrap();
                moved(&source) != before
            });
            wait_for("the attributes of the source", || moved(&path) == moved(&source));
        }
        drop(map);
        wait_for("the attributes of the source", || moved(&path) == moved(&source));
    }
}

#[test]
fn a_file_that_is_written_and_closed_is_asked_for_once() {
    let Some(mounted) = lending() else { return };
    let paths: Vec<_> = (0..50).map(|at| mounted.path().join(at.to_string())).collect();
    for path in &paths {
        fs::write(path, "content").unwrap();
    }
    let stat_all = || paths.iter().for_each(|path| fs::metadata(path).map(|_| ()).unwrap());
    // What is invalidated for having been written is so by then.
    wait_for("a second in which only what asks for this count is asked for", || {
        stat_all();
        let before = getattrs(&mounted);
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 1200 {
            stat_all();
        }
        getattrs(&mounted) < before + 10
    });
}

#[test]
fn a_file_that_is_opened_while_its_attributes_are_asked_for_opens() {
    let Some(mounted) = lending() else { return };
    let path = mounted.path().join("file");
    std::thread::scope(|scope| {
        let path = &path;
        scope.spawn(move || {
            for round in 0..2000 {
                fs::write(path, round.to_string()).unwrap();
                fs::metadata(path).map(|_| ()).unwrap();
            }
        });
        for _ in 0..2000 {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK;
            match open(path, flags) {
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(err) => panic!("{}: {err}", path.display()),
            }
        }
    });
    drop(File::open(&path).unwrap());
}
