//! A file for the log where there is no system log.
//!
//! All daemons of a user share it, and add whole lines. It is bounded: when it has become large it
//! is moved away, over the one that was moved away before. A file that somebody else has moved or
//! removed is made anew.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};

use crate::config::log_places;
use crate::shown::Show;

/// The largest size of the file, in bytes.
const LARGEST: u64 = 1 << 20;

/// The file, which is opened when it is needed.
pub(super) struct Aside {
    /// Where it may be, the best place first.
    places: Vec<PathBuf>,
    open: Option<(PathBuf, File)>,
    largest: u64,
}

impl Aside {
    /// That of the daemons of this user.
    pub(super) fn of_process() -> Aside {
        Aside::at(log_places())
    }

    /// A file at one of these places.
    pub(super) fn at(places: Vec<PathBuf>) -> Aside {
        Aside { places, open: None, largest: LARGEST }
    }

    /// Where it is, or would be.
    pub(super) fn path(&self) -> &Path {
        let open = self.open.as_ref().map(|(path, _)| path).or(self.places.first());
        open.map_or(Path::new(""), PathBuf::as_path)
    }

    /// Opens it, in the first place where it can be. Returns which that is.
    ///
    /// # Errors
    /// Errors of all places.
    pub(super) fn open(&mut self) -> io::Result<&Path> {
        let mut errors = Vec::new();
        for path in &self.places {
            match open(path) {
                Ok(file) => {
                    let (path, _) = self.open.insert((path.clone(), file));
                    return Ok(path);
                }
                Err(error) => errors.push(format!("{}: {error}", path.shown())),
            }
        }
        let none = || String::from("there is no directory for it");
        let reason = if errors.is_empty() { none() } else { errors.join(", ") };
        Err(io::Error::other(reason))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn add(&mut self, line: &str) -> io::Result<()> {
        self.make_room()?;
        match &mut self.open {
            Some((_, file)) => file.write_all(line.as_bytes()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Sees to it that the file which is open is the one at its place, and not too large.
    fn make_room(&mut self) -> io::Result<()> {
        let in_place = |(path, file): &(PathBuf, File)| {
            let there = path.symlink_metadata().ok()?;
            let own = file.metadata().ok()?;
            let same = (there.dev(), there.ino()) == (own.dev(), own.ino());
            same.then_some(own.len())
        };
        let size = match self.open.as_ref().and_then(in_place) {
            Some(size) => size,
            None => {
                self.open()?;
                self.open.as_ref().and_then(in_place).unwrap_or(0)
            }
        };
        let (true, Some(open)) = (size >= self.largest, &self.open) else { return Ok(()) };
        // One daemon alone moves it away; the others find another one in its place.
        if rustix::fs::flock(&open.1, FlockOperation::NonBlockingLockExclusive).is_ok()
            && in_place(open).is_some()
        {
            std::fs::rename(&open.0, open.0.with_extension("old"))?;
            self.open()?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    // Not what somebody else may have put there: a link, or a pipe that nobody reads.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut options = OpenOptions::new();
    let file =
        options.append(true).create(true).mode(0o600).custom_flags(flags as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_can_be_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let places = ["file/log", "run/deep/log", "state/log"].map(|name| dir.path().join(name));
        let mut aside = Aside::at(places.to_vec());
        assert_eq!(aside.open().unwrap(), places[1]);
        aside.add("one\n").unwrap();
        assert_eq!(std::fs::read_to_string(&places[1]).unwrap(), "one\n");
        assert!(Aside::at(Vec::new()).open().is_err());
    }

    #[test]
    fn it_is_bounded_also_where_several_write_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let mut aside = Aside::at(vec![path.clone()]);
                aside.largest = 10_000;
                scope.spawn(move || {
                    (0..2000).for_each(|line| aside.add(&format!("{thread} {line}\n")).unwrap());
                });
            }
        });
        for (path, least) in [(path.clone(), 1), (path.with_extension("old"), 9_000)] {
            let size = path.metadata().unwrap().len();
            assert!((least..11_000).contains(&size), "{}: {size}", path.shown());
            let lines = std::fs::read_to_string(&path).unwrap();
            assert!(lines.lines().all(|line| line.split(' ').count() == 2), "a line is torn");
        }
    }

    #[test]
    fn a_file_that_was_removed_is_made_anew_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut aside = Aside::at(vec![path.clone()]);
        aside.add("one\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        aside.add("two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(aside.add("three\n").is_err() && !dir.path().join("elsewhere").exists());
    }
}
