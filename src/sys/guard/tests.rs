#![cfg(target_arch = "x86_64")]

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::sys::page_size;

const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Bytes that tell their own place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// A file of patterned pages, mapped at its full length.
fn mapped(pages: usize, prot: i32) -> (File, Region) {
    install().unwrap();
    let file = tempfile::tempfile().unwrap();
    let len = pages * page_size();
    assert_eq!(rustix::io::pwrite(&file, &pattern(len), 0), Ok(len));
    let region = Region::map(&file, len, prot, libc::MAP_SHARED).unwrap();
    (file, region)
}

/// Where copies are made from and to around the new end of the file: before, at and after the
/// border of its last page, at any alignment.
fn spans() -> Vec<(usize, usize)> {
    let page = page_size();
    let edges =
        [0, 1, 63, page - 1, page, page + 1, 2 * page - 1, 2 * page, 2 * page + 1, 3 * page];
    let mut spans = Vec::new();
    for start in edges {
        for end in edges.into_iter().chain([4 * page]) {
            if start <= end {
                spans.push((start, end - start));
            }
        }
    }
    spans
}

/// Bytes of a copy that must arrive when the file was cut to `size`: the rest of its last page is
/// still there.
fn expected(size: usize, start: usize, len: usize) -> usize {
    len.min(size.next_multiple_of(page_size()).saturating_sub(start))
}

#[test]
fn whole_copies_arrive_in_both_directions() {
    let (file, region) = mapped(4, WRITE);
    for (start, len) in spans() {
        let mut buffer = vec![0xaa; len];
        assert_eq!(copy_out(&region, start, &mut buffer), len);
        assert!(buffer == pattern(4 * page_size())[start..start + len]);
        let data = vec![0x55; len];
        assert_eq!(copy_in(&region, start, &data), len);
        let mut read = vec![0; len];
        assert_eq!(rustix::io::pread(&file, &mut read[..], start as u64), Ok(len));
        assert!(read == data);
        rustix::io::pwrite(&file, &pattern(4 * page_size()), 0).unwrap();
    }
}

#[test]
fn a_file_cut_short_under_a_read_gives_the_exact_count() {
    let page = page_size();
    for size in [0, 1, page - 1, page, page + 1, 2 * page, 3 * page + 7] {
        let (file, region) = mapped(4, READ);
        file.set_len(size as u64).unwrap();
        for (start, len) in spans() {
            let mut buffer = vec![0xaa; len];
            let arrived = copy_out(&region, start, &mut buffer);
            assert_eq!(arrived, expected(size, start, len), "{size} {start} {len}");
            for (at, byte) in buffer.iter().enumerate() {
                let place = start + at;
                let whole = if place < size { (place % 251) as u8 } else { 0 };
                let right = if at < arrived { whole } else { 0xaa };
                assert_eq!(*byte, right, "{size} {start} {len}: byte {at}");
            }
        }
    }
}

#[test]
fn a_file_cut_short_under_a_write_gives_the_exact_count() {
    let page = page_size();
    for size in [0, 1, page - 1, page, page + 1, 2 * page, 3 * page + 7] {
        let (file, region) = mapped(4, WRITE);
        file.set_len(size as u64).unwrap();
        for (start, len) in spans() {
            let data = vec![(start ^ len) as u8 | 1; len];
            let arrived = copy_in(&region, start, &data);
            assert_eq!(arrived, expected(size, start, len), "{size} {start} {len}");
            let inside = size.saturating_sub(start).min(arrived);
            let mut read = vec![0; inside];
            assert_eq!(rustix::io::pread(&file, &mut read[..], start as u64), Ok(inside));
            assert!(read == data[..inside], "{size} {start} {len}");
        }
        assert_eq!(file.metadata().unwrap().len(), size as u64);
    }
}

#[test]
fn long_copies_give_the_exact_count_too() {
    const PAGES: usize = 40;
    let page = page_size();
    let len = PAGES * page;
    assert!(len > 2 * copy::LONG + page, "both sides of a cut take the loop over blocks");
    let original = pattern(len);
    for size in [0, 1, 20 * page, 20 * page + 1, 33 * page - 1, len - page, len] {
        for start in [0, 1, 16, 80, page - 1, page + 63] {
            for wanted in [copy::LONG - 1, copy::LONG, copy::LONG + 1, len - start] {
                let (file, region) = mapped(PAGES, WRITE);
                file.set_len(size as u64).unwrap();
                let count = expected(size, start, wanted);
                let inside = size.saturating_sub(start).min(count);

                let mut buffer = vec![0xaa; wanted];
                let arrived = copy_out(&region, start, &mut buffer);
                assert_eq!(arrived, count, "out: {size} {start} {wanted}");
                assert!(buffer[..inside] == original[start..start + inside]);
                assert!(buffer[inside..count].iter().all(|byte| *byte == 0));
                assert!(buffer[count..].iter().all(|byte| *byte == 0xaa));

                let data: Vec<u8> = original[..wanted].iter().map(|byte| !byte).collect();
                let arrived = copy_in(&region, start, &data);
                assert_eq!(arrived, count, "in: {size} {start} {wanted}");
                let mut whole = vec![0; size];
                assert_eq!(rustix::io::pread(&file, &mut whole[..], 0), Ok(size));
                assert!(whole[..start.min(size)] == original[..start.min(size)]);
                assert!(whole.get(start..start + inside).unwrap_or_default() == &data[..inside]);
                let behind = size.min(start + inside);
                assert!(whole[behind..] == original[behind..size], "{size} {start} {wanted}");
            }
        }
    }
}

#[test]
fn ranges_outside_and_rights_that_are_missing_copy_nothing() {
    let page = page_size();
    let (file, region) = mapped(2, READ);
    let mut buffer = [0xaa; 16];
    for offset in [2 * page - 15, 2 * page, 3 * page, usize::MAX - 8, usize::MAX] {
        assert_eq!(copy_out(&region, offset, &mut buffer), 0, "{offset}");
        assert_eq!(copy_in(&region, offset, &buffer), 0, "{offset}");
    }
    assert_eq!(copy_in(&region, 0, &buffer), 0, "mapped for reading only");
    assert_eq!(copy_out(&region, 2 * page, &mut []), 0);
    for prot in [libc::PROT_NONE, libc::PROT_EXEC] {
        let closed = Region::map(&file, page, prot, libc::MAP_SHARED).unwrap();
        assert_eq!(copy_out(&closed, 0, &mut buffer), 0, "mapped without the right to read");
    }
    assert_eq!(buffer, [0xaa; 16]);
}

/// Copies in and out of a region until enough copies of all threads were cut short.
fn copy_until_enough(short: &AtomicUsize, region: &Region, start: usize) {
    let len = region.len() - start;
    while short.load(Ordering::Relaxed) < ENOUGH {
        let mut buffer = vec![0xaa; len];
        let out = copy_out(region, start, &mut buffer);
        let (arrived, rest) = buffer.split_at(out);
        assert!(arrived.iter().all(|byte| [0, 0x5a].contains(byte)), "bytes of nobody");
        assert!(rest.iter().all(|byte| *byte == 0xaa), "bytes behind the count");
        let into = copy_in(region, start, &vec![0x5a; len]);
        // A page can go in the midst of its copy, so that counts end anywhere.
        let cut = usize::from(out < len) + usize::from(into < len);
        short.fetch_add(cut, Ordering::Relaxed);
    }
}

/// Copies that are to meet a page that is gone.
const ENOUGH: usize = 100;

#[test]
fn many_threads_copy_while_the_file_is_cut_and_grown() {
    const PAGES: usize = 64;
    let page = page_size();
    let (file, region) = mapped(PAGES, WRITE);
    assert_eq!(copy_in(&region, 0, &vec![0; PAGES * page]), PAGES * page);
    let short = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads = [0, 1, page - 1, 3 * page + 64].map(|start| {
            let (short, region) = (&short, &region);
            scope.spawn(move || copy_until_enough(short, region, start))
        });
        let mut round = 0_usize;
        while threads.iter().any(|thread| !thread.is_finished()) {
            round += 1;
            file.set_len((round * 7919 % (PAGES * page)) as u64).unwrap();
            std::thread::yield_now();
            file.set_len((PAGES * page) as u64).unwrap();
        }
    });
    assert!(short.into_inner() >= ENOUGH);
}

#[test]
fn installing_from_many_threads_is_done_once() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(install(), Ok(())));
        }
    });
    let (_file, region) = mapped(1, READ);
    assert_eq!(copy_out(&region, 0, &mut [0; 16]), 16);
}

/// Set for a test that runs once more, alone in a process of its own.
const ALONE: &str = "MMAPFS_TEST_ALONE";

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs one test of this module in a process of its own.
fn run_alone(test: &str) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("{}::{test}", module_path!().split_once("::").unwrap().1)]);
    child.args(["--nocapture", "--test-threads=1"]).env(ALONE, "1");
    child.output().unwrap().status
}

fn set_bus_action(action: libc::sighandler_t) {
    // SAFETY: takes numbers, or the address of a handler that does nothing.
    unsafe { libc::signal(libc::SIGBUS, action) };
}

fn send_bus_error() {
    // SAFETY: takes a number.
    unsafe { libc::raise(libc::SIGBUS) };
}

/// A load that meets a missing page, from code that is not the guarded copy.
fn fault_elsewhere() {
    let (file, region) = mapped(1, READ);
    file.set_len(0).unwrap();
    region.lend(0..1, |bytes| {
        // SAFETY: the address is that of a live reference; the page is gone, which is the point.
        unsafe { std::ptr::read_volatile(bytes.as_ptr()) }
    });
}

#[test]
fn a_fault_of_other_code_ends_the_process() {
    if is_alone() {
        return fault_elsewhere();
    }
    let status = run_alone("a_fault_of_other_code_ends_the_process");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_signal_that_was_sent_ends_the_process() {
    if is_alone() {
        install().unwrap();
        return send_bus_error();
    }
    let status = run_alone("a_signal_that_was_sent_ends_the_process");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_signal_that_was_sent_is_ignored_where_it_was_before_and_copies_stay_guarded() {
    if is_alone() {
        set_bus_action(libc::SIG_IGN);
        let (file, region) = mapped(2, READ);
        send_bus_error();
        file.set_len(page_size() as u64).unwrap();
        let arrived = copy_out(&region, 0, &mut vec![0; 2 * page_size()]);
        assert_eq!(arrived, page_size());
        return;
    }
    let test = "a_signal_that_was_sent_is_ignored_where_it_was_before_and_copies_stay_guarded";
    let status = run_alone(test);
    assert!(status.success(), "{status}");
}

extern "C" fn leave(_signal: i32) {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(42) };
}

#[test]
fn a_fault_of_other_code_goes_to_the_handler_that_was_there_before() {
    if is_alone() {
        let handler: extern "C" fn(i32) = leave;
        set_bus_action(handler as libc::sighandler_t);
        return fault_elsewhere();
    }
    let status = run_alone("a_fault_of_other_code_goes_to_the_handler_that_was_there_before");
    assert_eq!(status.code(), Some(42), "{status}");
}

/// Maps a page of zeros where a page is missing, as a program may that maps files itself.
extern "C" fn map_zeros(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes what it knows of the signal, which outlives the handler.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS of a fault has the address.
    let address = unsafe { info.si_addr() } as usize & !(page_size() - 1);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page belongs to a mapping of the test, and has no content to lose.
    unsafe { libc::mmap(address as *mut libc::c_void, page_size(), READ, flags, -1, 0) };
}

#[test]
fn an_earlier_handler_that_cures_a_fault_is_called_and_copies_stay_guarded() {
    if is_alone() {
        // SAFETY: a sigaction of zero bytes is SIG_DFL, no flags and an empty set.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = map_zeros;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        for _ in 0..2 {
            fault_elsewhere();
            let (file, region) = mapped(2, READ);
            file.set_len(page_size() as u64).unwrap();
            let arrived = copy_out(&region, 0, &mut vec![0; 2 * page_size()]);
            assert_eq!(arrived, page_size());
        }
        return;
    }
    let test = "an_earlier_handler_that_cures_a_fault_is_called_and_copies_stay_guarded";
    let status = run_alone(test);
    assert!(status.success(), "{status}");
}

#[test]
fn nothing_is_copied_before_the_handler_is_there() {
    if is_alone() {
        let file = tempfile::tempfile().unwrap();
        rustix::io::pwrite(&file, &pattern(16), 0).unwrap();
        let region = Region::map(&file, 16, WRITE, libc::MAP_SHARED).unwrap();
        assert_eq!(copy_out(&region, 0, &mut [0; 16]), 0);
        assert_eq!(copy_in(&region, 0, &[0; 16]), 0);
        install().unwrap();
        assert_eq!(copy_out(&region, 0, &mut [0; 16]), 16);
        return;
    }
    let status = run_alone("nothing_is_copied_before_the_handler_is_there");
    assert!(status.success(), "{status}");
}
