//! What a page map looks like on disk: its name, its header, and what can be wrong with it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use rustix::io::Errno;

use super::fingerprint::Fingerprint;

/// The first bytes of every page map.
const MAGIC: [u8; 8] = *b"mmapfspm";

/// The newest version that is understood.
const VERSION: u32 = 3;

/// Bytes of the header; the bitmap follows it.
pub(super) const HEADER: u64 = 512;

/// Bytes of a page, on every machine.
pub const PAGE: u64 = 4096;

/// Bytes of a bitmap that are read, kept and written together. They never cross a block of the
/// filesystem, so a write of them is done or not done.
pub(super) const CHUNK: u64 = 512;

/// Bytes from one chunk of a bitmap to the next: that of the firm bits lies between.
pub(super) const STRIDE: u64 = 2 * CHUNK;

/// Pages that a chunk speaks of.
pub(super) const CHUNK_PAGES: u64 = CHUNK * 8;

/// The name of a page map: 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapId(pub u64);

impl MapId {
    /// A random one. It may be taken, which [`super::PageMap::create`] tells by EEXIST.
    pub fn random() -> MapId {
        MapId(RandomState::new().hash_one(0))
    }
}

impl fmt::Display for MapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for MapId {
    type Err = MapError;

    fn from_str(name: &str) -> Result<MapId, MapError> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let id = u64::from_str_radix(name, 16).ok();
        id.filter(|_| name.len() == 16 && name.bytes().all(digits))
            .map(MapId)
            .ok_or_else(|| MapError::Name { name: name.to_owned() })
    }
}

/// Why a page map cannot be used. A file whose map cannot be used cannot be read: its pages are
/// not known, and guessing would show the wrong ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapError {
    /// A system call failed.
    Io(Errno),
    /// The name is not that of a page map.
    Name {
        /// As it was given.
        name: String,
    },
    /// The file is not a page map.
    Magic,
    /// It was made by an older version of the program, and says less than has to be known.
    Older {
        /// Its version.
        version: u32,
    },
    /// It was made by a newer version of the program.
    Newer {
        /// Its version.
        version: u32,
    },
    /// It is shorter than what its header says.
    Short {
        /// Its length in bytes.
        len: u64,
        /// The shortest length that is possible, in bytes.
        least: u64,
    },
    /// Its header contradicts itself.
    Damaged {
        /// The field, and what is wrong with it.
        what: &'static str,
    },
}

impl MapError {
    /// What a system call on the file whose map this is should fail with: the errno of the call
    /// that failed, EIO for a map that cannot be used.
    pub fn errno(&self) -> Errno {
        match self {
            MapError::Io(err) => *err,
            _ => Errno::IO,
        }
    }
}

impl From<Errno> for MapError {
    fn from(err: Errno) -> MapError {
        MapError::Io(err)
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::Io(err) => write!(f, "{err}"),
            MapError::Name { name } => {
                write!(f, "{} is not the name of a page map", name.escape_debug())
            }
            MapError::Magic => f.write_str("not a page map"),
            MapError::Older { version } => write!(
                f,
                "page map of version {version}, which the mmapfs that made it reads; this one \
                 knows {VERSION}"
            ),
            MapError::Newer { version } => {
                write!(f, "page map of version {version}; this program knows {VERSION}")
            }
            MapError::Short { len, least } => {
                write!(f, "page map is cut off: {len} bytes, at least {least} are needed")
            }
            MapError::Damaged { what } => write!(f, "page map is damaged: {what}"),
        }
    }
}

impl std::error::Error for MapError {}

/// Bytes of a whole page map whose base part has so many pages.
pub(super) fn length_for(base_pages: u64) -> u64 {
    HEADER + base_pages.div_ceil(CHUNK_PAGES) * STRIDE
}

/// What the header of a map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: MapId,
    pub(super) base_limit: u64,
    pub(super) base: Fingerprint,
    pub(super) firm_limit: u64,
    pub(super) lowered: (i64, u32),
}

/// Where the parts of a header are, in bytes.
const BASE_LIMIT: usize = 16;
const FIRM_LIMIT: usize = 24;
const LOWERED: usize = 32;
const ID: usize = 48;
const BASE: usize = 56;
const BEHIND: usize = BASE + Fingerprint::LEN;

/// The bytes of a header.
pub(super) fn encode(said: &Header) -> [u8; HEADER as usize] {
    let mut header = [0; HEADER as usize];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = header.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &MAGIC);
    put(8, &VERSION.to_le_bytes());
    put(12, &(PAGE as u32).to_le_bytes());
    put(BASE_LIMIT, &said.base_limit.to_le_bytes());
    put(FIRM_LIMIT, &said.firm_limit.to_le_bytes());
    put(LOWERED, &said.lowered.0.to_le_bytes());
    put(LOWERED + 8, &said.lowered.1.to_le_bytes());
    put(ID, &said.id.0.to_le_bytes());
    put(BASE, &said.base.encode());
    header
}

/// What a header says.
pub(super) fn decode(header: &[u8; HEADER as usize]) -> Result<Header, MapError> {
    if header.first_chunk() != Some(&MAGIC) {
        return Err(MapError::Magic);
    }
    match word(header, 8) {
        VERSION => {}
        0 => return Err(MapError::Damaged { what: "its version is 0" }),
        version if version < VERSION => return Err(MapError::Older { version }),
        version => return Err(MapError::Newer { version }),
    }
    if u64::from(word(header, 12)) != PAGE {
        return Err(MapError::Damaged { what: "its page size is not 4096" });
    }
    let base = header.get(BASE..BEHIND).and_then(Fingerprint::decode);
    let base = base.ok_or(MapError::Damaged { what: "the fingerprint of the base is none" })?;
    let said = Header {
        id: MapId(long(header, ID)),
        base_limit: long(header, BASE_LIMIT),
        base,
        firm_limit: long(header, FIRM_LIMIT),
        lowered: (long(header, LOWERED) as i64, word(header, LOWERED + 8)),
    };
    if said.base_limit.max(said.firm_limit) > base.size {
        return Err(MapError::Damaged { what: "its base limit is behind the end of the base" });
    }
    Ok(said)
}

fn word(header: &[u8], at: usize) -> u32 {
    let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_le_bytes(bytes.copied().unwrap_or_default())
}

fn long(header: &[u8], at: usize) -> u64 {
    let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
    u64::from_le_bytes(bytes.copied().unwrap_or_default())
}
