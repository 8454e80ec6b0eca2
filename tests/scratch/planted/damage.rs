//! What somebody may do to the directory of a scratch that is not mounted.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, XattrFlags};

use super::World;
use crate::common::*;

/// Everything in a directory, without itself.
fn paths(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![top.to_owned()];
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && found.len() < 500 {
                next.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// The content of a regular file: what is written to it again must not go through a link.
fn content(path: &Path) -> Option<Vec<u8>> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    is_file.then(|| fs::read(path).ok())?
}

/// The number of the file that a name itself is.
fn own_inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |found| found.ino())
}

/// Takes all marks away from a file, as a copy without attributes does.
fn lose_marks(path: &Path) -> String {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let marks = names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"trusted."));
    marks.for_each(|name| rustix::fs::lremovexattr(path, name).unwrap());
    "all marks removed".into()
}

/// Whether what is there is shown in a mount: page maps and the state would be files of bytes that
/// no client wrote.
fn shows(top: &Path, path: &Path) -> bool {
    path.starts_with(top.join("upper")) || path.starts_with(top.join("index"))
}

pub(super) struct Damage<'a> {
    pub(super) world: &'a World,
    pub(super) random: Random,
    /// Files that have lost one of the two marks that say that they are in pieces: without both
    /// they are files of zeros.
    pub(super) bare: HashSet<u64>,
    /// Nothing else is changed in this round.
    pub(super) alone: bool,
    /// The scratch says that all of it is on the disk: then a file without any mark is missed.
    pub(super) in_order: bool,
}

impl Damage<'_> {
    fn below(&mut self, end: usize) -> usize {
        self.random.below(end.max(1) as u64) as usize
    }

    /// Changes something, and says what.
    pub(super) fn plant(&mut self) -> String {
        let top = self.world.path("s");
        let all = paths(&top);
        let Some(path) = all.get(self.below(all.len())).cloned() else { return String::new() };
        let shown = path.strip_prefix(&top).unwrap().display().to_string();
        let has_marks = shows(&top, &path);
        let how = match self.random.below(14) {
            0 => return self.bytes(&top),
            1 => return self.field(&top),
            2 | 3 if self.alone => return self.map(&top),
            4 if self.alone && self.in_order && has_marks => lose_marks(&path),
            4..=7 if has_marks => self.mark(&path),
            8..=10 => self.replace(&path, &all),
            11 => {
                let (user, group) = (self.random.pick(&[0, 12345, u32::MAX - 1]), 0);
                format!("owner {user}: {:?}", lchown(&path, Some(user), Some(group)))
            }
            12 => {
                let mode = self.random.pick(&[0, 0o4777, 0o777, 0o1000]);
                let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
                if !is_link {
                    set_mode(&path, mode);
                }
                format!("mode {mode:o}")
            }
            _ => self.move_away(&top, &path),
        };
        format!("{shown}: {how}")
    }

    /// Changes bytes of a file that is no page map.
    fn bytes(&mut self, top: &Path) -> String {
        let name = self.random.pick(&["state.json", "lock", "state.json"]);
        let Some(mut bytes) = content(&top.join(name)) else { return String::new() };
        let how = self.below(4);
        match how {
            0 => bytes.truncate(self.below(bytes.len())),
            1 => bytes.extend(self.random.bytes(20)),
            _ => {
                for _ in 0..=self.below(3) {
                    let (at, byte) = (self.below(bytes.len()), self.random.next() as u8);
                    if let Some(place) = bytes.get_mut(at) {
                        *place = byte;
                    }
                }
            }
        }
        let _ = fs::write(top.join(name), bytes);
        format!("{name}: bytes {how}")
    }

    /// Changes a field of the state, which loses its checksum: one of before is believed.
    fn field(&mut self, top: &Path) -> String {
        let path = top.join("state.json");
        let text = content(&path).unwrap_or_default();
        let Ok(mut state) = serde_json::from_slice::<serde_json::Value>(&text) else {
            return String::new();
        };
        let fields = [
            "/id",
            "/kind",
            "/marks",
            "/max",
            "/base/path",
            "/base/inode",
            "/copy_up",
            "/boot",
            "/mount",
            "/in_order",
            "/directory",
            "/version",
        ];
        let values = [
            serde_json::json!("own-tmpfs"),
            serde_json::json!("shared-memory"),
            serde_json::json!("user"),
            serde_json::json!("../../victim"),
            serde_json::json!("0123456789ab"),
            serde_json::json!(u64::MAX),
            serde_json::json!(0),
            serde_json::json!(1),
            serde_json::json!(null),
            serde_json::json!(true),
            serde_json::json!([47, 0, 255]),
        ];
        let (field, value) = (self.random.pick(&fields), self.below(values.len()));
        let value = &values[value];
        if let Some(place) = state.pointer_mut(field) {
            place.clone_from(value);
        }
        if let Some(members) = state.as_object_mut() {
            members.remove("checksum");
        }
        let _ = fs::write(&path, state.to_string());
        format!("{field} = {value}")
    }

    /// Changes a page map, which its checksums and its length tell.
    fn map(&mut self, top: &Path) -> String {
        let maps = paths(&top.join("pages"));
        let Some(path) = maps.get(self.below(maps.len())) else { return String::new() };
        let Some(mut bytes) = content(path).filter(|bytes| !bytes.is_empty()) else {
            return String::new();
        };
        let how = self.below(6);
        match how {
            0 => bytes.truncate(self.below(bytes.len())),
            4 => {
                let start = self.below(bytes.len() / 512) * 512;
                bytes.iter_mut().skip(start).take(512).for_each(|byte| *byte = 0);
            }
            1 => {
                let other = content(&maps[self.below(maps.len())]);
                bytes = other.unwrap_or_default();
            }
            2 => {
                let start = self.below(bytes.len() / 512) * 512;
                let record = self.random.bytes(512);
                bytes.iter_mut().skip(start).zip(record).for_each(|(byte, new)| *byte = new);
            }
            3 => bytes.extend(self.random.bytes(700)),
            _ => {
                let bit = self.below(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        let _ = fs::write(path, bytes);
        format!("{}: map {how}", path.display())
    }

    fn mark(&mut self, path: &Path) -> String {
        let names = [
            "overlay.opaque",
            "overlay.redirect",
            "overlay.metacopy",
            "overlay.origin",
            "mmapfs.pages",
            "mmapfs.ino",
            "mmapfs.links",
            "mmapfs.null",
            "mmapfs.path",
            "mmapfs.place",
        ];
        let space = self.random.pick(&["trusted.", "trusted.", "trusted.", "user."]);
        let name = self.random.pick(&names);
        let full = format!("{space}{name}");
        let is_piece = matches!(name, "overlay.metacopy" | "mmapfs.pages");
        if is_piece && !self.bare.insert(own_inode(path)) {
            return String::new();
        }
        if self.random.once_in(3) {
            return format!("{full} removed: {:?}", rustix::fs::lremovexattr(path, &full));
        }
        let mut values: Vec<String> = [
            "",
            "y",
            "/",
            "/a",
            "/dir",
            "/dir/sub",
            "..",
            "/../x",
            "/dir//c",
            "a",
            "/full/f",
            "0",
            "1",
            "-1",
            "2147483647",
            "-2147483648",
            "=0",
            "=3",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615",
            "4395513236313604096",
            "0123456789abcdef",
            "x",
        ]
        .map(String::from)
        .into();
        for base in ["a", "dir", "dir/sub", "x", "full/f"] {
            let number = fs::metadata(self.world.path("base").join(base)).map(|found| found.ino());
            values.extend(number.map(|number| number.to_string()).ok());
        }
        values.push(format!("/{}", "long/".repeat(700)));
        if name == "mmapfs.pages" && self.alone {
            let pages = paths(&self.world.path("s/pages"));
            let id = |path: &PathBuf| u64::from_str_radix(path.file_name()?.to_str()?, 16).ok();
            values.extend(pages.iter().filter_map(id).map(|id| id.to_string()));
        }
        let value = values.swap_remove(self.below(values.len()));
        let set = rustix::fs::lsetxattr(path, &full, value.as_bytes(), XattrFlags::empty());
        format!("{full} = {value:.40}: {set:?}")
    }

    /// Puts something else in the place of a name.
    fn replace(&mut self, path: &Path, all: &[PathBuf]) -> String {
        let other = all[self.below(all.len())].clone();
        let how = self.below(11);
        let is_shown = |path: &Path| shows(&self.world.path("s"), path);
        if how == 8 && (other == path || is_shown(path) && !is_shown(&other)) {
            return String::new();
        }
        let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
        match is_dir {
            true => fs::remove_dir_all(path).unwrap(),
            false => drop(fs::remove_file(path)),
        }
        let node = |kind, (major, minor)| {
            let dev = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, dev)
                .map_err(std::io::Error::from)
        };
        let made = match how {
            0 => symlink(self.world.path("victim"), path).map(|()| "link to a file"),
            1 => symlink(self.world.path("base"), path).map(|()| "link to the base"),
            2 => symlink(path, path).map(|()| "link to itself"),
            3 => fs::create_dir(path).map(|()| "directory"),
            4 => File::create(path).map(|_| "empty file"),
            5 => node(FileType::Fifo, (0, 0)).map(|()| "fifo"),
            6 => node(FileType::Socket, (0, 0)).map(|()| "socket"),
            7 => {
                let number = self.random.pick(&[(0, 0), (0, 1), (1, 5), (1, 3)]);
                node(FileType::CharacterDevice, number).map(|()| "device")
            }
            8 => rustix::fs::linkat(CWD, &other, CWD, path, AtFlags::empty())
                .map(|()| "another name of a file")
                .map_err(std::io::Error::from),
            9 => fs::write(path, b"pppp").map(|()| "file"),
            _ => Ok("nothing"),
        };
        made.map_or_else(|error| error.to_string(), String::from)
    }

    fn move_away(&mut self, top: &Path, path: &Path) -> String {
        let dirs = ["upper", "index", "work", "pages", "", "upper/dir", "upper/moved"];
        let keys = ["moved0", "a", "c", "x", "0000000000000002", ".mmapfs-tmp-1", "full"];
        let (dir, key) = (self.random.pick(&dirs), self.random.pick(&keys));
        // A link may lead out of the scratch by now.
        let to = top.join(dir);
        if fs::canonicalize(&to).ok() != fs::canonicalize(top).ok().map(|top| top.join(dir)) {
            return String::new();
        }
        let to = to.join(key);
        if shows(top, &to) && !shows(top, path) {
            return String::new();
        }
        let moved = rustix::fs::renameat_with(CWD, path, CWD, &to, RenameFlags::NOREPLACE);
        format!("moved to {dir}/{key}: {moved:?}")
    }
}
