use super::*;
use crate::volume::stat::stat_of;

fn root() -> (Stat, OwnedFd) {
    let fd: OwnedFd = std::fs::File::open("/").unwrap().into();
    (stat_of(&fd).unwrap(), fd)
}

fn add(table: &InodeTable, stat: &Stat) -> Arc<Node> {
    let identity = Identity { birth: stat.birth, ..Identity::default() };
    add_as(table, &Seen::bare(stat), identity)
}

fn add_as(table: &InodeTable, seen: &Seen<'_>, identity: Identity) -> Arc<Node> {
    table.remember(Ino(seen.stat.ino), seen, |ino| {
        Node::new(ino, &seen.stat, identity, Ino::ROOT, OsStr::new("f"))
    })
}

#[test]
fn a_node_is_known_until_its_last_lookup_is_forgotten() {
    let (stat, fd) = root();
    let table = InodeTable::new(&stat, fd);
    let file = Stat { ino: 77, ..stat };
    add(&table, &file);
    add(&table, &file);
    assert_eq!(table.counts(), (2, 3));
    assert!(table.forget(Ino(77), 1).is_none());
    assert!(table.get(Ino(77)).is_some());
    assert!(table.forget(Ino(77), 1).is_some());
    assert!(table.get(Ino(77)).is_none());
}

#[test]
fn a_reused_inode_number_is_another_inode_while_the_first_is_known() {
    let (stat, fd) = root();
    let table = InodeTable::new(&stat, fd);
    let old = Stat { ino: 78, birth: 1, ..stat };
    let new = Stat { ino: 78, birth: 2, ..stat };
    let (first, second) = (add(&table, &old), add(&table, &new));
    assert_eq!(first.ino, Ino(78));
    assert_ne!(second.ino, Ino(78));
    assert!(table.forget(Ino(78), 1).is_some());
    assert_eq!(add(&table, &new).ino, second.ino, "it keeps its number");
    let found = table.find(Ino(78), &Seen::bare(&new));
    assert_eq!(found.map(|node| node.ino), Some(second.ino));
    assert!(table.forget(second.ino, 2).is_some());
    assert_eq!(add(&table, &new).ino, Ino(78));
}

#[test]
fn files_with_one_number_and_one_time_of_birth_are_told_apart_by_their_handles() {
    let (stat, fd) = root();
    let table = InodeTable::new(&stat, fd);
    let file = Stat { ino: 80, birth: 1, ..stat };
    let dir = tempfile::tempdir().unwrap();
    let seen = |name: &str| {
        let open = std::fs::File::create(dir.path().join(name)).unwrap();
        Seen::with_handle(&file, crate::sys::handle::handle_of(open, c"").ok())
    };
    let (one, other) = (seen("one"), seen("other"));
    if one.handle().is_none() {
        return eprintln!("SKIPPED: there are no file handles here");
    }
    let identity =
        |seen: &Seen<'_>| Identity { birth: 1, handle: seen.handle().cloned(), ambiguous: true };
    let (first, second) =
        (add_as(&table, &one, identity(&one)), add_as(&table, &other, identity(&other)));
    assert_ne!(first.ino, second.ino);
    assert_ne!(first.generation(), second.generation());
    assert_eq!(add_as(&table, &one, identity(&one)).ino, first.ino);
    assert_eq!(add_as(&table, &other, identity(&other)).ino, second.ino);
    // Attributes alone do not say which it is.
    assert!(table.find(Ino(80), &Seen::bare(&file)).is_none());
}

#[test]
fn when_every_number_is_taken_the_first_is_given_anew_with_its_lookups() {
    let (stat, fd) = root();
    let table = InodeTable::new(&stat, fd);
    for birth in 1..=SUBSTITUTES as u32 + 1 {
        add(&table, &Stat { ino: 78, birth, ..stat });
    }
    let last = Stat { ino: 78, birth: 1000, ..stat };
    assert_eq!(add(&table, &last).ino, Ino(78));
    assert!(table.forget(Ino(78), 1).is_none());
    assert!(table.forget(Ino(78), 1).is_some());
}

#[test]
fn forgetting_too_much_or_the_root_or_the_unknown_does_no_harm() {
    let (stat, fd) = root();
    let table = InodeTable::new(&stat, fd);
    add(&table, &Stat { ino: 79, ..stat });
    assert!(table.forget(Ino(79), 100).is_some());
    assert!(table.forget(Ino(79), 1).is_none());
    assert!(table.forget(Ino::ROOT, 100).is_none());
    assert!(table.get(Ino::ROOT).is_some());
}

#[test]
fn a_node_stays_small() {
    assert!(size_of::<Node>() <= 104, "{} bytes", size_of::<Node>());
}
