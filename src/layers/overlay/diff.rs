//! The differences between the tree of a scratch and the tree of its lower layers.
//!
//! A directory that both trees have is compared by the names that the layers above the old tree
//! have in it: what these layers do not have is the same in both. So the cost follows the changes.
//! Two directories of other origin are compared by all of their names.
//!
//! A file keeps its inode number when it is copied up and renamed. So a name that is new is a
//! rename where its number is that of something deleted. A name that both trees have is no rename,
//! whatever it leads to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::ino::original;
use super::lookup::{LookupResult, LookupScope};
use super::namespace_lock::Halt;
use super::node::{LayerStack, LowerInode, Node};
use crate::layers::changed::Fate;
use crate::tree::{Attributes, Change, ChangeKind, ChangeQuery, Directories, Ino, Names, Stat};

mod content;

/// Something of the new tree, of which one lookup is counted.
struct New<'a> {
    overlay: &'a Overlay,
    node: Arc<Node>,
    stat: Stat,
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        self.overlay.forget(self.node.ino, 1);
    }
}

/// Something of the old tree, with a lookup held of each part.
struct Old<'a> {
    overlay: &'a Overlay,
    ino: Ino,
    lowers: Vec<LowerInode>,
    stat: Stat,
}

impl<'a> Old<'a> {
    fn of(overlay: &'a Overlay, found: LookupResult) -> Old<'a> {
        Old { overlay, ino: found.ino, lowers: found.stack.lowers, stat: found.stat }
    }
}

impl Drop for Old<'_> {
    fn drop(&mut self) {
        self.lowers.iter().for_each(|at| self.overlay.let_go_below(*at));
    }
}

/// Inode number and type: equal for a file and its copy.
type Identity = (u64, u32);

fn identity(ino: Ino, stat: &Stat) -> Identity {
    (original(ino).0, stat.kind())
}

/// A directory to compare.
struct Dir<'a> {
    /// Its path in the new tree.
    path: PathBuf,
    /// Its path in the old tree.
    old_path: PathBuf,
    new: Rc<New<'a>>,
    old: Option<Rc<Old<'a>>>,
}

/// A comparison of two trees.
struct Walk<'a> {
    overlay: &'a Overlay,
    query: &'a ChangeQuery,
    /// Index of the topmost layer of the old tree.
    first: usize,
    dirs: Vec<Dir<'a>>,
    /// In the new tree only, by path.
    born: Vec<(PathBuf, Rc<New<'a>>)>,
    /// In the old tree only, by path.
    gone: Vec<(PathBuf, Rc<Old<'a>>)>,
    /// Paths in the old tree of what was renamed.
    moved: HashSet<PathBuf>,
    changes: Vec<Change>,
    /// Changes of the base below names of the top layer, by the path at which they are told.
    fates: HashMap<PathBuf, Fate>,
}

impl Overlay {
    /// The differences of the tree to the one below the scratch, sorted by path.
    ///
    /// # Errors
    /// Errors of lookups in the layers.
    pub(super) fn differences(&self, query: &ChangeQuery) -> Result<Vec<Change>, Errno> {
        let first = self.layers.iter().position(|layer| layer.is_plain());
        let mut walk = Walk {
            overlay: self,
            query,
            first: first.ok_or(Errno::IO)?,
            dirs: Vec::new(),
            born: Vec::new(),
            gone: Vec::new(),
            moved: HashSet::new(),
            changes: Vec::new(),
            fates: HashMap::new(),
        };
        walk.compare_root()?;
        walk.go_on()?;
        let mut changes = std::mem::take(&mut walk.changes);
        let fates = std::mem::take(&mut walk.fates);
        drop(walk);
        changes.retain(|change| query.covers(&change.path));
        let told = self.guard.changed();
        for change in &mut changes {
            let from = change.from.as_ref().and_then(|from| told.of(from));
            let fate = fates.get(&change.path).copied();
            let fate = fate.or_else(|| told.of(&change.path)).or(from);
            change.base = fate.map(|fate| fate.to_string());
        }
        changes.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(changes)
    }
}

impl<'a> Walk<'a> {
    /// The parts of a stack in the old tree.
    fn below(&self, stack: &LayerStack) -> Vec<LowerInode> {
        stack.lowers.iter().filter(|at| at.layer >= self.first).copied().collect()
    }

    /// The parts of a stack above the old tree.
    fn above(&self, stack: &LayerStack) -> Vec<LowerInode> {
        let upper = stack.upper.map(|ino| LowerInode { layer: 0, ino });
        let lowers = stack.lowers.iter().filter(|at| at.layer < self.first).copied();
        upper.into_iter().chain(lowers).collect()
    }

    fn compare_root(&mut self) -> Result<(), Errno> {
        let node = self.overlay.node(Ino::ROOT)?;
        let stat = self.overlay.attr(Ino::ROOT, None)?.stat;
        // The root is never forgotten.
        let new = Rc::new(New { overlay: self.overlay, node, stat });
        let old = self.root_of_old(&new)?.map(Rc::new);
        if let Some(old) = &old {
            self.compare(PathBuf::new(), &new, old, None);
        }
        self.dirs.push(Dir { path: PathBuf::new(), old_path: PathBuf::new(), new, old });
        Ok(())
    }

    /// Compares all directories, and pairs renamed files and directories.
    fn go_on(&mut self) -> Result<(), Errno> {
        loop {
            while let Some(dir) = self.dirs.pop() {
                self.compare_dir(&dir);
            }
            if self.pair() {
                continue;
            }
            if self.find_moved_out()? {
                continue;
            }
            // Nothing that is left is a rename.
            for (path, new) in std::mem::take(&mut self.born) {
                self.changes.push(Change {
                    content: true,
                    ..change(ChangeKind::Added, &path, None, Some(&new.stat))
                });
                if new.stat.is_dir() {
                    self.dirs.push(Dir { path, old_path: PathBuf::new(), new, old: None });
                }
            }
            if self.dirs.is_empty() {
                break;
            }
        }
        for (path, old) in std::mem::take(&mut self.gone) {
            self.delete(path, old)?;
        }
        Ok(())
    }

    /// Pairs what is in one tree only by inode number. Returns whether there are more directories
    /// to compare.
    fn pair(&mut self) -> bool {
        let mut gone: HashMap<Identity, usize> = HashMap::new();
        for (index, (_, old)) in self.gone.iter().enumerate().rev() {
            gone.insert(identity(old.ino, &old.stat), index);
        }
        self.born.sort_by(|one, other| one.0.cmp(&other.0));
        let mut paired = HashSet::new();
        for (path, new) in std::mem::take(&mut self.born) {
            let found = gone.remove(&identity(new.node.ino, &new.stat));
            let Some((from, old)) = found.and_then(|index| {
                paired.insert(index);
                self.gone.get(index).cloned()
            }) else {
                self.born.push((path, new));
                continue;
            };
            self.compare(path.clone(), &new, &old, Some(&from));
            self.moved.insert(from.clone());
            if new.stat.is_dir() {
                self.dirs.push(Dir { path, old_path: from, new, old: Some(old) });
            }
        }
        let mut index = 0;
        self.gone.retain(|_| {
            index += 1;
            !paired.contains(&(index - 1))
        });
        !self.dirs.is_empty()
    }

    /// Looks in deleted directories for what was renamed out of them. Returns whether something
    /// was found.
    fn find_moved_out(&mut self) -> Result<bool, Errno> {
        let is_copy = |(_, new): &&(PathBuf, Rc<New<'a>>)| !new.node.stack().new;
        let copies = self.born.iter().filter(is_copy);
        let mut sought: HashSet<Identity> =
            copies.map(|(_, new)| identity(new.node.ino, &new.stat)).collect();
        let dirs = self.gone.iter().filter(|(_, old)| old.stat.is_dir());
        let mut left: Vec<_> = dirs.cloned().collect();
        let mut found = Vec::new();
        while let Some((path, old)) = left.pop() {
            if sought.is_empty() {
                break;
            }
            for (path, old) in self.entries(&path, &old)? {
                let is_sought = sought.remove(&identity(old.ino, &old.stat));
                if is_sought && !self.moved.contains(&path) {
                    found.push((path.clone(), Rc::clone(&old)));
                }
                if old.stat.is_dir() {
                    left.push((path, old));
                }
            }
        }
        let is_found = !found.is_empty();
        self.gone.extend(found);
        self.pair();
        Ok(is_found)
    }

    /// The entries of a directory of the old tree.
    fn entries(&self, path: &Path, old: &Old<'a>) -> Result<Vec<(PathBuf, Rc<Old<'a>>)>, Errno> {
        let root = self.overlay.node(Ino::ROOT)?;
        let mut names = BTreeSet::new();
        self.names(&old.lowers, &mut names)?;
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            if let Some(entry) = self.find_old(&root, old, &name)? {
                found.push((path.join(name), Rc::new(entry)));
            }
        }
        Ok(found)
    }

    /// Tells a deletion, and with [`ChangeQuery::expand`] those below it. Of a directory above a
    /// path that is asked for, those below it are looked for.
    fn delete(&mut self, path: PathBuf, old: Rc<Old<'a>>) -> Result<(), Errno> {
        let mut left = vec![(path, old)];
        while let Some((path, old)) = left.pop() {
            if self.moved.contains(&path) || !self.query.reaches(&path) {
                continue;
            }
            let is_asked = self.query.covers(&path);
            if is_asked {
                self.changes.push(Change {
                    content: true,
                    ..change(ChangeKind::Deleted, &path, Some(&old.stat), None)
                });
            }
            if old.stat.is_dir() && (self.query.expand || !is_asked) {
                left.extend(self.entries(&path, &old)?);
            }
        }
        Ok(())
    }

    /// The root of the old tree.
    fn root_of_old(&self, new: &New<'a>) -> Result<Option<Old<'a>>, Errno> {
        let lowers = self.below(&new.node.stack());
        let Some(top) = lowers.first().copied() else { return Ok(None) };
        let mut old =
            Old { overlay: self.overlay, ino: new.node.ino, lowers: Vec::new(), stat: new.stat };
        for at in lowers {
            if !self.overlay.lower(at)?.look_up_again(at.ino) {
                return Err(Errno::STALE);
            }
            old.lowers.push(at);
        }
        old.stat = self.overlay.layer(top)?.attr(top.ino, None)?.stat;
        Ok(Some(old))
    }

    /// The names in directories of layers.
    fn names(&self, dirs: &[LowerInode], into: &mut BTreeSet<OsString>) -> Result<(), Errno> {
        for at in dirs {
            let volume = self.overlay.layer(*at)?;
            let id = volume.open_dir(at.ino)?;
            let listed = volume.list((at.ino, id), 0, false, &mut |item| {
                if item.name != "." && item.name != ".." {
                    into.insert(item.name.to_owned());
                }
                false
            });
            volume.release_dir(id)?;
            listed?;
        }
        Ok(())
    }

    fn find_new(&self, dir: &Node, name: &OsStr) -> Result<Option<New<'a>>, Errno> {
        match self.overlay.lookup(dir.ino, name) {
            Ok(entry) => {
                let ino = entry.attr.ino;
                let node = self.overlay.node(ino).inspect_err(|_| self.overlay.forget(ino, 1))?;
                Ok(Some(New { overlay: self.overlay, node, stat: entry.attr.stat }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(err),
        }
    }

    fn find_old(&self, dir: &Node, old: &Old<'a>, name: &OsStr) -> Result<Option<Old<'a>>, Errno> {
        if !old.stat.is_dir() {
            return Ok(None);
        }
        self.overlay.with_names(|names| {
            let layer = self.first.saturating_sub(1);
            let scope = LookupScope { names, parent: dir, dirs: &old.lowers, layer, path: None };
            match self.overlay.directly_below(scope, name) {
                Ok(found) => Ok(Some(Old::of(self.overlay, found))),
                Err(Halt::Failed(Errno::NOENT)) => Ok(None),
                Err(halt) => Err(halt),
            }
        })
    }

    /// Compares the entries of a directory.
    fn compare_dir(&mut self, dir: &Dir<'a>) {
        let names = self.names_to_compare(dir);
        for name in names.unwrap_or_else(|err| self.not_compared(&dir.path, err)) {
            let path = dir.path.join(&name);
            let is_visible = self.overlay.visible(dir.new.node.ino, &name);
            if is_visible
                && self.query.reaches(&path)
                && let Err(err) = self.compare_name(dir, &path, &name)
            {
                self.not_compared(&path, err)
            }
        }
    }

    /// The names of a directory that may differ.
    fn names_to_compare(&self, dir: &Dir<'a>) -> Result<BTreeSet<OsString>, Errno> {
        let stack = dir.new.node.stack();
        let mut names = BTreeSet::new();
        self.names(&self.above(&stack), &mut names)?;
        let old = dir.old.as_ref().map(|old| &old.lowers[..]).unwrap_or_default();
        let below = self.below(&stack);
        // Of the same directory all that is not above is in both.
        if old != below {
            self.names(&below, &mut names)?;
            self.names(old, &mut names)?;
        }
        Ok(names)
    }

    /// Tells that the two trees cannot be compared at a path.
    fn not_compared<T: Default>(&mut self, path: &Path, err: Errno) -> T {
        let unknown = change(ChangeKind::Modified, path, None, None);
        self.changes.push(Change { content: true, error: Some(err), ..unknown });
        T::default()
    }

    fn compare_name(&mut self, dir: &Dir<'a>, path: &Path, name: &OsStr) -> Result<(), Errno> {
        let node = &dir.new.node;
        let new = self.find_new(node, name)?;
        let through = match &new {
            Some(new) => new.node.is_write_through(),
            None => self.overlay.is_write_through(node, name),
        };
        if through {
            return Ok(());
        }
        let old = match &dir.old {
            Some(old) => self.find_old(node, old, name)?,
            None => None,
        };
        let stack = node.stack();
        let old_path = dir.old_path.join(name);
        if let Some(upper) = stack.upper
            && let Some(fate) = self.overlay.fate_of(upper, &stack.lowers, name)
        {
            let told_at = if new.is_some() { path } else { &old_path };
            self.fates.insert(told_at.to_owned(), fate);
        }
        self.compare_entry((path.to_owned(), old_path), new, old)
    }

    fn compare_entry(
        &mut self,
        (path, old_path): (PathBuf, PathBuf),
        new: Option<New<'a>>,
        old: Option<Old<'a>>,
    ) -> Result<(), Errno> {
        match (new, old) {
            (None, None) => {}
            (Some(new), None) => self.born.push((path, Rc::new(new))),
            (None, Some(old)) => self.gone.push((old_path, Rc::new(old))),
            (Some(new), Some(old)) if new.stat.kind() != old.stat.kind() => {
                self.changes.push(Change {
                    content: true,
                    ..change(ChangeKind::Type, &path, Some(&old.stat), Some(&new.stat))
                });
                if old.stat.is_dir() && self.query.expand {
                    for (path, old) in self.entries(&old_path, &old)? {
                        self.gone.push((path, old));
                    }
                }
                if new.stat.is_dir() {
                    self.dirs.push(Dir { path, old_path, new: Rc::new(new), old: None });
                }
            }
            (Some(new), Some(old)) => {
                let (is_dir, stack) = (new.stat.is_dir(), new.node.stack());
                let is_same = self.above(&stack).is_empty() && self.below(&stack) == old.lowers;
                if !is_same {
                    self.compare(path.clone(), &new, &old, None);
                }
                if is_dir {
                    self.dirs.push(Dir {
                        path,
                        old_path,
                        new: Rc::new(new),
                        old: Some(Rc::new(old)),
                    });
                }
            }
        }
        Ok(())
    }

    /// Compares two files of the same type, or two directories without their entries, and tells
    /// the difference. `from` is the path in the old tree if it is another one.
    fn compare(&mut self, path: PathBuf, new: &New<'a>, old: &Old<'a>, from: Option<&Path>) {
        let metadata = self.metadata_differs(new, old);
        let content = self.content_differs(new, old);
        let error = content.as_ref().err().or(metadata.as_ref().err()).copied();
        let (content, ranges) = content.unwrap_or((true, Vec::new()));
        let metadata = metadata.unwrap_or(true);
        let kind = match from {
            Some(_) => ChangeKind::Renamed,
            None if content => ChangeKind::Modified,
            None if metadata => ChangeKind::Metadata,
            None => return,
        };
        self.changes.push(Change {
            from: from.map(Path::to_owned),
            content,
            metadata,
            ranges,
            error,
            ..change(kind, &path, Some(&old.stat), Some(&new.stat))
        });
    }
}

fn change(kind: ChangeKind, path: &Path, old: Option<&Stat>, new: Option<&Stat>) -> Change {
    Change {
        kind,
        path: path.to_owned(),
        from: None,
        old: old.copied(),
        new: new.copied(),
        content: false,
        metadata: false,
        ranges: Vec::new(),
        base: None,
        error: None,
    }
}
