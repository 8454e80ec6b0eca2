use super::*;

const TABLE: &[u8] = b"\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/a rw - fuse.mmapfs /srv/a rw
31 22 0:40 /deep/er /mnt/part rw - fuse.mmapfs /srv/a rw
32 22 0:41 /deep /mnt/orphan rw - fuse.mmapfs /srv/b rw
33 30 0:42 / /mnt/a/tmp rw - tmpfs none rw
";

fn target(place: &str) -> Result<Option<Target>, Failure> {
    Target::in_table(&MountTable::parse(TABLE), Path::new(place))
}

#[test]
fn a_path_is_named_from_the_root_of_its_mount() {
    for (place, path) in [
        ("/mnt/a", ""),
        ("/mnt/a/f", "f"),
        ("/mnt/a/d/f", "d/f"),
        ("/mnt/part", "deep/er"),
        ("/mnt/part/f", "deep/er/f"),
    ] {
        let target = target(place).unwrap().unwrap();
        assert_eq!(target.mountpoint, Path::new("/mnt/a"), "{place}");
        assert_eq!(target.path.as_os_str(), path, "{place}");
    }
}

#[test]
fn a_path_of_another_filesystem_is_no_target() {
    for place in ["/", "/mnt", "/mnt/ab/f", "/mnt/a/tmp/f"] {
        assert_eq!(target(place), Ok(None), "{place}");
    }
}

#[test]
fn a_part_whose_whole_is_mounted_nowhere_is_refused() {
    assert!(target("/mnt/orphan/f").unwrap_err().to_string().contains("mounted nowhere"));
}

#[test]
fn a_path_outside_of_every_mount_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let failure = Target::find(&dir.path().join("missing/f")).unwrap_err();
    assert!(failure.to_string().contains("No such file"), "{failure}");
    let failure = Target::find(dir.path()).unwrap_err();
    assert!(failure.to_string().ends_with("it is not in a mount of mmapfs"), "{failure}");
}
