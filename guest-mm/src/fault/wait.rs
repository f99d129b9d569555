//! Waiting between rounds, with no lock held.

use super::FaultError;
use crate::addr::VirtAddr;
use crate::folio::FolioRef;
use crate::mm::Mm;
use crate::pgtable::{Entry, Found};
use crate::platform::Platform;
use crate::space::AddressSpace;

/// Rounds that may end for want of memory before a fault does. Each but the
/// last asks reclaim to free some, which is bounded by itself.
const MEMORY_ROUNDS: u32 = 4;

/// What a round found busy.
pub(super) enum Wait<'m> {
    /// Somebody has the folio locked.
    Folio(FolioRef<'m>),
    /// Somebody moves the page: this leaf will change. No reference to the folio
    /// is taken, which would be in the mover's way.
    Leaf(Entry),
    /// There was no memory.
    Memory,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Waits for `wait` to be over. Looks at the space now and then: a process that was chosen to be
    /// killed waits no longer.
    pub(super) fn await_for_fault(
        &self,
        space: &AddressSpace<'m, P>,
        page: VirtAddr,
        wait: Wait<'m>,
        memory_waits: &mut u32,
    ) -> Result<(), FaultError> {
        match wait {
            Wait::Folio(folio) => {
                while folio.is_locked() && !space.is_dead() {
                    self.platform().relax();
                }
                self.put(folio);
                Ok(())
            }
            Wait::Leaf(seen) => {
                while self.is_leaf(space, page, seen) && !space.is_dead() {
                    self.platform().relax();
                }
                Ok(())
            }
            Wait::Memory => self.await_memory(memory_waits),
        }
    }

    /// Frees memory for another round, if there is any to free.
    fn await_memory(&self, waits: &mut u32) -> Result<(), FaultError> {
        *waits += 1;
        if *waits < MEMORY_ROUNDS && self.memory_came_free() {
            Ok(())
        } else {
            Err(FaultError::Oom)
        }
    }

    /// Gives back what only waits for its readers. Returns whether anything did.
    fn memory_came_free(&self) -> bool {
        self.base().reap_tables(usize::MAX) > 0
    }

    /// Whether `seen` stands at `page`, in the PTE table or the directory.
    fn is_leaf(&self, space: &AddressSpace<'m, P>, page: VirtAddr, seen: Entry) -> bool {
        let section = self.base().rcu.read(self.platform().cpu());
        match space.tables().walk(&section, page) {
            Found::Pte { entry, .. } | Found::Pmd { entry, .. } => entry == seen,
            Found::Hole | Found::Unknown(_) => false,
        }
    }
}
