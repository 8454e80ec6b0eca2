//! What a daemon in the background keeps of the program that started it, and where it logs.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fs::{FlockOperation, flock};

use super::*;
use crate::common::mounted;

#[track_caller]
fn assert_mounted(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_lock_that_was_held_while_mounting_is_free_afterwards() {
    if !(require_fuse() && require_program("flock")) {
        return;
    }
    let background = Background::new();
    let lock = background.path("lock");
    let before = ["flock".as_ref(), lock.as_os_str()];
    assert_mounted(&background.command(&before, "access=write").output().unwrap());
    flock(File::open(&lock).unwrap(), FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_content(background.mountpoint.join("file"), b"content");
}

#[test]
fn a_pipe_of_the_caller_ends_and_nothing_above_standard_error_is_kept() {
    if !require_fuse() {
        return;
    }
    let background = Background::new();
    let program = program();
    let script = "exec 7>&1; exec \"$0\" \"$@\" >/dev/null";
    let mut caller = Command::new("bash")
        .args(["-c", script])
        .arg(program)
        .args(["mount", "-o", "access=write"])
        .args([&background.source, &background.mountpoint])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    caller.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(caller.wait().unwrap().success());
    assert_eq!(text, "");
    assert_content(background.mountpoint.join("file"), b"content");
    for number in 0..3 {
        let link = format!("/proc/{}/fd/{number}", background.pid());
        assert_eq!(fs::read_link(link).unwrap(), Path::new("/dev/null"));
    }
}

#[test]
fn an_option_may_name_a_descriptor_of_the_caller() {
    if !require_fuse() {
        return;
    }
    let background = Background::new();
    let rules = background.path("rules");
    fs::write(&rules, "[[rule]]\nmatch = \"file\"\naccess = \"read\"\n").unwrap();
    let script = "exec \"$0\" \"$@\" 9<\"$RULES\"";
    let output = Command::new("bash")
        .args(["-c", script])
        .arg(program())
        .args(["mount", "-o", "access=write,rules=/proc/self/fd/9"])
        .args([&background.source, &background.mountpoint])
        .env("RULES", &rules)
        .output()
        .unwrap();
    assert_mounted(&output);
    assert!(fs::write(background.mountpoint.join("file"), b"x").is_err());
    fs::write(background.mountpoint.join("other"), b"x").unwrap();
}

/// Fails unless the rule of before holds, and holds after `reload`, which says that it was kept.
#[track_caller]
fn assert_rules_stay(background: &Background) {
    let check = || {
        assert!(fs::write(background.mountpoint.join("file"), b"x").is_err());
        fs::write(background.mountpoint.join("other"), b"x").unwrap();
    };
    check();
    let answer = ask(&background.mountpoint, "reload").text();
    assert!(answer.contains("1 rule kept as read at mount: "), "{answer}");
    check();
    let answer = ask(&background.mountpoint, "json reload").json();
    assert_eq!((&answer["kept"], &answer["rules"]), (&true.into(), &1.into()), "{answer}");
}

#[test]
fn rules_from_a_pipe_are_read_once_and_stay_at_a_reload() {
    if !require_fuse() {
        return;
    }
    const RULES: &str = "[[rule]]\nmatch = \"file\"\naccess = \"read\"\n";
    let background = Background::new();
    let script = "exec \"$0\" \"$@\" 9< <(printf %s \"$RULES\")";
    let mut command = background.command(
        &["bash".as_ref(), "-c".as_ref(), script.as_ref()],
        "access=write,rules=/dev/fd/9",
    );
    assert_mounted(&command.env("RULES", RULES).output().unwrap());
    assert_rules_stay(&background);

    // One with a name, to which nobody writes at the reload.
    let background = Background::new();
    let fifo = background.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let writer = {
        let fifo = fifo.clone();
        std::thread::spawn(move || fs::write(fifo, RULES).unwrap())
    };
    let options = format!("access=write,rules={}", fifo.display());
    assert_mounted(&background.command(&[], &options).output().unwrap());
    writer.join().unwrap();
    assert_rules_stay(&background);
}

/// Mounts with a descriptor of the shell: `$0 $@ REDIRECTION`, where `$FILE` is this path.
#[track_caller]
fn mount_with(background: &Background, redirection: &str, file: &Path, options: &str) {
    let mut command = background.command(
        &["bash".as_ref(), "-c".as_ref(), format!("exec \"$0\" \"$@\" {redirection}").as_ref()],
        options,
    );
    assert_mounted(&command.env("FILE", file).output().unwrap());
}

#[test]
fn the_log_may_be_a_descriptor_of_the_caller() {
    if !require_fuse() {
        return;
    }
    let background = Background::new();
    let log = background.path("log");
    mount_with(&background, "3>>\"$FILE\"", &log, "access=write,log_file=/dev/fd/3");
    assert!(fs::read_to_string(&log).unwrap().contains("is served on"));
    assert_eq!(fs::read_link(format!("/proc/{}/fd/2", background.pid())).unwrap(), log);
}

#[test]
fn the_log_may_be_a_pipe_of_the_caller() {
    if !require_fuse() {
        return;
    }
    let background = Background::new();
    let program = program();
    let mut caller = Command::new("bash")
        .args(["-c", "exec \"$0\" \"$@\" 7>&1 >/dev/null"])
        .arg(program)
        .args(["mount", "-o", "access=write,log_file=/proc/self/fd/7"])
        .args([&background.source, &background.mountpoint])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(caller.stdout.take().unwrap());
    assert!(log.lines().any(|line| line.unwrap().contains("is served on")));
    assert!(caller.wait().unwrap().success());
    assert_content(background.mountpoint.join("file"), b"content");
}

#[test]
fn a_scratch_may_be_a_descriptor_of_the_caller() {
    if !require_fuse() {
        return;
    }
    let background = Background::new();
    let scratch = background.dir.directory("scratch");
    mount_with(&background, "8<\"$FILE\"", &scratch, "access=copy,scratch=/dev/fd/8");
    fs::write(background.mountpoint.join("file"), b"changed").unwrap();
    assert!(scratch.join("state.json").exists());
    assert_content(background.source.join("file"), b"content");
}

fn next_line(log: &UnixDatagram) -> String {
    let mut line = [0; 8192];
    let len = log.recv(&mut line).unwrap();
    String::from_utf8(line[..len].to_vec()).unwrap()
}

#[test]
fn the_log_of_a_daemon_in_the_background_goes_to_the_system_log_whatever_becomes_of_that() {
    if !require_fuse() {
        return;
    }
    let background = Background::new();
    let place = background.path("syslog");
    let listen = || {
        let log = UnixDatagram::bind(&place).unwrap();
        log.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        log
    };
    let log = listen();
    let mut command = background.command(&[], "access=write");
    let output = command.env("MMAPFS_SYSLOG", &place).output().unwrap();
    assert_mounted(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let mountpoint = background.mountpoint.display().to_string();
    let begin = format!("<30>mmapfs[{}]: {mountpoint}: info ", background.pid());
    let line = next_line(&log);
    assert!(line.starts_with(&begin) && line.contains("is served on"), "{line}");
    // It ends, lines are lost, and another one takes its place.
    drop(log);
    fs::remove_file(&place).unwrap();
    background.reload();
    let log = listen();
    background.reload();
    let line = next_line(&log);
    assert!(line.contains(&format!("mmapfs[{}]: {mountpoint}: ", background.pid())), "{line}");
}

impl Background {
    /// Has the rules read again, which the daemon logs.
    fn reload(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }
}

#[test]
fn where_there_is_no_system_log_the_log_is_in_a_file_that_status_names() {
    if !require_fuse() {
        return;
    }
    let background = Background::new();
    let (run, state) = (background.path("run"), background.path("state"));
    let mount = |options: &str| {
        let mut command = background.command(&[], options);
        let places = [("MMAPFS_RUN_DIR", &run), ("MMAPFS_STATE_DIR", &state)];
        let command = command.envs(places).env("MMAPFS_SYSLOG", background.path("nothing"));
        let output = command.output().unwrap();
        assert_mounted(&output);
        let status = ask(&background.mountpoint, "json status").json();
        let pid = background.pid();
        rustix::mount::unmount(&background.mountpoint, rustix::mount::UnmountFlags::DETACH)
            .or_else(|_| {
                match mounted::run(&["umount".as_ref(), background.mountpoint.as_os_str()]) {
                    output if output.status.success() => Ok(()),
                    _ => Err(rustix::io::Errno::IO),
                }
            })
            .unwrap();
        (String::from_utf8(output.stderr).unwrap(), status["log"].clone(), pid)
    };
    let (told, place, pid) = mount("access=write");
    assert_eq!((told.as_str(), &place), ("", &run.join("log").display().to_string().into()));
    let tag = format!(" mmapfs[{pid}]: {}: info mmapfs", background.mountpoint.display());
    let served = |log: &Path| {
        let text = fs::read_to_string(log).unwrap();
        text.lines().any(|line| line.contains(&tag) && line.contains("is served on"))
    };
    assert!(served(&run.join("log")));

    let log = background.path("named");
    let (told, place, _) = mount(&format!("access=write,log_file={}", log.display()));
    assert_eq!((told.as_str(), &place), ("", &log.display().to_string().into()));
    assert!(fs::read_to_string(log).unwrap().contains("is served on"));
    assert_eq!(mount("access=write,log=off").0, "");

    // The run directory cannot be.
    fs::remove_dir_all(&run).unwrap();
    fs::write(&run, "").unwrap();
    let (told, place, _) = mount("access=write");
    assert_eq!((told.as_str(), &place), ("", &state.join("log").display().to_string().into()));
    fs::remove_dir_all(&state).unwrap();
    fs::write(&state, "").unwrap();
    let (told, place, _) = mount("access=write");
    assert!(told.starts_with("mmapfs: log: it goes nowhere: there is no system log"), "{told}");
    assert_eq!((told.lines().count(), place), (1, "nowhere".into()));
}
