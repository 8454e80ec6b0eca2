//! One file in a directory, with what is open and mapped of it, to which steps are applied.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use crate::common::mapped::{Mapped, Private};
use crate::common::{Control, errno, open, set_mode};
use crate::step::Step;

/// The unit of all that is done: direct I/O wants it.
const PAGE: usize = 4096;
/// How long the file is at first.
const LEN: usize = 3 * PAGE;
/// More than it ever is.
const MOST: usize = 16 * PAGE;

/// Gives a command about the file to the mount that it is on.
pub type Commands = Box<dyn Fn(&str)>;

/// A file, and who has it.
pub struct World {
    file: PathBuf,
    other: PathBuf,
    /// Stands for the inode, whatever becomes of its names. Opens nothing.
    anchor: File,
    files: Vec<(OFlags, File)>,
    shared: Vec<Mapped>,
    private: Vec<Private>,
    /// Where control commands go, if it is on a mount.
    control: Option<Commands>,
}

/// What is to be seen of a world.
#[derive(Debug, PartialEq)]
pub struct Seen {
    names: [Result<Stat, Errno>; 2],
    files: Vec<(OFlags, Result<Stat, Errno>, Bytes)>,
    shared: Vec<Bytes>,
    private: Vec<Bytes>,
    /// The mode of the inode.
    mode: u32,
}

impl Seen {
    /// Whether a mount shows the same as a plain directory. The setuid bit may be gone where it
    /// is left in the plain one, never the other way round: the kernel writes to a file that was
    /// lent to it without CAP_FSETID, even for root.
    pub fn agrees_with(&self, plain: &Seen) -> bool {
        let bit = rustix::fs::Mode::SUID.bits();
        let kept = self.mode & bit;
        let same_mode = self.mode | bit == plain.mode | bit && kept & !plain.mode == 0;
        let same = self.names == plain.names && self.files == plain.files;
        same && same_mode && self.shared == plain.shared && self.private == plain.private
    }
}

/// Size and links.
type Stat = (u64, u64);

/// What was read, or why not.
#[derive(PartialEq)]
struct Bytes(Result<Vec<u8>, Errno>);

impl std::fmt::Debug for Bytes {
    /// Each run of equal bytes, as `COUNT*BYTE`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Ok(bytes) => {
                let runs = bytes.chunk_by(|one, next| one == next);
                f.debug_list()
                    .entries(runs.map(|run| format!("{}*{:02x}", run.len(), run[0])))
                    .finish()
            }
            Err(err) => write!(f, "{err:?}"),
        }
    }
}

/// A block of equal bytes that starts at a page.
struct Block {
    bytes: Vec<u8>,
    start: usize,
}

impl Block {
    fn new(len: usize, byte: u8) -> Block {
        let bytes = vec![byte; len + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        Block { bytes, start }
    }

    fn get(&mut self) -> &mut [u8] {
        let end = self.bytes.len() - PAGE + self.start;
        &mut self.bytes[self.start..end]
    }
}

/// Makes a file that can be executed, and does nothing then.
pub fn plant(path: &Path) {
    let mut content = b"#!/bin/true\n".to_vec();
    content.resize(LEN, b'.');
    fs::write(path, content).unwrap();
    set_mode(path, 0o755);
}

impl World {
    /// The world of `dir/name`, with `dir/other` as second name, where nothing is open.
    pub fn new(file: PathBuf, other: PathBuf, control: Option<Commands>) -> World {
        let anchor = open(&file, OFlags::PATH).unwrap();
        let (files, shared, private) = (Vec::new(), Vec::new(), Vec::new());
        World { file, other, anchor, files, shared, private, control }
    }

    /// The size of the file.
    pub fn size(&self) -> u64 {
        self.anchor.metadata().unwrap().len()
    }

    /// Whether nothing but mappings may write to the file. Those of a file that was lent to the
    /// kernel are of the backing file: the mount may execute it then.
    pub fn is_written_through_mappings_only(&self) -> bool {
        let writer = |(flags, _): &(OFlags, File)| flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let mapped = !self.shared.is_empty() || !self.private.is_empty();
        mapped && !self.files.iter().any(writer)
    }

    /// What is to be seen, and through the mappings as much as a file of this size has.
    pub fn observe(&self, size: u64) -> Seen {
        let stat = |meta: fs::Metadata| (meta.len(), meta.nlink());
        let by_name = |path: &Path| errno(fs::symlink_metadata(path)).map(stat);
        let by_file = |(flags, file): &(OFlags, File)| {
            (*flags, errno(file.metadata()).map(stat), Bytes(read_all(file)))
        };
        let size = size as usize;
        let shared = |map: &Mapped| Bytes(Ok(map.read(0, map.len().min(size))));
        let private = |map: &Private| Bytes(Ok(map.read(0, LEN.min(size))));
        Seen {
            names: [by_name(&self.file), by_name(&self.other)],
            files: self.files.iter().map(by_file).collect(),
            shared: self.shared.iter().map(shared).collect(),
            private: self.private.iter().map(private).collect(),
            mode: self.anchor.metadata().unwrap().mode(),
        }
    }

    /// Takes a step, the one of this number, and tells what came of it.
    pub fn apply(&mut self, step: Step, number: usize) -> Result<String, Errno> {
        let byte = b'1' + number as u8;
        match step {
            Step::Open(flags) => self.open(flags, byte),
            Step::LinkAndOpen => {
                errno(fs::hard_link(&self.file, &self.other))?;
                let file = open(&self.other, OFlags::RDWR)?;
                let written = write(&file, OFlags::RDWR, byte);
                self.files.push((OFlags::RDWR, file));
                Ok(format!("{written:?}"))
            }
            Step::MapShared => {
                let map = errno(Mapped::shared(self.last()?, self.mappable()?))?;
                self.shared.push(map);
                done()
            }
            Step::MapSharedAndClose => {
                let map = errno(Mapped::shared(self.last()?, self.mappable()?))?;
                self.shared.push(map);
                self.files.pop();
                done()
            }
            Step::MapPrivateAndClose => {
                let map = errno(Private::new(self.last()?, LEN))?;
                self.private.push(map);
                self.files.pop();
                done()
            }
            Step::Store => self.store(byte),
            Step::Unmap => {
                let first = (!self.shared.is_empty()).then(|| self.shared.remove(0));
                Ok(format!("{}", first.is_some()))
            }
            Step::CloseFirst => {
                let first = (!self.files.is_empty()).then(|| self.files.remove(0));
                Ok(format!("{}", first.is_some()))
            }
            Step::CloseLast => Ok(format!("{}", self.files.pop().is_some())),
            Step::Write => {
                let writes = self.files.iter().map(|(flags, file)| write(file, *flags, byte));
                Ok(format!("{:?}", writes.collect::<Vec<_>>()))
            }
            Step::Sync => {
                let syncs = self.files.iter().map(|(_, file)| errno(file.sync_all()));
                Ok(format!("{:?}", syncs.collect::<Vec<_>>()))
            }
            Step::Unlink => unit(errno(fs::remove_file(&self.file))),
            Step::RenameOver => {
                errno(fs::write(&self.other, vec![byte; PAGE]))?;
                unit(errno(fs::rename(&self.other, &self.file)))
            }
            Step::RenameAway => unit(errno(fs::rename(&self.file, &self.other))),
            Step::Execute => execute(&self.file),
            Step::Cut => unit(errno(self.last()?.set_len(PAGE as u64))),
            Step::Grow => unit(
                rustix::fs::open(&self.file, OFlags::WRONLY, 0.into())
                    .and_then(|file| rustix::fs::ftruncate(&file, 5 * PAGE as u64)),
            ),
            Step::Preallocate => {
                let (offset, len) = (2 * PAGE as u64, 4 * PAGE as u64);
                unit(fallocate(self.last()?, FallocateFlags::empty(), offset, len))
            }
            Step::Punch => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                unit(fallocate(self.last()?, punch, PAGE as u64, PAGE as u64))
            }
            Step::SetUserId => {
                let mode = rustix::fs::Mode::from_raw_mode(0o4755);
                unit(rustix::fs::chmod(&self.file, mode))
            }
            Step::AdviseRandom => self.command("advise random"),
            Step::AdviseWillNeed => self.command("advise willneed"),
            Step::Lock => self.command("lock"),
            Step::Flush => self.command("flush"),
            Step::Reload => self.command("reload"),
        }
    }

    fn open(&mut self, flags: OFlags, byte: u8) -> Result<String, Errno> {
        let file = open(&self.file, flags)?;
        let written = write(&file, flags, byte);
        self.files.push((flags, file));
        Ok(format!("{written:?}"))
    }

    fn last(&self) -> Result<&File, Errno> {
        self.files.last().map(|(_, file)| file).ok_or(Errno::BADF)
    }

    /// How much of the file opened last can be mapped, at least a page.
    fn mappable(&self) -> Result<usize, Errno> {
        let size = errno(self.last()?.metadata())?.len();
        Ok((size as usize).clamp(PAGE, LEN))
    }

    fn store(&mut self, byte: u8) -> Result<String, Errno> {
        let size = self.size() as usize;
        for map in &self.shared {
            let end = map.len().min(size);
            map.write(end.saturating_sub(PAGE), &vec![byte; end.min(PAGE) / 2]);
        }
        Ok(format!("{}", self.shared.len()))
    }

    /// Gives a command about the file to the mount, if it is on one.
    fn command(&self, words: &str) -> Result<String, Errno> {
        if let Some(control) = &self.control {
            control(words);
        }
        done()
    }
}

/// Gives commands about the file `name` to the mount at `root`. That they fail is no matter:
/// the file may be gone, or not open.
pub fn commands(root: PathBuf, name: String) -> Commands {
    Box::new(move |words: &str| {
        let answer = Control::open(&root).ask(format!("{words} {name}"));
        assert_ne!(answer.result, Err(Errno::IO), "{words}: {}", answer.text);
    })
}

fn done() -> Result<String, Errno> {
    unit(Ok(()))
}

fn unit(result: Result<(), Errno>) -> Result<String, Errno> {
    result.map(|()| String::from("done"))
}

/// Writes a block where it can be told from others.
fn write(file: &File, flags: OFlags, byte: u8) -> Result<usize, Errno> {
    if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return Ok(0);
    }
    let offset = PAGE * (1 + usize::from(byte) % 2);
    errno(file.write_at(Block::new(PAGE, byte).get(), offset as u64))
}

fn read_all(file: &File) -> Result<Vec<u8>, Errno> {
    let mut block = Block::new(MOST, 0);
    let count = errno(file.read_at(block.get(), 0))?;
    Ok(block.get()[..count].to_vec())
}

/// Executes a file to its end.
fn execute(path: &Path) -> Result<String, Errno> {
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    errno(command.status()).map(|status| format!("{status}"))
}
