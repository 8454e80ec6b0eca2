//! A stack of layers in a directory, and the bytes that it should show.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mmapfs::layers::frozen_file::{FrozenFile, FrozenPart};
use mmapfs::layers::merged::{Base, Merged};
use mmapfs::layers::pages::{Fingerprint, MapAccess, MapId, PageMap};
use mmapfs::sys::cred::Caller;

/// The caller of every operation: ourselves.
pub fn caller() -> Caller {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    Caller { uid: uid.as_raw(), gid: gid.as_raw(), pid: std::process::id() }
}

pub fn descriptor(path: &Path, write: bool) -> Arc<OwnedFd> {
    let file = OpenOptions::new().read(true).write(write).open(path);
    Arc::new(file.unwrap_or_else(|err| panic!("{}: {err}", path.display())).into())
}

/// A base file with layers over it; the last one takes the writes.
pub struct Stack {
    place: PathBuf,
    layers: u64,
    top: Option<Arc<Merged>>,
}

impl Stack {
    /// A base of these bytes, of which runs of zeros are holes, and one empty layer over it.
    pub fn new(place: &Path, content: &[u8]) -> Stack {
        let base = File::create_new(place.join("base")).unwrap();
        base.set_len(content.len() as u64).unwrap();
        for (index, part) in content.chunks(4096).enumerate() {
            if part.iter().any(|byte| *byte != 0) {
                base.write_all_at(part, index as u64 * 4096).unwrap();
            }
        }
        Stack::over(place)
    }

    /// An empty layer over the base that is there.
    pub fn over(place: &Path) -> Stack {
        let mut stack = Stack { place: place.to_owned(), layers: 0, top: None };
        stack.add_layer();
        stack
    }

    /// The layer that was left over the base that is there.
    pub fn found(place: &Path) -> Stack {
        let mut stack = Stack { place: place.to_owned(), layers: 1, top: None };
        stack.reopen();
        stack
    }

    pub fn base_path(&self) -> PathBuf {
        self.place.join("base")
    }

    pub fn upper_path(&self, layer: u64) -> PathBuf {
        self.place.join(format!("upper{layer}"))
    }

    pub fn map_path(&self) -> PathBuf {
        self.place.join(MapId(self.layers).to_string())
    }

    fn maps(&self) -> File {
        File::open(&self.place).unwrap()
    }

    pub fn top(&self) -> &Arc<Merged> {
        self.top.as_ref().unwrap()
    }

    /// Freezes the top layer and puts an empty one over it.
    pub fn add_layer(&mut self) {
        self.top = None;
        let below = match self.layers {
            0 => self.base_path(),
            layer => self.upper_path(layer),
        };
        let fingerprint = Fingerprint::of(descriptor(&below, false)).unwrap();
        self.layers += 1;
        let base = self.below(self.layers);
        File::create_new(self.upper_path(self.layers)).unwrap();
        let upper = descriptor(&self.upper_path(self.layers), true);
        let id = MapId(self.layers);
        let merged = Merged::start(base, fingerprint, upper, self.maps(), id).unwrap();
        self.top = Some(Arc::new(merged));
    }

    /// Opens everything anew from disk.
    pub fn reopen(&mut self) {
        self.top = None;
        let map = PageMap::open(self.maps(), MapId(self.layers), MapAccess::Write).unwrap();
        let upper = descriptor(&self.upper_path(self.layers), true);
        self.top = Some(Arc::new(Merged::new(self.below(self.layers), upper, map).unwrap()));
    }

    /// The file below a layer: the base, with the frozen layers over it.
    fn below(&self, layer: u64) -> Base {
        let whole = descriptor(&self.base_path(), false);
        let part = |layer| FrozenPart {
            file: descriptor(&self.upper_path(layer), false),
            map: PageMap::open(self.maps(), MapId(layer), MapAccess::Read).unwrap(),
        };
        let parts: Vec<FrozenPart> = (1..layer).rev().map(part).collect();
        match parts.is_empty() {
            true => Base::File(whole),
            false => Base::Layers(Arc::new(FrozenFile::new(parts, whole, None).unwrap())),
        }
    }

    /// All bytes.
    pub fn content(&self) -> Vec<u8> {
        let size = self.top().size().unwrap() as usize;
        self.top().read_with(0, size + 10, <[u8]>::to_vec).unwrap()
    }
}
