//! A client of the control file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::files::{errno, open};

/// The answer to one command.
#[derive(Debug)]
pub struct Answer {
    /// What write(2) said.
    pub result: Result<(), Errno>,
    /// What was then read.
    pub text: String,
}

impl Answer {
    /// The text of a command that has to succeed.
    #[track_caller]
    pub fn text(self) -> String {
        assert_eq!(self.result, Ok(()), "{}", self.text);
        assert!(!self.text.starts_with("error:"), "{}", self.text);
        self.text
    }

    /// The JSON of a command that has to succeed.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("not JSON: {err}: {text}"))
    }

    /// The text of a command that has to fail with this errno; it starts with `error:`.
    #[track_caller]
    pub fn fails_with(self, expected: Errno) -> String {
        assert_eq!(self.result, Err(expected), "{}", self.text);
        assert!(self.text.starts_with("error: "), "no error line: {:?}", self.text);
        self.text
    }
}

/// An open control file.
pub struct Control(File);

impl Control {
    /// Opens the control file of the mount at `root`.
    #[track_caller]
    pub fn open(root: &Path) -> Control {
        let path = root.join(".mmapfs/control");
        Control(open(&path, OFlags::RDWR).unwrap_or_else(|err| panic!("{}: {err}", path.display())))
    }

    /// Writes without waiting for an answer.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        errno(self.0.write(bytes))
    }

    /// Reads what there is to read.
    #[track_caller]
    pub fn read(&mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        text
    }

    /// Writes a line and reads the answer.
    #[track_caller]
    pub fn ask(&mut self, line: impl AsRef<[u8]>) -> Answer {
        let mut bytes = line.as_ref().to_vec();
        bytes.push(b'\n');
        let result = self.write(&bytes).map(|len| assert_eq!(len, bytes.len(), "short write"));
        Answer { result, text: self.read() }
    }
}

/// Sends one command to the mount at `root`.
#[track_caller]
pub fn ask(root: &Path, line: impl AsRef<[u8]>) -> Answer {
    Control::open(root).ask(line)
}
