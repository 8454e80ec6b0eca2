//! References to nodes that are held without a lookup count, by threads that answer no request.
//!
//! A node stays in the table while a reference to it exists. If the kernel forgets it meanwhile, no
//! request removes it later: so the last [`HeldNode`] removes it when dropped.

use std::ops::Deref;
use std::sync::Arc;

use super::Overlay;
use super::node::Node;
use crate::tree::Ino;

/// Reference to a node. Its drop removes an unused node, and must run with no lock held.
pub(super) struct HeldNode<'a> {
    // The fields are dropped in this order: the reference, then the check of the node.
    node: Arc<Node>,
    _after: DropUnused<'a>,
}

struct DropUnused<'a> {
    overlay: &'a Overlay,
    ino: Ino,
}

impl Drop for DropUnused<'_> {
    fn drop(&mut self) {
        self.overlay.drop_unused(self.ino);
    }
}

impl Deref for HeldNode<'_> {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Overlay {
    /// Holds a node.
    pub(super) fn hold(&self, node: Arc<Node>) -> HeldNode<'_> {
        let ino = node.ino;
        HeldNode { node, _after: DropUnused { overlay: self, ino } }
    }

    /// Node with an inode number.
    pub(super) fn held(&self, ino: Ino) -> Option<HeldNode<'_>> {
        self.nodes.get(ino).map(|node| self.hold(node))
    }

    /// Nodes for which `is` is true.
    pub(super) fn all_held(&self, is: impl Fn(&Node) -> bool) -> Vec<HeldNode<'_>> {
        self.nodes.all_where(is).into_iter().map(|node| self.hold(node)).collect()
    }
}
