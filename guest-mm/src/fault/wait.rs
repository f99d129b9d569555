//! Waiting between rounds, with no lock held.

use abi::Pfn;

use super::FaultError;
use crate::addr::VirtAddr;
use crate::folio::FolioRef;
use crate::mm::Mm;
use crate::pgtable::{Entry, Found, Location, PteState, Target};
use crate::platform::{Platform, WaitKey};
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
    /// is taken, which would be in the mover's way: he wants it alone.
    Leaf(Entry),
    /// There was no memory.
    Memory,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Waits for `wait` to be over, or for the process to be killed, which wakes its threads.
    pub(super) fn await_for_fault(
        &self,
        space: &AddressSpace<'m, P>,
        page: VirtAddr,
        wait: Wait<'m>,
        memory: &mut MemoryWait,
    ) -> Result<(), FaultError> {
        match wait {
            Wait::Folio(folio) => {
                folio.await_unlock(self.platform(), &|| space.is_dead());
                self.put(folio);
                Ok(())
            }
            Wait::Leaf(seen) => {
                let is_over = || !self.is_leaf(space, page, seen) || space.is_dead();
                #[cfg(test)]
                if mutant::wait_wrongly(self, moving_frame(seen), &is_over) {
                    return Ok(());
                }
                match moving_frame(seen) {
                    Some(frame) => self.platform().wait_until(WaitKey::frame(frame), &is_over),
                    None => {
                        // Nobody wakes whoever waits for a device.
                        while !is_over() {
                            self.platform().relax();
                        }
                    }
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

/// The frame that a migration leaf, of either size, names: what its mover wakes by.
///
/// Not the leaf's place: that may be unmapped, moved or split meanwhile, but the
/// migration of the frame ends once, and whoever ends it knows the frame.
fn moving_frame(seen: Entry) -> Option<Pfn> {
    // Directories and tables have the same bits for it.
    let PteState::Soft(leaf) = seen.pte() else { return None };
    match leaf.kind().target() {
        Target::Migrating(Location::Pfn(pfn)) => Some(pfn),
        Target::Migrating(Location::DevOffset(_))
        | Target::Mapped(_)
        | Target::Nothing
        | Target::Swap(_) => None,
    }
}

/// Faulty waits, for the tests that must notice them: how two CPUs of Linux kept
/// each other, and the mover, from getting on (fixed by b570f37a2ce4).
#[cfg(test)]
pub(crate) mod mutant {
    use std::cell::Cell;

    use abi::Pfn;

    use crate::mm::Mm;
    use crate::platform::Platform;

    /// What a thread does wrong while it waits for a page that moves.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Mutant {
        /// Holds a reference of the folio, which the mover wants alone.
        HoldsReference,
        /// Looks again and again, and keeps its CPU.
        Spins,
    }

    std::thread_local! {
        /// That of the calling thread.
        pub(crate) static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Waits as the thread's mutant would, if it has one.
    pub(super) fn wait_wrongly<P: Platform>(
        mm: &Mm<'_, P>,
        frame: Option<Pfn>,
        is_over: &dyn Fn() -> bool,
    ) -> bool {
        let Some((mutant, frame)) = ACTIVE.get().zip(frame) else { return false };
        let held = match mutant {
            Mutant::HoldsReference => mm.folio_of(frame).ok(),
            Mutant::Spins => None,
        };
        while !is_over() {
            mm.platform().relax();
        }
        if let Some(folio) = held {
            mm.put(folio);
        }
        true
    }
}
