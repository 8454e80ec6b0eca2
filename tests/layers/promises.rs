//! What each operation moves, and what happens when something fails.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use mmapfs::layers::pages::{Fingerprint, MapAccess, MapError, MapId, PageMap};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::common::{Random, SmallFs, TestDir, require_root};
use super::stack::{Stack, caller};

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn base() -> Vec<u8> {
    Random::new(7).bytes(1_000_000)
}

fn own(stack: &Stack) -> u64 {
    stack.top().own_pages().0
}

fn upper_bytes(stack: &Stack) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let upper = File::open(stack.upper_path(1)).unwrap();
    upper.sync_all().unwrap(); // Blocks that are not allocated yet do not count everywhere.
    upper.metadata().unwrap().blocks() * 512
}

#[test]
fn a_byte_of_a_large_file_costs_a_page() {
    let dir = TestDir::new();
    File::create_new(dir.path().join("base")).unwrap().set_len(100 << 30).unwrap();
    let stack = Stack::over(dir.path());
    stack.top().write(50 << 30, b"x", &caller()).unwrap();
    stack.top().sync(false).unwrap();
    assert_eq!(stack.top().own_pages(), (1, 25 << 20));
    assert!(stack.top().stored().unwrap() <= 64 << 10, "{}", stack.top().stored().unwrap());
}

#[test]
fn no_operation_reads_pages_that_it_need_not() {
    let dir = TestDir::new();
    let stack = Stack::new(dir.path(), &base());
    // A base without a byte: whoever reads one of it fails.
    OpenOptions::new().write(true).open(stack.base_path()).unwrap().set_len(0).unwrap();
    let top = stack.top();
    assert_eq!(top.write(8192, &[1; 3 * 4096], &caller()), Ok(3 * 4096));
    assert_eq!(top.write(8192 + 100, b"own", &caller()), Ok(3));
    assert_eq!(own(&stack), 3);
    top.allocate(0, 1_000_000, FallocateFlags::empty(), &caller()).unwrap();
    top.allocate(0, 2_000_000, FallocateFlags::KEEP_SIZE, &caller()).unwrap();
    top.allocate(40_960, 8192, PUNCH, &caller()).unwrap();
    assert_eq!(own(&stack), 5);
    top.allocate(900_001, 200_000, PUNCH, &caller()).unwrap();
    top.truncate(800_001, &caller()).unwrap();
    top.truncate(2_000_000, &caller()).unwrap();
    assert_eq!(top.write(1_999_999, b"ab", &caller()), Ok(2));
    assert_eq!(own(&stack), 5);

    assert_eq!(top.write(100, b"x", &caller()), Err(Errno::IO));
    assert_eq!(top.allocate(100, 5, PUNCH, &caller()), Err(Errno::IO));
    assert_eq!(top.materialize(), Err(Errno::IO));
    assert_eq!(top.read(700_000, &mut [0; 10]), Err(Errno::IO), "never zeros");
    assert_eq!(own(&stack), 5);
    top.truncate(0, &caller()).unwrap();
    assert!(top.is_complete());
}

#[test]
fn a_base_that_was_cut_off_is_told() {
    let dir = TestDir::new();
    let stack = Stack::new(dir.path(), &base());
    OpenOptions::new().write(true).open(stack.base_path()).unwrap().set_len(500_000).unwrap();
    let top = stack.top();
    assert_eq!(top.size(), Ok(1_000_000));
    assert_eq!(top.read_with(0, 500_000, |bytes| bytes == &base()[..500_000]), Ok(true));
    assert_eq!(top.read(499_999, &mut [0; 2]), Err(Errno::IO));
    let base = Fingerprint::of(File::open(stack.base_path()).unwrap()).unwrap();
    assert_ne!(base, top.fingerprint());
}

#[test]
fn what_moves_everything_behind_it_is_refused() {
    let dir = TestDir::new();
    let stack = Stack::new(dir.path(), &base());
    let refused = [
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::PUNCH_HOLE,
        PUNCH | FallocateFlags::ZERO_RANGE,
        FallocateFlags::from_bits_retain(1 << 20),
    ];
    for mode in refused {
        let result = stack.top().allocate(4096, 4096, mode, &caller());
        assert_eq!(result, Err(Errno::OPNOTSUPP), "{mode:?}");
    }
    let allocate = |offset, len| stack.top().allocate(offset, len, PUNCH, &caller());
    assert_eq!(allocate(0, 0), Err(Errno::INVAL));
    assert_eq!(allocate(u64::MAX, 2), Err(Errno::FBIG));
    assert_eq!(allocate(i64::MAX as u64, 1), Err(Errno::FBIG));
    assert_eq!(stack.top().write(i64::MAX as u64, b"x", &caller()), Err(Errno::FBIG));
    assert!(stack.content() == base());
}

#[test]
fn what_a_killed_write_left_never_shows() {
    let dir = TestDir::new();
    let content = vec![b'b'; 10 * 4096 + 100];
    let mut stack = Stack::new(dir.path(), &content);
    // Data without bits, up to the end.
    let upper = OpenOptions::new().write(true).open(stack.upper_path(1)).unwrap();
    upper.write_all_at(&vec![b'j'; content.len()], 0).unwrap();
    stack.reopen();
    assert!(stack.content() == content);
    let mut expected = content.clone();
    let top = stack.top();
    top.write(5000, b"new", &caller()).unwrap();
    expected[5000..5003].copy_from_slice(b"new");
    top.allocate(10 * 4096, 50, FallocateFlags::ZERO_RANGE, &caller()).unwrap();
    expected[10 * 4096..10 * 4096 + 50].fill(0);
    assert!(stack.content() == expected);
    top.allocate(7 * 4096 + 1, 1 << 20, PUNCH, &caller()).unwrap();
    expected[7 * 4096 + 1..].fill(0);
    assert!(stack.content() == expected);
    top.truncate(6 * 4096 + 7, &caller()).unwrap();
    top.truncate(20 * 4096, &caller()).unwrap();
    expected.truncate(6 * 4096 + 7);
    expected.resize(20 * 4096, 0);
    assert!(stack.content() == expected);
    top.materialize().unwrap();
    assert!(fs::read(stack.upper_path(1)).unwrap() == expected);
}

#[test]
fn holes_of_the_base_stay_holes() {
    let dir = TestDir::new();
    let mut content = vec![0; 4 << 20];
    content[1 << 20..(1 << 20) + 9000].fill(1);
    let stack = Stack::new(dir.path(), &content);
    let upper = OpenOptions::new().write(true).open(stack.upper_path(1)).unwrap();
    upper.write_all_at(&[b'j'; 100_000], 3 << 20).unwrap(); // Without bits.
    stack.top().materialize().unwrap();
    assert!(fs::read(stack.upper_path(1)).unwrap() == content);
    assert!(upper_bytes(&stack) <= 64 << 10, "{}", upper_bytes(&stack));
}

#[test]
fn a_truncation_that_was_not_finished_is() {
    let dir = TestDir::new();
    let mut stack = Stack::new(dir.path(), &base());
    OpenOptions::new().write(true).open(stack.upper_path(1)).unwrap().set_len(5000).unwrap();
    stack.reopen();
    stack.top().truncate(9000, &caller()).unwrap();
    let mut expected = base();
    expected.truncate(5000);
    expected.resize(9000, 0);
    assert!(stack.content() == expected);
    stack.reopen();
    assert!(stack.content() == expected);
}

#[test]
fn zeros_that_were_written_are_as_good_as_holes() {
    let dir = TestDir::new();
    let mut stack = Stack::new(dir.path(), &base());
    let mut written = vec![0; 10 * 4096];
    written[5 * 4096..6 * 4096].fill(9);
    stack.top().write(3 * 4096 - 5, &written, &caller()).unwrap();
    stack.top().allocate(40 * 4096, 3 * 4096, PUNCH, &caller()).unwrap();
    let content = stack.content();
    // An archiver makes a hole of every block of zeros, and what was synchronised is nothing.
    let upper = OpenOptions::new().read(true).write(true).open(stack.upper_path(1)).unwrap();
    let whole = [3..7, 9..12].map(|pages: std::ops::Range<u64>| (pages.start, pages.end));
    for (start, end) in whole {
        rustix::fs::fallocate(&upper, PUNCH, start * 4096, (end - start) * 4096).unwrap();
    }
    let maps = File::open(dir.path()).unwrap();
    let gone = || Err(Errno::NOENT);
    PageMap::recover(&maps, MapId(1), &upper.into(), gone).unwrap();
    stack.reopen();
    assert!(stack.content() == content);
}

#[test]
fn an_upper_file_without_its_map_is_no_file() {
    let dir = TestDir::new();
    let stack = Stack::new(dir.path(), &base());
    let maps = File::open(dir.path()).unwrap();
    OpenOptions::new().write(true).open(stack.map_path()).unwrap().set_len(1100).unwrap();
    let open = || PageMap::open(&maps, MapId(1), MapAccess::Write);
    assert!(matches!(open(), Err(MapError::Short { len: 1100, least: 1536 })));
    PageMap::remove(&maps, MapId(1)).unwrap();
    assert_eq!(open().unwrap_err(), MapError::Io(Errno::NOENT));
}

#[test]
fn copying_leaves_the_times_of_both_files() {
    use std::os::unix::fs::MetadataExt;
    let dir = TestDir::new();
    let stack = Stack::new(dir.path(), &base());
    let upper = File::open(stack.upper_path(1)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(12345, 678);
    upper.set_modified(time).unwrap();
    let before = Fingerprint::of(File::open(stack.base_path()).unwrap()).unwrap();
    stack.top().materialize().unwrap();
    let stat = upper.metadata().unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (12345, 678));
    assert_eq!(Fingerprint::of(File::open(stack.base_path()).unwrap()).unwrap(), before);
}

#[test]
fn a_full_disk_cuts_writes_short_and_breaks_no_page() {
    if !require_root() {
        return;
    }
    let mut random = Random::from_environment();
    let base = random.bytes(600_000);
    for round in 0..40 {
        let small = SmallFs::tmpfs(1 << 20);
        let mut stack = Stack::new(small.path(), &base);
        let filler = File::create_new(small.path().join("filler")).unwrap();
        let mut model = base.clone();
        for step in 0..60 {
            if step % 20 == 10 {
                // From now on there is room for a few pages.
                let room = random.below(12) as usize * 4096;
                filler.set_len(0).unwrap();
                let _ = filler.write_all_at(&vec![1; 1 << 20], 0);
                let full = std::os::unix::fs::MetadataExt::size(&filler.metadata().unwrap());
                filler.set_len(full.saturating_sub(room as u64)).unwrap();
            }
            let offset = random.below(model.len() as u64 + 5000);
            let len = random.pick(&[1, 100, 4096, 5000, 20_000, 100_000]);
            let data = random.bytes(len);
            let before = model.clone();
            let count = match stack.top().write(offset, &data, &caller()) {
                Ok(count) => count,
                Err(Errno::NOSPC) => 0,
                Err(err) => panic!("{err}"),
            };
            let end = offset as usize + count;
            if count > 0 {
                model.resize(model.len().max(end), 0);
                model[offset as usize..end].copy_from_slice(&data[..count]);
            }
            if step % 7 == 0 {
                stack.reopen();
            }
            let content = stack.content();
            assert_eq!(content.len(), model.len(), "round {round} step {step}");
            // What was told is there; of what was not, each page is old or new.
            let mut could = before;
            could.resize(model.len().max(offset as usize + len), 0);
            could[offset as usize..][..len].copy_from_slice(&data);
            for (page, is) in content.chunks(4096).enumerate() {
                let range = page * 4096..page * 4096 + is.len();
                let told = *is == model[range.clone()];
                let more = range.start >= end && *is == could[range];
                assert!(told || more, "round {round} step {step} page {page}");
            }
            model = content;
        }
        // Room comes back.
        filler.set_len(0).unwrap();
        stack.top().truncate(0, &caller()).unwrap();
        assert_eq!(stack.top().write(0, &[1; 100_000], &caller()), Ok(100_000));
    }
}

#[test]
fn copying_to_a_full_disk_fails_and_leaves_the_content() {
    if !require_root() {
        return;
    }
    let small = SmallFs::tmpfs(1 << 20);
    let content = base()[..700_000].to_vec();
    let stack = Stack::new(small.path(), &content);
    assert_eq!(stack.top().materialize(), Err(Errno::NOSPC));
    assert!(stack.content() == content);
    let filler = File::create_new(small.path().join("filler")).unwrap();
    let _ = filler.write_all_at(&vec![1; 1 << 20], 0);
    assert_eq!(stack.top().write(690_000, b"x", &caller()), Err(Errno::NOSPC));
    assert!(stack.content() == content);
}
