use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;

mod after_a_cut;
mod damage;

const ID: MapId = MapId(0xfeed);
const UPPER: UpperId = UpperId { ino: 77, birth: (5, 6) };
const GIB: u64 = 1 << 30;
/// Ctime that is earlier than every change of a file.
const NEVER: (i64, u32) = (i64::MIN, 0);

fn base(size: u64) -> Fingerprint {
    Fingerprint {
        size,
        mtime: (-5, 999_999_999),
        ctime: (1 << 40, 7),
        birth: Some((9, 10)),
        ino: u64::MAX - 1,
        racy: true,
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> File {
        File::open(self.0.path()).unwrap()
    }

    fn file(&self) -> File {
        let path = self.0.path().join(ID.to_string());
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    fn create(&self, size: u64) -> PageMap {
        PageMap::create(self.dir(), ID, base(size), size, UPPER).unwrap()
    }

    fn open(&self) -> Result<PageMap, MapError> {
        PageMap::open(self.dir(), ID, MapAccess::Write)
    }
}

/// Runs of present pages.
fn runs(map: &PageMap, end: u64) -> Vec<Range<u64>> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < end {
        let (own, count) = map.run(at, end - at);
        assert!(count > 0 && at + count <= end);
        if own {
            runs.push(at..at + count);
        }
        at += count;
    }
    runs
}

#[test]
fn what_was_set_is_there_after_opening_again() {
    let place = Place::new();
    let mut map = place.create(100 * GIB);
    let pages = map.base_pages();
    let sets = [3..4, 60..70, 4000..13_000, pages - 1..pages];
    for range in &sets {
        map.set(range.clone()).unwrap();
    }
    for map in [map, place.open().unwrap()] {
        assert_eq!(runs(&map, pages), sets);
        assert_eq!(map.count(), 1 + 10 + 9000 + 1);
        assert_eq!((map.base(), map.lower_visible_len()), (&base(100 * GIB), 100 * GIB));
        assert!(map.is_present(3) && !map.is_present(4) && !map.is_complete());
        assert_eq!(map.run(0, 2), (false, 2), "a run ends where it is asked to");
        assert_eq!(map.run(3990, 20), (false, 10));
        assert_eq!(map.run(pages - 1, 50), (true, 50), "behind the limit all is own");
        assert_eq!(map.run(pages + 7, 50), (true, 50));
    }
}

#[test]
fn a_map_of_a_large_file_takes_little_room_on_disk_and_in_memory() {
    let place = Place::new();
    let mut map = place.create(100 * GIB);
    map.set(20_000_000..20_000_001).unwrap();
    assert!(map.stored().unwrap() <= 16 << 10, "{}", map.stored().unwrap());
    assert_eq!(map.turns.len(), 1);
    assert_eq!(place.open().unwrap().turns.len(), 1);
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc(parts: &[&[u8]]) -> [u8; 4] {
    let mut sum = u32::MAX;
    for byte in parts.concat() {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    (!sum).to_le_bytes()
}

#[test]
fn the_bytes_on_disk_are_those_that_are_documented() {
    let place = Place::new();
    let mut map = place.create(2000 * PAGE + 1);
    map.set(0..1).unwrap();
    map.set_zeros(11..12).unwrap();
    map.set(12..13).unwrap();
    map.set(1984..1986).unwrap();
    map.set_base_limit(1999 * PAGE + 5, (77, 8)).unwrap();
    let header = |limit: u64, synced_limit: u64, lowered: (i64, u32), sequence: u64| {
        // Both turns were written before it.
        let turns = 2_u64;
        let mut bytes = b"mmapfspm".to_vec();
        bytes.extend_from_slice(&[3, 0, 0, 0, 0, 16, 0, 0]);
        bytes.extend_from_slice(&limit.to_le_bytes());
        bytes.extend_from_slice(&synced_limit.to_le_bytes());
        bytes.extend_from_slice(&lowered.0.to_le_bytes());
        bytes.extend_from_slice(&lowered.1.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&ID.0.to_le_bytes());
        bytes.extend_from_slice(&(2000 * PAGE + 1).to_le_bytes());
        bytes.extend_from_slice(&(u64::MAX - 1).to_le_bytes());
        bytes.extend_from_slice(&(-5_i64).to_le_bytes());
        bytes.extend_from_slice(&(1_i64 << 40).to_le_bytes());
        bytes.extend_from_slice(&9_i64.to_le_bytes());
        bytes.extend_from_slice(&999_999_999_u32.to_le_bytes());
        bytes.extend_from_slice(&7_u32.to_le_bytes());
        bytes.extend_from_slice(&10_u32.to_le_bytes());
        bytes.extend_from_slice(&[3, 0, 0, 0]);
        bytes.extend_from_slice(&77_u64.to_le_bytes());
        bytes.extend_from_slice(&5_i64.to_le_bytes());
        bytes.extend_from_slice(&6_u32.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&turns.to_le_bytes());
        bytes.resize(508, 0);
        let sum = crc(&[&bytes]);
        bytes.extend_from_slice(&sum);
        bytes
    };
    let turn = |number: u64, own: &[u8], synced: &[u8]| {
        let mut bytes = own.to_vec();
        bytes.resize(248, 0);
        bytes.extend_from_slice(synced);
        bytes.resize(508, 0);
        let sum = crc(&[&ID.0.to_le_bytes(), &number.to_le_bytes(), &bytes]);
        bytes.extend_from_slice(&sum);
        bytes
    };
    let read = || {
        let mut bytes = vec![0; 2048];
        place.file().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let (size, limit) = (2000 * PAGE + 1, 1999 * PAGE + 5);
    let mut expected = header(size, size, NEVER, 4);
    expected.extend(header(limit, size, (77, 8), 5));
    expected.extend(turn(0, &[0b1, 0b1_1000], &[0, 0b1000]));
    expected.extend(turn(1, &[0b11], &[]));
    assert_eq!(place.file().metadata().unwrap().len(), 2048);
    assert!(read() == expected, "{:?}", read());
    let seen = map.unsynced().unwrap();
    map.set(1..2).unwrap();
    map.sync_bits(&seen).unwrap();
    assert!(map.unsynced().is_some(), "what came meanwhile is not synced");
    let mut expected = header(limit, limit, (77, 8), 6);
    expected.extend(header(limit, size, (77, 8), 5));
    expected.extend(turn(0, &[0b11, 0b1_1000], &[0b1, 0b1_1000]));
    expected.extend(turn(1, &[0b11], &[0b11]));
    assert!(read() == expected, "{:?}", read());
}

#[test]
fn the_limit_only_shrinks_and_takes_the_pages_behind_it_along() {
    let place = Place::new();
    let mut map = place.create(GIB);
    map.set(0..200_000).unwrap();
    map.set_base_limit(2 * GIB, NEVER).unwrap();
    assert_eq!(map.lower_visible_len(), GIB);
    map.set_base_limit(5000 * PAGE + 17, NEVER).unwrap();
    for map in [map, place.open().unwrap()] {
        assert_eq!((map.lower_visible_len(), map.base_pages()), (5000 * PAGE + 17, 5001));
        assert_eq!((map.count(), map.turns.len()), (5001, 3));
        assert!(map.is_complete() && map.is_present(1 << 60));
    }
    let mut map = place.open().unwrap();
    map.set_base_limit(0, NEVER).unwrap();
    assert!(map.is_complete() && map.count() == 0 && map.turns.is_empty());
    map.set(0..10).unwrap();
    assert_eq!(place.open().unwrap().count(), 0, "no bits behind the limit");
}

#[test]
fn bits_behind_the_limit_mean_nothing() {
    let place = Place::new();
    drop(place.create(10 * PAGE));
    let turn = Turn { present: [u64::MAX; format::WORDS], ..Turn::NONE };
    place.file().write_all_at(&turn.encode(ID, 0), 1024).unwrap();
    let map = place.open().unwrap();
    assert_eq!((map.count(), map.is_complete()), (10, true));
}

#[test]
fn a_map_that_cannot_be_trusted_is_refused_with_the_reason() {
    let older = "page map of version 2, which the mmapfs that made it reads; this one knows 3";
    let sum = "page map is damaged: the checksum of its header is wrong";
    let damages: [(u64, &[u8], &str); 9] = [
        (0, b"M", "not a page map"),
        (8, &[4], "page map of version 4; this program knows 3"),
        (8, &[2], older),
        (8, &[0], "page map is damaged: its version is 0"),
        (13, &[32], sum),
        (23, &[1], sum),
        (48, &[0], sum),
        (512, &[0; 512], "page map is damaged: one of its headers is missing"),
        (1024 + 300, &[1], "page map is damaged: the checksum for page 0 and on is wrong"),
    ];
    for (offset, bytes, reason) in damages {
        let place = Place::new();
        drop(place.create(GIB));
        place.file().write_all_at(bytes, offset).unwrap();
        let err = place.open().unwrap_err();
        assert_eq!((err.to_string().as_str(), err.errno()), (reason, Errno::IO));
    }
    let header = |lower_visible_len, sequence| {
        let base = base(GIB);
        let (id, synced_limit) = (ID, lower_visible_len);
        let lowered = NEVER;
        Header {
            id,
            sequence,
            lower_visible_len,
            base,
            upper: UPPER,
            synced_limit,
            lowered,
            turns: 0,
        }
    };
    let belong = "page map is damaged: its headers do not belong together";
    let behind = "page map is damaged: its base limit is behind the end of the base";
    for (later, reason) in [
        (Header { upper: UpperId::default(), ..header(GIB, 3) }, belong),
        (header(GIB, 5), belong),
        (header(GIB, 2), belong),
        (header(GIB + 1, 3), behind),
    ] {
        let place = Place::new();
        drop(place.create(GIB));
        place.file().write_all_at(&format::encode(&later), 512).unwrap();
        assert_eq!(place.open().unwrap_err().to_string(), reason);
    }
    let place = Place::new();
    drop(place.create(GIB));
    let (from, to) = (place.0.path().join(ID.to_string()), place.0.path().join("00000000000000aa"));
    std::fs::rename(from, to).unwrap();
    let other = PageMap::open(place.dir(), MapId(0xaa), MapAccess::Write).unwrap_err();
    assert_eq!(other.to_string(), "page map is damaged: it is the map of another file");
    for len in [0, 511, 512, 1024, 1025, 1024 + 133 * 512 - 1] {
        let place = Place::new();
        drop(place.create(GIB));
        place.file().set_len(len).unwrap();
        assert!(matches!(place.open(), Err(MapError::Short { .. })), "{len}");
    }
    assert_eq!(Place::new().open().unwrap_err(), MapError::Io(Errno::NOENT));
}

#[test]
fn a_map_is_made_once_and_removed() {
    let place = Place::new();
    drop(place.create(5));
    let again = PageMap::create(place.dir(), ID, base(5), 5, UPPER).unwrap_err();
    assert_eq!(again, Errno::EXIST);
    PageMap::remove(place.dir(), ID).unwrap();
    assert_eq!(PageMap::remove(place.dir(), ID), Err(Errno::NOENT));
    assert_eq!(PageMap::create(place.dir(), ID, base(5), 6, UPPER).unwrap_err(), Errno::INVAL);
}

#[test]
fn the_map_of_a_frozen_layer_is_not_written() {
    let place = Place::new();
    drop(place.create(10 * PAGE));
    let mut map = PageMap::open(place.dir(), ID, MapAccess::Read).unwrap();
    assert_eq!(map.set(0..1), Err(Errno::BADF));
    assert!(!map.is_present(0), "what could not be written is not told");
    map.set_base_limit(PAGE, NEVER).unwrap();
    assert_eq!(map.lower_visible_len(), PAGE);
    assert_eq!(place.open().unwrap().lower_visible_len(), 10 * PAGE);
    map.sync(false).unwrap();
}

#[test]
fn names_are_sixteen_digits() {
    let id = MapId::random();
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!("00000000000000ff".parse(), Ok(MapId(255)));
    for name in ["", "ff", "00000000000000FF", "+0000000000000ff", "../0000000000000"] {
        assert!(name.parse::<MapId>().is_err(), "{name}");
    }
}

#[test]
fn a_fingerprint_is_that_of_the_file() {
    let place = Place::new();
    drop(place.create(5));
    let stat = place.file().metadata().unwrap();
    let found = Fingerprint::of(place.file()).unwrap();
    assert_eq!((found.size, found.ino), (stat.len(), stat.ino()));
    assert_eq!(found.mtime, (stat.mtime(), stat.mtime_nsec() as u32));
    assert_eq!(found.ctime, (stat.ctime(), stat.ctime_nsec() as u32));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn a_map_is_a_set_of_pages(
        size in 0..40_000 * PAGE,
        steps in proptest::collection::vec((0..45_000_u64, 0..9000_u64, 0..8_u8), 1..20),
    ) {
        let place = Place::new();
        let mut map = place.create(size);
        let mut model = vec![false; 60_000];
        let mut limit = size;
        for (start, len, kind) in steps {
            match kind {
                0 => {
                    limit = limit.min(start * PAGE + len % PAGE);
                    map.set_base_limit(start * PAGE + len % PAGE, NEVER).unwrap();
                }
                1 => map = place.open().unwrap(),
                _ => {
                    map.set(start..start + len).unwrap();
                    model[start as usize..(start + len) as usize].fill(true);
                }
            }
            let pages = limit.div_ceil(PAGE);
            let own = |page: u64| page >= pages || model[page as usize];
            let count = (0..pages).filter(|page| own(*page)).count() as u64;
            proptest::prop_assert_eq!((map.lower_visible_len(), map.count()), (limit, count));
            let told: Vec<u64> = runs(&map, 60_000).into_iter().flatten().collect();
            let expected: Vec<u64> = (0..60_000).filter(|page| own(*page)).collect();
            proptest::prop_assert!(told == expected);
        }
    }
}
