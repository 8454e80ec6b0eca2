use std::os::unix::fs::symlink;

use super::*;

fn refusal(root: &Path, [dir, base, mountpoint]: [&str; 3]) -> Option<String> {
    let [dir, base, mountpoint] = [dir, base, mountpoint].map(|name| root.join(name));
    ScratchConfig::check_place(&dir, &base, &mountpoint).err().map(|failure| failure.to_string())
}

#[test]
fn a_scratch_is_apart_from_its_base_and_from_the_mount_point() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    for name in ["base/sub", "mnt/sub", "other"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    symlink("base/sub", root.join("link")).unwrap();
    for (places, reason) in [
        (["base", "base", "mnt"], "it lies inside the source"),
        (["base/sub", "base", "mnt"], "it lies inside the source"),
        (["base/new/deep", "base", "mnt"], "it lies inside the source"),
        (["link/new", "base", "mnt"], "it lies inside the source"),
        (["base", "base/sub", "mnt"], "lies inside it"),
        (["mnt", "base", "mnt/sub"], "the mount point"),
        (["mnt/sub", "base", "mnt"], "would hide it"),
        (["mnt", "base", "mnt"], "lies inside it"),
    ] {
        let told = refusal(&root, places).unwrap_or_else(|| panic!("{places:?} is taken"));
        assert!(told.contains(reason) && !told.contains('\n'), "{places:?}: {told}");
    }
    for places in [["other", "base", "mnt"], ["new/deep", "base", "mnt"], ["base2", "base", "mnt"]]
    {
        assert_eq!(refusal(&root, places), None);
    }
}

#[test]
fn the_first_option_given_is_named() {
    assert_eq!(ScratchConfig::default().first_given(), None);
    let config = ScratchConfig { share: true, copy_up: Some(0), ..ScratchConfig::default() };
    assert_eq!(config.first_given(), Some("copy_up="));
}
