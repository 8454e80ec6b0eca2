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
    for nothing in ["", "1", "1 1", "0 1 1", "-1 1 1", "x 1 1", "1 x 1", "1 1 x", "1 1 1 1"] {
        assert_eq!(Identity::parse(nothing), None, "{nothing}");
    }
}

#[test]
fn only_the_process_itself_is_found_by_its_identity() {
    let own = Identity::own().unwrap();
    assert!(own.open().is_some() && !own.is_stopped());
    assert!(Identity { started: own.started + 1, ..own }.open().is_none());
    assert!(Identity { namespace: own.namespace + 1, ..own }.open().is_none());
    let mut child = Command::new("true").spawn().unwrap();
    let pid = Pid::from_child(&child);
    let ended = Identity { pid, started: Stat::read(pid).unwrap().started, ..own };
    child.wait().unwrap();
    assert!(ended.open().is_none());
}

#[test]
fn the_name_of_a_program_does_not_hide_its_start() {
    let zeros = "0 ".repeat(18);
    let stat = Stat::parse(&format!("7 (a) Z (\n) T {zeros}4711 0 0")).unwrap();
    assert_eq!((stat.state, stat.started), ('T', 4711));
    assert!(Stat::parse("7 (a) T 0").is_none());
}
