use std::collections::BTreeSet;

use super::fuse::CAPABILITIES;
use super::*;

#[test]
fn every_capability_that_a_mount_asks_for_is_examined() {
    for name in crate::fuse::wanted() {
        assert!(CAPABILITIES.iter().any(|topic| topic.0 == name), "{name}");
    }
}

#[test]
fn every_check_has_its_own_name_and_says_what_it_is_for() {
    let dir = tempfile::tempdir().unwrap();
    let examination = Examination::of(dir.path()).unwrap();
    let names: BTreeSet<&str> = examination.checks.iter().map(|check| check.name).collect();
    assert_eq!(names.len(), examination.checks.len());
    for check in &examination.checks {
        let texts = [&check.detail, check.used_for, check.without];
        assert!(texts.iter().all(|text| !text.is_empty()), "{check:?}");
    }
}

#[test]
fn checks_of_a_group_stand_together() {
    let dir = tempfile::tempdir().unwrap();
    let text = Examination::of(dir.path()).unwrap().text(false).to_string();
    assert_eq!(text.matches("\nMounting\n").count(), 1);
    assert_eq!(text.matches("\nLimits\n").count(), 1);
    assert_eq!(text.matches("\nFUSE in this kernel\n").count(), 1);
}

#[test]
fn a_path_that_is_no_directory_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let failure = Examination::of(file.path()).unwrap_err();
    assert!(failure.reason.contains("Not a directory"), "{failure}");
    assert_eq!(failure.exit_code(), 1);
}
