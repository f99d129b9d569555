//! What one CPU remembers.

use std::vec::Vec;

use abi::{PAGE_SHIFT, PageCount, Pfn};

use super::MmuAccess;
use crate::memdesc::Word;
use crate::platform::TlbFlush;

/// Translations that a TLB holds: few, so that eviction is common.
const ENTRIES: usize = 24;
/// Entries of page directories that it holds.
const DIRECTORY_ENTRIES: usize = 4;

/// A translation.
#[derive(Debug, Clone, Copy)]
pub(super) struct TlbEntry {
    pub(super) root: Pfn,
    /// First page, a multiple of the size.
    pub(super) page: u64,
    /// log2 of the pages: 0 or 9.
    pub(super) order: u32,
    pub(super) pfn: Pfn,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) executable: bool,
    /// D is set in the leaf: stores need no walk.
    pub(super) dirty: bool,
    /// The first frame's word when the entry was made.
    pub(super) word: Word,
}

impl TlbEntry {
    pub(super) const fn allows(self, access: MmuAccess) -> bool {
        match access {
            MmuAccess::Read => self.readable,
            MmuAccess::Write => self.readable && self.writable,
            MmuAccess::Exec => self.readable && self.executable,
        }
    }

    /// The frame of `page`, which the entry spans.
    pub(super) fn pfn_of(self, page: u64) -> Pfn {
        self.pfn
            .checked_add(PageCount::new(page - self.page))
            .unwrap_or_else(|| unreachable!("entries lie in RAM"))
    }

    const fn spans(self, page: u64) -> bool {
        page >> self.order == self.page >> self.order
    }

    fn meets(self, what: TlbFlush) -> bool {
        match what {
            TlbFlush::All => true,
            TlbFlush::Range(range) => {
                let end = self.page + (1 << self.order);
                self.page < range.end().page() && range.start().page() < end
            }
        }
    }
}

/// A remembered entry of a page directory: the way to a PTE table.
#[derive(Debug, Clone, Copy)]
pub(super) struct DirectoryEntry {
    pub(super) root: Pfn,
    /// Number of the 2 MiB that it spans.
    pub(super) block: u64,
    pub(super) table: Pfn,
}

/// The TLB and the paging-structure cache of one CPU.
#[derive(Debug)]
pub(super) struct Tlb {
    entries: Vec<TlbEntry>,
    directory: Vec<DirectoryEntry>,
    state: u64,
}

impl Tlb {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            entries: Vec::with_capacity(ENTRIES),
            directory: Vec::with_capacity(DIRECTORY_ENTRIES),
            state: seed,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    pub(super) fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn victim(&mut self, len: usize) -> usize {
        usize::try_from(self.random() % len as u64).unwrap_or(0)
    }

    pub(super) fn find(&self, root: Pfn, page: u64) -> Option<TlbEntry> {
        self.entries.iter().copied().find(|entry| entry.root == root && entry.spans(page))
    }

    pub(super) fn forget(&mut self, root: Pfn, page: u64) {
        self.entries.retain(|entry| entry.root != root || !entry.spans(page));
    }

    pub(super) fn insert(&mut self, entry: TlbEntry) {
        if self.entries.len() == ENTRIES {
            let victim = self.victim(ENTRIES);
            self.entries.swap_remove(victim);
        }
        self.entries.push(entry);
    }

    /// The PTE table for `block`, remembered from an earlier walk.
    pub(super) fn table(&self, root: Pfn, block: u64) -> Option<Pfn> {
        let found = self.directory.iter().find(|e| e.root == root && e.block == block);
        found.map(|entry| entry.table)
    }

    pub(super) fn remember(&mut self, entry: DirectoryEntry) {
        self.directory.retain(|e| e.root != entry.root || e.block != entry.block);
        if self.directory.len() == DIRECTORY_ENTRIES {
            let victim = self.victim(DIRECTORY_ENTRIES);
            self.directory.swap_remove(victim);
        }
        self.directory.push(entry);
    }

    pub(super) fn flush(&mut self, root: Pfn, what: TlbFlush) {
        self.entries.retain(|entry| entry.root != root || !entry.meets(what));
        self.directory.retain(|entry| {
            let (first, end) = (entry.block << 9, (entry.block + 1) << 9);
            let met = match what {
                TlbFlush::All => true,
                TlbFlush::Range(range) => first < range.end().page() && range.start().page() < end,
            };
            entry.root != root || !met
        });
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.directory.clear();
    }
}

const _: () = assert!(PAGE_SHIFT == 12, "blocks are numbered by address >> 21");
