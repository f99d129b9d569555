//! Other frames for the same descriptor: the step at the heart of migration.

use abi::Pfn;

use super::{FolioRef, FrozenFolio};
use crate::sync::shim::Ordering;

impl<'m> FrozenFolio<'m> {
    /// Makes the folio live at `to`, and ends the freeze with `count` references.
    ///
    /// `adopt` makes the words of the new frames name the descriptor; `leave` makes
    /// those of the old ones name it no longer. Both come before the count, and so
    /// does the folio's own idea of where it is:
    ///
    /// * a reader with a word of the new frames finds count 0, or the folio there;
    /// * a reader with a word of the old ones finds count 0; or gets a reference by
    ///   a count that was stored after the word changed, and sees that when it
    ///   looks at the word again;
    /// * a reader with a slot of the page cache finds count 0, or the folio, whose
    ///   mapping and index are what they were;
    /// * who holds a reference has kept it from being frozen: `pfn` stands still.
    pub fn relocate(
        self,
        to: Pfn,
        count: u32,
        adopt: impl FnOnce(),
        leave: impl FnOnce(),
    ) -> FolioRef<'m> {
        adopt();
        #[cfg(loom)]
        if super::mutant::Mutant::WordAfterUnfreeze.is_active() {
            self.pfn.store(to.number(), Ordering::Relaxed);
            let folio = self.unfreeze(count);
            leave();
            return folio;
        }
        leave();
        // Relaxed: published by the count.
        self.pfn.store(to.number(), Ordering::Relaxed);
        self.unfreeze(count)
    }
}
