//! Waiting between rounds, with no lock held.

use super::FaultError;
use crate::addr::VirtAddr;
use crate::folio::FolioRef;
use crate::mm::Mm;
use crate::pgtable::{Entry, Found};
use crate::platform::Platform;
use crate::reclaim::Attempts;
use crate::space::AddressSpace;

/// What one fault has done for want of memory.
#[derive(Debug, Default)]
pub(super) struct MemoryWait {
    tried_again: bool,
    attempts: Attempts,
}

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
        memory: &mut MemoryWait,
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
            Wait::Memory => self.await_memory(memory),
        }
    }

    /// Lets the round be tried once more as it is: another CPU may have had the
    /// last page for a moment. Then makes room, by whatever means are left.
    fn await_memory(&self, memory: &mut MemoryWait) -> Result<(), FaultError> {
        if !core::mem::replace(&mut memory.tried_again, true) {
            return Ok(());
        }
        self.make_room(&mut memory.attempts).map_err(|_| FaultError::Oom)
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
