//! Handles: who holds a folio, and in what way.
//!
//! None is `Clone`, none does anything when it is dropped: a reference that is
//! not given back shows in the census as one that nothing explains.
//!
//! | handle | the holder |
//! |---|---|
//! | [`FolioRef`] | has one reference: the folio stays |
//! | [`FolioPin`] | has a reference and a pin: its pages stay where they are |
//! | [`FrozenFolio`] | is alone: the count is 0 and speculative readers fail |

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use abi::Pfn;

use super::desc::ORDER_SHIFT;
use super::{Folio, FolioKind};
use crate::memdesc::Order;
use crate::sync::shim::{Ordering, fence};

/// References that a folio can have; beyond, speculative readers fail.
const MAX_REFS: u32 = 1 << 31;

/// One reference: the folio is neither freed nor split while it is held.
#[must_use = "put it, or its folio is never freed"]
pub struct FolioRef<'m>(&'m Folio);

impl<'m> FolioRef<'m> {
    /// Takes a reference unless there is none: the folio is frozen or free.
    ///
    /// A speculative reader found the descriptor by other means than holding a
    /// reference, so it must look again whether it is still that frame's, or
    /// that slot's, before it uses it.
    pub fn try_get(folio: &'m Folio) -> Option<Self> {
        let mut count = folio.refcount.load(Ordering::Relaxed);
        loop {
            if count == 0 || count >= MAX_REFS {
                return None;
            }
            // Acquire pairs with the Release in `unfreeze`: who got the reference sees
            // the fields, and that the words which named the descriptor before no
            // longer do.
            match folio.refcount.compare_exchange_weak(
                count,
                count + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Self(folio)),
                Err(now) => count = now,
            }
        }
    }

    /// One more reference.
    pub fn get(&self) -> Self {
        add_reference(self.0);
        Self(self.0)
    }

    /// One more reference to a folio that the caller knows to have some.
    ///
    /// # Safety
    /// The descriptor is one of a cache that lives for `'m`, and somebody's
    /// reference keeps the count above 0 during the call.
    pub unsafe fn get_live(folio: NonNull<Folio>) -> Self {
        // SAFETY: a live descriptor by the caller's promise; all fields are atomic.
        let folio = unsafe { folio.as_ref() };
        add_reference(folio);
        Self(folio)
    }

    /// Gives the reference up. The last one leaves the folio frozen, in the caller's hands, to be freed.
    #[must_use = "the last reference leaves a frozen folio"]
    pub fn release(self) -> Option<FrozenFolio<'m>> {
        // Release: what was done under this reference comes before the free. Acquire:
        // whoever frees comes after all of it.
        let before = self.0.refcount.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before != 0, "reference put twice");
        (before == 1).then_some(FrozenFolio(self.0))
    }

    /// Freezes the folio if its references are exactly `expected`, this one included.
    ///
    /// # Errors
    /// Somebody else has a reference; the handle comes back.
    pub fn freeze(self, expected: u32) -> Result<FrozenFolio<'m>, Self> {
        debug_assert!(expected > 0, "the handle itself is a reference");
        #[cfg(loom)]
        if super::mutant::Mutant::NoFreeze.is_active() {
            return Ok(FrozenFolio(self.0));
        }
        // Acquire pairs with the Release of the references put before.
        match self.0.refcount.compare_exchange(expected, 0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Ok(FrozenFolio(self.0)),
            Err(_) => Err(self),
        }
    }

    /// Adds a pin to the reference.
    ///
    /// Who found the folio in a leaf without a lock looks at the leaf again
    /// afterwards: then either it is gone, or whoever takes it away sees the pin.
    pub fn pin(self) -> FolioPin<'m> {
        self.0.pincount.fetch_add(1, Ordering::Relaxed);
        // Orders the count before the second look; pairs with `Folio::is_pinned`.
        fence(Ordering::SeqCst);
        FolioPin(self)
    }

    /// Where the descriptor is.
    pub fn as_ptr(&self) -> NonNull<Folio> {
        NonNull::from(self.0)
    }

    /// Gives up the handle but not the reference.
    pub fn into_raw(self) -> NonNull<Folio> {
        NonNull::from(self.0)
    }

    /// Makes the handle again from what [`Self::into_raw`] returned.
    ///
    /// # Safety
    /// The caller owns one reference, whose handle is gone, and the
    /// descriptor's cache lives for `'m`.
    pub unsafe fn from_raw(folio: NonNull<Folio>) -> Self {
        // SAFETY: a live descriptor by the caller's promise; all fields are atomic.
        Self(unsafe { folio.as_ref() })
    }
}

impl Folio {
    /// Adds references that no handle stands for: those of a cache.
    #[cfg_attr(loom, allow(dead_code, reason = "the page cache is not built for models"))]
    pub(crate) fn add_refs(&self, count: u64) {
        let before = self.refcount.fetch_add(narrow(count), Ordering::Relaxed);
        debug_assert!(before != 0, "a frozen or free folio got references");
    }

    /// Takes references away that [`Self::add_refs`] added; the caller has one more.
    #[cfg_attr(loom, allow(dead_code, reason = "the page cache is not built for models"))]
    pub(crate) fn drop_refs(&self, count: u64) {
        let before = self.refcount.fetch_sub(narrow(count), Ordering::AcqRel);
        debug_assert!(u64::from(before) > count, "the caller's reference is gone");
    }
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or_else(|_| unreachable!("a folio has at most 1024 pages"))
}

fn add_reference(folio: &Folio) {
    // Relaxed: there is a reference already, which keeps everything in place.
    let before = folio.refcount.fetch_add(1, Ordering::Relaxed);
    debug_assert!(before != 0, "a frozen or free folio got a reference");
}

impl Deref for FolioRef<'_> {
    type Target = Folio;

    fn deref(&self) -> &Folio {
        self.0
    }
}

impl PartialEq for FolioRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.0, other.0)
    }
}

impl Eq for FolioRef<'_> {}

impl fmt::Debug for FolioRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FolioRef({:?}, {:?})", self.0.pfn(), self.0.order())
    }
}

/// A pin and its reference: the pages of the folio are neither replaced nor moved while it is held.
#[must_use = "unpin it, or its folio is never moved nor freed"]
pub struct FolioPin<'m>(FolioRef<'m>);

impl<'m> FolioPin<'m> {
    /// Takes the pin off and leaves the reference, to be put.
    pub fn unpin(self) -> FolioRef<'m> {
        // Release: what was done under the pin comes before a migration or a copy.
        let before = self.0.0.pincount.fetch_sub(1, Ordering::Release);
        debug_assert!(before != 0, "unpinned twice");
        self.0
    }

    /// One more pin, with its reference.
    pub fn repin(&self) -> Self {
        self.0.get().pin()
    }
}

impl Deref for FolioPin<'_> {
    type Target = Folio;

    fn deref(&self) -> &Folio {
        self.0.0
    }
}

impl fmt::Debug for FolioPin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FolioPin({:?}, {:?})", self.pfn(), self.order())
    }
}

/// A folio whose count is 0: the holder alone may change what it is.
#[must_use = "unfreeze or free it"]
pub struct FrozenFolio<'m>(&'m Folio);

impl<'m> FrozenFolio<'m> {
    /// The handle of a descriptor with count 0.
    ///
    /// # Safety
    /// The caller alone may use the descriptor, other than by
    /// [`FolioRef::try_get`], and no other handle of it exists.
    pub unsafe fn own(folio: &'m Folio) -> Self {
        debug_assert_eq!(folio.refcount(), 0, "a folio in use");
        Self(folio)
    }

    /// Makes it describe a block of memory, in no mapping.
    ///
    /// Relaxed: the words that publish it, and the count, are stored with Release afterwards.
    pub fn describe(&self, pfn: Pfn, order: Order, kind: FolioKind) {
        let folio = self.0;
        #[cfg(loom)]
        if super::mutant::Mutant::PlainRefcount.is_active() {
            folio.refcount.store(1, Ordering::Relaxed);
        }
        folio.mapcount.store(0, Ordering::Relaxed);
        folio.pincount.store(0, Ordering::Relaxed);
        let flags = kind.flags().bits() | order.get() << ORDER_SHIFT;
        folio.flags.store(flags, Ordering::Relaxed);
        folio.mapping.store(0, Ordering::Relaxed);
        folio.index.store(0, Ordering::Relaxed);
        folio.pfn.store(pfn.number(), Ordering::Relaxed);
        folio.private.store(0, Ordering::Relaxed);
        folio.lru.iter().for_each(|link| link.store(0, Ordering::Relaxed));
    }

    /// Makes it describe the first `2^order` pages only.
    #[cfg_attr(loom, allow(dead_code, reason = "splitting is not built for models"))]
    pub(super) fn set_order(&self, order: Order) {
        let rest = self.0.flags.load(Ordering::Relaxed) & !(!0 << ORDER_SHIFT);
        self.0.flags.store(rest | order.get() << ORDER_SHIFT, Ordering::Relaxed);
    }

    /// Ends the freeze with `count` references, of which the handle is one.
    ///
    /// The count goes from 0 to its value by one store and is never written
    /// otherwise, so a speculative reader finds 0 or a published folio.
    pub fn unfreeze(self, count: u32) -> FolioRef<'m> {
        debug_assert!(
            count > 0 && (cfg!(loom) || self.0.refcount() == 0),
            "a frozen folio has no reference"
        );
        // Release publishes the fields, and the words stored before, to `try_get`.
        self.0.refcount.store(count, Ordering::Release);
        FolioRef(self.0)
    }

    /// Where the descriptor is.
    pub fn as_ptr(&self) -> NonNull<Folio> {
        NonNull::from(self.0)
    }
}

impl Deref for FrozenFolio<'_> {
    type Target = Folio;

    fn deref(&self) -> &Folio {
        self.0
    }
}

impl fmt::Debug for FrozenFolio<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrozenFolio({:?}, {:?})", self.0.pfn(), self.0.order())
    }
}
