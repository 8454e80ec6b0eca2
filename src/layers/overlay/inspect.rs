//! Files of an overlay by path, and facts about it.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::node::{LowerInode, Node};
use crate::flags::MapMode;
use crate::layers::changed::Fate;
use crate::mapping::BackingFile;
use crate::range::ByteRange;
use crate::tree::{
    Attributes, Change, ChangeQuery, Found, Ino, Inspect, Names, OpenInode, PageState,
    ScratchCounts, Stat, TreeCounts, WhyMapped,
};

/// Largest number of symbolic links in a path, as in the kernel.
pub(super) const MOST_LINKS: usize = 40;

impl Overlay {
    /// Calls `act` with the node of a found file, which keeps a lookup count meanwhile.
    ///
    /// # Errors
    /// ESTALE if the path leads to another file by now; errors of `act`.
    pub(super) fn at_node<T, E: From<Errno>>(
        &self,
        found: &Found,
        act: impl FnOnce(&Arc<Node>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (ino, _) = self.walk(&found.path, MOST_LINKS)?;
        let done = match ino == found.ino {
            true => self.node(ino).map_err(E::from).and_then(|node| act(&node)),
            false => Err(E::from(Errno::STALE)),
        };
        self.forget(ino, 1);
        done
    }

    /// Walks a path from the root and follows at most `links` symbolic links. Returns the inode,
    /// with a lookup count, and its path without links.
    pub(super) fn walk(&self, path: &Path, links: usize) -> Result<(Ino, PathBuf), Errno> {
        let mut held = Vec::new();
        let walked = self.walk_on(path, links, &mut held);
        // The lookup count of the last node passes to the caller.
        let last = if matches!(walked, Ok(Walked::To(_))) { held.pop() } else { None };
        held.iter().for_each(|node: &Arc<Node>| self.forget(node.ino, 1));
        match (walked?, last) {
            (Walked::Link(path), _) => self.walk(&path, links - 1),
            (Walked::To(way), last) => Ok((last.map_or(Ino::ROOT, |node| node.ino), way)),
        }
    }

    /// Walks a path as far as the first symbolic link. `held` gets the nodes on the path, each with
    /// a lookup count.
    fn walk_on(
        &self,
        path: &Path,
        links: usize,
        held: &mut Vec<Arc<Node>>,
    ) -> Result<Walked, Errno> {
        let mut way = PathBuf::new();
        let mut stack = path.components();
        while let Some(part) = stack.next() {
            let name = match part {
                Component::Normal(name) => name,
                Component::ParentDir => {
                    let below = held.pop().ok_or(Errno::XDEV)?;
                    way.pop();
                    self.forget(below.ino, 1);
                    continue;
                }
                _ => continue,
            };
            let at = held.last().map_or(Ino::ROOT, |node| node.ino);
            if !self.visible(at, name) {
                return Err(Errno::NOENT);
            }
            let entry = self.lookup(at, name)?;
            let node = self.node(entry.attr.ino)?;
            held.push(node);
            if entry.attr.stat.kind() != libc::S_IFLNK {
                way.push(name);
                continue;
            }
            let target = PathBuf::from(self.read_link(entry.attr.ino)?);
            if links == 0 {
                return Err(Errno::LOOP);
            }
            if target.is_absolute() {
                return Err(Errno::XDEV);
            }
            return Ok(Walked::Link(way.join(target).join(stack.as_path())));
        }
        Ok(Walked::To(way))
    }
}

/// End of a walk.
enum Walked {
    /// At its end, by this path.
    To(PathBuf),
    /// At a link: the path that the link and the rest make.
    Link(PathBuf),
}

impl Inspect for Overlay {
    fn changes(&self, query: &ChangeQuery) -> Result<Vec<Change>, Errno> {
        self.differences(query)
    }

    fn find(&self, path: &Path) -> Result<Found, Errno> {
        let (ino, path) = self.walk(path, MOST_LINKS)?;
        let found = self.node(ino).and_then(|node| {
            let (volume, inner) = self.top(&node)?;
            let fd = volume.open_path(inner)?;
            let attr = volume.attr(inner, None)?;
            let shown = self.shown(&node, attr.stat, attr.validity);
            let stat = Stat { ino: shown.ino.0, ..shown.stat };
            Ok(Found { ino, stat, path, fd })
        });
        self.forget(ino, 1);
        found
    }

    fn in_use(&self, found: &Found) -> Vec<Arc<BackingFile>> {
        let stack = self.at_node(found, |node| self.parts_in_use(node));
        stack.unwrap_or_default()
    }

    fn handles(&self, found: &Found) -> u64 {
        self.handles.opens_of(found.ino)
    }

    fn mode_at(&self, found: &Found) -> MapMode {
        self.policy.read().mode(&found.path)
    }

    fn why_mapped(&self, found: &Found) -> Option<WhyMapped> {
        self.at_node(found, |node| self.reason(node, &found.path)).unwrap_or(Some(WhyMapped::Below))
    }

    fn page_state(&self, found: &Found, range: ByteRange) -> Result<PageState, Errno> {
        self.at_node(found, |node| match self.found_in_base(node, &found.path)? {
            Some((volume, inner)) => volume.page_state(&inner, range),
            None => Ok(self.stack(node, &found.path)?.page_state(range)),
        })
    }

    fn own_pages(&self, found: &Found) -> Option<u64> {
        let all = ByteRange { start: 0, end: found.stat.size };
        let count = |node: &Arc<Node>| Ok::<_, Errno>(self.stack(node, &found.path)?.at_stake(all));
        self.at_node(found, count).ok()
    }

    fn fate_of_base(&self, found: &Found) -> Option<String> {
        let is_gone = |node: &Arc<Node>| {
            Ok::<_, Errno>(node.stack().lowers.last() == Some(&LowerInode::GONE)) // Whatever its name is now.
        };
        let gone = self.at_node(found, is_gone).is_ok_and(|gone| gone).then_some(Fate::Missing);
        gone.or_else(|| self.guard.changed().of(&found.path)).map(|fate| fate.to_string())
    }

    fn mappable(&self, found: &Found) -> Result<(), Errno> {
        self.at_node(found, |node| self.stack(node, &found.path)?.mappable())
    }

    fn open_files(&self) -> Vec<OpenInode> {
        self.open_nodes()
    }

    fn files_in_use(&self) -> Vec<(PathBuf, Arc<BackingFile>)> {
        let mut files = self.upper.files_in_use();
        for (path, _) in &mut files {
            if let Ok(below) = path.strip_prefix("upper") {
                *path = below.to_owned();
            }
        }
        self.plain_volumes().for_each(|volume| files.extend(volume.files_in_use()));
        files
    }

    fn scratch(&self) -> Option<ScratchCounts> {
        self.scratch_counts()
    }

    fn held_files(&self) -> u64 {
        let below: u64 = self.plain_volumes().map(|volume| volume.held_files()).sum();
        self.upper.held_files() + below
    }

    fn counts(&self) -> TreeCounts {
        let (inodes, lookups) = self.nodes.counts();
        let (files, directories) = self.handles.counts();
        let mut mappings = self.upper.counts().mappings;
        for volume in self.plain_volumes() {
            let below = volume.counts().mappings;
            mappings.count += below.count;
            mappings.bytes += below.bytes;
            mappings.evicted += below.evicted;
            mappings.faults += below.faults;
        }
        TreeCounts { inodes, lookups, files, directories, mappings }
    }

    fn passthrough_closed(&self) -> Option<String> {
        self.upper.passthrough_closed()
    }

    fn uses_file_handles(&self) -> bool {
        self.upper.uses_file_handles()
    }

    fn cache_stat_works(&self) -> bool {
        self.upper.cache_stat_works()
    }

    fn rule_count(&self) -> usize {
        self.policy.read().rules.len()
    }
}
