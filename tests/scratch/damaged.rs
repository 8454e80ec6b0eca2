//! Page maps in which something was changed, files that have lost their marks, and the blocks that
//! the map of a file says are left of it.

use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate};
use rustix::io::Errno;

use super::common::*;
use super::kept::Kept;

const PAGE: usize = 4096;

fn maps(kept: &Kept) -> Vec<PathBuf> {
    let pages = kept.dir.path().join("scratch/pages");
    names(&pages).iter().map(|name| pages.join(name)).collect()
}

/// Expects one line in the log on an EIO.
#[track_caller]
fn expect_line(kept: &Kept, request: &str, cause: &str) {
    let expected = format!("{request}Input/output error (os error 5): {cause}");
    let log = kept.mounted().log();
    assert_eq!(log.lines().filter(|line| line.ends_with(&expected)).count(), 1, "{log}");
}

#[test]
fn a_page_map_in_which_a_bit_was_changed_makes_its_file_an_error_and_no_other() {
    if !require_fuse() {
        return;
    }
    let content = pattern(100 * PAGE);
    let mut kept = Kept::new("copy_up=0", |base| {
        fs::write(base.join("first"), &content).unwrap();
        fs::write(base.join("second"), &content).unwrap();
    });
    let written = |name: &str| {
        let file = File::options().write(true).open(kept.at(name)).unwrap();
        file.write_all_at(&[7; PAGE], 10 * PAGE as u64).unwrap();
    };
    written("first");
    let [map] = &maps(&kept)[..] else { panic!("one map") };
    let map = map.clone();
    written("second");
    kept.unmount();
    let whole = fs::read(&map).unwrap();
    let mut changed = content.clone();
    changed[10 * PAGE..11 * PAGE].fill(7);
    // A header, the other one, the bits, those that are firm, what is between, the checksum.
    for at in [20, 512 + 20, 1024 + 2, 1024 + 248 + 1, 1024 + 500, 1024 + 510] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&map, &bytes).unwrap();
        kept.mount();
        assert_eq!(errno(File::open(kept.at("first"))).map(drop), Err(Errno::IO), "byte {at}");
        expect_line(&kept, " first: open failed: ", "its page map is damaged");
        assert_content(kept.at("second"), &changed);
        kept.unmount();
    }
    // And zeros, which say that nothing was ever written.
    let mut bytes = whole.clone();
    bytes[1024..1536].fill(0);
    fs::write(&map, &bytes).unwrap();
    kept.mount();
    assert_eq!(errno(File::open(kept.at("first"))).map(drop), Err(Errno::IO));
    assert_content(kept.at("second"), &changed);
    kept.unmount();
    fs::write(&map, &whole).unwrap();
    kept.mount();
    assert_content(kept.at("first"), &changed);
}

#[test]
fn what_cannot_be_looked_at_is_listed_and_by_no_number_of_another_file() {
    if !(require_fuse() && require_root()) {
        return;
    }
    const BAD: [&str; 3] = ["bad", "bad.dir", "bad.link"];
    let mut kept = Kept::new("", |base| fs::write(base.join("good"), b"good").unwrap());
    fs::write(kept.at("bad"), b"bad").unwrap();
    fs::create_dir(kept.at("bad.dir")).unwrap();
    std::os::unix::fs::symlink("good", kept.at("bad.link")).unwrap();
    kept.unmount();
    let upper = kept.scratch().join("upper");
    for name in BAD {
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(upper.join(name), "trusted.mmapfs.ino", b"none", none).unwrap();
    }
    kept.mount();
    let forgotten = |kept: &Kept| {
        let status = ask(kept.root(), "json status").json();
        status["requests"]["forget"].as_u64().unwrap_or(0)
    };
    for round in 1..=3 {
        let listed: Vec<_> = fs::read_dir(kept.root())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.ino()))
            .filter(|(name, _)| name != ".mmapfs")
            .collect();
        let mut found: Vec<_> = listed.iter().map(|(name, _)| name.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, [&BAD[..], &["good"]].concat());
        for (name, number) in listed {
            if BAD.contains(&name.as_str()) {
                // None of the upper volume's own.
                assert_ne!(number, inode(upper.join(&name)), "{name}");
            }
        }
        let before = forgotten(&kept);
        for name in BAD {
            let looked = errno(kept.at(name).symlink_metadata()).map(drop);
            assert_eq!(looked, Err(Errno::IO), "{name}");
        }
        // The kernel lets go of what it has been told of them, where it was told at all.
        wait_until(std::time::Duration::from_secs(1), || forgotten(&kept) >= before + 3);
        assert_content(kept.at("good"), b"good");
        let log = kept.mounted().log();
        assert!(!log.contains("forget ino"), "round {round}: {log}");
    }
}

#[test]
fn a_lookup_that_fails_leaves_a_line_with_the_whole_path_and_the_cause() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("", |base| fs::create_dir_all(base.join("some/dir")).unwrap());
    fs::write(kept.at("some/dir/bad"), b"bad").unwrap();
    kept.unmount();
    let bad = kept.scratch().join("upper/some/dir/bad");
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(bad, "trusted.mmapfs.ino", b"none", none).unwrap();
    kept.mount();
    for _ in 0..20 {
        let looked = errno(kept.at("some/dir/bad").symlink_metadata()).map(drop);
        assert_eq!(looked, Err(Errno::IO));
    }
    let cause = "its overlay attributes are damaged";
    expect_line(&kept, " some/dir/bad: lookup failed: ", cause);
}

#[test]
fn the_map_of_another_file_is_an_error() {
    if !require_fuse() {
        return;
    }
    let mut kept = Kept::new("copy_up=0", |base| {
        fs::write(base.join("first"), pattern(100 * PAGE)).unwrap();
        fs::write(base.join("second"), pattern(100 * PAGE)).unwrap();
    });
    for (name, page) in [("first", 1), ("second", 50)] {
        let file = File::options().write(true).open(kept.at(name)).unwrap();
        file.write_all_at(&[7; PAGE], page * PAGE as u64).unwrap();
    }
    kept.unmount();
    let [one, other] = &maps(&kept)[..] else { panic!("two maps") };
    fs::copy(one, other).unwrap();
    kept.mount();
    let opened = ["first", "second"].map(|name| errno(File::open(kept.at(name))).map(drop));
    assert!(opened.contains(&Ok(())) && opened.contains(&Err(Errno::IO)), "{opened:?}");
}

#[test]
fn a_scratch_that_was_copied_without_its_attributes_is_not_mounted() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("copy_up=0", |base| {
        fs::write(base.join("file"), pattern(100 * PAGE)).unwrap();
    });
    let file = File::options().write(true).open(kept.at("file")).unwrap();
    file.write_all_at(&[7; PAGE], 0).unwrap();
    drop(file);
    kept.unmount();
    let (scratch, copy) = (kept.dir.path().join("scratch"), kept.dir.path().join("copy"));
    let copied = |options: &[&str]| {
        let done = Command::new("cp").args(options).arg(&scratch).arg(&copy).status().unwrap();
        assert!(done.success());
    };
    let mount = |at: &Path| {
        let options = format!("access=copy,scratch={}", copy.display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmapfs"));
        for name in ["run", "state"] {
            let variable = format!("MMAPFS_{}_DIR", name.to_uppercase());
            command.env(variable, kept.dir.path().join(name));
        }
        command.args(["mount", "-o", &options]).args([&kept.base, at]).output().unwrap()
    };
    let point = kept.dir.directory("point");
    copied(&["-r", "--sparse=always"]);
    let output = mount(&point);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(told.contains("1 of its page maps belong to no file"), "{told}");
    assert_eq!(names(copy.join("pages")).len(), 1, "the map is kept");

    fs::remove_dir_all(&copy).unwrap();
    copied(&["-a"]);
    let output = mount(&point);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut expected = pattern(100 * PAGE);
    expected[..PAGE].fill(7);
    let found = fs::read(point.join("file"));
    let done = Command::new(env!("CARGO_BIN_EXE_mmapfs")).arg("umount").arg(&point).status();
    assert!(done.unwrap().success());
    assert_bytes(&found.unwrap(), &expected);
}

#[test]
fn the_blocks_of_a_file_that_became_smaller_are_those_that_are_left() {
    if !require_fuse() {
        return;
    }
    let size = 16 << 20;
    let mut kept = Kept::new("copy_up=0", |base| {
        for name in ["cut", "emptied", "punched", "regrown", "whole"] {
            fs::write(base.join(name), vec![b'x'; size]).unwrap();
        }
    });
    let open = |name: &str| File::options().write(true).open(kept.at(name)).unwrap();
    open("cut").set_len(4096).unwrap();
    open("emptied").set_len(0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(open("punched"), punch, 1 << 20, 14 << 20).unwrap();
    open("regrown").set_len(100_000).unwrap();
    open("regrown").set_len(size as u64).unwrap();
    set_mode(kept.at("whole"), 0o600);
    let whole = fs::metadata(kept.base.join("whole")).unwrap().blocks();
    let check = |kept: &Kept| {
        let blocks = |name: &str| fs::metadata(kept.at(name)).unwrap().blocks();
        let share = |pages: u64| (whole * pages / 4096).next_multiple_of(8);
        let pages =
            [("cut", 1), ("emptied", 0), ("punched", 512), ("regrown", 25), ("whole", 4096)];
        for (name, pages) in pages {
            // XattrNamespace take a block of their own where they do not fit into the inode (ext4).
            let (found, least) = (blocks(name), share(pages));
            assert!(found == least || found == least + 8, "{name}: {found}, not {least}");
        }
        let file = File::open(kept.at("punched")).unwrap();
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(1 << 20));
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(1 << 20)), Ok(15 << 20));
        let file = File::open(kept.at("regrown")).unwrap();
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(100_000)), Err(Errno::NXIO));
    };
    check(&kept);
    kept.unmount();
    kept.mount();
    check(&kept);
}
