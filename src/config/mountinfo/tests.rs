use super::*;

const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/a rw,nosuid - fuse.mmapfs /srv/a rw,user_id=0
31 22 0:41 / /mnt/with\\040blank\\134 rw shared:2 master:3 - fuse.mmapfs /srv/b\\011c rw
32 30 0:42 / /mnt/a rw - tmpfs none rw
33 22 0:41 /sub /elsewhere rw - fuse.mmapfs /srv/b rw
not a line of the table
34 22 0:43 / /mnt/a/b rw - fuse other rw
";

fn table() -> MountTable {
    MountTable::parse(TABLE)
}

#[test]
fn blanks_in_names_are_read_back() {
    let table = table();
    let mount = table.at(Path::new("/mnt/with blank\\")).unwrap();
    assert_eq!(mount.source, "/srv/b\tc");
    assert_eq!(mount.dev, (0, 41));
    assert!(mount.is_ours() && mount.is_fuse());
}

#[test]
fn of_several_mounts_on_one_point_the_topmost_counts() {
    let table = table();
    assert_eq!(table.at(Path::new("/mnt/a")).unwrap().fstype, "tmpfs");
    assert_eq!(table.above(Path::new("/mnt/a/x")).unwrap().fstype, "tmpfs");
}

#[test]
fn the_mount_above_a_path_is_the_deepest_one() {
    let table = table();
    for (path, mountpoint) in [
        ("/", "/"),
        ("/mnt/ab", "/"),
        ("/mnt/a/b/c/d", "/mnt/a/b"),
        ("/mnt/with blank\\/f", "/mnt/with blank\\"),
    ] {
        let mount = table.above(Path::new(path)).unwrap();
        assert_eq!(mount.mountpoint, Path::new(mountpoint), "{path}");
    }
    assert!(!table.above(Path::new("/mnt/a/b")).unwrap().is_ours());
}

#[test]
fn a_bind_mount_of_a_part_leads_to_the_whole() {
    let table = table();
    let part = table.at(Path::new("/elsewhere")).unwrap();
    assert_eq!(part.root, Path::new("/sub"));
    assert_eq!(table.whole(part).unwrap().mountpoint, Path::new("/mnt/with blank\\"));
}

#[test]
fn the_table_of_this_process_has_a_root() {
    let table = MountTable::read().unwrap();
    let root = table.at(Path::new("/")).unwrap();
    assert_eq!(root.answer(), Answer::Alive);
}
