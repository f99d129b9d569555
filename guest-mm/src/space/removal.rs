//! The end of VMAs that were taken out of the tree.

use core::ptr::{self, NonNull};

use super::lookup::SpaceWriteGuard;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// Sends the VMAs that the guard's holder took out through a grace period.
pub(super) fn free_removed<P: Platform>(guard: &SpaceWriteGuard<'_, '_, P>) {
    let base = guard.space().base;
    let mut next = NonNull::new(guard.removed.replace(ptr::null_mut()));
    while let Some(vma) = next {
        // SAFETY: taken out under this guard, freed by nobody else.
        next = NonNull::new(unsafe { vma.as_ref() }.next_removed.load(Ordering::Relaxed));
        // SAFETY: its head is live and where the cache's options say; it is in no tree,
        // and who borrowed it from the guard is gone.
        let freed = unsafe { base.caches.vma.free_rcu(&base.memory, &base.rcu, vma.cast()) };
        debug_assert_eq!(freed, Ok(()), "VMA");
    }
}
