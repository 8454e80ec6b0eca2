use std::os::fd::AsRawFd;
use std::process::Command;

use super::*;

/// Says which of its descriptors were given, in a process that the other test starts.
#[test]
#[ignore = "a part of another test"]
fn name_what_was_given() {
    let own = std::fs::File::open("/dev/null").unwrap();
    let given = inherited().unwrap();
    let numbers: Vec<RawFd> = given.iter().map(AsRawFd::as_raw_fd).collect();
    assert!(!numbers.contains(&own.as_raw_fd()), "{numbers:?}");
    println!("given: 7 {} 9 {}", numbers.contains(&7), numbers.contains(&9));
    drop(given);
    assert!(inherited().unwrap().is_empty());
}

#[test]
fn what_a_parent_left_open_is_found_and_nothing_else() {
    let part = "sys::process::tests::name_what_was_given";
    let program = std::env::current_exe().unwrap();
    let script = "exec \"$0\" --ignored --exact --nocapture \"$1\" 7</dev/null 9</dev/null";
    let output = Command::new("bash").args(["-c", script]).arg(program).arg(part).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("given: 7 true 9 true"), "{text}");
}

#[test]
fn an_identity_is_read_as_it_was_written() {
    let own = Identity::own().unwrap();
    assert_eq!(Identity::parse(&own.to_string()), Some(own));
    assert!(own.is_of_our_namespace());
    let elsewhere = Identity::parse(&format!("{} 1", own.pid.as_raw_pid())).unwrap();
    assert!(!elsewhere.is_of_our_namespace());
    for nothing in ["", "1", "0 1", "-1 1", "x 1", "1 x"] {
        assert_eq!(Identity::parse(nothing), None, "{nothing}");
    }
}
