use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use rustix::thread::UnshareFlags;

use super::*;

fn run_part(part: &str) {
    let program = std::env::current_exe().unwrap();
    let part = format!("sys::confine::tests::{part}");
    let arguments = ["--ignored", "--exact", "--nocapture", &part];
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "a part of another test, in a process of its own"]
fn confined() {
    rustix::thread::set_no_new_privs(true).unwrap();
    // Threads that are there already, and those that are started later.
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let earlier = std::thread::spawn(move || {
        gone.recv().unwrap();
        Command::new("true").status().unwrap_err().kind()
    });
    filter_system_calls().unwrap();
    go.send(()).unwrap();
    assert_eq!(earlier.join().unwrap(), ErrorKind::PermissionDenied);
    let refused = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
    };
    std::thread::spawn(move || refused(Command::new("true").status().map(drop))).join().unwrap();
    refused(UdpSocket::bind("127.0.0.1:0").map(drop));
    let namespace = UnshareFlags::NEWNS.bits() as libc::c_int;
    // SAFETY: it is refused.
    refused(super::super::check(unsafe { libc::unshare(namespace) }).map_err(Into::into));
    UnixDatagram::unbound().unwrap();
    std::fs::read("/proc/self/status").unwrap();
}

#[test]
fn a_filter_leaves_files_and_takes_programs_networks_and_namespaces_from_every_thread() {
    if let Err(errno) = filters_are_there() {
        return eprintln!("SKIPPED: this kernel filters no system calls: {errno}");
    }
    run_part("confined");
}

#[test]
#[ignore = "a part of another test, in a process of its own"]
fn without_network() {
    rustix::thread::set_no_new_privs(true).unwrap();
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listening.local_addr().unwrap();
    take_network(landlock_version().unwrap(), false).unwrap();
    let refused = std::net::TcpStream::connect(place).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
}

#[test]
fn landlock_takes_the_network() {
    match landlock_version() {
        Ok(4..) => run_part("without_network"),
        other => eprintln!("SKIPPED: Landlock here: {other:?}"),
    }
}

#[test]
fn no_call_is_twice_in_the_list_and_none_of_those_that_are_left_out() {
    let mut numbers: Vec<u32> = ALLOWED.iter().map(|call| call.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), ALLOWED.len());
    let left_out = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_setuid,
        libc::SYS_bpf,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_setns,
        libc::SYS_kill,
    ];
    for number in left_out {
        assert!(!numbers.contains(&(number as u32)), "{number}");
    }
}
