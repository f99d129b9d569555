//! What leaves say of a folio's use, and forgetting it.

use core::ops::ControlFlow;

use crate::folio::Folio;
use crate::mm::Mm;
use crate::pgtable::{
    Entry, LeafState, LeafWalk, PmdState, PteState, SizedLeaf, Sought, SoughtLeaves,
};
use crate::platform::Platform;

impl<'m, P: Platform> Mm<'m, P> {
    /// Counts the leaves by which the folio was used since the last call, and
    /// makes them old.
    ///
    /// TLBs are not flushed: a CPU may go on using a translation without setting the
    /// bit again, and the folio then looks older than it is for a while.
    /// The caller holds a reference.
    pub fn folio_referenced(&self, folio: &Folio) -> u32 {
        let mut used = 0;
        self.for_each_leaf(folio, &mut |walk, leaf| {
            if matches!(leaf.state, LeafState::Present(pte) if pte.is_young()) {
                walk.update(mk_old);
                used += 1;
            }
        });
        used
    }

    /// Makes all leaves of a locked file folio clean and read-only, so that the next write
    /// faults, and TLBs are flushed. Returns how many were dirty; the folio is then dirty.
    pub fn folio_mkclean(&self, folio: &Folio) -> u32 {
        debug_assert!(folio.is_locked(), "{folio:?}");
        let mut dirty = 0;
        self.for_each_leaf(folio, &mut |walk, leaf| {
            let LeafState::Present(pte) = leaf.state else { return };
            if !pte.is_dirty() && !pte.is_writable() {
                return;
            }
            let old = walk.update(mk_clean);
            walk.note_stale();
            if is_dirty(old) {
                self.mark_folio_dirty(folio);
                dirty += 1;
            }
        });
        dirty
    }

    /// Calls `visit` with each leaf that maps `folio`, its table locked.
    fn for_each_leaf(&self, folio: &Folio, visit: &mut dyn FnMut(&mut LeafWalk<'_, P>, SizedLeaf)) {
        let walk = self.rmap_walk::<()>(folio, &mut |vma, span| {
            // SAFETY: a VMA in a tree belongs to a space that has not ended.
            let tables = unsafe { vma.space.as_ref() }.tables();
            let sought = Sought::Frames(folio.range());
            let mut walk = LeafWalk::new(tables, span.range, sought, SoughtLeaves::Mapped);
            while let Some((_, leaf)) = walk.next_leaf() {
                visit(&mut walk, leaf);
            }
            ControlFlow::Continue(())
        });
        debug_assert_eq!(walk, ControlFlow::Continue(()));
    }
}

fn mk_old(entry: Entry) -> Entry {
    match (entry.pte(), entry.pmd()) {
        (PteState::Present(pte), _) => pte.mk_old().entry(),
        (_, PmdState::Present(pmd)) => pmd.mk_old().entry(),
        (_, _) => entry,
    }
}

fn mk_clean(entry: Entry) -> Entry {
    match (entry.pte(), entry.pmd()) {
        (PteState::Present(pte), _) => pte.mk_clean().wrprotect().entry(),
        (_, PmdState::Present(pmd)) => pmd.mk_clean().wrprotect().entry(),
        (_, _) => entry,
    }
}

fn is_dirty(entry: Entry) -> bool {
    match (entry.pte(), entry.pmd()) {
        (PteState::Present(pte), _) => pte.is_dirty(),
        (_, PmdState::Present(pmd)) => pmd.is_dirty(),
        (_, _) => false,
    }
}
