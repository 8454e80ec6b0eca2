//! The system log, as syslog(3) speaks to it: datagrams to a socket.
//!
//! A line begins with its priority, the program, its process and the mount point. It has no time:
//! the system log knows when it came (RFC 3164, section 4.3.2). Nobody waits for the system log:
//! when it takes no more the line is lost, and their number is told by the next line that is taken.
//! When it is not there lines go to a file ([`Aside`]), which it is told as well once it is: a log
//! that was started anew is found at the next line.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::WARNING;
use super::aside::Aside;
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
    /// Lines lost since the last one that was taken.
    lost: u64,
    aside: Aside,
    /// Lines put aside since the last one that was taken.
    put_aside: u64,
    /// Where lines go, for people.
    told: Arc<Mutex<String>>,
}

impl System {
    /// The system log for the daemon of the mount at `mountpoint`.
    pub(super) fn new(mountpoint: &Path, aside: Aside) -> System {
        let place = std::env::var_os(VARIABLE).unwrap_or_else(|| SOCKET.into());
        let mountpoint = mountpoint.shown();
        let tag = format!("mmapfs[{}]: {mountpoint}: ", std::process::id());
        let told = Arc::new(Mutex::new(String::from("nowhere")));
        System { place, tag, socket: None, lost: 0, aside, put_aside: 0, told }
    }

    /// Finds the system log, or the file for where there is none.
    ///
    /// # Errors
    /// Why there is neither, with the places.
    pub(super) fn find(&mut self) -> io::Result<()> {
        let Err(error) = self.connect() else { return Ok(()) };
        let opened = self.aside.open().map_err(|then| {
            io::Error::other(format!("there is no system log ({error}), and no file ({then})"))
        })?;
        *self.told.lock() = opened.shown().to_string();
        Ok(())
    }

    /// Where lines go, for people; it may change.
    pub(super) fn place(&self) -> Arc<Mutex<String>> {
        Arc::clone(&self.told)
    }

    fn connect(&mut self) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(&self.place).map_err(|error| {
            let place = self.place.shown();
            io::Error::new(error.kind(), format!("{place}: {error}"))
        })?;
        self.socket = Some(socket);
        *self.told.lock() = format!("the system log ({})", self.place.shown());
        Ok(())
    }

    fn tell(&mut self, severity: u8, time: &str, text: &str) {
        if self.lost > 0 {
            let lost = format!("warn mmapfs: {} lines of the log were lost", self.lost);
            if self.send(WARNING, &lost).is_ok() {
                self.lost = 0;
            }
        }
        if self.put_aside > 0 {
            let (count, place) = (self.put_aside, self.aside.path().shown().to_string());
            if self.send(WARNING, &format!("warn mmapfs: {count} lines are in {place}")).is_ok() {
                self.put_aside = 0;
            }
        }
        match self.send(severity, text) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.lost += 1,
            Err(_) => match self.aside.add(&format!("{time} {}{text}\n", self.tag)) {
                Ok(()) => {
                    self.put_aside += 1;
                    *self.told.lock() = self.aside.path().shown().to_string();
                }
                Err(_) => self.lost += 1,
            },
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

/// Takes one line `<SEVERITY TIME>TEXT` at a time.
impl Write for System {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (severity, time, text) = split(&text);
        if severity <= WARNING {
            // There is no other place for a complaint about standard error.
            let _ = writeln!(io::stderr(), "{text}");
        }
        self.tell(severity, time, text);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Severity, time and text of a line; without a severity it is a warning.
fn split(line: &str) -> (u8, &str, &str) {
    let split = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    let known = split.and_then(|(about, text)| {
        let (severity, time) = about.split_once(' ').unwrap_or((about, ""));
        Some((severity.parse().ok()?, time, text))
    });
    known.unwrap_or((WARNING, "", line))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system log, and a daemon that knows where it is.
    fn pair(place: &Path) -> (UnixDatagram, System) {
        let log = UnixDatagram::bind(place).unwrap();
        log.set_nonblocking(true).unwrap();
        let aside = Aside::at(vec![place.with_file_name("aside")]);
        let mut system = System::new(Path::new("/mnt/a\nb"), aside);
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
    fn a_system_log_that_was_started_anew_is_found_and_told_where_lines_are() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("log");
        let (log, mut system) = pair(&place);
        let told = system.place();
        system.write_all(b"<6>one").unwrap();
        assert!(next(&log).unwrap().ends_with("one"));
        assert_eq!(*told.lock(), format!("the system log ({})", place.shown()));
        drop(log);
        std::fs::remove_file(&place).unwrap();
        system.write_all(b"<6 noon>two").unwrap();
        system.write_all(b"<6 one>three").unwrap();
        let aside = dir.path().join("aside");
        assert_eq!(*told.lock(), aside.shown().to_string());
        let tag = format!("mmapfs[{}]: \"/mnt/a\\nb\": ", std::process::id());
        let lines = std::fs::read_to_string(&aside).unwrap();
        assert_eq!(lines, format!("noon {tag}two\none {tag}three\n"));
        let (log, _) = pair(&place);
        system.write_all(b"<6>four").unwrap();
        let line = next(&log).unwrap();
        assert!(line.ends_with(&format!(" 2 lines are in {}", aside.shown())), "{line}");
        assert!(next(&log).unwrap().ends_with("four"));
        system.write_all(b"<6>five").unwrap();
        assert!(next(&log).unwrap().ends_with("five"));
        assert_eq!(next(&log), None);
    }

    #[test]
    fn what_can_go_nowhere_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("log");
        let (log, mut system) = pair(&place);
        system.aside = Aside::at(vec![dir.path().join("log/is/no/directory")]);
        system.write_all(b"<6>one").unwrap();
        drop(log);
        std::fs::remove_file(&place).unwrap();
        std::fs::write(&place, "").unwrap();
        system.write_all(b"<6>two").unwrap();
        let error = system.find().unwrap_err().to_string();
        assert!(error.contains("no system log") && error.contains("no/directory"), "{error}");
        std::fs::remove_file(&place).unwrap();
        let (log, _) = pair(&place);
        system.write_all(b"<6>three").unwrap();
        assert!(next(&log).unwrap().contains(" 1 lines of the log were lost"));
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
