//! The system log, as syslog(3) speaks to it: datagrams to a socket.
//!
//! A line begins with its priority, the program, its process and the mount point. It has no time:
//! the system log knows when it came (RFC 3164, section 4.3.2). Nobody waits for the system log:
//! when it takes no more, or is not there, the line is lost, and their number is told by the next
//! line that is taken. A log that was started anew is found at the next line.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::WARNING;
use crate::shown::Show;

/// Where syslog(3) sends to. systemd has a link there to its journal.
const SOCKET: &str = "/dev/log";
/// The environment variable that names another socket.
const VARIABLE: &str = "MMAPFS_SYSLOG";
/// The facility `daemon` of syslog(3), in the place that it has in a priority.
const FACILITY: u8 = 3 << 3;
/// The longest line in bytes, which every system log takes.
const LONGEST: usize = 8000;

/// Sends every line to the system log, and copies warnings and errors to standard error.
pub(super) struct System {
    /// Where the system log listens.
    place: OsString,
    /// `mmapfs[PID]: MNT: `
    tag: String,
    socket: Option<UnixDatagram>,
    /// How many lines were lost since the last one that was taken.
    lost: u64,
}

impl System {
    /// The system log for the daemon of the mount at `mountpoint`.
    pub(super) fn new(mountpoint: &Path) -> System {
        let place = std::env::var_os(VARIABLE).unwrap_or_else(|| SOCKET.into());
        let mountpoint = mountpoint.shown();
        let tag = format!("mmapfs[{}]: {mountpoint}: ", std::process::id());
        System { place, tag, socket: None, lost: 0 }
    }

    /// Finds the system log.
    ///
    /// # Errors
    /// Why there is none, with its place.
    pub(super) fn connect(&mut self) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(&self.place).map_err(|error| {
            let place = self.place.shown();
            io::Error::new(error.kind(), format!("{place}: {error}"))
        })?;
        self.socket = Some(socket);
        Ok(())
    }

    fn tell(&mut self, severity: u8, text: &str) {
        if self.lost > 0 {
            let lost = format!("warn mmapfs: {} lines of the log were lost", self.lost);
            if self.send(WARNING, &lost).is_ok() {
                self.lost = 0;
            }
        }
        if self.send(severity, text).is_err() {
            self.lost += 1;
        }
    }

    fn send(&mut self, severity: u8, text: &str) -> io::Result<()> {
        let line = format!("<{}>{}{text}", FACILITY | severity, self.tag);
        let end = (0..=LONGEST).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        let line = line.get(..end.min(line.len())).unwrap_or(&line);
        let sent = self.socket.as_ref().map(|socket| socket.send(line.as_bytes()));
        match sent {
            Some(Ok(_)) => return Ok(()),
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => return Err(error),
            // It has gone, and perhaps another one has taken its place.
            Some(Err(_)) | None => self.socket = None,
        }
        self.connect()?;
        self.socket.as_ref().map_or(Ok(0), |socket| socket.send(line.as_bytes())).map(drop)
    }
}

/// Takes one line `<SEVERITY>TEXT` at a time.
impl Write for System {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (severity, text) = split(&text);
        if severity <= WARNING {
            // There is no other place for a complaint about standard error.
            let _ = writeln!(io::stderr(), "{text}");
        }
        self.tell(severity, text);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Severity and text of a line; without a severity it is a warning.
fn split(line: &str) -> (u8, &str) {
    let split = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    let known = split.and_then(|(severity, text)| Some((severity.parse().ok()?, text)));
    known.unwrap_or((WARNING, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system log, and a daemon that knows where it is.
    fn pair(place: &Path) -> (UnixDatagram, System) {
        let log = UnixDatagram::bind(place).unwrap();
        log.set_nonblocking(true).unwrap();
        let mut system = System::new(Path::new("/mnt/a\nb"));
        system.place = place.into();
        (log, system)
    }

    fn next(log: &UnixDatagram) -> Option<String> {
        let mut line = [0; 2 * LONGEST];
        let len = log.recv(&mut line).ok()?;
        Some(String::from_utf8(line[..len].to_vec()).unwrap())
    }

    #[test]
    fn a_line_tells_priority_process_and_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        let (log, mut system) = pair(&dir.path().join("log"));
        system.write_all(b"<6>info mmapfs: served").unwrap();
        let pid = std::process::id();
        let line = format!("<30>mmapfs[{pid}]: \"/mnt/a\\nb\": info mmapfs: served");
        assert_eq!(next(&log), Some(line));
    }

    #[test]
    fn a_system_log_that_was_started_anew_is_found_and_told_what_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("log");
        let (log, mut system) = pair(&place);
        system.write_all(b"<6>one").unwrap();
        assert!(next(&log).unwrap().ends_with("one"));
        drop(log);
        std::fs::remove_file(&place).unwrap();
        system.write_all(b"<6>two").unwrap();
        system.write_all(b"<6>three").unwrap();
        let (log, _) = pair(&place);
        system.write_all(b"<6>four").unwrap();
        assert!(next(&log).unwrap().contains(" 2 lines of the log were lost"));
        assert!(next(&log).unwrap().ends_with("four"));
        system.write_all(b"<6>five").unwrap();
        assert!(next(&log).unwrap().ends_with("five"));
        assert_eq!(next(&log), None);
    }

    #[test]
    fn nobody_waits_for_a_system_log_that_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (log, mut system) = pair(&dir.path().join("log"));
        while system.lost == 0 {
            system.write_all(b"<6>a line").unwrap();
        }
        while next(&log).is_some() {}
        system.write_all(b"<6>the last").unwrap();
        assert!(next(&log).unwrap().contains(" 1 lines of the log were lost"));
        assert!(next(&log).unwrap().ends_with("the last"));
    }

    #[test]
    fn a_long_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (log, mut system) = pair(&dir.path().join("log"));
        system.write_all(format!("<6>{}", "x".repeat(100_000)).as_bytes()).unwrap();
        assert_eq!(next(&log).unwrap().len(), LONGEST);
    }
}
