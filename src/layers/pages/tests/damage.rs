//! A map in which a bit or more was changed is refused, and never shows other pages.

use super::*;

/// Random number generator (xorshift); a printed seed repeats a run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn seed() -> u64 {
    let given = std::env::var("MMAPFS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or(MapId::random().0 | 1);
    eprintln!("MMAPFS_SEED={seed}");
    seed
}

/// Changes a map at random, and its model `own` in the same way.
fn change(random: &mut Random, map: &mut PageMap, own: &mut [bool]) {
    let pages = map.base_pages();
    if pages == 0 {
        return;
    }
    let start = random.below(pages);
    let most = (pages - start).min(1 << random.below(13));
    let end = start + 1 + random.below(most);
    let (from, to) = (start as usize, end as usize);
    match random.below(12) {
        0..6 => {
            map.set(start..end).unwrap();
            own[from..to].fill(true);
        }
        6..8 => {
            map.set_zeros(start..end).unwrap();
            own[from..to].fill(true);
        }
        8..10 => {
            map.clear(start..end).unwrap();
            own[from..to].fill(false);
        }
        10 => {
            if let Some(seen) = map.unsynced() {
                map.sync_bits(&seen).unwrap();
            }
        }
        _ => map.set_base_limit((pages - random.below(pages / 8 + 1)) * PAGE, NEVER).unwrap(),
    }
}

fn pages(map: &PageMap) -> Vec<bool> {
    (0..map.base_pages()).map(|page| map.is_present(page)).collect()
}

#[test]
fn whatever_is_changed_in_a_map_is_told_and_no_other_pages_are_shown() {
    let random = &mut Random(seed());
    let mut rounds = 0;
    for _ in 0..25 {
        let place = Place::new();
        let size = 1 + random.below(12_000) * PAGE;
        let mut map = place.create(size);
        let mut own = vec![false; map.base_pages() as usize];
        for _ in 0..random.below(40) {
            change(random, &mut map, &mut own);
        }
        own.truncate(map.base_pages() as usize);
        assert!(pages(&map) == own);
        let opened = place.open().unwrap();
        assert!(pages(&opened) == own);
        let file = place.file();
        let whole = std::fs::read(place.0.path().join(ID.to_string())).unwrap();
        let end = format::length_for(map.base_pages()) as usize;
        for _ in 0..80 {
            let mut bytes = whole.clone();
            let at = random.below(end as u64) as usize;
            match random.below(4) {
                // One bit, one byte, some bytes, a record of another place.
                0 | 1 => bytes[at] ^= 1 << random.below(8),
                2 => {
                    let len = (1 + random.below(64) as usize).min(end - at);
                    bytes[at..at + len].iter_mut().for_each(|byte| *byte = random.below(256) as u8);
                }
                _ => {
                    let from = random.below(end as u64 / 512) as usize * 512;
                    let to = at / 512 * 512;
                    bytes.copy_within(from..from + 512, to);
                }
            }
            file.write_all_at(&bytes, 0).unwrap();
            match place.open() {
                Ok(map) => assert!(
                    bytes[..end] == whole[..end] || pages(&map) == own,
                    "a change at {at} is not told and shows other pages"
                ),
                Err(err) => assert_eq!(err.errno(), Errno::IO),
            }
            rounds += 1;
        }
        file.write_all_at(&whole, 0).unwrap();
        assert!(pages(&place.open().unwrap()) == own);
    }
    eprintln!("{rounds} rounds of damage");
}

#[test]
fn one_bit_anywhere_in_a_map_is_told() {
    let random = &mut Random(seed());
    let place = Place::new();
    let mut map = place.create(3000 * PAGE);
    map.set(5..9).unwrap();
    map.set_zeros(1990..2500).unwrap();
    let file = place.file();
    let whole = std::fs::read(place.0.path().join(ID.to_string())).unwrap();
    for (at, byte) in whole.iter().enumerate() {
        file.write_all_at(&[byte ^ 1 << random.below(8)], at as u64).unwrap();
        assert!(place.open().is_err(), "byte {at}");
        file.write_all_at(&[*byte], at as u64).unwrap();
    }
    assert_eq!(pages(&place.open().unwrap()), pages(&map));
}

#[test]
fn zeros_in_the_place_of_a_turn_are_told_also_where_no_daemon_has_ended_well() {
    let place = Place::new();
    let mut map = place.create(10_000 * PAGE);
    map.set(5..6).unwrap();
    map.set(2000..2001).unwrap();
    map.clear(2000..2001).unwrap();
    map.set(9000..9001).unwrap();
    // As a daemon leaves it that is killed now.
    let whole = std::fs::read(place.0.path().join(ID.to_string())).unwrap();
    assert_eq!(pages(&place.open().unwrap()), pages(&map));
    // The turns 0, 1 and 4 were written; the second has no bit any more.
    for turn in [0, 1, 4] {
        let mut bytes = whole.clone();
        bytes[1024 + turn * 512..][..512].fill(0);
        place.file().write_all_at(&bytes, 0).unwrap();
        assert_eq!(place.open().unwrap_err(), MapError::Gone { written: 3, found: 2 });
    }
    // A map of an older program has the count 0.
    let mut bytes = whole.clone();
    for sequence in [2, 3] {
        let header = Header { turns: 0, sequence, ..map.header() };
        let at = sequence as usize % 2 * 512;
        bytes[at..at + 512].copy_from_slice(&format::encode(&header));
    }
    place.file().write_all_at(&bytes, 0).unwrap();
    assert_eq!(pages(&place.open().unwrap()), pages(&map));
    // The next header that is written has the count.
    let mut map = place.open().unwrap();
    map.set(4000..4001).unwrap();
    place.file().write_all_at(&[0; 512], 1024).unwrap();
    assert_eq!(place.open().unwrap_err(), MapError::Gone { written: 4, found: 3 });
}

#[test]
fn turns_behind_a_limit_are_not_missed() {
    let place = Place::new();
    let mut map = place.create(10_000 * PAGE);
    map.set(5..6).unwrap();
    map.set(9000..9001).unwrap();
    map.set_base_limit(100 * PAGE, NEVER).unwrap();
    drop(place.open().unwrap());
    map.sync_bits(&map.unsynced().unwrap()).unwrap();
    assert_eq!(place.file().metadata().unwrap().len(), 1536);
    drop(place.open().unwrap());
    place.file().write_all_at(&[0; 512], 1024).unwrap();
    assert_eq!(place.open().unwrap_err(), MapError::Gone { written: 1, found: 0 });
}
