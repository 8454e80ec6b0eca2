use std::path::PathBuf;

use super::*;
use crate::config::options::Unknown;
use crate::config::{ControlVisibility, MountOptions, RuleSet};

fn config(options: &str, fsname: &str, mountpoint_kind: SourceKind) -> MountConfig {
    let options = MountOptions::parse([options], Unknown::Refused).unwrap();
    let mode = options.view.resolve().unwrap();
    MountConfig {
        settings: options.settings,
        source: PathBuf::from("/srv"),
        source_kind: SourceKind::Directory,
        mountpoint: PathBuf::from("/nowhere/mounted"),
        mountpoint_kind,
        view: options.view,
        mode,
        rules_file: None,
        rules_stay: false,
        rules: RuleSet::default(),
        scratch: None,
        control: ControlVisibility::Hidden,
        log_file: None,
        kernel: KernelOptions { fsname: fsname.into(), ..options.kernel },
    }
}

fn data(options: &str, kind: SourceKind) -> String {
    let data = String::from_utf8(kernel_data(&config(options, "/srv", kind), 7)).unwrap();
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    data.replace(&format!(",user_id={user},group_id={group}"), "")
}

#[test]
fn the_kernel_is_told_in_its_own_words() {
    let directory = SourceKind::Directory;
    assert_eq!(data("", directory), "fd=7,rootmode=40000,default_permissions");
    assert_eq!(data("", SourceKind::File), "fd=7,rootmode=100000,default_permissions");
    assert_eq!(
        data("allow_other,max_read=65536,noatime,fsname=x", directory),
        "fd=7,rootmode=40000,default_permissions,allow_other,max_read=65536"
    );
    assert_eq!(
        data("allow_root,context=u:r:t:s0:c1\\,c2,rootcontext=u:r:t", directory),
        "fd=7,rootmode=40000,default_permissions,allow_other,context=\"u:r:t:s0:c1,c2\",\
         rootcontext=u:r:t"
    );
}

#[test]
fn fusermount_is_told_everything_with_commas_escaped() {
    let config = config("ro,suid,noatime,silent,auto_unmount", "/a,b\\c", SourceKind::Directory);
    assert_eq!(
        fusermount::options(&config),
        r"ro,nodev,noatime,suid,default_permissions,fsname=/a\,b\\c,subtype=mmapfs,auto_unmount"
    );
}

#[test]
fn what_is_not_mounted_is_not_unmounted_again() {
    let mountpoint = PathBuf::from("/nowhere/mounted");
    let mut mounted =
        Mounted { mountpoint, dev: (0, u32::MAX), needs_fusermount: false, keeper: None };
    assert!(!mounted.is_mounted().unwrap());
    assert_eq!(mounted.unmount(false), Ok(()));
}

#[test]
fn a_device_that_cannot_be_opened_says_what_to_do() {
    assert!(no_device(Errno::NOENT).to_string().contains("modprobe fuse"));
    assert!(no_device(Errno::ACCESS).to_string().contains("may not use the device"));
}
