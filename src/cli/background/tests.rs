use super::*;

#[test]
fn a_line_of_the_child_is_ready_or_a_failure() {
    assert_eq!(understand("ready\n"), Some(Ok(())));
    assert_eq!(
        understand("2 option `x`: bad: value\n"),
        Some(Err(Failure::usage("", "option `x`: bad: value")))
    );
    assert_eq!(understand("1 no\n"), Some(Err(Failure::failed("", "no"))));
    for nothing in ["", "read", "ready", "1\n", "\n"] {
        assert_eq!(understand(nothing), None, "{nothing:?}");
    }
}

#[test]
fn a_directory_that_is_no_mount_does_not_pass_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let failure = answers(&dir.path().canonicalize().unwrap()).unwrap_err();
    assert!(failure.to_string().contains("unmounted again"), "{failure}");
}
