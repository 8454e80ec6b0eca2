//! Nodes that are held without a lookup of the kernel, by threads that answer none of its requests.
//!
//! A node that the kernel forgets stays while somebody holds it, and nobody asks about it again: so
//! whoever holds one drops it when it is not needed any more.

use std::ops::Deref;
use std::sync::Arc;

use super::Overlay;
use super::node::Node;
use crate::volume::Ino;

/// A node that is looked after when it is let go of, which happens with no lock held.
pub(super) struct HeldNode<'a> {
    // The fields are dropped in this order.
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
    pub(super) fn hold(&self, node: Arc<Node>) -> HeldNode<'_> {
        let ino = node.ino;
        HeldNode { node, _after: DropUnused { overlay: self, ino } }
    }

    /// The node of a number.
    pub(super) fn held(&self, ino: Ino) -> Option<HeldNode<'_>> {
        self.nodes.get(ino).map(|node| self.hold(node))
    }

    /// The nodes that are as `is` says.
    pub(super) fn all_held(&self, is: impl Fn(&Node) -> bool) -> Vec<HeldNode<'_>> {
        self.nodes.all_where(is).into_iter().map(|node| self.hold(node)).collect()
    }
}
