//! MADV_PAGEOUT: a process says which pages are to go.

use super::lru::{BATCH, Isolated};
use super::shrink::ScanControl;
use crate::addr::VaRange;
use crate::folio::FolioRef;
use crate::mm::Mm;
use crate::pgtable::PteState;
use crate::platform::Platform;
use crate::space::AddressSpace;

impl<'m, P: Platform> Mm<'m, P> {
    /// Takes the pages of `range` out of memory that the space alone maps, used or
    /// not. Returns pages freed. A hint: what cannot go stays.
    ///
    /// The caller holds the space's lock for reading.
    pub fn pageout(&self, space: &AddressSpace<'m, P>, range: VaRange) -> u64 {
        let control = ScanControl { target: u64::MAX, ignore_references: true };
        let (mut freed, mut folios) = (0, Isolated::new());
        for page in range.iter_pages() {
            if let Some(folio) = self.private_folio(space, page) {
                if self.lru_isolate(&folio) {
                    folios.push(folio);
                } else {
                    self.put(folio);
                }
            }
            if folios.len() == BATCH {
                freed +=
                    self.shrink_folios(core::mem::replace(&mut folios, Isolated::new()), control);
            }
        }
        freed + self.shrink_folios(folios, control)
    }

    /// The folio at `page`, with a reference, if one leaf maps it and it is a page.
    fn private_folio(
        &self,
        space: &AddressSpace<'m, P>,
        page: crate::addr::VirtAddr,
    ) -> Option<FolioRef<'m>> {
        let guard = space.tables().lock_pte(page).ok()?;
        let PteState::Present(pte) = guard.load(page).pte() else { return None };
        if pte.is_special() {
            return None;
        }
        // SAFETY: the leaf is in the table, whose lock is held.
        let folio = unsafe { self.mapped_folio(pte.pfn()) }?;
        (folio.mapcount() == 1 && !folio.is_large()).then(|| self.get(folio))
    }
}
