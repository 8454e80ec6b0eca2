//! The control tree: a directory of files that exist only in the mount.
//!
//! The [`Router`](super::router::Router) mounts it in the root. All of it belongs to the daemon's
//! user, and only that user and root can enter. `control` takes commands; the other files are
//! reports, which are made when they are opened.
//!
//! Its inodes and handles are numbered from [`FIRST_RESERVED`] on. Commands may take long: without
//! a `wait` that allows it, a request that runs one fails with EAGAIN and changes nothing.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use rustix::io::Errno;

use super::command::LONGEST_LINE;
use super::exec::Executor;
use super::own_thread;
use super::session::{Closer, Session};
use crate::tree::{Attr, Entry, FIRST_RESERVED, HandleId, Ino, Stat, Time, Validity};

mod process_sessions;
mod reports;
mod requests;
#[cfg(test)]
mod tests;

use process_sessions::ProcessSessions;
use reports::Reports;

/// A file of the tree, or its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ControlFile {
    Root,
    Control,
    Status,
    StatusJson,
    Maps,
}

impl ControlFile {
    /// All of them; the index of one is its distance from [`FIRST_RESERVED`].
    const ALL: [ControlFile; 5] = [
        ControlFile::Root,
        ControlFile::Control,
        ControlFile::Status,
        ControlFile::StatusJson,
        ControlFile::Maps,
    ];

    const fn ino(self) -> Ino {
        Ino(FIRST_RESERVED + self as u64)
    }

    fn of(ino: Ino) -> Result<ControlFile, Errno> {
        let index = ino.0.checked_sub(FIRST_RESERVED).and_then(|at| usize::try_from(at).ok());
        index.and_then(|at| ControlFile::ALL.get(at)).copied().ok_or(Errno::STALE)
    }

    fn name(self) -> &'static str {
        match self {
            ControlFile::Root => ".",
            ControlFile::Control => "control",
            ControlFile::Status => "status",
            ControlFile::StatusJson => "status.json",
            ControlFile::Maps => "maps",
        }
    }

    fn mode(self) -> u32 {
        match self {
            ControlFile::Root => libc::S_IFDIR | 0o700,
            ControlFile::Control => libc::S_IFREG | 0o600,
            ControlFile::Status | ControlFile::StatusJson | ControlFile::Maps => {
                libc::S_IFREG | 0o400
            }
        }
    }

    /// Writes inside a file's size may run side by side, so the control file claims one. It says
    /// nothing about the bytes that can be read.
    fn size(self) -> u64 {
        match self {
            ControlFile::Control => LONGEST_LINE as u64,
            _ => 0,
        }
    }
}

/// An open file.
enum OpenFile {
    Control(Arc<Session>),
    Report(Arc<[u8]>),
}

/// The handle of every open directory: a listing has no state.
const DIRECTORY: HandleId = HandleId(FIRST_RESERVED);

/// The control tree of one mount.
pub struct ControlTree {
    owner: (u32, u32),
    started: Time,
    executor: Arc<Executor>,
    /// The last handle that was given.
    last_handle: AtomicU64,
    open: RwLock<HashMap<HandleId, OpenFile>>,
    /// Files are read without being opened: then each report is made when its size is asked for.
    silent: bool,
    reports: Reports,
    process_sessions: ProcessSessions,
}

impl ControlTree {
    /// The inode of its root.
    pub const ROOT: Ino = ControlFile::Root.ino();

    /// A tree that is owned by the user and group `owner`. With `silent` the kernel opens its files
    /// without a request.
    pub fn new(owner: (u32, u32), silent: bool, executor: Arc<Executor>) -> ControlTree {
        ControlTree {
            owner,
            started: now(),
            executor,
            last_handle: AtomicU64::new(DIRECTORY.0),
            open: RwLock::default(),
            silent,
            reports: Reports::default(),
            process_sessions: ProcessSessions::default(),
        }
    }

    /// The attributes without those that take a report to know.
    fn fixed_attr(&self, file: ControlFile) -> Attr {
        let stat = Stat {
            ino: file.ino().0,
            mode: file.mode(),
            nlink: if file == ControlFile::Root { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            size: file.size(),
            blksize: 4096,
            atime: self.started,
            mtime: self.started,
            ctime: self.started,
            ..Stat::default()
        };
        let validity = if self.silent { Validity::Uncached } else { Validity::Timeout };
        Attr { ino: file.ino(), stat, validity }
    }

    fn attr_of(&self, file: ControlFile) -> Attr {
        let mut attr = self.fixed_attr(file);
        if self.silent
            && let Some((text, at)) = self.recent_report(file)
        {
            attr.stat.mtime = at;
            attr.stat.size = text.len() as u64;
        }
        attr
    }

    fn entry(attr: Attr) -> Entry {
        Entry { attr, generation: 0, validity: attr.validity }
    }

    /// A report as a reader without a handle sees it, and when it was made.
    fn recent_report(&self, file: ControlFile) -> Option<(Arc<[u8]>, Time)> {
        self.reports.recent(file.ino(), || self.report(file))
    }

    /// The text of a report; `None` for a file that is none.
    fn report(&self, file: ControlFile) -> Option<String> {
        match file {
            ControlFile::Root | ControlFile::Control => None,
            ControlFile::Status => Some(self.answer(b"status")),
            ControlFile::StatusJson => Some(self.answer(b"json status")),
            ControlFile::Maps => Some(self.answer(b"maps")),
        }
    }

    fn answer(&self, command: &[u8]) -> String {
        let (mut text, _) = self.executor.answer(command);
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    fn new_session(&self) -> OpenFile {
        OpenFile::Control(Arc::new(Session::new(Arc::clone(&self.executor))))
    }

    fn add(&self, file: OpenFile) -> HandleId {
        let id = HandleId(self.last_handle.fetch_add(1, Ordering::Relaxed) + 1);
        self.open.write().insert(id, file);
        id
    }

    fn session(&self, id: HandleId) -> Result<Arc<Session>, Errno> {
        match self.open.read().get(&id) {
            Some(OpenFile::Control(session)) => Ok(Arc::clone(session)),
            _ => Err(Errno::BADF),
        }
    }

    /// The session of an ioctl: that of the handle, or where the kernel has opened the file without
    /// a request, a new one that the process keeps until it has read the answer.
    fn session_for(&self, id: HandleId, process: u32) -> Result<Arc<Session>, Errno> {
        if has_session(id) {
            return self.session(id);
        }
        let new = self.add(self.new_session());
        let mut open = self.open.write();
        self.process_sessions.replace(process, new).for_each(|old| drop(open.remove(&old)));
        drop(open);
        self.session(new)
    }

    /// The next piece of the answer to the commands of a process, at most `len` bytes.
    fn take_answer(&self, id: HandleId, process: u32, len: usize) -> Result<Vec<u8>, Errno> {
        if has_session(id) {
            return Ok(self.session(id)?.read(len));
        }
        let own = self.process_sessions.of(process).ok_or(Errno::BADF)?;
        let piece = self.session(own)?.read(len);
        if piece.len() < len {
            let ended = self.process_sessions.end(process);
            drop(ended.map(|id| self.open.write().remove(&id)));
        }
        Ok(piece)
    }

    /// Runs the part of a line that the last closer of a file has left. The log has its failure,
    /// since no client is left to be told.
    fn finish_later(session: Arc<Session>) {
        if session.has_part() {
            own_thread::run("control", move || session.finish(Closer::Last).unwrap_or_default());
        }
    }

    fn path(file: ControlFile) -> PathBuf {
        match file {
            ControlFile::Root => PathBuf::new(),
            file => Path::new(file.name()).to_owned(),
        }
    }

    /// The file with a name in the root.
    fn find(parent: Ino, name: &OsStr) -> Result<ControlFile, Errno> {
        if ControlFile::of(parent)? != ControlFile::Root {
            return Err(Errno::NOTDIR);
        }
        let mut files = ControlFile::ALL.into_iter().skip(1);
        files.find(|file| name == file.name()).ok_or(Errno::NOENT)
    }
}

/// Whether a handle is that of an open file.
fn has_session(id: HandleId) -> bool {
    id != HandleId::NONE && id != DIRECTORY
}

fn now() -> Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    Time { sec: now.as_secs() as i64, nsec: now.subsec_nanos() }
}
