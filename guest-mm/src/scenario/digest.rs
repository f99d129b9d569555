//! A number for the state of a process's memory, the same on every machine.
//!
//! What is in it: VMAs, leaves with their rights and software bits, what is
//! behind them (kind, order, counts), the contents of the pages. What is not:
//! frame numbers, which depend on the machine's RAM (pages are told apart by
//! the order in which they were first met), and A bits, which a CPU may set
//! for an access that it only considers.

use abi::{PAGE_SHIFT, PAGE_SIZE};

use super::{Machine, Process};
use crate::addr::VirtAddr;
use crate::folio::FolioKind;
use crate::mm::Mm;
use crate::pgtable::{Found, HwLeaf, LeafSize, PmdState, PteState, Size2M};

/// FNV-1a, 64 bits (Fowler, Noll, Vo): fed with words instead of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds a word.
    pub const fn add(&mut self, word: u64) {
        let mut rest = word;
        let mut bytes = 0;
        while bytes < 8 {
            self.0 = (self.0 ^ (rest & 0xff)).wrapping_mul(0x0100_0000_01b3);
            rest >>= 8;
            bytes += 1;
        }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Adds the memory of `process`, which nobody changes meanwhile.
    pub fn add_process<M: Machine>(&mut self, process: &Process<'_, '_, M>) {
        let space = process.space();
        let guard = space.read();
        for vma in guard.iter() {
            let range = vma.range();
            let flags = u64::from(vma.flags().bits());
            [range.start().get(), range.end().get(), flags].into_iter().for_each(|w| self.add(w));
            let mut at = range.start();
            while at < range.end() {
                let bytes = self.add_leaf(process, at);
                match at.checked_add(bytes) {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
        // Which leaves map the same page.
        match process.mm().leaf_digest(space) {
            Ok(leaves) => self.add(leaves),
            Err(_) => self.add(0),
        }
    }

    /// Adds the leaf of `va`; returns how far it reaches.
    fn add_leaf<M: Machine>(&mut self, process: &Process<'_, '_, M>, va: VirtAddr) -> u64 {
        let (mm, tables) = (process.mm(), process.space().tables());
        let section = mm.base().rcu.read(mm.platform().cpu());
        let (is_huge, entry) = match tables.walk(&section, va) {
            Found::Hole => return PAGE_SIZE,
            Found::Pte { entry, .. } => (false, entry),
            Found::Pmd { entry, .. } => (true, entry),
            Found::Unknown(_) => {
                self.add(va.get() | 3);
                return PAGE_SIZE;
            }
        };
        drop(section);
        if is_huge && let PmdState::Present(pmd) = entry.pmd() {
            self.add_present(mm, va, pmd);
            return PAGE_SIZE << Size2M::ORDER;
        }
        match entry.pte() {
            PteState::None => {}
            PteState::Present(pte) => self.add_present(mm, va, pte),
            // Where swapped pages are depends on the machine; that they are does not.
            PteState::Soft(_) => self.add(va.get() | 1),
            PteState::Unknown(_) => self.add(va.get() | 2),
        }
        PAGE_SIZE
    }

    fn add_present<M: Machine, S: LeafSize>(
        &mut self,
        mm: &Mm<'_, M>,
        va: VirtAddr,
        leaf: HwLeaf<S>,
    ) {
        self.add(va.get());
        let bits = [
            leaf.is_readable(),
            leaf.is_writable(),
            leaf.is_dirty(),
            leaf.is_soft_dirty(),
            leaf.is_special(),
            leaf.is_anon_exclusive(),
        ];
        self.add(bits.into_iter().fold(0, |word, bit| word << 1 | u64::from(bit)));
        if let Ok(folio) = mm.folio_of(leaf.pfn()) {
            let kind = match folio.kind() {
                FolioKind::File => 1,
                FolioKind::Anon => 2,
                FolioKind::Device => 3,
            };
            let offset = leaf.pfn().number() - folio.pfn().number();
            // Without the reference that this walk holds.
            let refs = folio.refcount() - 1;
            let counts = [folio.mapcount(), refs, folio.pincount(), folio.order().get()];
            [kind, offset].into_iter().chain(counts.map(u64::from)).for_each(|word| self.add(word));
            mm.put(folio);
        }
        self.add_contents(mm, leaf);
    }

    fn add_contents<M: Machine, S: LeafSize>(&mut self, mm: &Mm<'_, M>, leaf: HwLeaf<S>) {
        let words = mm.platform().frame_ptr(leaf.pfn()).cast::<u64>();
        let count = (1usize << (PAGE_SHIFT - 3)) << S::ORDER;
        for index in 0..count {
            // SAFETY: frames of one leaf follow each other in the direct map.
            let word = unsafe { words.add(index) };
            // SAFETY: RAM, and the scenario's threads have ended.
            let word = unsafe { word.as_ptr().read_volatile() };
            if word != 0 {
                self.add(index as u64);
                self.add(word);
            }
        }
    }
}
