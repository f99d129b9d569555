//! From a folio to the VMAs that may map it.

use core::ops::ControlFlow;
use core::ptr::NonNull;

use abi::PAGE_SHIFT;

use super::AnonVma;
use super::chain::span;
use crate::addr::{VaRange, VirtAddr};
use crate::folio::Folio;
use crate::mm::Mm;
use crate::pagecache::FileMapping;
use crate::platform::Platform;
use crate::space::Vma;
use crate::sync::shim::Ordering;

/// Where a VMA would map a folio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolioSpan {
    /// The addresses, all in the VMA.
    pub range: VaRange,
    /// Which page of the folio is at the first one.
    pub page: u64,
}

/// Where to look for the VMAs of a folio, kept beyond its last leaf: a folio on the
/// move has none for a while. Ends by [`Mm::rmap_release`].
#[must_use = "release it"]
pub enum RmapAnchor<'m, P: Platform> {
    /// Those of this `AnonVma`, of which it holds a reference.
    Anon(NonNull<AnonVma<'m, P>>),
    /// Those of this file, which the folio's lock keeps.
    File(NonNull<FileMapping<'m, P>>),
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Calls `visit` with each VMA that may map part of `folio`, and where.
    ///
    /// Whether it does, its page tables say. The family's, or the file's, lock is
    /// held for reading meanwhile: the VMAs stay, and so do their spaces' tables.
    /// An anonymous folio that is not mapped has none.
    ///
    /// The caller holds a reference of the folio and its lock. An anonymous one may
    /// be unlocked if the answer may be incomplete.
    pub fn rmap_walk<B>(
        &self,
        folio: &Folio,
        visit: &mut dyn FnMut(&Vma<'m, P>, FolioSpan) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let Some(anchor) = self.rmap_anchor(folio) else { return ControlFlow::Continue(()) };
        let walk = self.rmap_walk_from(&anchor, folio, visit);
        self.rmap_release(anchor);
        walk
    }

    /// Where the VMAs of `folio` are to be found; `None` if nothing maps it (an
    /// anonymous one), or no file has it any more.
    pub fn rmap_anchor(&self, folio: &Folio) -> Option<RmapAnchor<'m, P>> {
        if folio.is_anon() {
            self.get_anon_vma(folio).map(RmapAnchor::Anon)
        } else {
            self.mapping_of(folio).map(RmapAnchor::File)
        }
    }

    /// Gives an anchor up.
    pub fn rmap_release(&self, anchor: RmapAnchor<'m, P>) {
        match anchor {
            RmapAnchor::Anon(anon_vma) => self.put_anon_vma(anon_vma),
            RmapAnchor::File(_) => {}
        }
    }

    /// As [`Self::rmap_walk`], from an anchor that was taken while the folio, or
    /// the one that it was part of, was mapped.
    pub fn rmap_walk_from<B>(
        &self,
        anchor: &RmapAnchor<'m, P>,
        folio: &Folio,
        visit: &mut dyn FnMut(&Vma<'m, P>, FolioSpan) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let (first, last) = pages_of(folio);
        let visit = &mut |vma| visit_vma(vma, folio, visit);
        match anchor {
            RmapAnchor::Anon(anon_vma) => {
                // SAFETY: the anchor's reference keeps it.
                let object = unsafe { anon_vma.as_ref() };
                let _guard = object.read(self.platform());
                // SAFETY: the family's lock is held.
                unsafe { object.tree.for_each_overlap(first, last, visit) }
            }
            RmapAnchor::File(file) => {
                // SAFETY: the folio's lock keeps it in the file's cache, and a file with
                // cached folios stays.
                let tree = unsafe { file.as_ref() }.i_mmap.read(self.platform());
                // SAFETY: the file's lock is held.
                unsafe { tree.for_each_overlap(first, last, visit) }
            }
        }
    }

    /// The file whose cache holds `folio`; `None` for anonymous folios and those
    /// that were truncated. Stable while the folio is locked.
    pub fn mapping_of(&self, folio: &Folio) -> Option<NonNull<FileMapping<'m, P>>> {
        if folio.is_anon() {
            return None;
        }
        let address = usize::try_from(folio.mapping.load(Ordering::Acquire)).ok()?;
        NonNull::new(core::ptr::with_exposed_provenance_mut(address))
    }

    /// The `AnonVma` of a mapped folio, with a reference.
    ///
    /// While a leaf maps the folio its VMA keeps the object. So: reference, then
    /// look again whether the folio is mapped still; if it is, the object was live
    /// when the reference was taken, and it is the folio's.
    pub(super) fn get_anon_vma(&self, folio: &Folio) -> Option<NonNull<AnonVma<'m, P>>> {
        let section = self.base().rcu.read(self.platform().cpu());
        let mapping = folio.mapping.load(Ordering::Acquire);
        let address = usize::try_from(mapping).ok()?;
        let anon_vma =
            NonNull::new(core::ptr::with_exposed_provenance_mut::<AnonVma<'m, P>>(address))?;
        if !folio.is_mapped() {
            return None;
        }
        // SAFETY: an address that an anonymous folio has as mapping was that of an
        // object of the type-safe cache, whose slab stays while the section is open.
        let got = unsafe { anon_vma.as_ref() }.try_get();
        drop(section);
        if !got {
            return None;
        }
        if folio.is_mapped() && folio.mapping.load(Ordering::Acquire) == mapping {
            return Some(anon_vma);
        }
        self.put_anon_vma(anon_vma);
        None
    }
}

/// The page offsets of a folio: first and last.
fn pages_of(folio: &Folio) -> (u64, u64) {
    let first = folio.index();
    (first, first + (folio.pages().get() - 1))
}

/// Calls `visit` with a VMA of a locked tree and what it has of the folio.
fn visit_vma<'m, P: Platform, B>(
    vma: NonNull<Vma<'m, P>>,
    folio: &Folio,
    visit: &mut dyn FnMut(&Vma<'m, P>, FolioSpan) -> ControlFlow<B>,
) -> ControlFlow<B> {
    // SAFETY: VMAs leave their trees, under the lock that is held, before they are freed.
    let vma = unsafe { vma.as_ref() };
    match folio_span(vma, folio) {
        Some(span) => visit(vma, span),
        None => ControlFlow::Continue(()),
    }
}

/// What `vma` would map of `folio`, by offsets alone.
fn folio_span<P: Platform>(vma: &Vma<'_, P>, folio: &Folio) -> Option<FolioSpan> {
    let (vma_first, vma_last) = span(vma);
    let (first, last) = pages_of(folio);
    let (from, to) = (first.max(vma_first), last.min(vma_last));
    let start = vma.range().start().page() + from.checked_sub(vma_first)?;
    let end = start + (to + 1).checked_sub(from)?;
    debug_assert!(end << PAGE_SHIFT <= vma.range().end().get(), "beyond the VMA");
    let range = VaRange::new(VirtAddr::of_page(start)?, VirtAddr::of_page(end)?)?;
    Some(FolioSpan { range, page: from - first })
}
