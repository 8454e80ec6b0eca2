//! A mapped range of a file.
//!
//! A region owns its addresses: nothing else unmaps, moves or protects them, so an address in it
//! stays valid as long as the value lives. Its bytes may not be: the file may be truncated at any
//! moment, and then a load or store in the region raises SIGBUS; hence no code of this program
//! accesses the memory (see [`super::guard`] for copies). Regions do not grow: a longer file
//! gets a new one.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use memmap2::{MmapOptions, MmapRaw};
use rustix::io::Errno;

use super::last_errno;

#[cfg(test)]
mod tests;

/// The first `len` bytes of a file, mapped until the value is dropped. The mapping may reach
/// beyond the end of the file; those pages appear when the file grows.
#[derive(Debug)]
pub struct Region {
    memory: Memory,
    readable: bool,
    writable: bool,
}

/// Flags that would take memory from somebody else, or map no file, or let the region grow into
/// addresses that it does not own.
const REFUSED: i32 =
    libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN;

/// Flags that memmap2 passes on for a file. Its words for MAP_STACK and MAP_HUGETLB reach anonymous
/// mappings only.
const PLAIN: i32 = libc::MAP_SHARED | libc::MAP_POPULATE | libc::MAP_NORESERVE;

#[derive(Debug)]
enum Memory {
    /// A mapping that memmap2 has words for.
    Plain(MmapRaw),
    /// Flags or protections that it has none for.
    Special(Special),
}

#[derive(Debug)]
struct Special {
    address: *mut libc::c_void,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to the thread that made it; the address is only
// used for system calls and guarded copies, which the kernel allows from every thread.
unsafe impl Send for Special {}
// SAFETY: as above; nothing in `Special` changes after it was made.
unsafe impl Sync for Special {}

impl Drop for Special {
    fn drop(&mut self) {
        // SAFETY: `address` and `len` are what mmap gave to this value alone, and nothing that
        // borrows the region is left when it is dropped.
        let result = unsafe { libc::munmap(self.address, self.len) };
        if result != 0 {
            log::error!("munmap: {}", last_errno());
        }
    }
}

impl Region {
    /// Maps the first `len` bytes of a file with the `prot` and `flags` of mmap(2).
    ///
    /// # Errors
    /// EINVAL for MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_ANONYMOUS and MAP_GROWSDOWN, and for a length
    /// of 0 or above `isize::MAX`; errors of mmap(2).
    pub fn map(file: impl AsFd, len: usize, prot: i32, flags: i32) -> Result<Region, Errno> {
        if flags & REFUSED != 0 || len == 0 || isize::try_from(len).is_err() {
            return Err(Errno::INVAL);
        }
        let readable = prot & libc::PROT_READ != 0;
        let writable = prot & libc::PROT_WRITE != 0;
        let plain_prot = prot & !libc::PROT_WRITE == libc::PROT_READ;
        let plain_flags = flags & libc::MAP_SHARED != 0 && flags & !PLAIN == 0;
        let memory = if plain_prot && plain_flags {
            Memory::Plain(map_plain(file, len, writable, flags)?)
        } else {
            Memory::Special(map_special(file, len, prot, flags)?)
        };
        Ok(Region { memory, readable, writable })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        match &self.memory {
            Memory::Plain(map) => map.len(),
            Memory::Special(map) => map.len,
        }
    }

    /// Never true: an empty region is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first address.
    pub fn address(&self) -> usize {
        self.pointer() as usize
    }

    fn pointer(&self) -> *mut u8 {
        match &self.memory {
            Memory::Plain(map) => map.as_mut_ptr(),
            Memory::Special(map) => map.address.cast(),
        }
    }

    /// Whether it was mapped with PROT_READ.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether it was mapped with PROT_WRITE.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The address of a range that lies inside the region, and its length; EINVAL for another.
    pub(super) fn span(&self, range: &Range<usize>) -> Result<(*mut u8, usize), Errno> {
        if range.start > range.end || range.end > self.len() {
            return Err(Errno::INVAL);
        }
        Ok((self.pointer().wrapping_add(range.start), range.end - range.start))
    }

    /// Lends bytes to a closure that hands them to the kernel and never looks at them. A page
    /// that is gone makes that system call fail with EFAULT. `None` when the range is outside.
    pub fn lend<R>(&self, range: Range<usize>, give: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let (address, len) = self.span(&range).ok()?;
        // SAFETY: the range lies in this mapping, which lives longer than the borrow; the bytes
        // are only passed as an address and a length to a system call.
        let bytes = unsafe { std::slice::from_raw_parts(address, len) };
        Some(give(bytes))
    }
}

fn map_plain(file: impl AsFd, len: usize, writable: bool, flags: i32) -> Result<MmapRaw, Errno> {
    let mut options = MmapOptions::new();
    options.len(len);
    if flags & libc::MAP_POPULATE != 0 {
        options.populate();
    }
    if flags & libc::MAP_NORESERVE != 0 {
        options.no_reserve_swap();
    }
    let fd = file.as_fd().as_raw_fd();
    let map = if writable { options.map_raw(fd) } else { options.map_raw_read_only(fd) };
    map.map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::INVAL))
}

fn map_special(file: impl AsFd, len: usize, prot: i32, flags: i32) -> Result<Special, Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: without MAP_FIXED, which `Region::map` has refused, the kernel chooses addresses
    // that nothing else uses.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
    if address == libc::MAP_FAILED {
        return Err(last_errno());
    }
    Ok(Special { address, len })
}
