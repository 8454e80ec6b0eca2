//! Recovery after a power cut: present bits are on the disk, and their data is not.

use super::*;

struct Cut {
    place: Place,
    upper: OwnedFd,
}

impl Cut {
    /// Upper file that is one hole of the base's length.
    fn new(pages: u64) -> Cut {
        let place = Place::new();
        let path = place.0.path().join("upper");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(pages * PAGE).unwrap();
        Cut { place, upper: file.into() }
    }

    fn write(&self, page: u64) {
        rustix::io::pwrite(&self.upper, &[7; PAGE as usize], page * PAGE).unwrap();
    }

    fn recover(&self) -> Recovered {
        let gone = || Err(Errno::NOENT);
        PageMap::recover(self.place.dir(), ID, &self.upper, gone).unwrap()
    }

    fn is_present(&self) -> Vec<Range<u64>> {
        let map = self.place.open().unwrap();
        runs(&map, map.base_pages())
    }

    fn ctime(&self) -> (i64, u32) {
        Fingerprint::of(&self.upper).unwrap().ctime
    }
}

#[test]
fn a_page_whose_data_never_reached_the_disk_is_the_bases_again() {
    let cut = Cut::new(20_000);
    let mut map = cut.place.create(20_000 * PAGE);
    cut.write(3);
    cut.write(9000);
    map.set(2..5).unwrap();
    map.set(8999..9001).unwrap();
    map.set(19_999..20_000).unwrap();
    assert_eq!(cut.recover(), Recovered::Without(4));
    assert_eq!(cut.is_present(), [3..4, 9000..9001]);
    assert_eq!(cut.recover(), Recovered::Whole);
}

#[test]
fn what_was_synchronised_and_what_is_zeros_stays_whatever_the_upper_file_has() {
    let cut = Cut::new(100);
    let mut map = cut.place.create(100 * PAGE);
    map.set(10..12).unwrap();
    map.sync_bits(&map.unsynced().unwrap()).unwrap();
    map.set_zeros(50..60).unwrap();
    map.set(12..13).unwrap();
    assert!(map.unsynced().is_some());
    assert_eq!(cut.recover(), Recovered::Without(1));
    assert_eq!(cut.is_present(), [10..12, 50..60]);

    // A truncation cleared the present bit, and the truncation itself is not on the disk.
    let mut turn = cut.place.open().unwrap().turn(0);
    turn.present[0] = 0;
    cut.place.file().write_all_at(&turn.encode(ID, 0), 1024).unwrap();
    assert_ne!(cut.recover(), Recovered::Whole);
    assert_eq!(cut.is_present(), [10..12, 50..60]);

    // Pages that are cleared are not synced.
    let mut map = cut.place.open().unwrap();
    map.clear(11..55).unwrap();
    assert_eq!(cut.recover(), Recovered::Whole);
    assert_eq!(cut.is_present(), [10..11, 55..60]);
}

#[test]
fn a_truncation_that_is_not_on_the_disk_takes_nothing_away() {
    let cut = Cut::new(10_000);
    let mut map = cut.place.create(10_000 * PAGE);
    cut.write(7000);
    map.set(7000..7001).unwrap();
    map.sync_bits(&map.unsynced().unwrap()).unwrap();
    let (seconds, nanoseconds) = cut.ctime();
    map.set_base_limit(5, (seconds + 1, nanoseconds)).unwrap();
    map.set(0..1).unwrap();
    assert_eq!(cut.recover(), Recovered::Without(1));
    let map = cut.place.open().unwrap();
    assert_eq!(map.lower_visible_len(), 10_000 * PAGE);
    assert_eq!(cut.is_present(), std::slice::from_ref(&(7000..7001)));
}

#[test]
fn a_truncation_that_is_on_the_disk_counts() {
    let cut = Cut::new(10_000);
    let mut map = cut.place.create(10_000 * PAGE);
    map.set_base_limit(5, cut.ctime()).unwrap();
    assert_eq!(cut.recover(), Recovered::Whole);
    assert_eq!(cut.place.open().unwrap().lower_visible_len(), 5);
    map.sync_bits(&map.unsynced().unwrap()).unwrap();
    assert!(map.unsynced().is_none());
    assert_eq!(cut.place.file().metadata().unwrap().len(), 1536, "the rest is given back");
}

#[test]
fn a_map_that_never_reached_the_disk_is_made_of_the_pages_of_the_upper_file() {
    for len in [0, 100, 40_000] {
        let cut = Cut::new(100);
        drop(cut.place.create(100 * PAGE));
        cut.write(7);
        rustix::io::pwrite(&cut.upper, b"tail", 100 * PAGE).unwrap();
        cut.place.file().set_len(0).unwrap();
        cut.place.file().set_len(len).unwrap();
        let base = || Ok(base(200 * PAGE));
        let recovered = PageMap::recover(cut.place.dir(), ID, &cut.upper, base);
        assert_eq!(recovered, Ok(Recovered::Anew));
        assert_eq!(cut.place.open().unwrap().lower_visible_len(), 100 * PAGE + 4);
        assert_eq!(cut.is_present(), [7..8, 100..101]);
    }
}

#[test]
fn a_turn_that_is_torn_is_that_before_or_that_after_page_by_page() {
    let cut = Cut::new(100);
    let mut map = cut.place.create(100 * PAGE);
    cut.write(1);
    cut.write(2);
    map.set(1..2).unwrap();
    map.sync_bits(&map.unsynced().unwrap()).unwrap();
    map.set(2..4).unwrap();
    let mut turn = map.turn(0);
    turn.synced[0] |= 1 << 9; // Zeros of which half the word came: page 9 is the base's still.
    let mut record = turn.encode(ID, 0);
    record[508] ^= 1;
    cut.place.file().write_all_at(&record, 1024).unwrap();
    assert_eq!(cut.place.open().unwrap_err(), MapError::Turn { page: 0 });
    assert_eq!(cut.recover(), Recovered::Without(1));
    assert_eq!(cut.is_present(), std::slice::from_ref(&(1..3)));
    assert_eq!(cut.recover(), Recovered::Whole);
}

#[test]
fn a_header_that_is_torn_counts_as_the_one_before() {
    for slot in 0..2 {
        let cut = Cut::new(100);
        let mut map = cut.place.create(100 * PAGE);
        map.set_base_limit(50 * PAGE, cut.ctime()).unwrap();
        cut.place.file().write_all_at(&[1], slot * 512 + 300).unwrap();
        assert!(cut.place.open().is_err());
        assert_eq!(cut.recover(), Recovered::Without(0));
        // The later header is the second one.
        let limit = if slot == 0 { 50 } else { 100 };
        assert_eq!(cut.place.open().unwrap().lower_visible_len(), limit * PAGE);
        assert_eq!(cut.recover(), Recovered::Whole);
    }
}

#[test]
fn a_turn_that_the_header_counts_and_that_is_not_on_the_disk_is_the_bases() {
    let cut = Cut::new(10_000);
    let mut map = cut.place.create(10_000 * PAGE);
    cut.write(7);
    map.set(7..8).unwrap();
    map.set(9000..9001).unwrap();
    cut.place.file().write_all_at(&[0; 512], 1024 + 4 * 512).unwrap();
    assert_eq!(cut.place.open().unwrap_err(), MapError::Gone { written: 2, found: 1 });
    assert_eq!(cut.recover(), Recovered::Without(0));
    assert_eq!(cut.is_present(), std::slice::from_ref(&(7..8)));
    assert_eq!(cut.recover(), Recovered::Whole);
}

#[test]
fn pages_without_data_are_an_error_where_the_machine_has_not_stopped() {
    let cut = Cut::new(5000);
    let mut map = cut.place.create(5000 * PAGE);
    cut.write(7);
    map.set(7..8).unwrap();
    map.set_zeros(9..3000).unwrap();
    cut.place.open().unwrap().check_data(&cut.upper).unwrap();
    map.set(4000..4001).unwrap();
    let found = cut.place.open().unwrap().check_data(&cut.upper);
    assert_eq!(found, Err(MapError::Missing { page: 4000 }));
    map.sync_bits(&map.unsynced().unwrap()).unwrap();
    cut.place.open().unwrap().check_data(&cut.upper).unwrap();
}

#[test]
fn a_map_that_is_damaged_stays_as_it_is() {
    let cut = Cut::new(10);
    drop(cut.place.create(10 * PAGE));
    cut.place.file().write_all_at(b"M", 0).unwrap();
    cut.place.file().write_all_at(b"M", 512).unwrap();
    let base = || Ok(base(10 * PAGE));
    let recovered = PageMap::recover(cut.place.dir(), ID, &cut.upper, base);
    assert_eq!(recovered, Err(MapError::Magic));
}
