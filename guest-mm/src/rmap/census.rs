//! Whether reverse maps lead to all leaves, and trees are what VMAs say.

use core::fmt;
use core::ops::ControlFlow;

use abi::{PageCount, Pfn};

use super::chain::{links, span};
use crate::addr::VirtAddr;
use crate::folio::Folio;
use crate::mm::Mm;
use crate::pgtable::{LeafWalk, Sought, SoughtLeaves};
use crate::platform::Platform;
use crate::space::{AddressSpace, Vma};
use crate::sync::shim::Ordering;

/// What does not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RmapDiscrepancy {
    /// A VMA is not in all the trees that it should be in, or by another range.
    Misplaced {
        /// The space.
        space: u32,
        /// Where the VMA starts.
        at: VirtAddr,
    },
    /// A VMA's `AnonVma` is not in its chain, or its chain has two families.
    Chain {
        /// The space.
        space: u32,
        /// Where the VMA starts.
        at: VirtAddr,
    },
    /// A tree that a VMA is in is not in order.
    Tree {
        /// The space.
        space: u32,
        /// Where the VMA starts.
        at: VirtAddr,
    },
    /// Walks from a folio find another number of leaves than it counts.
    Unreached {
        /// The folio.
        folio: Pfn,
        /// Its mapcount.
        counted: u32,
        /// Leaves found.
        found: u32,
    },
}

impl fmt::Display for RmapDiscrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misplaced { space, at } => {
                write!(f, "space {space}, {at}: VMA is not where reverse maps look")
            }
            Self::Chain { space, at } => write!(f, "space {space}, {at}: broken anon_vma chain"),
            Self::Tree { space, at } => write!(f, "space {space}, {at}: broken interval tree"),
            Self::Unreached { folio, counted, found } => {
                write!(f, "folio {folio} counts {counted} leaves, reverse maps find {found}")
            }
        }
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Checks every VMA's places in trees, and that walks from every mapped folio
    /// find its leaves. Calls `tell` with each discrepancy. Exact when nobody
    /// maps or faults.
    pub fn rmap_census(&self, tell: &mut dyn FnMut(RmapDiscrepancy)) {
        let mut from = 0;
        while let Some(space) = self.next_space(from) {
            from = space.id();
            self.check_places(&space, tell);
            self.drop_space(space);
            let Some(next) = from.checked_add(1) else { break };
            from = next;
        }
        let mut from = 0;
        while let Some(region) = self.memory().region_from(from) {
            from = region.end().number();
            let mut at = region.start();
            while region.contains(at) {
                let mut pages = PageCount::ONE;
                if let Ok(folio) = self.folio_of(at) {
                    pages = folio.pages();
                    self.check_leaves(&folio, tell);
                    self.put(folio);
                }
                let Some(next) = at.checked_add(pages) else { break };
                at = next;
            }
        }
    }

    fn check_places(&self, space: &AddressSpace<'m, P>, tell: &mut dyn FnMut(RmapDiscrepancy)) {
        let vmas = space.read();
        for vma in vmas.iter() {
            let (id, at) = (space.id(), vma.range().start());
            if !self.is_in_its_file(vma) || !links(vma).all(|link| is_over(&link.node, vma)) {
                tell(RmapDiscrepancy::Misplaced { space: id, at });
            }
            if !has_its_chain(vma) {
                tell(RmapDiscrepancy::Chain { space: id, at });
            }
            if !self.has_sound_trees(vma) {
                tell(RmapDiscrepancy::Tree { space: id, at });
            }
        }
    }

    fn is_in_its_file(&self, vma: &Vma<'m, P>) -> bool {
        vma.file().is_none() || is_over(&vma.rmap.i_mmap, vma)
    }

    fn has_sound_trees(&self, vma: &Vma<'m, P>) -> bool {
        let anon = links(vma).all(|link| {
            let anon_vma = link.anon_vma();
            let _guard = anon_vma.read(self.platform());
            // SAFETY: the family is locked.
            unsafe { anon_vma.tree.validate() }.is_ok()
        });
        let file = vma.file().is_none_or(|file| {
            // SAFETY: the VMA holds a reference of its file.
            let tree = unsafe { file.as_ref() }.i_mmap.read(self.platform());
            // SAFETY: the file's lock is held.
            unsafe { tree.validate() }.is_ok()
        });
        anon && file
    }

    fn check_leaves(&self, folio: &Folio, tell: &mut dyn FnMut(RmapDiscrepancy)) {
        if !folio.is_mapped() {
            return;
        }
        let mut found = 0;
        let walk = self.rmap_walk::<()>(folio, &mut |vma, span| {
            // SAFETY: a VMA in a tree belongs to a space that has not ended.
            let tables = unsafe { vma.space.as_ref() }.tables();
            let sought = Sought::Frames(folio.range());
            let mut walk = LeafWalk::new(tables, span.range, sought, SoughtLeaves::Mapped);
            while walk.next_leaf().is_some() {
                found += 1;
            }
            ControlFlow::Continue(())
        });
        debug_assert_eq!(walk, ControlFlow::Continue(()));
        let (counted, folio) = (folio.mapcount(), folio.pfn());
        if counted != found {
            tell(RmapDiscrepancy::Unreached { folio, counted, found });
        }
    }
}

/// Whether a node is in a tree, by the offsets that the VMA has now.
fn is_over<P: Platform>(node: &super::IntervalNode<Vma<'_, P>>, vma: &Vma<'_, P>) -> bool {
    node.is_linked() && (node.start(), node.last()) == span(vma)
}

/// Whether the VMA's own `AnonVma` is in its chain, all of it one family.
fn has_its_chain<P: Platform>(vma: &Vma<'_, P>) -> bool {
    let own = vma.anon_vma.load(Ordering::Acquire);
    let Some(first) = links(vma).next() else { return own.is_null() };
    let is_own = |anon_vma| core::ptr::eq(anon_vma, own);
    links(vma).any(|link| is_own(link.anon_vma()))
        && links(vma).all(|link| link.anon_vma().is_kin(first.anon_vma()))
}
