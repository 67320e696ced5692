//! The set of regions: a two-level search tree that is read without a lock and changed by copying.
//!
//! Rule: a published node never changes. A writer, alone under `mmap_lock`, copies the leaves it touches and the root,
//! publishes the new root by one store, and lets the old nodes wait for their readers. So a reader sees the set before or
//! after an operation, never between, and no address seems unmapped while its region is replaced.
#![allow(unsafe_code)]

mod node;

pub(crate) use node::Node;

use super::{Vma, VmaChain};
use crate::address::{VirtAddr, VirtRange};
use crate::address_space::{MmapHeld, MmapWrite};
use crate::machine::Machine;
use crate::memory::{Memory, OutOfMemory};
use crate::pgtable::PagingMode;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::rcu::RcuRead;
use core::ptr::{self, NonNull};
use node::{Builder, FANOUT, NodeList};

/// Why the set of regions could not be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SpliceError {
    OutOfMemory,
    TooManyRegions,
}

impl From<OutOfMemory> for SpliceError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// The regions of one address space, in order of address, without overlap.
pub(crate) struct VmaTree<M: Machine> {
    /// Null when there is no region. Stored with release by the holder of `mmap_lock`, loaded with acquire by readers.
    root: AtomicPtr<Node>,
    _regions: core::marker::PhantomData<AtomicPtr<Vma<M>>>,
}

impl<M: Machine> VmaTree<M> {
    pub(crate) fn new() -> Self {
        Self { root: AtomicPtr::new(ptr::null_mut()), _regions: core::marker::PhantomData }
    }

    /// The region that contains `address`, which may be detached at any moment. No lock.
    pub(crate) fn lookup<'r>(&self, _rcu: &'r RcuRead<M>, address: VirtAddr) -> Option<&'r Vma<M>> {
        // SAFETY: nodes and regions that were reachable in this read section are not freed before it ends.
        let vma = unsafe { self.last_starting_not_above(address)?.as_ref() };
        vma.range().contains(address).then_some(vma)
    }

    fn last_starting_not_above(&self, address: VirtAddr) -> Option<NonNull<Vma<M>>> {
        // Acquire: the nodes' contents; pairs with the store in `splice`.
        // SAFETY: the callers keep the nodes: by a read section, or by holding `mmap_lock`.
        let root = unsafe { self.root.load(Ordering::Acquire).as_ref() }?;
        let leaf = root.children[root.last_not_above(address.0)?].cast::<Node>();
        // SAFETY: a root's children are leaves, kept as above.
        let leaf = unsafe { &*leaf };
        NonNull::new(leaf.children[leaf.last_not_above(address.0)?].cast())
    }

    /// The first region that ends above `address`. Any change is excluded by the caller's hold on `mmap_lock`.
    pub(crate) fn first_ending_above<'w>(&'w self, _held: &'w impl MmapHeld, address: VirtAddr) -> Option<&'w Vma<M>> {
        // SAFETY: nodes and regions are taken out under `mmap_lock` for writing, which the caller holds or keeps out.
        let root = unsafe { self.root.load(Ordering::Acquire).as_ref() }?;
        let first = root.last_not_above(address.0).unwrap_or(0);
        root.children[first..root.len].iter().find_map(|leaf| {
            // SAFETY: a root's children are leaves, kept as above.
            let leaf = unsafe { &*leaf.cast::<Node>() };
            leaf.children[..leaf.len].iter().find_map(|vma| {
                // SAFETY: a leaf's children are regions, kept as above.
                let vma = unsafe { &*vma.cast::<Vma<M>>() };
                (vma.range().end > address).then_some(vma)
            })
        })
    }

    /// The regions that overlap `range`, in order.
    pub(crate) fn overlapping<'w>(
        &'w self,
        held: &'w impl MmapHeld,
        range: VirtRange,
    ) -> impl Iterator<Item = &'w Vma<M>> {
        let mut from = range.start;
        core::iter::from_fn(move || {
            let vma = self.first_ending_above(held, from).filter(|vma| vma.range().start < range.end)?;
            from = vma.range().end;
            Some(vma)
        })
    }

    /// The end of the last region that ends not above `address`, or 0.
    pub(crate) fn floor(&self, _write: &MmapWrite<'_, M>, address: VirtAddr) -> VirtAddr {
        let before = address.0.checked_sub(1).map(VirtAddr);
        match before.and_then(|before| self.last_starting_not_above(before)) {
            // SAFETY: as in `first_ending_above`.
            Some(vma) => unsafe { vma.as_ref() }.range().end,
            None => VirtAddr(0),
        }
    }

    /// Replaces every region that overlaps `span` by those of `new`, which lie inside `span` or inside what the replaced
    /// regions covered. The replaced ones are detached and moved to `removed`, the replaced nodes with them.
    ///
    /// # Errors
    ///
    /// See [`SpliceError`]. Nothing has changed then, and `new` still owns its regions.
    #[cfg_attr(test, track_caller)]
    pub(crate) fn splice(
        &self,
        memory: &Memory<M>,
        write: &MmapWrite<'_, M>,
        span: VirtRange,
        new: &mut VmaChain<M>,
        removed: &mut Removed<M>,
    ) -> Result<(), SpliceError> {
        let splice = self.prepare(memory, write, span, span, new)?;
        self.publish(write, splice, new, removed);
        Ok(())
    }

    /// Takes the nodes that replacing every region that overlaps `span` by those of `new` needs. `new` is in order of address
    /// and lies inside `hull`, around `span`.
    ///
    /// # Errors
    ///
    /// See [`SpliceError`]. Nothing has changed then.
    #[cfg_attr(test, track_caller)]
    pub(crate) fn prepare(
        &self,
        memory: &Memory<M>,
        _write: &MmapWrite<'_, M>,
        span: VirtRange,
        hull: VirtRange,
        new: &VmaChain<M>,
    ) -> Result<Splice, SpliceError> {
        let leaves = self.leaves();
        let touched = touched_leaves::<M>(leaves, span, hull, new.len());
        let rewritten = &leaves[touched.clone()];
        let total = regions::<M>(rewritten).filter(|(_, vma)| !vma.overlaps(&span)).count() + new.len();
        let new_leaves = total.div_ceil(FANOUT);
        let root_len = leaves.len() - rewritten.len() + new_leaves;
        if root_len > FANOUT {
            return Err(SpliceError::TooManyRegions);
        }
        let spares = NodeList::allocate(memory, new_leaves + usize::from(root_len > 0))?;
        Ok(Splice { span, touched, per_leaf: total.div_ceil(new_leaves.max(1)), spares })
    }

    /// Does what was prepared, in one step for readers. The tree has not changed since; this cannot fail.
    pub(crate) fn publish(
        &self,
        _write: &MmapWrite<'_, M>,
        splice: Splice,
        new: &mut VmaChain<M>,
        removed: &mut Removed<M>,
    ) {
        let Splice { span, touched, per_leaf, spares } = splice;
        let old_root = self.root.load(Ordering::Relaxed);
        let leaves = self.leaves();
        let rewritten = &leaves[touched.clone()];
        let mut builder = Builder::new(spares, per_leaf);
        leaves[..touched.start].iter().for_each(|leaf| builder.keep_leaf(*leaf));
        for (vma, region) in regions::<M>(rewritten).filter(|(_, vma)| !vma.overlaps(&span)) {
            builder.add_below(new, region.range().start);
            builder.add(vma);
        }
        builder.add_below(new, M::Mode::USER_END);
        builder.end_leaf();
        leaves[touched.end..].iter().for_each(|leaf| builder.keep_leaf(*leaf));
        // Release: publishes the new nodes and regions; pairs with the readers' acquire.
        self.root.store(builder.into_root(), Ordering::Release);

        for (vma, region) in regions::<M>(rewritten).filter(|(_, vma)| vma.overlaps(&span)) {
            region.detach();
            removed.vmas.push_owned(vma);
        }
        let old_leaves = rewritten.iter().map(|leaf| leaf.cast::<Node>());
        old_leaves.chain([old_root]).filter_map(NonNull::new).for_each(|node| removed.nodes.push(node));
    }

    /// The root's children. The caller holds `mmap_lock` for writing.
    fn leaves(&self) -> &[*mut ()] {
        // SAFETY: the holder of `mmap_lock` is the only one who takes nodes out.
        unsafe { self.root.load(Ordering::Relaxed).as_ref() }.map_or(&[][..], |root| &root.children[..root.len])
    }
}

/// A change of the tree for which all memory has been taken. Published or disposed of, as its nodes are.
pub(crate) struct Splice {
    span: VirtRange,
    touched: core::ops::Range<usize>,
    per_leaf: usize,
    spares: NodeList,
}

impl Splice {
    /// Gives the memory back.
    pub(crate) fn dispose<M: Machine>(mut self, memory: &Memory<M>) {
        self.spares.dispose(memory);
    }
}

/// What a splice has taken out of the tree: unreachable for new readers, still seen by old ones.
pub(crate) struct Removed<M: Machine> {
    pub(crate) vmas: VmaChain<M>,
    pub(crate) nodes: NodeList,
}

impl<M: Machine> Removed<M> {
    pub(crate) const fn new() -> Self {
        Self { vmas: VmaChain::new(), nodes: NodeList::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.vmas.len() + self.nodes.len
    }

    /// Moves all of `other` here.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.vmas.append(&mut other.vmas);
        self.nodes.append(&mut other.nodes);
    }
}

/// The regions of some leaves, in order. The caller holds `mmap_lock` for writing.
fn regions<M: Machine>(leaves: &[*mut ()]) -> impl Iterator<Item = (NonNull<Vma<M>>, &Vma<M>)> {
    leaves.iter().flat_map(|leaf| {
        // SAFETY: leaves of the tree of the only writer.
        let leaf = unsafe { &*leaf.cast::<Node>() };
        leaf.children[..leaf.len].iter().filter_map(|vma| {
            let vma = NonNull::new(vma.cast::<Vma<M>>())?;
            // SAFETY: a leaf's children are regions, which only the one writer takes out.
            Some((vma, unsafe { vma.as_ref() }))
        })
    })
}

/// The leaves a splice rewrites: those `hull` reaches into, and their neighbours as long as all still fits one leaf, so
/// that removals do not leave a tree of near-empty leaves.
fn touched_leaves<M: Machine>(
    leaves: &[*mut ()],
    span: VirtRange,
    hull: VirtRange,
    added: usize,
) -> core::ops::Range<usize> {
    // SAFETY: leaves of the tree of the only writer, who called.
    let leaf = |index: usize| unsafe { &*leaves[index].cast::<Node>() };
    let mut touched = match (0..leaves.len()).rev().find(|index| leaf(*index).keys[0] <= hull.start.0) {
        Some(first) => first..first + 1,
        None => 0..leaves.len().min(1),
    };
    while touched.end < leaves.len() && leaf(touched.end).keys[0] < hull.end.0 {
        touched.end += 1;
    }
    let mut total = regions::<M>(&leaves[touched.clone()]).filter(|(_, vma)| !vma.overlaps(&span)).count() + added;
    while touched.end < leaves.len() && total + leaf(touched.end).len <= FANOUT {
        total += leaf(touched.end).len;
        touched.end += 1;
    }
    while touched.start > 0 && total + leaf(touched.start - 1).len <= FANOUT {
        total += leaf(touched.start - 1).len;
        touched.start -= 1;
    }
    touched
}
