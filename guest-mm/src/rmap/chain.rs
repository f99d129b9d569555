//! Chains: which [`AnonVma`]s a VMA is in, and how fork, split and move copy that.
//!
//! A VMA puts new folios under its own `AnonVma` and may map folios of all its
//! ancestors', so it is in all their trees, by one [`AnonVmaChain`] each.

use core::ptr::{self, NonNull};

use super::AnonVma;
use super::interval::IntervalNode;
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::space::Vma;
use crate::sync::shim::{AtomicPtr, Ordering};

/// The part of a VMA that reverse maps use.
pub struct VmaRmap<'m, P: Platform> {
    /// Its places in `AnonVma`s: changed under the family's lock, read under it
    /// or under the space's.
    pub(super) chain: AtomicPtr<AnonVmaChain<'m, P>>,
    /// Its place in its file's tree.
    pub(super) i_mmap: IntervalNode<Vma<'m, P>>,
}

impl<P: Platform> VmaRmap<'_, P> {
    /// Of a VMA that is in no tree.
    pub const fn new() -> Self {
        Self { chain: AtomicPtr::new(ptr::null_mut()), i_mmap: IntervalNode::new() }
    }
}

impl<P: Platform> Default for VmaRmap<'_, P> {
    fn default() -> Self {
        Self::new()
    }
}

/// A VMA's place in one [`AnonVma`].
pub struct AnonVmaChain<'m, P: Platform> {
    pub(super) node: IntervalNode<Vma<'m, P>>,
    anon_vma: AtomicPtr<AnonVma<'m, P>>,
    next: AtomicPtr<Self>,
}

impl<'m, P: Platform> AnonVmaChain<'m, P> {
    /// Whose tree it is in.
    pub(super) fn anon_vma(&self) -> &AnonVma<'m, P> {
        // SAFETY: set by `link`; the place counts as a reference of the object's tree.
        unsafe { &*self.anon_vma.load(Ordering::Relaxed) }
    }

    fn next(&self) -> Option<NonNull<Self>> {
        NonNull::new(self.next.load(Ordering::Relaxed))
    }
}

/// Links that are in no chain yet.
struct Spares<'m, P: Platform>(Option<NonNull<AnonVmaChain<'m, P>>>);

impl<'m, P: Platform> Spares<'m, P> {
    fn pop(&mut self) -> Option<NonNull<AnonVmaChain<'m, P>>> {
        let first = self.0?;
        // SAFETY: made by `spares`, which owns them until they are popped.
        self.0 = unsafe { first.as_ref() }.next();
        Some(first)
    }

    fn push(&mut self, link: NonNull<AnonVmaChain<'m, P>>) {
        let next = self.0.map_or(ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: the caller's own.
        unsafe { link.as_ref() }.next.store(next, Ordering::Relaxed);
        self.0 = Some(link);
    }
}

/// The page offsets that a VMA maps: first and last.
pub(super) fn span<P: Platform>(vma: &Vma<'_, P>) -> (u64, u64) {
    let first = vma.pgoff.load(Ordering::Relaxed);
    (first, first + vma.range().pages().get().saturating_sub(1))
}

/// The links of a VMA's chain, newest first.
pub(super) fn links<'a, 'm, P: Platform>(
    vma: &'a Vma<'m, P>,
) -> impl Iterator<Item = &'a AnonVmaChain<'m, P>> {
    let first = NonNull::new(vma.rmap.chain.load(Ordering::Relaxed));
    // SAFETY: links of a chain are live until `anon_vma_unlink`, whose caller has
    // the VMA to itself.
    core::iter::successors(first, |link| unsafe { link.as_ref() }.next())
        .map(|link| unsafe { &*link.as_ptr() })
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Gives `vma` an [`AnonVma`], which a VMA needs before its first anonymous folio.
    ///
    /// `near` is a neighbour that it may once be merged with: its `AnonVma` is
    /// taken if it has one and no ancestor's. Two CPUs may call this for one VMA; one's is taken.
    /// The caller holds the space's lock, or the VMA's with `near` empty.
    ///
    /// # Errors
    /// ENOMEM; nothing is changed.
    pub fn anon_vma_prepare(
        &self,
        vma: &Vma<'m, P>,
        near: Option<&Vma<'m, P>>,
    ) -> Result<(), Errno> {
        if !vma.anon_vma.load(Ordering::Acquire).is_null() {
            return Ok(());
        }
        let mut spares = self.spares(1)?;
        // One that is in its ancestors' trees too would, merged into `vma`, have folios
        // that nobody finds.
        let near = near.filter(|near| links(near).count() == 1);
        let near = near.and_then(|near| NonNull::new(near.anon_vma.load(Ordering::Acquire)));
        let (anon_vma, fresh) = match near {
            Some(anon_vma) => (anon_vma, false),
            None => match self.alloc_anon_vma() {
                Ok(anon_vma) => {
                    // SAFETY: just taken from the cache.
                    unsafe { anon_vma.as_ref() }.start(None);
                    (anon_vma, true)
                }
                Err(error) => {
                    self.free_spares(spares);
                    return Err(error);
                }
            },
        };
        // SAFETY: fresh, or kept by the neighbour, which the space's lock keeps.
        let to = unsafe { anon_vma.as_ref() };
        let guard = to.write(self.platform());
        let (null, new) = (ptr::null_mut(), anon_vma.as_ptr());
        // Release publishes it to faults that see it without a lock.
        let won = vma.anon_vma.compare_exchange(null, new, Ordering::AcqRel, Ordering::Relaxed);
        if won.is_ok() {
            to.add_active();
            link_next(vma, to, &mut spares);
        }
        drop(guard);
        if won.is_err() && fresh {
            self.put_anon_vma(anon_vma);
        }
        self.free_spares(spares);
        Ok(())
    }

    /// Puts `new` where `old` is: it continues `old`, of whose pages it takes
    /// over some (split), all (move), or which it absorbs (merge into a VMA that
    /// had none).
    ///
    /// `new` must have no `AnonVma` yet. The caller holds the space's lock for
    /// writing and has set `new`'s range and offset.
    ///
    /// # Errors
    /// ENOMEM; nothing is changed.
    pub fn anon_vma_clone(&self, new: &Vma<'m, P>, old: &Vma<'m, P>) -> Result<(), Errno> {
        let Some(anon_vma) = NonNull::new(old.anon_vma.load(Ordering::Acquire)) else {
            return Ok(());
        };
        let mut spares = self.spares(links(old).count())?;
        // SAFETY: in `old`'s chain, hence live.
        let anon_vma_ref = unsafe { anon_vma.as_ref() };
        let guard = anon_vma_ref.write(self.platform());
        for link in links(old) {
            link_next(new, link.anon_vma(), &mut spares);
        }
        anon_vma_ref.add_active();
        new.anon_vma.store(anon_vma.as_ptr(), Ordering::Release);
        drop(guard);
        self.free_spares(spares);
        Ok(())
    }

    /// Lets `child`, a copy of `parent` in another space, find what both map, and
    /// gives it a place for folios of its own.
    ///
    /// That is a new `AnonVma` below the parent's, unless an ancestor's is left
    /// with at most one child and no VMA that adds folios to it: taking that one keeps
    /// a family of processes that fork and exit from growing for ever.
    ///
    /// The caller holds both spaces' locks for writing.
    ///
    /// # Errors
    /// ENOMEM; nothing is changed.
    pub fn anon_vma_fork(&self, child: &Vma<'m, P>, parent: &Vma<'m, P>) -> Result<(), Errno> {
        let Some(from) = NonNull::new(parent.anon_vma.load(Ordering::Acquire)) else {
            return Ok(());
        };
        let mut spares = self.spares(links(parent).count() + 1)?;
        let own = match self.alloc_anon_vma() {
            Ok(own) => own,
            Err(error) => {
                self.free_spares(spares);
                return Err(error);
            }
        };
        // SAFETY: in the parent's chain, hence live.
        let from = unsafe { from.as_ref() };
        let guard = from.write(self.platform());
        let mut idle = None;
        for link in links(parent) {
            let anon_vma = link.anon_vma();
            if anon_vma.children() < 2 && anon_vma.active() == 0 {
                idle.get_or_insert(anon_vma);
            }
            link_next(child, anon_vma, &mut spares);
        }
        // SAFETY: just taken from the cache.
        let own_ref = unsafe { own.as_ref() };
        let chosen = idle.unwrap_or_else(|| {
            own_ref.start(Some(from));
            own_ref.join_parent();
            link_next(child, own_ref, &mut spares);
            own_ref
        });
        chosen.add_active();
        let unused = idle.is_some();
        child.anon_vma.store(ptr::from_ref(chosen).cast_mut(), Ordering::Release);
        drop(guard);
        if unused {
            self.free_anon_vma(own);
        }
        self.free_spares(spares);
        Ok(())
    }

    /// Takes `vma` out of all trees that it is in by its chain.
    ///
    /// It maps no anonymous folio any more. The caller holds the space's lock for
    /// writing.
    pub fn anon_vma_unlink(&self, vma: &Vma<'m, P>) {
        let Some(first) = links(vma).next() else { return };
        let family = NonNull::from(first.anon_vma().root());
        // SAFETY: a place in a tree keeps the family's root; those of trees that are
        // empty are given up after the lock.
        let guard = unsafe { family.as_ref() }.write(self.platform());
        let mut chain = Spares(NonNull::new(vma.rmap.chain.load(Ordering::Relaxed)));
        vma.rmap.chain.store(ptr::null_mut(), Ordering::Relaxed);
        let mut emptied = Spares(None);
        while let Some(link) = chain.pop() {
            // SAFETY: out of the chain, the caller's.
            let anon_vma = unsafe { link.as_ref() }.anon_vma();
            // SAFETY: in that tree since `link_next`; its lock is held.
            unsafe { anon_vma.tree.remove(node_of(link)) };
            if anon_vma.tree.is_empty() {
                anon_vma.leave_parent();
                emptied.push(link);
            } else {
                self.free_link(link);
            }
        }
        let own = NonNull::new(vma.anon_vma.swap(ptr::null_mut(), Ordering::AcqRel));
        // SAFETY: was in the chain: live until the loop below.
        own.inspect(|own| unsafe { own.as_ref() }.drop_active());
        drop(guard);
        while let Some(link) = emptied.pop() {
            // SAFETY: out of the chain, the caller's; its object's tree reference is too.
            let anon_vma = NonNull::from(unsafe { link.as_ref() }.anon_vma());
            self.put_anon_vma(anon_vma);
            self.free_link(link);
        }
    }

    /// Whether two adjacent VMAs may become one as far as their folios are
    /// concerned: one `AnonVma`, or one of them has none.
    pub fn anon_vma_mergeable(&self, left: &Vma<'m, P>, right: &Vma<'m, P>) -> bool {
        let (left, right) =
            (left.anon_vma.load(Ordering::Acquire), right.anon_vma.load(Ordering::Acquire));
        left.is_null() || right.is_null() || left == right
    }

    /// Whether all folios that `other` may map can be found by `vma` too, were it as
    /// large: it adds new ones to the same `AnonVma`, or `other` to none, and is in
    /// every tree that `other` is in. Both are locked for writing.
    pub(crate) fn anon_vma_covers(&self, vma: &Vma<'m, P>, other: &Vma<'m, P>) -> bool {
        let is_in = |anon_vma| links(vma).any(|link| ptr::eq(link.anon_vma(), anon_vma));
        let own = other.anon_vma.load(Ordering::Acquire);
        (own.is_null() || own == vma.anon_vma.load(Ordering::Acquire))
            && links(other).all(|link| is_in(link.anon_vma()))
    }

    /// Gives up a reference; frees the object if it was the last, and then one of its root.
    pub(super) fn put_anon_vma(&self, anon_vma: NonNull<AnonVma<'m, P>>) {
        // SAFETY: the caller's reference keeps it.
        let object = unsafe { anon_vma.as_ref() };
        let root = NonNull::from(object.root());
        let is_root = object.is_root();
        if !object.release() {
            return;
        }
        self.free_anon_vma(anon_vma);
        // SAFETY: the child's reference kept it until here.
        if !is_root && unsafe { root.as_ref() }.release() {
            self.free_anon_vma(root);
        }
    }

    fn alloc_anon_vma(&self) -> Result<NonNull<AnonVma<'m, P>>, Errno> {
        let object = self.base().caches.anon_vma.alloc(self.memory(), Gfp::KERNEL)?;
        Ok(object.cast())
    }

    fn free_anon_vma(&self, anon_vma: NonNull<AnonVma<'m, P>>) {
        // SAFETY: no reference is left; walkers that come late find a count of 0 in
        // memory that stays of this type.
        let freed = unsafe { self.base().caches.anon_vma.free(self.memory(), anon_vma.cast()) };
        debug_assert!(freed.is_ok(), "anon_vma: {freed:?}");
    }

    /// `count` links, or none.
    fn spares(&self, count: usize) -> Result<Spares<'m, P>, Errno> {
        let mut spares = Spares(None);
        for _ in 0..count {
            match self.base().caches.anon_vma_chain.alloc(self.memory(), Gfp::KERNEL) {
                Ok(object) => {
                    let link = object.cast::<AnonVmaChain<'m, P>>();
                    let fresh = AnonVmaChain {
                        node: IntervalNode::new(),
                        anon_vma: AtomicPtr::new(ptr::null_mut()),
                        next: AtomicPtr::new(ptr::null_mut()),
                    };
                    // SAFETY: an object of this type's size and alignment, nobody else's.
                    unsafe { link.write(fresh) };
                    spares.push(link);
                }
                Err(error) => {
                    self.free_spares(spares);
                    return Err(error.into());
                }
            }
        }
        Ok(spares)
    }

    fn free_spares(&self, mut spares: Spares<'m, P>) {
        while let Some(link) = spares.pop() {
            self.free_link(link);
        }
    }

    fn free_link(&self, link: NonNull<AnonVmaChain<'m, P>>) {
        // SAFETY: in no tree and no chain; only those who hold locks look at links.
        let freed = unsafe { self.base().caches.anon_vma_chain.free(self.memory(), link.cast()) };
        debug_assert!(freed.is_ok(), "anon_vma_chain: {freed:?}");
    }
}

fn node_of<'m, P: Platform>(
    link: NonNull<AnonVmaChain<'m, P>>,
) -> NonNull<IntervalNode<Vma<'m, P>>> {
    // SAFETY: a live link; its node is the first field of it that anybody links to.
    NonNull::from(unsafe { &link.as_ref().node })
}

/// Puts `vma` into the tree of `to` by the next spare; the family is locked for writing.
fn link_next<'m, P: Platform>(vma: &Vma<'m, P>, to: &AnonVma<'m, P>, spares: &mut Spares<'m, P>) {
    let Some(link) = spares.pop() else {
        debug_assert!(false, "links are counted before");
        return;
    };
    // SAFETY: a spare is the caller's.
    let fresh = unsafe { link.as_ref() };
    fresh.anon_vma.store(ptr::from_ref(to).cast_mut(), Ordering::Relaxed);
    fresh.next.store(vma.rmap.chain.load(Ordering::Relaxed), Ordering::Relaxed);
    vma.rmap.chain.store(link.as_ptr(), Ordering::Relaxed);
    let (first, last) = span(vma);
    // SAFETY: locked for writing; the link stays until `anon_vma_unlink` removes it.
    unsafe { to.tree.insert(node_of(link), NonNull::from(vma), first, last) };
}
