//! Attributes and xattrs: reading and changing them.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::Overlay;
use super::node::{LowerInode, Node};
use super::overlay_xattrs::XattrNames;
use crate::layers::pages::PAGE;
use crate::sys::cred::Caller;
use crate::tree::{
    Attr, Attributes, Entry, HandleId, Ino, SetAttr, Stat, Validity, XattrFlags, Xattrs,
};
use crate::volume::Volume;

impl Attributes for Overlay {
    fn attr(&self, ino: Ino, handle: Option<HandleId>) -> Result<Attr, Errno> {
        let node = self.node(ino)?;
        let (volume, inner) = self.top(&node)?;
        let handle = handle.and_then(|id| self.handles.inner(id));
        let attr = match volume.attr(inner, handle) {
            // Its last name was removed from the base: only an open descriptor may lead to it.
            Err(Errno::STALE) if node.upper().is_none() => {
                volume.attr_by(inner, &*node.open_base().ok_or(Errno::STALE)?)?
            }
            attr => attr?,
        };
        Ok(self.shown(&node, attr.stat, self.validity_by(&node, ino, attr.validity)))
    }

    fn set_attr(
        &self,
        ino: Ino,
        handle: Option<HandleId>,
        change: SetAttr,
        caller: &Caller,
    ) -> Result<Attr, Errno> {
        let node = self.node(ino)?;
        if node.is_write_through() {
            let (volume, at) = self.in_base_by_name(&node)?;
            let handle = handle.and_then(|id| self.handles.inner(id));
            let attr = volume.set_attr(at.ino, handle, change, caller)?;
            return Ok(self.shown(&node, attr.stat, attr.validity));
        }
        let mut change = change;
        if change.is_empty() {
            let attr = self.attr(ino, handle)?;
            if change.is_idle(caller, attr.stat.uid, || self.is_open(&node)) {
                return Ok(attr); // Nothing is copied up for it.
            }
        }
        let upper = self.upper_to_change(&node)?;
        let mut done = false;
        if let Some(size) = change.size {
            let truncated = self.truncate_merged((&node, ino), size, caller);
            let by_name = handle.is_none();
            // A change by name is tried again by the kernel after a new lookup.
            if truncated.map_err(|err| match err {
                Errno::TXTBSY if by_name => Errno::STALE,
                err => err,
            })? {
                change.size = None;
                done = change.is_empty();
            }
        }
        let attr = match done {
            true => self.upper.attr(upper, None)?,
            false => {
                let inner = handle.and_then(|id| self.handles.inner(id));
                let set = || self.upper.set_attr(upper, inner, change, caller);
                self.with_room(&node, 0, set)?
            }
        };
        Ok(self.shown(&node, attr.stat, attr.validity))
    }

    /// Statistics of the filesystem of the scratch, where everything is written.
    fn statistics(&self, ino: Ino) -> Result<StatVfs, Errno> {
        if let Some(node) = self.nodes.get(ino).filter(|node| node.is_write_through()) {
            let (volume, inner) = self.top(&node)?;
            return volume.statistics(inner);
        }
        self.upper.statistics(Ino::ROOT).map(|found| self.space_shown(found))
    }
}

impl Xattrs for Overlay {
    fn get_xattr(&self, ino: Ino, name: &OsStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        let node = self.node(ino)?;
        let (volume, inner, names) = self.top_xattrs(&node)?;
        volume.get_xattr(inner, &names.stored(name), buffer)
    }

    fn list_xattr(&self, ino: Ino, buffer: &mut [u8], caller: &Caller) -> Result<usize, Errno> {
        let node = self.node(ino)?;
        let (volume, inner, names) = self.top_xattrs(&node)?;
        let mut all = vec![0; 65_536];
        let len = volume.list_xattr(inner, &mut all, caller)?;
        let shown: Vec<u8> = all
            .get(..len)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == 0)
            .filter_map(|name| names.shown(name))
            .flat_map(Cow::into_owned)
            .collect();
        if !buffer.is_empty() {
            buffer.get_mut(..shown.len()).ok_or(Errno::RANGE)?.copy_from_slice(&shown);
        }
        Ok(shown.len())
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        let node = self.node(ino)?;
        if node.is_write_through() {
            let (volume, at) = self.in_base_by_name(&node)?;
            return volume.set_xattr(at.ino, name, value, flags, caller);
        }
        let upper = self.upper_to_change(&node)?;
        let blocks = (value.len() as u64).next_multiple_of(PAGE);
        let name = XattrNames::Escaped.stored(name);
        self.with_room(&node, blocks, || self.upper.set_xattr(upper, &name, value, flags, caller))
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Errno> {
        let node = self.node(ino)?;
        let (volume, inner, names) = self.top_xattrs(&node)?;
        if node.is_write_through() {
            let (volume, at) = self.in_base_by_name(&node)?;
            return volume.remove_xattr(at.ino, name);
        }
        volume.get_xattr(inner, &names.stored(name), &mut [])?; // Nothing is copied for what is not there.
        let upper = self.upper_to_change(&node)?;
        let name = XattrNames::Escaped.stored(name);
        self.with_room(&node, 0, || self.upper.remove_xattr(upper, &name))
    }
}

impl Overlay {
    /// Topmost layer of a node: the volume and the inode number in it.
    pub(super) fn top(&self, node: &Node) -> Result<(&Volume, Ino), Errno> {
        let stack = node.stack();
        match (stack.upper.filter(|_| !stack.write_through), stack.lowers.first()) {
            (Some(upper), _) => Ok((&self.upper, upper)),
            (None, Some(at)) => Ok((self.layer(*at)?, at.ino)),
            (None, None) => Err(Errno::STALE),
        }
    }

    /// Topmost layer of a node, with the form in which it stores xattr names.
    fn top_xattrs(&self, node: &Node) -> Result<(&Volume, Ino, XattrNames), Errno> {
        let stack = node.stack();
        match (stack.upper.filter(|_| !stack.write_through), stack.lowers.first()) {
            (Some(upper), _) => Ok((&self.upper, upper, XattrNames::Escaped)),
            (None, Some(at)) => Ok((self.layer(*at)?, at.ino, self.xattr_names(*at))),
            (None, None) => Err(Errno::STALE),
        }
    }

    /// Form in which a lower layer stores xattr names.
    pub(super) fn xattr_names(&self, at: LowerInode) -> XattrNames {
        match self.is_plain(at) {
            true => XattrNames::Plain,
            false => XattrNames::Escaped,
        }
    }

    /// Attributes of a node, made of `stat` of its topmost layer.
    pub(super) fn shown(&self, node: &Node, mut stat: Stat, validity: Validity) -> Attr {
        let stack = node.stack();
        let ino = if node.ino == Ino::ROOT { self.root_number } else { node.ino };
        if stack.null_device {
            stat.rdev = 0;
        }
        if !node.is_linked() {
            stat.nlink = 0;
        } else if let Some(links) = stack.links {
            stat.nlink = u32::try_from(i64::from(stat.nlink) + links).unwrap_or(1);
        } else if node.is_dir() && stack.parts() > 1 {
            // 1, as on filesystems that do not count subdirectories: find(1) knows this value.
            stat.nlink = 1;
        }
        if node.is_regular() && stack.parts() > 1 {
            stat.blocks = match stack.upper {
                Some(_) => self.blocks(node, &stack, &stat),
                None => self.blocks_below(&stack).map_or(stat.blocks, |(_, blocks)| blocks),
            };
        }
        // Other processes may change the base.
        let validity = match validity {
            Validity::UntilInvalidated if stack.write_through => Validity::Timeout,
            validity => validity,
        };
        Attr { ino, stat, validity }
    }

    pub(super) fn entry(&self, node: &Node, stat: Stat, validity: Validity) -> Entry {
        let attr = self.shown(node, stat, validity);
        let validity = self.name_validity(node, &stat);
        let (ino, known) = (node.lower_share.number(), attr.validity);
        // An entry says one number for both: attributes with that of the base are asked for.
        let attr_trust = if ino == node.ino { known } else { Validity::Uncached };
        Entry { attr: Attr { ino, validity: attr_trust, ..attr }, generation: 0, validity }
    }

    fn upper_to_change(&self, node: &Arc<Node>) -> Result<Ino, Errno> {
        match node.upper() {
            Some(upper) => Ok(upper),
            None => self.change_names(|names| self.ensure_upper(names, node)),
        }
    }
}
