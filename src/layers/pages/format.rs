//! On-disk format of a page map: name, headers, turns, and the errors of a damaged map.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use rustix::io::Errno;

use crate::error::cause::because;

use super::fingerprint::{Fingerprint, Moment};

/// Magic number at the start of a header.
const MAGIC: [u8; 8] = *b"mmapfspm";

/// Format version; the only one that is read.
const VERSION: u32 = 3;

/// Bytes of a record, which has one checksum. It is one disk sector, which most power cuts leave
/// old or new.
pub(super) const RECORD: u64 = 512;

/// Bytes of both headers; the turns follow them.
pub(super) const HEADER: u64 = 2 * RECORD;

/// Bytes of a page, on every machine.
pub const PAGE: u64 = 4096;

/// 64-bit words of each of the two bitmaps in a turn.
pub(super) const WORDS: usize = 31;

/// Bytes of each of the two bitmaps in a turn.
const BITS: usize = WORDS * 8;

/// Number of pages whose bits a turn holds.
pub(super) const TURN_PAGES: u64 = WORDS as u64 * 64;

/// Offset of the checksum in a record.
const SUM: usize = RECORD as usize - 4;

/// One bit for each of [`TURN_PAGES`] pages.
pub(super) type Bits = [u64; WORDS];

/// Header or turn as stored on disk.
pub(super) type Record = [u8; RECORD as usize];

/// Record that was never written.
pub(super) const NEVER_WRITTEN: Record = [0; RECORD as usize];

/// Id of a page map. Its file name is the id in 16 lower case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapId(pub u64);

impl MapId {
    /// A random id. If a map has it already, [`super::PageMap::create`] fails with EEXIST.
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

/// Reason why a page map cannot be used. The file of such a map cannot be read: its present pages
/// are unknown, and a guess would show wrong bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapError {
    /// A system call failed.
    Io(Errno),
    /// The name is not the name of a page map.
    Name {
        /// The name as it was given.
        name: String,
    },
    /// The file is not a page map.
    Magic,
    /// An older version of the program made the map, and it lacks necessary fields.
    Older {
        /// Format version of the map.
        version: u32,
    },
    /// A newer version of the program made the map.
    Newer {
        /// Format version of the map.
        version: u32,
    },
    /// The file is shorter than its header requires.
    Short {
        /// Length of the file in bytes.
        len: u64,
        /// Shortest valid length in bytes.
        least: u64,
    },
    /// The checksum of a turn is wrong.
    Turn {
        /// First page of the turn.
        page: u64,
    },
    /// Turns that were written are zeros.
    Gone {
        /// Number of turns that were written, by the header.
        written: u64,
        /// Number of turns that are not zeros.
        found: u64,
    },
    /// A present page that is not synced has no data in the upper file.
    Missing {
        /// The first such page.
        page: u64,
    },
    /// The file is no valid map for another reason.
    Damaged {
        /// The fault, as in the message.
        what: &'static str,
    },
}

impl MapError {
    /// Errno for a system call on the file of this map: the errno of the call that failed, else
    /// EIO.
    pub fn errno(&self) -> Errno {
        match self {
            MapError::Io(err) => *err,
            _ => because(Errno::IO, "its page map is damaged"),
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

/// Length in bytes of a page map for `base_pages` pages.
pub(super) fn length_for(base_pages: u64) -> u64 {
    HEADER + turns_for(base_pages) * RECORD
}

/// Offset of a turn in its file, in bytes.
pub(super) fn offset_of(turn: u64) -> u64 {
    HEADER + turn * RECORD
}

/// Identity of the upper file of a page map, independent of its overlay xattrs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct UpperId {
    /// Inode number. The file has another one in a copy of the scratch.
    pub ino: u64,
    /// Birth time, which differs for a later file with the same number; 0 where unknown.
    pub birth: Moment,
}

impl UpperId {
    /// Identity of the file with this fingerprint.
    pub fn of(file: &Fingerprint) -> UpperId {
        UpperId { ino: file.ino, birth: file.birth.unwrap_or_default() }
    }
}

/// Decoded header of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: MapId,
    /// The header with the higher number counts.
    pub(super) sequence: u64,
    pub(super) lower_visible_len: u64,
    pub(super) base: Fingerprint,
    pub(super) upper: UpperId,
    pub(super) synced_limit: u64,
    pub(super) lowered: (i64, u32),
    /// Lower bound of the number of turns below the limit that were written.
    pub(super) turns: u64,
}

// Offsets of the fields of a header, in bytes.
const BASE_LIMIT: usize = 16;
const SYNCED_LIMIT: usize = 24;
const LOWERED: usize = 32;
const ID: usize = 48;
const BASE: usize = 56;
const UPPER: usize = BASE + Fingerprint::LEN;
const SEQUENCE: usize = UPPER + 24;
const TURNS: usize = SEQUENCE + 8;

/// Encodes a header.
pub(super) fn encode(said: &Header) -> Record {
    let mut header = [0; RECORD as usize];
    put(&mut header, 0, &MAGIC);
    put(&mut header, 8, &VERSION.to_le_bytes());
    put(&mut header, 12, &(PAGE as u32).to_le_bytes());
    put(&mut header, BASE_LIMIT, &said.lower_visible_len.to_le_bytes());
    put(&mut header, SYNCED_LIMIT, &said.synced_limit.to_le_bytes());
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

/// Decodes a header; `None` if it was never written.
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
        synced_limit: long(header, SYNCED_LIMIT),
        lowered: (long(header, LOWERED) as i64, word(header, LOWERED + 8)),
        turns: long(header, TURNS),
    };
    if said.lower_visible_len.max(said.synced_limit) > base.size {
        return Err(MapError::Damaged { what: "its base limit is behind the end of the base" });
    }
    Ok(Some(said))
}

/// Number of turns for a number of pages.
pub(super) fn turns_for(base_pages: u64) -> u64 {
    base_pages.div_ceil(TURN_PAGES)
}

/// Present bits and synced bits of [`TURN_PAGES`] pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) present: Bits,
    pub(super) synced: Bits,
}

impl Turn {
    pub(super) const NONE: Turn = Turn { present: [0; WORDS], synced: [0; WORDS] };

    /// Encodes the turn `number` of the map `id`. The checksum covers both, so that a record in a
    /// wrong place is detected.
    pub(super) fn encode(&self, id: MapId, number: u64) -> Record {
        let mut record = [0; RECORD as usize];
        put(&mut record, 0, self.present.map(u64::to_le_bytes).as_flattened());
        put(&mut record, BITS, self.synced.map(u64::to_le_bytes).as_flattened());
        let sum = sum_of_turn(&record, id, number);
        put(&mut record, SUM, &sum.to_le_bytes());
        record
    }

    /// Whether the record of turn `number` differs from zeros also when no bit is set. For one turn
    /// in 2^32 it does not: its checksum is 0.
    pub(super) fn is_never_zeros(id: MapId, number: u64) -> bool {
        Turn::NONE.encode(id, number) != NEVER_WRITTEN
    }

    /// Decodes a record; the second value is whether its checksum is right. A record of zeros is
    /// valid: the turn was never written.
    pub(super) fn decode(record: &Record, id: MapId, number: u64) -> (Turn, bool) {
        let (present, rest) = record.split_at(BITS);
        let synced = rest.get(..BITS).unwrap_or_default();
        let turn = Turn { present: words_of(present), synced: words_of(synced) };
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
