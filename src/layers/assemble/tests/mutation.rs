//! What somebody may do to the directory of a scratch.

use super::*;

/// Everything in the scratch, without the directory itself.
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

/// A directory in the scratch, unless a link leads out of it by now.
fn directory(top: &Path, name: &str) -> Option<PathBuf> {
    let (top, dir) = (fs::canonicalize(top).ok()?.join(name), fs::canonicalize(top.join(name)));
    dir.ok().filter(|dir| *dir == top)
}

pub(super) struct Mutation<'a> {
    pub(super) world: &'a World,
    pub(super) random: Random,
    /// Files that have lost one of the two marks that say that they are in pieces: without both
    /// they are files of zeros.
    pub(super) bare: HashSet<u64>,
    /// Nothing else is changed in this round.
    pub(super) alone: bool,
}

impl Mutation<'_> {
    /// Changes something, and says what.
    pub(super) fn mutate(&mut self) -> String {
        let top = self.world.path("s");
        let all = paths(&top);
        if all.is_empty() {
            return String::new();
        }
        let path = self.random.of(&all).clone();
        let shown = path.strip_prefix(&top).unwrap().display().to_string();
        let parts = ["upper", "index", "layers"];
        let inside = parts.iter().any(|part| path.starts_with(top.join(part)));
        match self.random.below(11) {
            0 => self.bytes(&top),
            10 if self.alone => self.map_bit(&top),
            1 => self.field(&top),
            2..=5 if inside => format!("{shown}: {}", self.attribute(&path)),
            6 | 7 => format!("{shown}: {}", self.replace(&path, &all)),
            8 => {
                let _ = std::os::unix::fs::lchown(&path, Some(12345), Some(0));
                format!("{shown}: owner")
            }
            _ => {
                let dirs = ["upper", "index", "work", "pages", "", "upper/dir", "upper/moved"];
                let keys = ["moved0", "a", "c", "x", "0000000000000002", ".mmapfs-tmp-1", "full"];
                let dir = *self.random.of(&dirs);
                let to = directory(&top, dir);
                let key = *self.random.of(&keys);
                let Some(to) = to.map(|to| to.join(key)) else { return String::new() };
                let moved = rustix::fs::renameat_with(CWD, &path, CWD, &to, RenameFlags::NOREPLACE);
                format!("{shown}: moved to {}: {moved:?}", to.display())
            }
        }
    }

    fn bytes(&mut self, top: &Path) -> String {
        let name = *self.random.of(&["state.json", "lock", "state.json"]);
        let Some(mut content) = content(&top.join(name)) else { return String::new() };
        for _ in 0..=self.random.below(3) {
            if let Some(index) = content.len().checked_sub(1).map(|last| self.random.below(last)) {
                content[index] = self.random.below(256) as u8;
            }
        }
        let _ = fs::write(top.join(name), content);
        format!("{name}: bytes")
    }

    /// Flips a bit of a page map, which its checksums tell.
    fn map_bit(&mut self, top: &Path) -> String {
        let maps = directory(top, "pages").map(|pages| paths(&pages)).unwrap_or_default();
        if maps.is_empty() {
            return String::new();
        }
        let path = self.random.of(&maps).clone();
        let Some(mut content) = content(&path).filter(|content| !content.is_empty()) else {
            return String::new();
        };
        let bit = self.random.below(content.len() * 8);
        content[bit / 8] ^= 1 << (bit % 8);
        let _ = fs::write(&path, content);
        format!("{}: bit {bit}", path.display())
    }

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
            "/layers",
            "/layers/1",
            "/freezing",
        ];
        let values = [
            serde_json::json!("own-tmpfs"),
            serde_json::json!("shared-memory"),
            serde_json::json!("user"),
            serde_json::json!("../../victim"),
            serde_json::json!("0123456789ab"),
            serde_json::json!(u64::MAX),
            serde_json::json!(0),
            serde_json::json!(null),
            serde_json::json!(true),
            serde_json::json!([47, 0, 255]),
        ];
        let (field, value) = (*self.random.of(&fields), self.random.of(&values).clone());
        if let Some(place) = state.pointer_mut(field) {
            *place = value.clone();
        }
        // Most are sealed: what the fields say is looked at behind the checksum.
        let sealed = self.random.below(4) != 0;
        if sealed {
            crate::layers::scratch::seal(&mut state);
        }
        let _ = fs::write(&path, state.to_string());
        format!("{field} = {value}, sealed: {sealed}")
    }

    fn attribute(&mut self, path: &Path) -> String {
        let names = [
            "overlay.opaque",
            "overlay.redirect",
            "overlay.metacopy",
            "mmapfs.pages",
            "mmapfs.ino",
            "mmapfs.origin",
            "mmapfs.covers",
            "mmapfs.origin",
            "mmapfs.links",
            "mmapfs.null",
            "mmapfs.path",
            "mmapfs.place",
        ];
        let space = *self.random.of(&["trusted.", "trusted.", "trusted.", "user."]);
        let name = *self.random.of(&names);
        let full = format!("{space}{name}");
        let is_piece = matches!(name, "overlay.metacopy" | "mmapfs.pages");
        if self.random.below(3) == 0 {
            let ino = fs::symlink_metadata(path).map_or(0, |found| found.ino());
            if is_piece && !self.bare.insert(ino) {
                return String::new();
            }
            return format!("{full} removed: {:?}", rustix::fs::lremovexattr(path, &full));
        }
        let number = |path: &str| {
            fs::metadata(self.world.path("base").join(path))
                .map_or(0, |found| found.ino())
                .to_string()
        };
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
            "9223372036854775808",
            "4395513236313604096",
            "0123456789abcdef",
            "x",
        ]
        .map(String::from)
        .into();
        values.extend([
            number("a"),
            number("dir"),
            number("dir/sub"),
            number("x"),
            number("full/f"),
        ]);
        values.push(format!("/{}", "long/".repeat(900)));
        if name == "mmapfs.pages" && self.alone {
            let pages = paths(&self.world.path("s/pages"));
            let id = |path: &PathBuf| u64::from_str_radix(path.file_name()?.to_str()?, 16).ok();
            values.extend(pages.iter().filter_map(id).map(|id| id.to_string()));
        }
        if is_piece && !self.bare.insert(fs::symlink_metadata(path).map_or(0, |found| found.ino()))
        {
            return String::new();
        }
        let value = self.random.of(&values).clone();
        let flags = rustix::fs::XattrFlags::empty();
        let set = rustix::fs::lsetxattr(path, &full, value.as_bytes(), flags);
        format!("{full} = {:.40}: {set:?}", value)
    }

    fn replace(&mut self, path: &Path, all: &[PathBuf]) -> String {
        let other = self.random.of(all).clone();
        let how = self.random.below(9);
        if other.starts_with(path) && how == 8 {
            return String::new();
        }
        let Some(parent) = path.parent().map(|parent| File::open(parent).unwrap()) else {
            return String::new();
        };
        let name = std::ffi::CString::new(path.file_name().unwrap().as_bytes()).unwrap();
        sys::walk::remove(&parent, &name).unwrap();
        let node = |kind, dev| {
            rustix::fs::mknodat(&parent, &name, kind, Mode::RUSR | Mode::WUSR, dev).unwrap();
        };
        let how = match how {
            0 => symlink(self.world.path("victim"), path).map(|()| "link to a file"),
            1 => symlink(self.world.path("base"), path).map(|()| "link to the base"),
            2 => symlink(path, path).map(|()| "link to itself"),
            3 => fs::create_dir(path).map(|()| "directory"),
            4 => File::create(path).map(|_| "empty file"),
            5 => {
                node(FileType::Fifo, 0);
                Ok("fifo")
            }
            6 => {
                node(FileType::Socket, 0);
                Ok("socket")
            }
            7 => {
                node(
                    FileType::CharacterDevice,
                    rustix::fs::makedev(0, self.random.below(2) as u32),
                );
                Ok("device")
            }
            _ => match rustix::fs::linkat(CWD, &other, CWD, path, AtFlags::empty()) {
                Ok(()) => Ok("another name of a file"),
                Err(_) => Ok("nothing"),
            },
        };
        how.map_or_else(|error| error.to_string(), String::from)
    }
}
