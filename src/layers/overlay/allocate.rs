//! fallocate(2) and copy_file_range(2) of open files.

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Overlay;
use super::handles::Handle;
use super::quota::Takes;
use crate::layers::pages::PAGE;
use crate::sys::cred::Caller;
use crate::tree::{Files, HandleId, SeekTo};

impl Overlay {
    /// Calls fallocate(2) on an open file.
    ///
    /// # Errors
    /// EBADF for a handle that cannot write; those of fallocate(2).
    pub(super) fn allocate_open(
        &self,
        id: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno> {
        match self.using(id)?.open()? {
            Handle::Complete { node, id, layer: None } => {
                let upper = node.upper().ok_or(Errno::STALE)?;
                let seek = |offset, to| self.upper.seek(upper, *id, offset, to);
                self.within(node, takes((offset, len), mode), seek, || {
                    self.allocate_upper(*id, (offset, len), mode, caller)
                })
            }
            Handle::Complete { id, layer: Some(at), .. } => {
                self.layer(*at)?.allocate(*id, offset, len, mode, caller)
            }
            Handle::Merged { node, content, write: true, .. } => {
                let merged = self.merged_to_write(node, content)?;
                if caller.uid != 0 {
                    self.kill_privileges(node, caller)?;
                }
                let seek = |offset, to: SeekTo| {
                    rustix::fs::seek(&**merged.upper(), to.starting_at(offset))
                };
                self.within(node, takes((offset, len), mode), seek, || {
                    let mode = FallocateFlags::from_bits_retain(mode);
                    merged.allocate(offset, len, mode, caller)
                })
            }
            _ => Err(Errno::BADF),
        }
    }

    /// Calls fallocate(2) on a complete upper file. Where the filesystem has no ZERO_RANGE (tmpfs),
    /// the range is punched and then reserved.
    fn allocate_upper(
        &self,
        id: HandleId,
        (offset, len): (u64, u64),
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno> {
        let allocated = self.upper.allocate(id, offset, len, mode, caller);
        let keep = FallocateFlags::KEEP_SIZE;
        let mode = FallocateFlags::from_bits_retain(mode);
        let to_zero = mode.difference(keep) == FallocateFlags::ZERO_RANGE;
        if allocated != Err(Errno::OPNOTSUPP) || !to_zero {
            return allocated;
        }
        let punch = FallocateFlags::PUNCH_HOLE.union(keep).bits();
        self.upper.allocate(id, offset, len, punch, caller)?;
        self.upper.allocate(id, offset, len, mode.intersection(keep).bits(), caller)
    }

    /// Calls copy_file_range(2) between two complete upper files.
    ///
    /// # Errors
    /// EXDEV where it cannot be done so; those of copy_file_range(2).
    pub(super) fn copy_between(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: usize,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        match (self.using(from.0)?.open()?, self.using(to.0)?.open()?) {
            (
                Handle::Complete { layer: None, id: source, .. },
                Handle::Complete { layer: None, id: target, node },
            ) => {
                let upper = node.upper().ok_or(Errno::STALE)?;
                let seek = |offset, to| self.upper.seek(upper, *target, offset, to);
                self.write_within(node, (|| Ok(to.1), len), seek, |count| {
                    self.upper.copy_range((*source, from.1), (*target, to.1), count, caller)
                })
            }
            _ => Err(Errno::XDEV),
        }
    }
}

/// Ranges in which fallocate(2) may store bytes: the whole range, or for a punch the pages at its
/// ends that keep a part of their bytes.
fn takes((offset, len): (u64, u64), mode: u32) -> Takes {
    let end = offset.saturating_add(len);
    if !FallocateFlags::from_bits_retain(mode).contains(FallocateFlags::PUNCH_HOLE) {
        return Takes::Ranges(vec![(offset, len)]);
    }
    let ends = [offset, end].into_iter().filter(|at| at % PAGE != 0);
    Takes::Ranges(ends.map(|at| (at / PAGE * PAGE, PAGE)).collect())
}
