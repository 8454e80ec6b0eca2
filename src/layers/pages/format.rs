//! What a page map looks like on disk: its name, its header, and what can be wrong with it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use rustix::io::Errno;

use super::fingerprint::{Fingerprint, Moment};

/// The first bytes of every page map.
const MAGIC: [u8; 8] = *b"mmapfspm";

/// The newest version that is understood.
const VERSION: u32 = 3;

/// Bytes that are written together and checked together: a sector of a disk, which power cuts
/// leave old or new.
pub(super) const RECORD: u64 = 512;

/// Bytes of both headers; the bitmaps follow them.
pub(super) const HEADER: u64 = 2 * RECORD;

/// Bytes of a page, on every machine.
pub const PAGE: u64 = 4096;

/// Words of each of the two bitmaps in a turn.
pub(super) const WORDS: usize = 31;

/// Bytes of those.
const BITS: usize = WORDS * 8;

/// Pages that a turn speaks of.
pub(super) const TURN_PAGES: u64 = WORDS as u64 * 64;

/// Where the checksum of a record is.
const SUM: usize = RECORD as usize - 4;

/// The bits of [`TURN_PAGES`] pages.
pub(super) type Bits = [u64; WORDS];

/// A header or a turn as it is on disk.
pub(super) type Record = [u8; RECORD as usize];

/// What is there before a record is written.
pub(super) const NEVER_WRITTEN: Record = [0; RECORD as usize];

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
    /// A checksum of the bitmaps is wrong.
    Turn {
        /// The first page that it is about.
        page: u64,
    },
    /// Turns of the bitmaps that were written are zeros.
    Gone {
        /// How many were written.
        written: u64,
        /// How many are there.
        found: u64,
    },
    /// Pages that were written have no data in the upper file.
    Missing {
        /// The first of them.
        page: u64,
    },
    /// Its headers contradict themselves or each other.
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
            MapError::Turn { page } => {
                write!(f, "page map is damaged: the checksum for page {page} and on is wrong")
            }
            MapError::Gone { written, found } => write!(
                f,
                "page map is damaged: {written} records of its bits were written, {found} are there"
            ),
            MapError::Missing { page } => {
                write!(f, "page {page} was written, and its data is not in the scratch")
            }
            MapError::Damaged { what } => write!(f, "page map is damaged: {what}"),
        }
    }
}

impl std::error::Error for MapError {}

/// Bytes of a whole page map whose base part has so many pages.
pub(super) fn length_for(base_pages: u64) -> u64 {
    HEADER + turns_for(base_pages) * RECORD
}

/// Where a turn is in its file.
pub(super) fn offset_of(turn: u64) -> u64 {
    HEADER + turn * RECORD
}

/// The file that a page map is of, as far as it is known by anything but its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct UpperId {
    /// Inode number. A copy of the scratch has another.
    pub ino: u64,
    /// Birth, by which a later file of the same number is told; 0 where it is not known.
    pub birth: Moment,
}

impl UpperId {
    /// That of a file.
    pub fn of(file: &Fingerprint) -> UpperId {
        UpperId { ino: file.ino, birth: file.birth.unwrap_or_default() }
    }
}

/// What the header of a map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: MapId,
    /// The higher one of the two headers counts.
    pub(super) sequence: u64,
    pub(super) lower_visible_len: u64,
    pub(super) base: Fingerprint,
    pub(super) upper: UpperId,
    pub(super) firm_limit: u64,
    pub(super) lowered: (i64, u32),
    /// The turns below the limit that were written at least.
    pub(super) turns: u64,
}

/// Where the parts of a header are, in bytes.
const BASE_LIMIT: usize = 16;
const FIRM_LIMIT: usize = 24;
const LOWERED: usize = 32;
const ID: usize = 48;
const BASE: usize = 56;
const UPPER: usize = BASE + Fingerprint::LEN;
const SEQUENCE: usize = UPPER + 24;
const TURNS: usize = SEQUENCE + 8;

/// The bytes of a header.
pub(super) fn encode(said: &Header) -> Record {
    let mut header = [0; RECORD as usize];
    put(&mut header, 0, &MAGIC);
    put(&mut header, 8, &VERSION.to_le_bytes());
    put(&mut header, 12, &(PAGE as u32).to_le_bytes());
    put(&mut header, BASE_LIMIT, &said.lower_visible_len.to_le_bytes());
    put(&mut header, FIRM_LIMIT, &said.firm_limit.to_le_bytes());
    put(&mut header, LOWERED, &said.lowered.0.to_le_bytes());
    put(&mut header, LOWERED + 8, &said.lowered.1.to_le_bytes());
    put(&mut header, ID, &said.id.0.to_le_bytes());
    put(&mut header, BASE, &said.base.encode());
    put(&mut header, UPPER, &said.upper.ino.to_le_bytes());
    put(&mut header, UPPER + 8, &said.upper.birth.0.to_le_bytes());
    put(&mut header, UPPER + 16, &said.upper.birth.1.to_le_bytes());
    put(&mut header, SEQUENCE, &said.sequence.to_le_bytes());
    put(&mut header, TURNS, &said.turns.to_le_bytes());
    let sum = crc32fast::hash(before_sum(&header));
    put(&mut header, SUM, &sum.to_le_bytes());
    header
}

/// What a header says; `None` where nothing was ever written.
pub(super) fn decode(header: &Record) -> Result<Option<Header>, MapError> {
    if *header == NEVER_WRITTEN {
        return Ok(None);
    }
    if header.first_chunk() != Some(&MAGIC) {
        return Err(MapError::Magic);
    }
    match word(header, 8) {
        VERSION => {}
        0 => return Err(MapError::Damaged { what: "its version is 0" }),
        version if version < VERSION => return Err(MapError::Older { version }),
        version => return Err(MapError::Newer { version }),
    }
    if word(header, SUM) != crc32fast::hash(before_sum(header)) {
        return Err(MapError::Damaged { what: "the checksum of its header is wrong" });
    }
    if u64::from(word(header, 12)) != PAGE {
        return Err(MapError::Damaged { what: "its page size is not 4096" });
    }
    let base = header.get(BASE..UPPER).and_then(Fingerprint::decode);
    let base = base.ok_or(MapError::Damaged { what: "the fingerprint of the base is none" })?;
    let birth = (long(header, UPPER + 8) as i64, word(header, UPPER + 16));
    let said = Header {
        id: MapId(long(header, ID)),
        sequence: long(header, SEQUENCE),
        lower_visible_len: long(header, BASE_LIMIT),
        base,
        upper: UpperId { ino: long(header, UPPER), birth },
        firm_limit: long(header, FIRM_LIMIT),
        lowered: (long(header, LOWERED) as i64, word(header, LOWERED + 8)),
        turns: long(header, TURNS),
    };
    if said.lower_visible_len.max(said.firm_limit) > base.size {
        return Err(MapError::Damaged { what: "its base limit is behind the end of the base" });
    }
    Ok(Some(said))
}

/// Number of turns for a number of pages.
pub(super) fn turns_for(base_pages: u64) -> u64 {
    base_pages.div_ceil(TURN_PAGES)
}

/// The bits of a turn, and those that are synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) own: Bits,
    pub(super) synced: Bits,
}

impl Turn {
    pub(super) const NONE: Turn = Turn { own: [0; WORDS], synced: [0; WORDS] };

    /// The bytes of the turn with this number in the map with this id: the checksum is of both as
    /// well, so that no turn is taken for another.
    pub(super) fn encode(&self, id: MapId, number: u64) -> Record {
        let mut record = [0; RECORD as usize];
        put(&mut record, 0, self.own.map(u64::to_le_bytes).as_flattened());
        put(&mut record, BITS, self.synced.map(u64::to_le_bytes).as_flattened());
        let sum = sum_of_turn(&record, id, number);
        put(&mut record, SUM, &sum.to_le_bytes());
        record
    }

    /// Whether the record of a turn with this number is never zeros, also without a bit: one in 2^32
    /// has the checksum 0.
    pub(super) fn is_never_zeros(id: MapId, number: u64) -> bool {
        Turn::NONE.encode(id, number) != NEVER_WRITTEN
    }

    /// The turn that a record has, and whether its checksum is right. Zeros are a turn that was
    /// never written.
    pub(super) fn decode(record: &Record, id: MapId, number: u64) -> (Turn, bool) {
        let (own, rest) = record.split_at(BITS);
        let synced = rest.get(..BITS).unwrap_or_default();
        let turn = Turn { own: words_of(own), synced: words_of(synced) };
        let sound = word(record, SUM) == sum_of_turn(record, id, number);
        (turn, sound || *record == NEVER_WRITTEN)
    }
}

fn words_of(bytes: &[u8]) -> Bits {
    let mut bits = [0; WORDS];
    for (word, bytes) in bits.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    bits
}

fn sum_of_turn(record: &Record, id: MapId, number: u64) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&id.0.to_le_bytes());
    sum.update(&number.to_le_bytes());
    sum.update(before_sum(record));
    sum.finalize()
}

fn before_sum(record: &Record) -> &[u8] {
    record.get(..SUM).unwrap_or_default()
}

fn put(record: &mut Record, at: usize, bytes: &[u8]) {
    if let Some(place) = record.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn word(header: &[u8], at: usize) -> u32 {
    let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_le_bytes(bytes.copied().unwrap_or_default())
}

fn long(header: &[u8], at: usize) -> u64 {
    let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
    u64::from_le_bytes(bytes.copied().unwrap_or_default())
}
