//! Locking a space or one of its VMAs, and finding VMAs.

use core::cell::Cell;
use core::fmt;
use core::ops::Deref;
use core::ptr::{self, NonNull};

use super::removal;
use super::structure::AddressSpace;
use super::vma::Vma;
use super::vma_lock;
use crate::addr::{VaRange, VirtAddr};
use crate::errno::Errno;
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::sync::{LockClass, ReadLockGuard, WriteLockGuard, note_held, note_let_go};

impl<'m, P: Platform> AddressSpace<'m, P> {
    /// Takes the space's lock for reading: its VMAs stand still.
    pub fn read(&self) -> SpaceReadGuard<'_, 'm, P> {
        SpaceReadGuard { _lock: self.lock.read(self.platform()), vmas: Vmas { space: self } }
    }

    /// As [`Self::read`], unless a writer holds or awaits the lock.
    pub fn try_read(&self) -> Option<SpaceReadGuard<'_, 'm, P>> {
        let lock = self.lock.try_read(self.platform())?;
        Some(SpaceReadGuard { _lock: lock, vmas: Vmas { space: self } })
    }

    /// Takes the space's lock for writing: its VMAs may be changed, each once it is locked too.
    pub fn write(&self) -> SpaceWriteGuard<'_, 'm, P> {
        SpaceWriteGuard::new(self, self.lock.write(self.platform()))
    }

    /// As [`Self::write`] while another space's lock is held: a child's below its parent's.
    pub(crate) fn write_nested(&self) -> SpaceWriteGuard<'_, 'm, P> {
        SpaceWriteGuard::new(self, self.lock.write_nested(self.platform()))
    }

    /// Locks the VMA that covers `address` for reading: by its own lock if that
    /// can be had at once, else by the space's.
    ///
    /// While the guard lives the VMA keeps its range, rules and page tables'
    /// extent. Never taken with the space's lock held.
    ///
    /// # Errors
    /// EFAULT if no VMA covers the address.
    pub fn vma_read(&self, address: VirtAddr) -> Result<VmaGuard<'_, 'm, P>, Errno> {
        match self.lock_vma_under_rcu(address) {
            Some(guard) => Ok(guard),
            None => self.vma_read_slow(address),
        }
    }

    /// Locks the VMA that covers `address` for reading without the space's lock;
    /// `None` if there is none, or a writer has it, or it changed meanwhile.
    pub fn lock_vma_under_rcu(&self, address: VirtAddr) -> Option<VmaGuard<'_, 'm, P>> {
        let _section = self.base.rcu.read(self.platform().cpu());
        let vma = self.find_raw(address)?;
        // SAFETY: found in the tree within the read section, and VMAs are freed
        // after a grace period.
        let vma = unsafe { vma.as_ref() };
        if !vma_lock::read_covering(vma, &self.seq, address.get()) {
            return None;
        }
        note_held(self.platform(), LockClass::Vma);
        Some(VmaGuard { vma: NonNull::from(vma), hold: Hold::Vma(self) })
    }

    fn vma_read_slow(&self, address: VirtAddr) -> Result<VmaGuard<'_, 'm, P>, Errno> {
        let guard = self.read();
        let vma = NonNull::from(guard.lookup(address).ok_or(Errno::EFAULT)?);
        Ok(VmaGuard { vma, hold: Hold::Space(guard) })
    }

    /// The first VMA that ends above `address`; locks nothing.
    fn find_raw(&self, address: VirtAddr) -> Option<NonNull<Vma<'m, P>>> {
        self.vmas.find(address.page()..=u64::MAX)?.entry.as_pointer()
    }
}

/// The VMAs of a locked space, in order.
pub struct Vmas<'a, 'm, P: Platform> {
    space: &'a AddressSpace<'m, P>,
}

impl<'a, 'm, P: Platform> Vmas<'a, 'm, P> {
    /// The space.
    pub const fn space(&self) -> &'a AddressSpace<'m, P> {
        self.space
    }

    /// The first VMA that ends above `address`, whether or not it covers it (`find_vma`).
    pub fn find(&self, address: VirtAddr) -> Option<&Vma<'m, P>> {
        self.space.find_raw(address).map(|vma| self.borrow(vma))
    }

    /// The VMA that covers `address` (`vma_lookup`).
    pub fn lookup(&self, address: VirtAddr) -> Option<&Vma<'m, P>> {
        self.find(address).filter(|vma| vma.start() <= address)
    }

    /// The last VMA that ends at or below `address`.
    pub fn before(&self, address: VirtAddr) -> Option<&Vma<'m, P>> {
        let key = address.page().checked_sub(1)?;
        let found = self.space.vmas.find_back(key)?;
        found.entry.as_pointer().map(|vma| self.borrow(vma))
    }

    /// The VMAs that have a page of `range`, ascending. The walk looks each one
    /// up, so VMAs may be removed and split meanwhile.
    pub fn overlapping(&self, range: VaRange) -> impl Iterator<Item = &Vma<'m, P>> {
        let mut from = Some(range.start());
        core::iter::from_fn(move || {
            let vma = self.find(from?).filter(|vma| vma.start() < range.end());
            from = vma.map(Vma::end).filter(|end| *end < range.end());
            vma
        })
    }

    /// Pages of `range` that VMAs span.
    pub fn pages_in(&self, range: VaRange) -> u64 {
        let overlaps = self.overlapping(range).filter_map(|vma| vma.range().intersection(range));
        overlaps.map(|part| part.pages().get()).sum()
    }

    /// All VMAs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Vma<'m, P>> {
        let all = VaRange::new(VirtAddr::ZERO, VirtAddr::END);
        all.into_iter().flat_map(|all| self.overlapping(all))
    }

    fn borrow(&self, vma: NonNull<Vma<'m, P>>) -> &Vma<'m, P> {
        // SAFETY: in the tree while the space's lock is held, which this borrow does
        // not outlive: only a holder for writing takes VMAs out, and it keeps them
        // until its guard drops (`SpaceWriteGuard::removed`).
        unsafe { vma.as_ref() }
    }
}

/// The space's lock, held for reading.
#[must_use = "the lock is released when the guard is dropped"]
pub struct SpaceReadGuard<'a, 'm, P: Platform> {
    vmas: Vmas<'a, 'm, P>,
    _lock: ReadLockGuard<'a, (), P>,
}

impl<'a, 'm, P: Platform> Deref for SpaceReadGuard<'a, 'm, P> {
    type Target = Vmas<'a, 'm, P>;

    fn deref(&self) -> &Self::Target {
        &self.vmas
    }
}

/// The space's lock, held for writing. VMAs that were taken out of the tree are
/// freed after it.
#[must_use = "the lock is released when the guard is dropped"]
pub struct SpaceWriteGuard<'a, 'm, P: Platform> {
    vmas: Vmas<'a, 'm, P>,
    /// VMAs taken out of the tree, linked through `next_removed`.
    pub(super) removed: Cell<*mut Vma<'m, P>>,
    _lock: WriteLockGuard<'a, (), P>,
}

impl<'a, 'm, P: Platform> SpaceWriteGuard<'a, 'm, P> {
    fn new(space: &'a AddressSpace<'m, P>, lock: WriteLockGuard<'a, (), P>) -> Self {
        Self { vmas: Vmas { space }, removed: Cell::new(ptr::null_mut()), _lock: lock }
    }

    /// Locks `vma` for writing until the guard drops; waits for its readers.
    pub fn lock_vma(&self, vma: &Vma<'m, P>) {
        let space = self.space();
        vma.lock.start_write(&space.seq, || space.platform().relax());
    }
}

impl<'a, 'm, P: Platform> Deref for SpaceWriteGuard<'a, 'm, P> {
    type Target = Vmas<'a, 'm, P>;

    fn deref(&self) -> &Self::Target {
        &self.vmas
    }
}

impl<P: Platform> Drop for SpaceWriteGuard<'_, '_, P> {
    fn drop(&mut self) {
        removal::free_removed(self);
        self.space().seq.end_write_section();
    }
}

/// A VMA locked for reading.
#[must_use = "the lock is released when the guard is dropped"]
pub struct VmaGuard<'a, 'm, P: Platform> {
    vma: NonNull<Vma<'m, P>>,
    hold: Hold<'a, 'm, P>,
}

enum Hold<'a, 'm, P: Platform> {
    /// By its own lock.
    Vma(&'a AddressSpace<'m, P>),
    /// By the space's.
    Space(SpaceReadGuard<'a, 'm, P>),
}

impl<'a, 'm, P: Platform> VmaGuard<'a, 'm, P> {
    /// The space.
    pub const fn space(&self) -> &'a AddressSpace<'m, P> {
        match &self.hold {
            Hold::Vma(space) => space,
            Hold::Space(guard) => guard.vmas.space,
        }
    }

    /// Whether the VMA's own lock sufficed.
    pub const fn is_vma_lock(&self) -> bool {
        matches!(self.hold, Hold::Vma(_))
    }
}

impl<'m, P: Platform> Deref for VmaGuard<'_, 'm, P> {
    type Target = Vma<'m, P>;

    fn deref(&self) -> &Vma<'m, P> {
        // SAFETY: locked for reading by itself or its space: a writer that wants to
        // remove it waits for this guard.
        unsafe { self.vma.as_ref() }
    }
}

impl<P: Platform> Drop for VmaGuard<'_, '_, P> {
    fn drop(&mut self) {
        if let Hold::Vma(space) = &self.hold {
            self.lock.end_read();
            note_let_go(space.platform(), LockClass::Vma);
        }
    }
}

impl<P: Platform> fmt::Debug for VmaGuard<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<P: Platform> fmt::Debug for Vmas<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<P: Platform> fmt::Debug for SpaceReadGuard<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.vmas.fmt(f)
    }
}

impl<P: Platform> fmt::Debug for SpaceWriteGuard<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.vmas.fmt(f)
    }
}

/// Changes of the counts that go with the tree; the space's lock is held for writing.
impl<P: Platform> SpaceWriteGuard<'_, '_, P> {
    /// Adds to the number of VMAs and of pages that they span.
    pub(super) fn count(&self, vmas: i32, pages: i64) {
        let space = self.space();
        let (map_count, total) = (space.map_count(), space.total_pages().get());
        space.map_count.store(map_count.wrapping_add_signed(vmas), Ordering::Relaxed);
        space.total_pages.store(total.wrapping_add_signed(pages), Ordering::Relaxed);
    }
}
