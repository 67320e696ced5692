//! The nodes of the tree: what they hold, who owns them while they are in no tree, and how new ones are filled before they
//! are published. None changes after that.

use crate::address::VirtAddr;
use crate::machine::Machine;
use crate::memory::{Memory, OutOfMemory};
use crate::slab::SlabKind;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::vma::{Vma, VmaChain};
use core::ptr::{self, NonNull};

/// Children of a node. With two levels an address space holds at least `FANOUT² / 2` regions.
pub(super) const FANOUT: usize = if cfg!(loom) { 4 } else { 126 };

/// A leaf (children are regions) or the root (children are leaves). `keys[i]` is the lowest address below `children[i]`.
pub(crate) struct Node {
    pub(super) len: usize,
    /// Next in a private list; readers of the tree do not follow it.
    link: AtomicPtr<Node>,
    pub(super) keys: [u64; FANOUT],
    pub(super) children: [*mut (); FANOUT],
}

impl Node {
    fn empty() -> Self {
        Self { len: 0, link: AtomicPtr::new(ptr::null_mut()), keys: [0; FANOUT], children: [ptr::null_mut(); FANOUT] }
    }

    fn push(&mut self, key: u64, child: *mut ()) {
        self.keys[self.len] = key;
        self.children[self.len] = child;
        self.len += 1;
    }

    /// Index of the last key not above `address`.
    pub(super) fn last_not_above(&self, address: u64) -> Option<usize> {
        self.keys[..self.len].partition_point(|key| *key <= address).checked_sub(1)
    }
}

/// Nodes linked through themselves, owned by the list.
pub(crate) struct NodeList {
    head: *mut Node,
    pub(super) len: usize,
}

// SAFETY: the list owns its nodes, which nobody changes.
unsafe impl Send for NodeList {}

impl NodeList {
    pub(crate) const fn new() -> Self {
        Self { head: ptr::null_mut(), len: 0 }
    }

    /// `count` empty nodes.
    #[cfg_attr(test, track_caller)]
    pub(super) fn allocate<M: Machine>(memory: &Memory<M>, count: usize) -> Result<Self, OutOfMemory> {
        let mut list = Self::new();
        for _ in 0..count {
            match memory.alloc_value(SlabKind::VmaNode, Node::empty()) {
                Ok(node) => list.push(node),
                Err((error, _)) => {
                    list.dispose(memory);
                    return Err(error);
                }
            }
        }
        Ok(list)
    }

    pub(super) fn push(&mut self, node: NonNull<Node>) {
        // SAFETY: the node is the caller's, or is out of the tree and not freed yet.
        unsafe { node.as_ref() }.link.store(self.head, Ordering::Relaxed);
        self.head = node.as_ptr();
        self.len += 1;
    }

    fn pop(&mut self) -> Option<NonNull<Node>> {
        let node = NonNull::new(self.head)?;
        // SAFETY: the head is a node of this list.
        self.head = unsafe { node.as_ref() }.link.load(Ordering::Relaxed);
        self.len -= 1;
        Some(node)
    }

    /// Moves all of `other` here.
    pub(crate) fn append(&mut self, other: &mut Self) {
        while let Some(node) = other.pop() {
            self.push(node);
        }
    }

    /// Frees the nodes, which nobody else can reach any more.
    pub(crate) fn dispose<M: Machine>(&mut self, memory: &Memory<M>) {
        while let Some(node) = self.pop() {
            // SAFETY: it came from this cache, and the list was its only owner.
            unsafe { memory.free_value(SlabKind::VmaNode, node) };
        }
    }
}

impl Drop for NodeList {
    fn drop(&mut self) {
        debug_assert!(self.head.is_null() || crate::is_unwinding(), "tree nodes leaked");
    }
}

/// Fills new nodes from left to right.
pub(super) struct Builder {
    /// Nodes nobody else can reach: the leaves to come, and the root.
    spares: NodeList,
    root: *mut Node,
    leaf: *mut Node,
    per_leaf: usize,
}

impl Builder {
    /// With all the nodes there will be need for; the first becomes the root.
    pub(super) fn new(mut spares: NodeList, per_leaf: usize) -> Self {
        let root = spares.pop().map_or(ptr::null_mut(), NonNull::as_ptr);
        Self { spares, root, leaf: ptr::null_mut(), per_leaf }
    }

    pub(super) fn keep_leaf(&mut self, leaf: *mut ()) {
        // SAFETY: the leaf is of the tree of the only writer; the root is not published yet.
        unsafe { (*self.root).push((*leaf.cast::<Node>()).keys[0], leaf) };
    }

    pub(super) fn add<M: Machine>(&mut self, vma: NonNull<Vma<M>>) {
        if self.leaf.is_null() {
            self.leaf = self.spares.pop().map_or(ptr::null_mut(), NonNull::as_ptr);
        }
        // SAFETY: the leaf is not published yet (the caller allocated one for each `per_leaf` regions); the region is alive.
        let full = unsafe {
            (*self.leaf).push(vma.as_ref().range().start.0, vma.as_ptr().cast());
            (*self.leaf).len == self.per_leaf
        };
        if full {
            self.end_leaf();
        }
    }

    /// Adds the regions of `chain` that begin below `limit`.
    pub(super) fn add_below<M: Machine>(&mut self, chain: &mut VmaChain<M>, limit: VirtAddr) {
        while chain.first_start().is_some_and(|start| start < limit) {
            chain.pop().into_iter().for_each(|vma| self.add(vma));
        }
    }

    pub(super) fn end_leaf(&mut self) {
        let leaf = core::mem::take(&mut self.leaf);
        if !leaf.is_null() {
            self.keep_leaf(leaf.cast());
        }
    }

    pub(super) fn into_root(self) -> *mut Node {
        self.root
    }
}
