//! One open control file: lines in, answers out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::command::{CommandError, ErrorKind, LONGEST_LINE};
use super::exec::Executor;

/// The input of one client, and the answers that it may still read.
pub(super) struct Session {
    executor: Arc<Executor>,
    /// A line that has not ended yet. Held while commands run, so that those of one descriptor
    /// run one after the other.
    part: Mutex<Part>,
    has_part: AtomicBool,
    answer: Mutex<Answer>,
}

/// The most bytes of answers that may wait to be read.
const MOST_UNREAD: usize = 1 << 20;

/// The closer of a control file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Closer {
    /// A process, one of its descriptors.
    Process(u64),
    /// The last of all.
    Last,
}

#[derive(Default)]
struct Part {
    line: Vec<u8>,
    /// The line is too long: the rest of it is passed over.
    skipping: bool,
    /// The process that wrote it, by the kernel's number for its table of descriptors.
    writer: Option<u64>,
}

#[derive(Default)]
struct Answer {
    text: Vec<u8>,
    cursor: usize,
}

impl Session {
    pub(super) fn new(executor: Arc<Executor>) -> Session {
        Session {
            executor,
            part: Mutex::default(),
            has_part: AtomicBool::new(false),
            answer: Mutex::default(),
        }
    }

    /// Takes bytes and runs every line that they complete. The first that fails ends it: what
    /// follows it in the same write is dropped, since the writer is told that it was not taken.
    pub(super) fn feed(&self, data: &[u8], writer: Option<u64>) -> Result<(), Errno> {
        let mut part = self.part.lock();
        part.writer = writer;
        let result = data.split_inclusive(|byte| *byte == b'\n').try_for_each(|piece| {
            let (piece, ends) = match piece.strip_suffix(b"\n") {
                Some(piece) => (piece, true),
                None => (piece, false),
            };
            self.add(&mut part, piece)?;
            if ends { self.end_line(&mut part) } else { Ok(()) }
        });
        if result.is_err() && data.last() == Some(&b'\n') {
            *part = Part::default();
        }
        self.has_part.store(!part.line.is_empty(), Ordering::Release);
        result
    }

    fn add(&self, part: &mut Part, piece: &[u8]) -> Result<(), Errno> {
        if part.skipping {
            return Ok(());
        }
        if part.line.len() + piece.len() > LONGEST_LINE {
            part.line.clear();
            part.skipping = true;
            let why = format!("a line has at most {LONGEST_LINE} bytes");
            let error = CommandError::new(ErrorKind::Argument, why);
            self.tell(&format!("error: {}", error.message));
            return Err(Errno::from_raw_os_error(error.errno()));
        }
        part.line.extend_from_slice(piece);
        Ok(())
    }

    fn end_line(&self, part: &mut Part) -> Result<(), Errno> {
        let line = std::mem::take(&mut part.line);
        if std::mem::take(&mut part.skipping) || line.trim_ascii().is_empty() {
            return Ok(());
        }
        let (text, result) = self.executor.answer(&line);
        self.tell(&text);
        result
    }

    /// Whether a line was begun and not ended.
    pub(super) fn has_part(&self) -> bool {
        self.has_part.load(Ordering::Acquire)
    }

    /// Ends the line that was begun, when its writer closes the file, or when it is closed for
    /// good. A process that was forked off in between closes its copy, and means nothing by it.
    pub(super) fn finish(&self, closer: Closer) -> Result<(), Errno> {
        let mut part = self.part.lock();
        if let Closer::Process(process) = closer
            && part.writer.is_some_and(|writer| writer != process)
        {
            return Ok(());
        }
        self.has_part.store(false, Ordering::Release);
        self.end_line(&mut part)
    }

    fn tell(&self, text: &str) {
        let mut answer = self.answer.lock();
        // A client that only writes does not fill the memory: what it has not read so far is
        // dropped.
        let unread = answer.text.len() - answer.cursor;
        if unread == 0 || unread > MOST_UNREAD {
            *answer = Answer::default();
        }
        answer.text.extend_from_slice(text.as_bytes());
        if !text.ends_with('\n') {
            answer.text.push(b'\n');
        }
    }

    /// The next bytes of the answers, at most `len`; empty when all were read.
    pub(super) fn read(&self, len: usize) -> Vec<u8> {
        let mut answer = self.answer.lock();
        let end = answer.cursor.saturating_add(len).min(answer.text.len());
        let bytes = answer.text.get(answer.cursor..end).unwrap_or_default().to_vec();
        answer.cursor = end;
        bytes
    }
}
