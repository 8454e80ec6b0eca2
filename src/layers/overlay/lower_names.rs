//! The entries of lower directories at the names of a listing.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

use rustix::io::Errno;

use super::Overlay;
use super::names::Upper;
use super::node::LowerInode;
use crate::tree::{DirItem, Ino};

/// The names of frozen directories with their types, read once in a request. None of a directory
/// with many entries, where each name is looked for.
#[derive(Default)]
pub(super) struct FrozenNames(HashMap<Ino, Option<HashMap<OsString, u32>>>);

impl Overlay {
    /// The entry of a lower directory at a name.
    fn lower_at(
        &self,
        known: &mut FrozenNames,
        at: LowerInode,
        name: &OsStr,
    ) -> Result<Upper, Errno> {
        if self.is_plain(at) {
            return match self.layer(at)?.peek(at.ino, name) {
                Ok((stat, _)) if stat.is_dir() => Ok(Upper::Directory),
                Ok(_) => Ok(Upper::Other),
                Err(Errno::NOENT) => Ok(Upper::Nothing),
                Err(err) => Err(err),
            };
        }
        let names = known.0.entry(at.ino).or_insert_with(|| self.few_names(at.ino));
        match names.as_ref().map(|names| names.get(name)) {
            Some(None) => Ok(Upper::Nothing),
            Some(Some(&libc::S_IFDIR)) => Ok(Upper::Directory),
            Some(Some(kind)) if *kind != libc::S_IFCHR && *kind != 0 => Ok(Upper::Other),
            _ => self.upper_at(at.ino, name),
        }
    }

    /// Whether lower directories show something at a name. They are asked.
    pub(super) fn shows_below(
        &self,
        known: &mut FrozenNames,
        dirs: &[LowerInode],
        name: &OsStr,
    ) -> Result<bool, Errno> {
        for dir in dirs {
            match self.lower_at(known, *dir, name)? {
                Upper::Nothing => {}
                found => return Ok(found != Upper::Whiteout),
            }
        }
        Ok(false)
    }

    /// Whether a lower directory shows an entry of its own: none above it has something there, and
    /// it is no whiteout.
    pub(super) fn is_shown_by(
        &self,
        known: &mut FrozenNames,
        dirs: &[LowerInode],
        index: usize,
        item: &DirItem<'_>,
    ) -> bool {
        let (Some(above), Some(at)) = (dirs.get(..index), dirs.get(index)) else { return false };
        if above.iter().any(|at| self.lower_at(known, *at, item.name) != Ok(Upper::Nothing)) {
            return false;
        }
        let may_be_whiteout = item.kind == libc::S_IFCHR || item.kind == 0;
        self.is_plain(*at)
            || !may_be_whiteout
            || self.upper_at(at.ino, item.name) != Ok(Upper::Whiteout)
    }
}
