//! Answers of the plain lower layers, for steps under the namespace lock, which ask for nothing.
//!
//! An answer is kept until the end of the operation that needed it, with a lookup held of every
//! inode in it: an inode number means the same file throughout. A direct change of the base that
//! the watch reports ([`super::base_changes`]) discards all earlier answers.

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::namespace_lock::{Halt, Step};
use super::node::{LowerInode, Node};
use super::overlay_xattrs::{ROOT, XattrNames};
use crate::error::cause::because;
use crate::layers::pages::Fingerprint;
use crate::mapping::OpenMode;
use crate::tree::{Attributes, Entry, Ino, Names, Stat, Xattrs};

/// A question to a lower layer.
enum Question {
    /// The entry at a name in a directory, and at these names in turn from there.
    Entry(LowerInode, OsString, Vec<OsString>),
    /// The attributes of the entry at a name.
    Peek(LowerInode, OsString),
    Stat(LowerInode),
    /// All that a copy of it needs.
    Original(LowerInode),
    /// A descriptor to read its bytes.
    Reader(LowerInode),
    Fingerprint(LowerInode),
    /// The names in a directory that are to be seen, up to one that nothing above hides.
    NamesRead(Ino),
}

/// An answer of a lower layer.
enum Answer {
    /// With a lookup held of what was found.
    Entry(LowerInode, OsString, Result<Entry, Errno>),
    Peek(LowerInode, OsString, Result<Stat, Errno>),
    Stat(LowerInode, Result<Stat, Errno>),
    Original(LowerInode, Result<Rc<Original>, Errno>),
    Reader(LowerInode, Result<Arc<OwnedFd>, Errno>),
    Fingerprint(LowerInode, Result<Fingerprint, Errno>),
    NamesRead(Ino, Result<Rc<LowerNames>, Errno>),
}

/// The properties of a lower file or directory that its copy gets.
pub(super) struct Original {
    pub(super) stat: Stat,
    /// Extended attributes by the names that the upper volume stores them under.
    pub(super) xattrs: Vec<(OsString, Vec<u8>)>,
    /// Of a symbolic link.
    pub(super) target: OsString,
    pub(super) fingerprint: Fingerprint,
    /// A clone of a regular file that nothing is made of yet: its name in the work directory.
    pub(super) clone: RefCell<Option<(OsString, Entry)>>,
}

/// NamesRead that are in the lower layers of a directory.
pub(super) struct LowerNames {
    pub(super) names: Vec<OsString>,
    /// There are no others.
    pub(super) all: bool,
}

/// The answers of lower layers that an operation has.
pub(super) struct Answers<'a> {
    overlay: &'a Overlay,
    known: RefCell<Vec<Answer>>,
    question: RefCell<Option<Question>>,
    /// Number of changes of the base when the first answer was asked for.
    changes: Cell<u64>,
    /// Subjects of the questions, with a lookup held of each.
    held: RefCell<Vec<LowerInode>>,
    /// Files that are copied are cloned, where that can be.
    clones: bool,
}

/// The cause of an ESTALE for an inode of the base that its volume does not know any more.
const LOST: &str = "the base has lost it meanwhile";

impl Drop for Answers<'_> {
    fn drop(&mut self) {
        for at in self.held.borrow().iter() {
            self.overlay.let_go_below(*at);
        }
        self.forget();
    }
}

impl<'a> Answers<'a> {
    pub(super) fn none(overlay: &'a Overlay) -> Answers<'a> {
        let (known, question, held) = Default::default();
        let changes = Cell::new(overlay.outdated.changes());
        Answers { overlay, known, question, changes, held, clones: false }
    }

    /// The same for a file that is about to be written.
    pub(super) fn cloning(overlay: &'a Overlay) -> Answers<'a> {
        let mut answers = Answers::none(overlay);
        answers.clones = true;
        answers
    }

    /// Drops what was answered before the last change of the base that somebody told of. Whoever
    /// calls has locked the names, and so has whoever tells.
    pub(super) fn renew(&self) {
        let now = self.overlay.outdated.changes();
        if self.changes.replace(now) != now {
            self.forget();
        }
    }

    fn forget(&self) {
        for answer in self.known.borrow_mut().drain(..) {
            match answer {
                Answer::Entry(dir, _, Ok(entry)) => {
                    self.overlay.let_go_below(LowerInode { ino: entry.attr.ino, ..dir });
                }
                Answer::Original(_, Ok(original)) => {
                    if let Some((name, entry)) = original.clone.take() {
                        self.overlay.drop_clone(&name, &entry);
                    }
                }
                _ => {}
            }
        }
    }

    /// Keeps something known until the end.
    pub(super) fn hold(&self, at: LowerInode) -> Result<(), Errno> {
        if !self.overlay.lower(at)?.look_up_again(at.ino) {
            return Err(because(Errno::STALE, LOST));
        }
        self.held.borrow_mut().push(at);
        Ok(())
    }

    fn find<T>(&self, of: impl FnMut(&Answer) -> Option<T>) -> Option<T> {
        self.known.borrow().iter().find_map(of)
    }

    /// Ends a step until a question about something is answered.
    fn need<T>(&self, at: LowerInode, question: Question) -> Step<T> {
        self.hold(at)?;
        *self.question.borrow_mut() = Some(question);
        Err(Halt::Ask)
    }

    /// The entry at a name in a directory of a lower layer. One lookup of it is the caller's.
    pub(super) fn lookup(&self, dir: LowerInode, name: &OsStr) -> Step<Entry> {
        let known = self.find(|answer| match answer {
            Answer::Entry(of, at, found) if *of == dir && at == name => Some(*found),
            _ => None,
        });
        let Some(found) = known else {
            return self.need(dir, Question::Entry(dir, name.to_owned(), Vec::new()));
        };
        let entry = found?;
        match self.overlay.lower(dir)?.look_up_again(entry.attr.ino) {
            true => Ok(entry),
            false => Err(Halt::Failed(because(Errno::STALE, LOST))),
        }
    }

    /// Has the names that follow asked for as well, where a name is to be asked for.
    pub(super) fn go_on<'n>(&self, rest: impl Iterator<Item = &'n OsStr>) {
        if let Some(Question::Entry(_, _, names)) = &mut *self.question.borrow_mut() {
            names.extend(rest.map(OsStr::to_owned));
        }
    }

    /// The attributes of the entry at a name in a directory of a lower layer.
    pub(super) fn peek(&self, dir: LowerInode, name: &OsStr) -> Step<Stat> {
        if !self.overlay.is_plain(dir) {
            return Ok(self.overlay.layer(dir)?.peek(dir.ino, name)?.0);
        }
        let known = self.find(|answer| match answer {
            Answer::Peek(of, at, found) if *of == dir && at == name => Some(*found),
            Answer::Entry(of, at, found) if *of == dir && at == name => {
                Some(found.map(|entry| entry.attr.stat))
            }
            _ => None,
        });
        match known {
            Some(found) => Ok(found?),
            None => self.need(dir, Question::Peek(dir, name.to_owned())),
        }
    }

    /// The attributes of something in a lower layer.
    pub(super) fn stat(&self, at: LowerInode) -> Step<Stat> {
        if !self.overlay.is_plain(at) {
            return Ok(self.overlay.layer(at)?.attr(at.ino, None)?.stat);
        }
        let known = self.find(|answer| match answer {
            Answer::Stat(of, stat) if *of == at => Some(*stat),
            Answer::Original(of, Ok(original)) if *of == at => Some(Ok(original.stat)),
            Answer::Entry(dir, _, Ok(entry))
                if (LowerInode { ino: entry.attr.ino, ..*dir }) == at =>
            {
                Some(Ok(entry.attr.stat))
            }
            _ => None,
        });
        match known {
            Some(stat) => Ok(stat?),
            None => self.need(at, Question::Stat(at)),
        }
    }

    /// The properties of a lower file or directory that its copy gets.
    pub(super) fn original(&self, at: LowerInode) -> Step<Rc<Original>> {
        let known = self.find(|answer| match answer {
            Answer::Original(of, original) if *of == at => Some(original.clone()),
            _ => None,
        });
        match known {
            Some(original) => Ok(original?),
            None => self.need(at, Question::Original(at)),
        }
    }

    /// A file in a lower layer, open to be read.
    pub(super) fn reader(&self, at: LowerInode) -> Step<Arc<OwnedFd>> {
        let known = self.find(|answer| match answer {
            Answer::Reader(of, file) if *of == at => Some(file.clone()),
            _ => None,
        });
        match known {
            Some(file) => Ok(file?),
            None => self.need(at, Question::Reader(at)),
        }
    }

    /// A file in a lower layer as it is at this moment. It need not be readable.
    pub(super) fn fingerprint(&self, at: LowerInode) -> Step<Fingerprint> {
        let known = self.find(|answer| match answer {
            Answer::Fingerprint(of, found) if *of == at => Some(*found),
            _ => None,
        });
        match known {
            Some(found) => Ok(found?),
            None => self.need(at, Question::Fingerprint(at)),
        }
    }

    /// NamesRead that the lower layers of a directory show where nothing above hides them: all, or some
    /// of which one was not hidden when they were read.
    pub(super) fn names(&self, dir: &Node) -> Step<Rc<LowerNames>> {
        let known = self.find(|answer| match answer {
            Answer::NamesRead(of, names) if *of == dir.ino => Some(names.clone()),
            _ => None,
        });
        match known {
            Some(names) => Ok(names?),
            None => self.need_names(dir),
        }
    }

    /// Has the names of a directory asked for, anew where that was done.
    pub(super) fn need_names<T>(&self, dir: &Node) -> Step<T> {
        let is_of_it =
            |answer: &Answer| matches!(answer, Answer::NamesRead(of, _) if *of == dir.ino);
        self.known.borrow_mut().retain(|answer| !is_of_it(answer));
        dir.stack().lowers.iter().try_for_each(|at| self.hold(*at))?;
        *self.question.borrow_mut() = Some(Question::NamesRead(dir.ino));
        Err(Halt::Ask)
    }

    /// Asks what a step needs to know. Nothing is locked by the caller.
    ///
    /// # Errors
    /// EIO where nothing was to be asked.
    pub(super) fn ask(&self) -> Result<(), Errno> {
        let question = self.question.borrow_mut().take().ok_or(Errno::IO)?;
        let overlay = self.overlay;
        let answer = match question {
            Question::Entry(mut at, name, rest) => {
                let mut names = std::iter::once(name).chain(rest);
                let mut name = names.next().ok_or(Errno::IO)?;
                loop {
                    let found = overlay.layer(at).and_then(|volume| volume.lookup(at.ino, &name));
                    let Some((next, entry)) = names.next().zip(found.ok()) else {
                        break Answer::Entry(at, name, found);
                    };
                    self.known.borrow_mut().push(Answer::Entry(at, name, found));
                    (at, name) = (LowerInode { ino: entry.attr.ino, ..at }, next);
                }
            }
            Question::Peek(at, name) => {
                let found = overlay.layer(at).and_then(|volume| volume.peek(at.ino, &name));
                Answer::Peek(at, name, found.map(|(stat, _)| stat))
            }
            Question::Stat(at) => {
                let found = overlay.layer(at).and_then(|volume| volume.attr(at.ino, None));
                Answer::Stat(at, found.map(|attr| attr.stat))
            }
            Question::Original(at) => {
                Answer::Original(at, overlay.original(at, self.clones).map(Rc::new))
            }
            Question::Reader(at) => Answer::Reader(at, overlay.open_below(at)),
            Question::Fingerprint(at) => {
                let file = overlay.layer(at).and_then(|volume| volume.open_path(at.ino));
                Answer::Fingerprint(at, file.and_then(Fingerprint::of))
            }
            Question::NamesRead(dir) => {
                let names = overlay.node(dir).and_then(|node| overlay.names_below(&node));
                Answer::NamesRead(dir, names.map(Rc::new))
            }
        };
        self.known.borrow_mut().push(answer);
        Ok(())
    }

    /// Asks what a name in the first plain one of directories leads to, for a step that will need
    /// it.
    pub(super) fn expect_entry(&self, dirs: &[LowerInode], name: &OsStr) {
        if let Some(dir) = dirs.iter().find(|dir| self.overlay.is_plain(**dir)) {
            self.expect(*dir, Question::Entry(*dir, name.to_owned(), Vec::new()));
        }
    }

    /// Asks what is at a name in the first plain one of directories, for a step that will need it.
    pub(super) fn expect_peek(&self, dirs: &[LowerInode], name: &OsStr) {
        if let Some(dir) = dirs.iter().find(|dir| self.overlay.is_plain(**dir)) {
            self.expect(*dir, Question::Peek(*dir, name.to_owned()));
        }
    }

    fn expect(&self, at: LowerInode, question: Question) {
        // Where it cannot be asked for now, the step asks.
        if self.need::<()>(at, question) == Err(Halt::Ask) {
            let _ = self.ask();
        }
    }
}

impl Overlay {
    /// A file in a lower layer, open to be read.
    pub(super) fn open_below(&self, at: LowerInode) -> Result<Arc<OwnedFd>, Errno> {
        self.layer(at)?.open_descriptor(at.ino, OpenMode::Read)?.shared_reader()
    }

    /// All that a copy takes from something in a lower layer.
    fn original(&self, at: LowerInode, clones: bool) -> Result<Original, Errno> {
        let volume = self.layer(at)?;
        let mut stat = volume.attr(at.ino, None)?.stat;
        let mut is_whole = true;
        if let Some(parts) = self.layer_of(at)?.overlay() {
            let xattrs = self.xattrs_in(parts, at.ino, &stat).map_err(|err| err.errno())?;
            let links = i64::from(stat.nlink) + xattrs.more_links(&stat).unwrap_or(0);
            stat.nlink = u32::try_from(links).unwrap_or(1);
            stat.rdev = if xattrs.null_device { 0 } else { stat.rdev };
            is_whole = !xattrs.metacopy;
        }
        let target = match stat.kind() {
            libc::S_IFLNK => volume.read_link(at.ino)?,
            _ => OsString::new(),
        };
        let fingerprint = Fingerprint::of(volume.open_path(at.ino)?)?;
        let xattrs = self.xattrs_below(at)?;
        let clone = match stat.kind() {
            libc::S_IFREG if clones && is_whole && stat.size > 0 => self.make_clone(at)?,
            _ => None,
        };
        Ok(Original { stat, xattrs, target, fingerprint, clone: RefCell::new(clone) })
    }

    /// The xattrs of a file of any layer, by the names that the upper volume stores them under.
    pub(super) fn xattrs_below(&self, at: LowerInode) -> Result<Vec<(OsString, Vec<u8>)>, Errno> {
        let (volume, stored) = (self.layer(at)?, self.xattr_names(at));
        let mut names = vec![0; 65_536];
        let len = match volume.list_xattr(at.ino, &mut names, &ROOT) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(err) => return Err(err),
        };
        let mut found = Vec::new();
        for name in names.get(..len).unwrap_or_default().split(|byte| *byte == 0) {
            let Some(shown) = stored.shown(name).filter(|name| !name.is_empty()) else { continue };
            let mut value = vec![0; 65_536];
            match volume.get_xattr(at.ino, OsStr::from_bytes(name), &mut value) {
                Ok(len) => value.truncate(len),
                // Shown and not to be had, as the kernel's own for filesystems in userspace.
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => continue,
                Err(err) => return Err(err),
            }
            let name = XattrNames::Escaped.stored(OsStr::from_bytes(&shown)).into_owned();
            found.push((name, value));
        }
        Ok(found)
    }
}
