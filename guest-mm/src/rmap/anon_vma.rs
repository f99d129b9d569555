//! Which VMAs may map an anonymous folio.

use core::fmt;
use core::ptr::{self, NonNull};

use super::interval::IntervalTree;
use crate::platform::Platform;
use crate::space::Vma;
use crate::sync::rwlock::{ReadLockGuard, WriteLockGuard};
use crate::sync::shim::{AtomicPtr, AtomicU32, Ordering};
use crate::sync::{LockClass, RwLock};

/// The VMAs that anonymous folios of one origin may be mapped in: the VMA that
/// faulted them in, and those that fork, split and move made of it.
///
/// A folio names the one of the VMA that faulted it in and holds no reference:
/// for as long as a leaf maps the folio, the leaf's VMA is in the tree and keeps
/// the object. The memory is type-safe and the count never goes from 0 to
/// anything but by a new owner, so a walker may try and look again.
pub struct AnonVma<'m, P: Platform> {
    /// Its tree's VMAs as one, its children (of which a root is one), and walkers.
    refcount: AtomicU32,
    /// Whose lock guards the family's trees and counts; itself for a root.
    root: AtomicPtr<Self>,
    /// Where the VMA of its maker came from; itself for a root.
    parent: AtomicPtr<Self>,
    /// Those whose parent it is; a root counts itself.
    children: AtomicU32,
    /// VMAs that put their new folios here.
    active: AtomicU32,
    /// A root's: guards the trees and counts of the family.
    lock: RwLock<()>,
    /// VMAs by page offset.
    pub(super) tree: IntervalTree<Vma<'m, P>>,
}

impl<'m, P: Platform> AnonVma<'m, P> {
    /// Makes a slab object one that is free. Runs once for each object of a slab.
    ///
    /// # Safety
    /// `object` starts memory of this type's size and alignment that nobody else uses.
    pub(crate) unsafe fn construct(object: NonNull<u8>) {
        let free = Self {
            refcount: AtomicU32::new(0),
            root: AtomicPtr::new(ptr::null_mut()),
            parent: AtomicPtr::new(ptr::null_mut()),
            children: AtomicU32::new(0),
            active: AtomicU32::new(0),
            lock: RwLock::new(LockClass::Rmap, ()),
            tree: IntervalTree::new(),
        };
        // SAFETY: the caller's promise.
        unsafe { object.cast::<Self>().write(free) };
    }

    /// Makes a free one live, with one reference: a root, or a child of `parent`
    /// that holds a reference of the parent's root.
    pub(super) fn start(&self, parent: Option<&Self>) {
        debug_assert!(self.refcount() == 0 && self.tree.is_empty(), "{self:?}");
        let this = ptr::from_ref(self).cast_mut();
        let (root, up) = match parent {
            None => (this, this),
            Some(parent) => (parent.root.load(Ordering::Relaxed), ptr::from_ref(parent).cast_mut()),
        };
        self.root.store(root, Ordering::Relaxed);
        self.parent.store(up, Ordering::Relaxed);
        self.children.store(u32::from(parent.is_none()), Ordering::Relaxed);
        self.active.store(0, Ordering::Relaxed);
        if parent.is_some() {
            self.root().get();
        }
        // Release pairs with the Acquire in `try_get`.
        self.refcount.store(1, Ordering::Release);
    }

    /// References.
    pub fn refcount(&self) -> u32 {
        self.refcount.load(Ordering::Relaxed)
    }

    /// Takes a reference unless the object is free.
    pub(super) fn try_get(&self) -> bool {
        // Acquire pairs with the Release in `start`: the fields are its life's.
        self.refcount
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |n| (n != 0).then_some(n + 1))
            .is_ok()
    }

    /// One more reference for who has one.
    fn get(&self) {
        self.refcount.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives a reference up; `true` if it was the last, and the object is the caller's to free.
    pub(super) fn release(&self) -> bool {
        let before = self.refcount.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before != 0, "anon_vma put twice");
        before == 1
    }

    /// Whose lock guards it.
    pub(super) fn root(&self) -> &Self {
        // SAFETY: set by `start`; a live object holds a reference of its root, and
        // the borrow is no longer than that of the object.
        unsafe { &*self.root.load(Ordering::Relaxed) }
    }

    pub(super) fn is_root(&self) -> bool {
        ptr::eq(self.root.load(Ordering::Relaxed), self)
    }

    fn parent(&self) -> &Self {
        // SAFETY: set by `start`; a parent outlives its children, by their count.
        unsafe { &*self.parent.load(Ordering::Relaxed) }
    }

    /// Whether `other` is of the same family: under one lock.
    pub(super) fn is_kin(&self, other: &Self) -> bool {
        ptr::eq(self.root(), other.root())
    }

    /// Locks the family for changes.
    pub(super) fn write<'a>(&'a self, platform: &'a P) -> WriteLockGuard<'a, (), P> {
        self.root().lock.write(platform)
    }

    /// As [`Self::write`], with a file's lock held.
    pub(super) fn write_nested<'a>(&'a self, platform: &'a P) -> WriteLockGuard<'a, (), P> {
        self.root().lock.write_nested(platform)
    }

    /// Locks the family against changes.
    pub(super) fn read<'a>(&'a self, platform: &'a P) -> ReadLockGuard<'a, (), P> {
        self.root().lock.read(platform)
    }

    /// VMAs that put their new folios here; under the family's lock.
    pub(super) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn add_active(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn drop_active(&self) {
        let before = self.active.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before != 0, "no VMA was active");
    }

    /// Those whose parent it is; under the family's lock.
    pub(super) fn children(&self) -> u32 {
        self.children.load(Ordering::Relaxed)
    }

    /// Counts it with its parent; under the family's lock.
    pub(super) fn join_parent(&self) {
        self.parent().children.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes it off its parent's count; under the family's lock.
    pub(super) fn leave_parent(&self) {
        let before = self.parent().children.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before != 0, "no child was counted");
    }
}

impl<P: Platform> fmt::Debug for AnonVma<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnonVma")
            .field("refcount", &self.refcount())
            .field("children", &self.children())
            .field("active", &self.active())
            .field("vmas", &self.tree.len())
            .finish_non_exhaustive()
    }
}
