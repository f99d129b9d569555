//! A space's beginning and end.

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use abi::Pfn;

use super::structure::AddressSpace;
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::mm::{Base, Mm};
use crate::pgtable::{free_root, new_root};
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::xarray::{Entry, InsertError};

/// A space's owner: the process. Ends by [`Mm::exit_space`]; dropping it leaks the space.
#[must_use = "a space that is not given to `exit_space` leaks"]
pub struct SpaceRef<'m, P: Platform>(NonNull<AddressSpace<'m, P>>);

// SAFETY: the space is shared by references only, and `AddressSpace` is `Sync`.
unsafe impl<P: Platform> Send for SpaceRef<'_, P> {}
// SAFETY: as for `Send`.
unsafe impl<P: Platform> Sync for SpaceRef<'_, P> {}

impl<'m, P: Platform> Deref for SpaceRef<'m, P> {
    type Target = AddressSpace<'m, P>;

    fn deref(&self) -> &AddressSpace<'m, P> {
        // SAFETY: its owner's grab keeps it.
        unsafe { self.0.as_ref() }
    }
}

impl<P: Platform> fmt::Debug for SpaceRef<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Keeps a space's structure and root page table, though not what is mapped
/// (`mmgrab`). Ends by [`Mm::drop_space`].
#[must_use = "a grab that is not given to `drop_space` leaks the space"]
pub struct SpaceGrab<'m, P: Platform>(NonNull<AddressSpace<'m, P>>);

// SAFETY: as for `SpaceRef`.
unsafe impl<P: Platform> Send for SpaceGrab<'_, P> {}
// SAFETY: as for `SpaceRef`.
unsafe impl<P: Platform> Sync for SpaceGrab<'_, P> {}

impl<'m, P: Platform> Deref for SpaceGrab<'m, P> {
    type Target = AddressSpace<'m, P>;

    fn deref(&self) -> &AddressSpace<'m, P> {
        // SAFETY: the grab keeps it.
        unsafe { self.0.as_ref() }
    }
}

impl<P: Platform> fmt::Debug for SpaceGrab<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// An empty space.
    ///
    /// # Errors
    /// ENOMEM; EAGAIN if there are as many as there are numbers.
    pub fn new_space(&self) -> Result<SpaceRef<'m, P>, Errno> {
        self.reap_spaces();
        let base = self.base();
        let root = new_root(base)?;
        let space = self.alloc_space(root).inspect_err(|_| {
            // SAFETY: from `new_root`, and no CPU has loaded it.
            let freed = unsafe { free_root(base, root) };
            debug_assert!(freed.is_ok(), "root: {freed:?}");
        })?;
        Ok(SpaceRef(space))
    }

    fn alloc_space(&self, root: Pfn) -> Result<NonNull<AddressSpace<'m, P>>, Errno> {
        let base = self.base();
        let space: NonNull<AddressSpace<'m, P>> =
            base.caches.space.alloc(&base.memory, Gfp::KERNEL)?.cast();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // SAFETY: an object of the cache of spaces, large and aligned enough, and ours alone.
        unsafe { space.write(AddressSpace::new(base, id, root)) };
        match self.spaces.insert(u64::from(id), Entry::Pointer(space)) {
            Ok(()) => Ok(space),
            Err(error) => {
                // SAFETY: nobody has seen it.
                unsafe { free_space(base, space) };
                Err(match error {
                    InsertError::NoMemory => Errno::ENOMEM,
                    InsertError::Occupied => Errno::EAGAIN,
                })
            }
        }
    }

    /// Ends a process: unmaps everything, frees the page tables, and lets the space go.
    ///
    /// No CPU has its root loaded.
    pub fn exit_space(&self, space: SpaceRef<'m, P>) {
        space.dead.store(true, Ordering::Release);
        debug_assert!(space.cpus.load().is_empty(), "{space:?} is loaded");
        self.unmap_all(&space);
        self.spaces.erase(u64::from(space.id));
        self.put_space(space.0);
    }

    /// Keeps the space with number `id` from being freed; `None` if there is none.
    pub fn grab_space(&self, id: u32) -> Option<SpaceGrab<'m, P>> {
        let base = self.base();
        let _section = base.rcu.read(base.platform().cpu());
        let space = self.spaces.load(u64::from(id))?.as_pointer()?;
        // SAFETY: found within the read section, and freed after a grace period.
        let grabs = &unsafe { space.as_ref() }.grabs;
        let mut count = grabs.load(Ordering::Relaxed);
        while count != 0 {
            // Acquire pairs with the Release in `put_space`, for symmetry's sake: the
            // count proves the space alive, its lock orders the rest.
            match grabs.compare_exchange_weak(
                count,
                count + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(SpaceGrab(space)),
                Err(now) => count = now,
            }
        }
        None
    }

    /// The first space with a number of at least `id`, kept from being freed: for
    /// walks over all of them.
    pub fn next_space(&self, id: u32) -> Option<SpaceGrab<'m, P>> {
        let mut from = u64::from(id);
        loop {
            let found = self.spaces.find(from..=u64::from(u32::MAX))?;
            let id = u32::try_from(found.index).ok()?;
            if let Some(grab) = self.grab_space(id) {
                return Some(grab);
            }
            from = found.index + 1;
        }
    }

    /// Takes a grab off.
    pub fn drop_space(&self, grab: SpaceGrab<'m, P>) {
        self.put_space(grab.0);
    }

    fn put_space(&self, space: NonNull<AddressSpace<'m, P>>) {
        let base = self.base();
        {
            // SAFETY: the caller's grab keeps it.
            let space = unsafe { space.as_ref() };
            // AcqRel: who takes the last one off sees what the others did.
            if space.grabs.fetch_sub(1, Ordering::AcqRel) != 1 {
                return;
            }
            // SAFETY: from `new_root`; no CPU has it loaded, and lockless walkers of
            // a space that has nothing mapped end at its empty root.
            let freed = unsafe { free_root(base, space.root) };
            debug_assert!(freed.is_ok(), "root of {space:?}: {freed:?}");
        }
        let mut dead = self.dead_spaces.lock(base.platform());
        // SAFETY: out of the list of spaces, in no queue, valid until it comes out.
        unsafe { dead.defer(space, base.rcu.stamp()) };
        drop(dead);
        self.reap_spaces();
    }

    /// Frees the spaces whose grace period is over. Returns how many still wait.
    pub fn reap_spaces(&self) -> usize {
        let base = self.base();
        loop {
            let mut dead = self.dead_spaces.lock(base.platform());
            let Some(space) = dead.pop_over(&base.rcu) else { return dead.len() };
            drop(dead);
            // SAFETY: no grab is left, and its readers are gone.
            unsafe { free_space(base, space) };
        }
    }
}

impl<P: Platform> Mm<'_, P> {
    /// Waits for all that waits for a grace period, spaces included; see [`Base::settle`].
    pub fn settle(&self) {
        let base = self.base();
        base.rcu.synchronize_expedited(base.platform());
        self.reap_spaces();
        base.settle();
    }
}

/// Drops a space and gives its memory back.
///
/// # Safety
/// Nobody uses it any more, lockless readers included.
unsafe fn free_space<P: Platform>(base: &Base<P>, space: NonNull<AddressSpace<'_, P>>) {
    // SAFETY: ours alone, by the caller's promise; a space is dropped once.
    unsafe { space.drop_in_place() };
    // SAFETY: as above.
    let freed = unsafe { base.caches.space.free(&base.memory, space.cast()) };
    debug_assert_eq!(freed, Ok(()), "space");
}
