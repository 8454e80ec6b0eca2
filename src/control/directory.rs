//! The control directory: a few files that exist only in the mount.
//!
//! Reachable by name in the root, and listed there only on request. All of it belongs to the
//! daemon's user; nobody but that user and root can enter. `control` takes commands; the others
//! are reports, made when they are opened.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::command::LONGEST_LINE;
use super::exec::Executor;
use super::report::Kernel;
use super::session::{Closer, Session};
use crate::config::ControlVisibility;
use crate::tree::{Attr, Entry, FIRST_RESERVED, HandleId, Ino, SetAttr, Stat, Time, Validity};

/// The attribute of the root that names the directory, so that clients find it.
const XATTR: &str = "user.mmapfs.control";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Control,
    Status,
    StatusJson,
    Maps,
}

const KINDS: [Kind; 5] =
    [Kind::Directory, Kind::Control, Kind::Status, Kind::StatusJson, Kind::Maps];

impl Kind {
    fn ino(self) -> Ino {
        Ino(FIRST_RESERVED + self as u64)
    }

    fn of(ino: Ino) -> Option<Kind> {
        KINDS.into_iter().find(|kind| kind.ino() == ino)
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Directory => ".",
            Kind::Control => "control",
            Kind::Status => "status",
            Kind::StatusJson => "status.json",
            Kind::Maps => "maps",
        }
    }

    fn mode(self) -> u32 {
        match self {
            Kind::Directory => libc::S_IFDIR | 0o700,
            Kind::Control => libc::S_IFREG | 0o600,
            Kind::Status | Kind::StatusJson | Kind::Maps => libc::S_IFREG | 0o400,
        }
    }

    /// Writes inside a file's size may run side by side, so the control file claims one; what
    /// can be read there has nothing to do with it.
    fn size(self) -> u64 {
        match self {
            Kind::Control => LONGEST_LINE as u64,
            _ => 0,
        }
    }
}

enum Opened {
    Control(Arc<Session>),
    Text(Arc<[u8]>),
}

/// The control directory of one mount.
pub struct ControlDir {
    name: OsString,
    visibility: ControlVisibility,
    owner: (u32, u32),
    started: Time,
    executor: Arc<Executor>,
    next: AtomicU64,
    open: RwLock<HashMap<u64, Opened>>,
    /// Files are read without being opened: then each report is made when its size is asked for.
    silent: bool,
    /// The reports as they were made last.
    reports: Mutex<HashMap<Ino, Made>>,
    /// The sessions of processes whose control file was opened without asking, the oldest first.
    doors: Mutex<VecDeque<(u32, HandleId)>>,
}

/// A report that is read without having been opened: it stays what it is while it is being read.
struct Made {
    text: Arc<[u8]>,
    at: Time,
    used: Instant,
}

/// Time without a look at a report, after which it is made anew.
const IDLE: Duration = Duration::from_secs(1);

/// The most processes that may be in the middle of a command without an open file of their own.
const MOST_DOORS: usize = 256;

impl ControlDir {
    /// A control directory called `name` in the root, owned by the user and group `owner`.
    pub fn new(
        name: OsString,
        visibility: ControlVisibility,
        owner: (u32, u32),
        silent: bool,
        executor: Arc<Executor>,
    ) -> ControlDir {
        ControlDir {
            name,
            visibility,
            owner,
            started: now(),
            executor,
            // Apart from the numbers of the volume's handles.
            next: AtomicU64::new(FIRST_RESERVED),
            open: RwLock::default(),
            silent,
            reports: Mutex::default(),
            doors: Mutex::default(),
        }
    }

    /// Notes what was agreed on with the kernel.
    pub fn session_started(&self, kernel: Kernel) {
        self.executor.session_started(kernel);
    }

    /// Whether an inode is one of the directory's.
    pub fn owns(&self, ino: Ino) -> bool {
        ino.0 >= FIRST_RESERVED
    }

    /// The name under which the root lists it, if it does.
    pub fn listed(&self) -> Option<(&OsStr, Ino)> {
        let listed = self.visibility == ControlVisibility::Visible;
        listed.then(|| (self.name.as_os_str(), Kind::Directory.ino()))
    }

    /// Finds a name that is the directory's concern; `None` leaves it to the tree.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Option<Result<Entry, Errno>> {
        if parent == Ino::ROOT {
            let ours = self.visibility != ControlVisibility::Off && name == self.name;
            return ours.then(|| Ok(self.entry(Kind::Directory)));
        }
        if !self.owns(parent) {
            return None;
        }
        let kind = KINDS.into_iter().skip(1).find(|kind| name == kind.name());
        Some(kind.map(|kind| self.entry(kind)).ok_or(Errno::NOENT))
    }

    fn entry(&self, kind: Kind) -> Entry {
        let validity = if self.silent { Validity::Uncached } else { Validity::Timeout };
        let attr = self.attr(kind.ino()).unwrap_or_else(|| self.attr_of(kind));
        Entry { attr, generation: 0, validity }
    }

    /// Attributes of one of its files; `None` leaves the inode to the tree.
    pub fn attr(&self, ino: Ino) -> Option<Attr> {
        let kind = Kind::of(ino)?;
        let mut attr = self.attr_of(kind);
        if self.silent {
            attr.validity = Validity::Uncached;
        }
        if self.silent
            && let Some((text, at)) = self.made(kind)
        {
            attr.stat.mtime = at;
            attr.stat.size = text.len() as u64;
        }
        Some(attr)
    }

    fn attr_of(&self, kind: Kind) -> Attr {
        let stat = Stat {
            ino: kind.ino().0,
            mode: kind.mode(),
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            size: kind.size(),
            blksize: 4096,
            atime: self.started,
            mtime: self.started,
            ctime: self.started,
            ..Stat::default()
        };
        Attr { ino: kind.ino(), stat, validity: Validity::Timeout }
    }

    /// A shell's `>` truncates before it writes: that is accepted and does nothing. Nothing else
    /// about these files can be changed.
    ///
    /// # Errors
    /// EPERM for any change but that of the size.
    pub fn set_attr(&self, change: &SetAttr) -> Result<(), Errno> {
        let other = change.mode.is_some() || change.uid.is_some() || change.gid.is_some();
        if other { Err(Errno::PERM) } else { Ok(()) }
    }

    /// The value of an attribute that is the directory's concern; `None` leaves it to the tree.
    pub fn xattr(&self, ino: Ino, name: &OsStr) -> Option<Result<&[u8], Errno>> {
        if self.owns(ino) {
            return Some(Err(Errno::NODATA));
        }
        let ours = ino == Ino::ROOT && name == XATTR && self.visibility != ControlVisibility::Off;
        ours.then(|| Ok(self.name.as_encoded_bytes()))
    }

    /// The entries of the directory from `offset` on, each with the offset after it.
    pub fn entries(&self, offset: u64) -> impl Iterator<Item = (&'static str, Attr, u64)> {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let next = (1..).skip(skip);
        let kinds = KINDS.into_iter().skip(skip).zip(next);
        kinds.map(|(kind, next)| (kind.name(), self.attr_of(kind), next))
    }

    /// Opens one of its files.
    ///
    /// # Errors
    /// EACCES for writing a report; ESTALE for an unknown inode.
    pub fn open(&self, ino: Ino, _read: bool, write: bool) -> Result<HandleId, Errno> {
        let kind = Kind::of(ino).ok_or(Errno::STALE)?;
        let opened = match self.report(kind) {
            _ if kind == Kind::Directory => return Err(Errno::ISDIR),
            Some(_) if write => return Err(Errno::ACCESS),
            Some(text) => Opened::Text(text.into_bytes().into()),
            None => self.new_session(),
        };
        Ok(self.add(opened))
    }

    fn new_session(&self) -> Opened {
        Opened::Control(Arc::new(Session::new(Arc::clone(&self.executor))))
    }

    fn add(&self, opened: Opened) -> HandleId {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().insert(id, opened);
        HandleId(id)
    }

    /// The open control file to which a process gives a command: its own handle, or where the
    /// kernel has opened it without asking, one that is kept until the answer was read.
    pub fn door(&self, id: HandleId, process: u32) -> HandleId {
        if id != HandleId::NONE {
            return id;
        }
        let new = self.add(self.new_session());
        let mut doors = self.doors.lock();
        let answered = |door: &(u32, HandleId)| door.0 == process;
        let old = doors.iter().position(answered).and_then(|at| doors.remove(at));
        doors.push_back((process, new));
        // Of processes that never came for their answers, the oldest.
        let excess = if doors.len() > MOST_DOORS { doors.pop_front() } else { None };
        drop(doors);
        let mut open = self.open.write();
        old.into_iter().chain(excess).for_each(|(_, id)| drop(open.remove(&id.0)));
        new
    }

    /// The next piece of the answer to what a process has commanded, at most `len` bytes.
    ///
    /// # Errors
    /// EBADF when it has commanded nothing.
    pub fn answer(&self, id: HandleId, process: u32, len: usize) -> Result<Vec<u8>, Errno> {
        let find =
            |doors: &VecDeque<(u32, HandleId)>| doors.iter().position(|door| door.0 == process);
        let own = match id {
            HandleId::NONE => {
                let doors = self.doors.lock();
                find(&doors).and_then(|at| doors.get(at)).map(|door| door.1).ok_or(Errno::BADF)?
            }
            id => id,
        };
        let piece = self.session(own)?.read(len);
        if id == HandleId::NONE && piece.len() < len {
            let mut doors = self.doors.lock();
            let door = find(&doors).and_then(|at| doors.remove(at));
            drop(doors);
            drop(door.map(|(_, id)| self.open.write().remove(&id.0)));
        }
        Ok(piece)
    }

    /// A report and when it was made: now, unless it was looked at a moment ago.
    fn made(&self, kind: Kind) -> Option<(Arc<[u8]>, Time)> {
        let mut reports = self.reports.lock();
        if let Some(made) = reports.get_mut(&kind.ino())
            && made.used.elapsed() < IDLE
        {
            made.used = Instant::now();
            return Some((Arc::clone(&made.text), made.at));
        }
        let text: Arc<[u8]> = self.report(kind)?.into_bytes().into();
        let made = Made { text: Arc::clone(&text), at: now(), used: Instant::now() };
        let at = made.at;
        reports.insert(kind.ino(), made);
        Some((text, at))
    }

    /// The text of a report; `None` for what is none.
    fn report(&self, kind: Kind) -> Option<String> {
        match kind {
            Kind::Directory | Kind::Control => None,
            Kind::Status => Some(self.text(b"status", false)),
            Kind::StatusJson => Some(self.text(b"status", true)),
            Kind::Maps => Some(self.text(b"maps", false)),
        }
    }

    fn text(&self, command: &[u8], json: bool) -> String {
        let line = if json { [b"json ", command].concat() } else { command.to_vec() };
        let (mut text, _) = self.executor.answer(&line);
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    /// Reads a report at `offset`, or what is left of the control file's answers: a client that
    /// has written stands behind what it wrote, not where the answer begins, so that `offset`
    /// means nothing there.
    ///
    /// # Errors
    /// EBADF for an unknown handle.
    pub fn read(&self, ino: Ino, id: HandleId, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        if id == HandleId::NONE {
            let made = Kind::of(ino).and_then(|kind| self.made(kind)).ok_or(Errno::BADF)?;
            return Ok(part(&made.0, offset, len));
        }
        match self.open.read().get(&id.0).ok_or(Errno::BADF)? {
            Opened::Control(session) => Ok(session.read(len)),
            Opened::Text(text) => Ok(part(text, offset, len)),
        }
    }

    fn session(&self, id: HandleId) -> Result<Arc<Session>, Errno> {
        match self.open.read().get(&id.0) {
            Some(Opened::Control(session)) => Ok(Arc::clone(session)),
            _ => Err(Errno::BADF),
        }
    }

    /// Takes what was written to the control file, by a process that `writer` is the number of as
    /// [`ControlDir::finish`] will tell it. The commands in it run on a thread of their
    /// own, which tells `done` the result.
    pub fn write(
        &self,
        id: HandleId,
        data: Vec<u8>,
        writer: Option<u64>,
        done: impl FnOnce(Result<usize, Errno>) + Send + 'static,
    ) {
        match self.session(id) {
            Ok(session) => {
                let count = data.len();
                run(move || done(session.feed(&data, writer).map(|()| count)));
            }
            Err(err) => done(Err(err)),
        }
    }

    /// Ends a line that was written without its newline, when its writer closes the file.
    pub fn finish(
        &self,
        id: HandleId,
        closer: u64,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        match self.session(id) {
            Ok(session) if session.has_part() => {
                run(move || done(session.finish(Closer::Process(closer))));
            }
            _ => done(Ok(())),
        }
    }

    /// Ends an open file.
    ///
    /// # Errors
    /// EBADF for an unknown handle.
    pub fn release(&self, id: HandleId) -> Result<(), Errno> {
        let opened = self.open.write().remove(&id.0).ok_or(Errno::BADF)?;
        if let Opened::Control(session) = opened
            && session.has_part()
        {
            // Nobody is left to be told how it went: the log has it.
            run(move || session.finish(Closer::Last).unwrap_or_default());
        }
        Ok(())
    }
}

fn now() -> Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    Time { sec: now.as_secs() as i64, nsec: now.subsec_nanos() }
}

fn part(text: &[u8], offset: u64, len: usize) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(len).min(text.len());
    text.get(start..end).unwrap_or_default().to_vec()
}

/// Runs a command on its own thread, or here when there is none to be had.
fn run(command: impl FnOnce() + Send + 'static) {
    let slot = Arc::new(parking_lot::Mutex::new(Some(command)));
    let theirs = Arc::clone(&slot);
    let take = |slot: &parking_lot::Mutex<Option<_>>| slot.lock().take();
    let started = std::thread::Builder::new().name(String::from("control")).spawn(move || {
        if let Some(command) = take(&theirs) {
            command();
        }
    });
    if let Err(err) = started {
        log::warn!("control: starting a thread: {err}: the command runs on an event loop");
        if let Some(command) = slot.lock().take() {
            command();
        }
    }
}
