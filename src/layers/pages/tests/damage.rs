//! A map in which a bit or more was changed is refused, and never shows other pages.

use super::*;

/// A small generator of numbers (xorshift), to be begun anew with a seed that was printed.
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

/// Changes a map in a random way, and what is to be found in it.
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
                map.make_firm(&seen).unwrap();
            }
        }
        _ => map.set_base_limit((pages - random.below(pages / 8 + 1)) * PAGE, NEVER).unwrap(),
    }
}

fn pages(map: &PageMap) -> Vec<bool> {
    (0..map.base_pages()).map(|page| map.own(page)).collect()
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
                    // Zeros say that a turn was never written.
                    if bytes[from..from + 512] != [0; 512] {
                        bytes.copy_within(from..from + 512, to);
                    }
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
