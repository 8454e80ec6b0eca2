//! `state.json`: what a scratch is, and of what.

use std::ffi::{CStr, OsString};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::checksum;
use super::layout::{PAGES, STATE};
use super::opened::Opened;
use super::xattr_namespace::XattrNamespace;
use super::{COPY_UP, limit_on_disk, told};
use crate::config::ScratchConfig;
use crate::error::Failure;
use crate::shown::Show;
use crate::tree::Time;

/// The newest version of the format, which scratches with frozen layers have.
pub const VERSION: u32 = 3;

/// The version of a scratch without frozen layers.
const WITHOUT_LAYERS: u32 = 2;

/// The most layers of a scratch.
const MOST_LAYERS: usize = 250;

/// The first word of the file.
const FORMAT: &str = "mmapfs-scratch";

/// The largest state file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// A state that is being written.
pub(super) const NEW_STATE: &CStr = c"state.json.new";

/// How many digits an id has.
const ID_DIGITS: usize = 12;

/// What a scratch is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A tmpfs that was mounted for it.
    OwnTmpfs,
    /// A directory in a tmpfs that others use too.
    SharedMemory,
    /// A directory that somebody chose.
    Disk,
}

impl Kind {
    /// Whether it is gone when the machine goes down.
    pub fn in_memory(self) -> bool {
        self != Kind::Disk
    }
}

/// The root of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseId {
    /// Absolute, without symbolic links.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// `st_dev`. It may be another after the machine was started again.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl BaseId {
    /// The base at a path.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn of(path: &Path) -> Result<BaseId, Failure> {
        let found = fs::metadata(path).map_err(|error| told(path, "looking at the base", error))?;
        Ok(BaseId { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// Whether the other is this base: the same directory, or one of the same inode number at the
    /// same path, whose device has another number since the machine was started.
    pub fn is_that_of(&self, other: &BaseId) -> bool {
        self.inode == other.inode && (self.device == other.device || self.path == other.path)
    }
}

/// The state of a scratch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    format: String,
    /// The version of the format.
    pub version: u32,
    /// Its name: 12 hexadecimal digits.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What it was made over.
    pub base: BaseId,
    /// The names of its marks.
    pub marks: XattrNamespace,
    /// What it is kept in.
    pub kind: Kind,
    /// What it may hold, in bytes; without it as much as its filesystem.
    pub max: Option<u64>,
    /// Files up to this size, in bytes, are copied whole.
    pub copy_up: u64,
    /// It was an upper directory without a state before.
    #[serde(default)]
    pub adopted: bool,
    /// On disk: everything that was written is there. Said when the scratch is left, and taken back
    /// before anything is written.
    #[serde(default)]
    pub in_order: bool,
    /// `boot_id` of the machine when it was last in use, on disk. Where another is running by now,
    /// some of what was written may not have come to the disk.
    #[serde(default)]
    pub boot: Option<String>,
    /// The mount that it was last in use on (STATX_MNT_ID_UNIQUE), where the kernel tells. Another
    /// one may be of a copy of the disk, or of the disk as it was before.
    #[serde(default)]
    pub mount: Option<u64>,
    /// Inode number and birth of the directory, by which a copy of the scratch is told.
    #[serde(default)]
    pub directory: Option<(u64, i64, u32)>,
    /// The ids of the layers, topmost first, where some are frozen: that of `upper/` and those of
    /// the directories in `layers/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<String>,
    /// Parts of the first frozen layer may be where those of the top layer belong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    freezing: bool,
}

/// Where a scratch is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whereabouts {
    boot: String,
    mount: Option<u64>,
    directory: (u64, i64, u32),
}

impl Whereabouts {
    /// Those of an open directory.
    pub(super) fn of(root: impl AsFd) -> Result<Whereabouts, Errno> {
        /// STATX_MNT_ID_UNIQUE of linux/stat.h, since Linux 6.8.
        const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
        let mask = StatxFlags::INO | StatxFlags::BTIME | UNIQUE;
        let stat = rustix::fs::statx(root, c"", AtFlags::EMPTY_PATH, mask)?;
        let has = |field: StatxFlags| stat.stx_mask & field.bits() != 0;
        let birth = if has(StatxFlags::BTIME) { stat.stx_btime.into() } else { Time::default() };
        Ok(Whereabouts {
            boot: boot_id(),
            mount: has(UNIQUE).then_some(stat.stx_mnt_id),
            directory: (stat.stx_ino, birth.sec, birth.nsec),
        })
    }
}

/// The number of this run of the machine (random(4)); empty where it is not told.
fn boot_id() -> String {
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map_or(String::new(), |text| text.trim().to_owned())
}

/// The fields that every version has.
#[derive(Deserialize)]
struct Version {
    format: String,
    version: u32,
}

impl State {
    /// That of a new scratch.
    pub(super) fn new(id: String, base: BaseId, marks: XattrNamespace, kind: Kind) -> State {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        State {
            format: FORMAT.into(),
            version: WITHOUT_LAYERS,
            id,
            created: since.map_or(0, |since| since.as_secs()),
            base,
            marks,
            kind,
            max: None,
            copy_up: COPY_UP,
            adopted: false,
            in_order: false,
            boot: None,
            mount: None,
            directory: None,
            layers: Vec::new(),
            freezing: false,
        }
    }

    /// Whether some of what was written may not be on the disk: the machine has stopped, or the
    /// filesystem has come back without having been left in order. A daemon that was killed leaves
    /// the filesystem as it is, with all that was written.
    pub(super) fn may_be_cut(&self, here: &Whereabouts) -> bool {
        let same_boot = self.boot.as_ref() == Some(&here.boot);
        let same_mount = self.mount.is_some() && self.mount == here.mount;
        self.kind == Kind::Disk && !self.in_order && !(same_boot && same_mount)
    }

    /// Whether the directory is the one where the scratch was in use, and no copy of it.
    pub(super) fn is_in_place(&self, here: &Whereabouts) -> bool {
        self.kind != Kind::Disk || self.directory == Some(here.directory)
    }

    /// Takes back that it is in order, and notes where it is used from now on. To be called when
    /// it has been put in order and before anything else is written.
    pub(super) fn begin(&mut self, opened: &Opened, here: &Whereabouts) -> Result<(), Failure> {
        if self.kind != Kind::Disk {
            return Ok(());
        }
        let before = self.clone();
        self.version = self.version_now();
        self.in_order = false;
        self.boot = Some(here.boot.clone());
        self.mount = here.mount;
        self.directory = Some(here.directory);
        if *self == before { Ok(()) } else { self.write(opened) }
    }

    /// Reads the state of the scratch in a directory; `None` where there is none.
    ///
    /// # Errors
    /// The file cannot be read, is none, is damaged, or is of a newer version.
    pub(super) fn read(opened: &Opened) -> Result<Option<State>, Failure> {
        let Some(text) = opened.read(STATE, LARGEST)? else { return Ok(None) };
        let path = opened.layout().state();
        let shown = path.shown();
        let no_state = |error: &dyn std::fmt::Display| {
            Failure::failed(shown, format_args!("it is not the state of a scratch: {error}"))
        };
        let found: Version = serde_json::from_slice(&text).map_err(|error| no_state(&error))?;
        if found.format != FORMAT {
            return Err(no_state(&"another program wrote it"));
        }
        let members: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|error| no_state(&error))?;
        // Before the version is believed: a damaged one may be any.
        checksum::check(&members).map_err(|wrong| Failure::failed(path.shown(), wrong))?;
        if found.version > VERSION {
            let reason = format_args!(
                "the scratch is of version {}, and this mmapfs knows {VERSION}: use the newer \
                 mmapfs that wrote it",
                found.version
            );
            return Err(Failure::failed(opened.path().shown(), reason));
        }
        // Without page maps, version 1 is the same.
        let holds_maps = || opened.names(PAGES).is_ok_and(|names| !names.is_empty());
        if found.version < WITHOUT_LAYERS && holds_maps() {
            let reason = format_args!(
                "the scratch is of version {}, and this mmapfs reads page maps of version \
                 {WITHOUT_LAYERS} and later: use the older mmapfs that wrote it",
                found.version
            );
            return Err(Failure::failed(opened.path().shown(), reason));
        }
        let mut state: State = serde_json::from_slice(&text).map_err(|error| no_state(&error))?;
        state.check().map_err(|wrong| no_state(&wrong))?;
        state.put_where_it_is(opened);
        Ok(Some(state))
    }

    fn version_now(&self) -> u32 {
        if self.layers.is_empty() { WITHOUT_LAYERS } else { VERSION }
    }

    /// The ids of the frozen layers, topmost first.
    pub fn frozen(&self) -> &[String] {
        self.layers.get(1..).unwrap_or_default()
    }

    /// The layer that is being frozen, after the decision.
    pub(super) fn freezing(&self) -> Option<&str> {
        self.layers.get(1).map(String::as_str).filter(|_| self.freezing)
    }

    /// Notes that all parts of the frozen layer are at its place.
    pub(super) fn set_frozen(&mut self) {
        self.freezing = false;
    }

    /// Lists an empty layer above the top one, whose id is returned and which is being frozen.
    ///
    /// # Errors
    /// There are as many layers as there may be.
    pub(super) fn put_layer_on_top(&mut self, id: String) -> Result<String, Failure> {
        if self.layers.len() >= MOST_LAYERS {
            let reason = format_args!("it has {MOST_LAYERS} layers, and no more are possible");
            return Err(Failure::failed(&self.id, reason));
        }
        if self.layers.is_empty() {
            self.layers.push(self.id.clone());
        }
        self.layers.insert(0, id);
        self.freezing = true;
        self.version = self.version_now();
        Ok(self.layers.get(1).cloned().unwrap_or_default())
    }

    fn check_layers(&self) -> Result<(), String> {
        let is_known = |(at, id): (usize, &String)| self.layers.iter().take(at).any(|it| it == id);
        if !self.layers.iter().all(|id| is_id(id)) {
            return Err(format!("layers: one is not {ID_DIGITS} lower case hexadecimal digits"));
        }
        match self.layers.len() {
            1 => Err("layers: there is one alone".into()),
            count if count > MOST_LAYERS => Err(format!("layers: there are {count}")),
            _ if self.layers.iter().enumerate().any(is_known) => Err("layers: two are one".into()),
            0 if self.freezing => Err("freezing: there is no layer".into()),
            _ => Ok(()),
        }
    }

    /// Says which field cannot be right.
    fn check(&self) -> Result<(), String> {
        self.check_layers()?;
        if !is_id(&self.id) {
            return Err(format!("id: it is not {ID_DIGITS} lower case hexadecimal digits"));
        }
        let path = &self.base.path;
        let is_plain =
            |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(is_plain) {
            return Err("base.path: it is not an absolute path without `..`".into());
        }
        if path.as_os_str().as_bytes().contains(&0) {
            return Err("base.path: it has a NUL in it".into());
        }
        Ok(())
    }

    /// Corrects what it is kept in: a scratch in memory may have been copied to a disk, and a
    /// filesystem is unmounted or resized only where it is that of the scratch.
    fn put_where_it_is(&mut self, opened: &Opened) {
        let (in_tmpfs, is_root) = opened.in_tmpfs();
        let kind = match self.kind {
            Kind::OwnTmpfs if is_root => Kind::OwnTmpfs,
            Kind::OwnTmpfs | Kind::SharedMemory if in_tmpfs => Kind::SharedMemory,
            _ => Kind::Disk,
        };
        if kind != self.kind {
            log::info!(
                "{}: it is kept in {kind:?} and was in {:?}",
                opened.path().shown(),
                self.kind
            );
            self.kind = kind;
        }
    }

    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub(super) fn write(&self, opened: &Opened) -> Result<(), Failure> {
        let text = checksum::sealed(self)
            .map_err(|error| opened.told(STATE, "writing it", error.into()))?;
        opened.replace((STATE, NEW_STATE), text.as_bytes())
    }

    /// Gives it another id, since it was copied from one that is still there.
    pub(super) fn rename(&mut self, opened: &Opened, id: String) -> Result<(), Failure> {
        self.id = id;
        self.write(opened)
    }

    /// Takes what was said of the scratch this time into the state, and writes it where that
    /// changes it.
    pub(super) fn settle(
        &mut self,
        opened: &Opened,
        config: &ScratchConfig,
        base: BaseId,
    ) -> Result<(), Failure> {
        let layout = opened.layout();
        let before = self.clone();
        self.settle_in_mind(opened, config, base)?;
        if self.base.path != before.base.path {
            let (now, then) = (self.base.path.shown(), before.base.path.shown());
            log::warn!("{}: its base was at {then} and is at {now}", layout.dir().shown());
        }
        if before.kind == Kind::OwnTmpfs && self.max != before.max {
            super::place::resize(layout, self.max)?;
        }
        if *self == before { Ok(()) } else { self.write(opened) }
    }

    /// The same, and nothing is written.
    pub(super) fn settle_in_mind(
        &mut self,
        opened: &Opened,
        config: &ScratchConfig,
        base: BaseId,
    ) -> Result<(), Failure> {
        if !self.base.is_that_of(&base) && !config.rebase {
            let same_place = self.base.path == base.path;
            let (now, then) = (base.path.shown(), self.base.path.shown());
            let reason = if same_place {
                format!("another directory is at {now} than when the scratch was made")
            } else {
                format!("it is a scratch of {then}, not of {now}")
            };
            let reason = format_args!("{reason}: -o rebase takes it for one of this directory");
            return Err(Failure::failed(opened.path().shown(), reason));
        }
        self.base = base;
        if let Some(limit) = config.max {
            self.max = match self.kind.in_memory() {
                true => super::place::limit_in_memory(Some(limit))?,
                false => limit_on_disk(limit, opened)?,
            };
        }
        self.copy_up = config.copy_up.unwrap_or(self.copy_up);
        Ok(())
    }
}

/// Whether a text is an id of a scratch or a layer.
fn is_id(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == ID_DIGITS && text.bytes().all(is_digit)
}

/// A path as JSON: a string, or an array of bytes where it is not UTF-8 text.
mod path_text {
    use super::{OsStrExt, OsString, OsStringExt, Path, PathBuf};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Text {
        Utf8(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match path.to_str() {
            Some(text) => Text::Utf8(text.to_owned()),
            None => Text::Bytes(path.as_os_str().as_bytes().to_vec()),
        };
        text.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Text::deserialize(deserializer)? {
            Text::Utf8(text) => text.into(),
            Text::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}
