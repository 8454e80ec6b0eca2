//! Mappings of files, as an application makes them.
//!
//! Bytes are copied in and out one by one with volatile accesses, since other processes and other
//! mappings change them at any moment.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{MapFlags, ProtFlags};

/// A mapping of a whole file.
pub struct Mapped {
    map: MmapRaw,
}

impl Mapped {
    /// MAP_SHARED, PROT_READ | PROT_WRITE of the first `len` bytes.
    pub fn shared(file: &File, len: usize) -> io::Result<Mapped> {
        Ok(Mapped { map: MmapOptions::new().len(len).map_raw(file)? })
    }

    /// MAP_SHARED, PROT_READ of the first `len` bytes.
    pub fn shared_for_reading(file: &File, len: usize) -> io::Result<Mapped> {
        Ok(Mapped { map: MmapOptions::new().len(len).map_raw_read_only(file)? })
    }

    /// The number of bytes mapped.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.map.len());
        let byte = |at| {
            // SAFETY: `at` is inside the mapping, which lives as long as `self`.
            let address = unsafe { self.map.as_ptr().add(at) };
            // SAFETY: the address is mapped and readable; a file that shrank raises SIGBUS, which
            // ends the process and is no undefined behaviour.
            unsafe { address.read_volatile() }
        };
        (offset..offset + len).map(byte).collect()
    }

    /// Copies bytes in. The mapping must have been made for writing.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.map.len());
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: the byte is inside the mapping, which lives as long as `self`.
            let address = unsafe { self.map.as_mut_ptr().add(offset + at) };
            // SAFETY: the address is mapped and writable.
            unsafe { address.write_volatile(byte) };
        }
    }

    /// msync(2) of the whole mapping with MS_SYNC.
    pub fn sync(&self) -> io::Result<()> {
        self.map.flush()
    }
}

/// A private mapping: what is written in it stays in it.
pub struct Private(memmap2::MmapMut);

impl Private {
    /// MAP_PRIVATE, PROT_READ | PROT_WRITE of the first `len` bytes.
    pub fn new(file: &File, len: usize) -> io::Result<Private> {
        // SAFETY: the slices made of it are copied at once, and the tests that use it do not
        // change the file at that moment.
        Ok(Private(unsafe { MmapOptions::new().len(len).map_copy(file)? }))
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        self.0[offset..offset + len].to_vec()
    }

    /// Copies bytes in.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// Whether mmap(2) grants this protection for a shared mapping of the first page.
pub fn can_map(file: &File, protection: ProtFlags) -> rustix::io::Result<()> {
    let len = rustix::param::page_size();
    // SAFETY: a mapping at an address of the kernel's choice overlaps nothing.
    let address = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0)?
    };
    // SAFETY: exactly the mapping just made, to which no reference exists.
    unsafe { rustix::mm::munmap(address, len) }
}
