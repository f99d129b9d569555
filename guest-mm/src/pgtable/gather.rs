//! [`TlbGather`]: what was unmapped, until no TLB knows it any more.

use core::fmt;
use core::ptr::NonNull;

use super::range::LeafOwner;
use super::table::{PtDesc, Tables};
use crate::addr::{VaRange, VirtAddr};
use crate::platform::{Platform, TlbFlush};

/// Pages whose references one batch holds.
const BATCH: usize = 64;
/// Unlinked tables that one batch holds.
const TABLES: usize = 16;

/// Collects what was unmapped: addresses to flush, references to put, tables to
/// free. [`Self::flush`] does the three in this order, so nothing is given away
/// that a CPU can still reach (Linux: `mmu_gather`).
///
/// Lives on the stack and allocates nothing; when a batch is full its user
/// drops his locks and flushes.
#[must_use = "flush it"]
pub struct TlbGather<'a, P: Platform, T> {
    tables: Tables<'a, P>,
    range: Option<(VirtAddr, VirtAddr)>,
    puts: [Option<T>; BATCH],
    put_count: usize,
    unlinked: [Option<NonNull<PtDesc>>; TABLES],
    unlinked_count: usize,
    flushes: u32,
}

impl<'a, P: Platform, T> TlbGather<'a, P, T> {
    /// Nothing collected.
    pub fn new(tables: Tables<'a, P>) -> Self {
        Self {
            tables,
            range: None,
            puts: [const { None }; BATCH],
            put_count: 0,
            unlinked: [None; TABLES],
            unlinked_count: 0,
            flushes: 0,
        }
    }

    /// Adds addresses whose translation has changed.
    pub fn note(&mut self, at: VirtAddr, bytes: u64) {
        let end = at.checked_add(bytes).unwrap_or(VirtAddr::END);
        self.range = Some(match self.range {
            None => (at, end),
            Some((first, last)) => (first.min(at), last.max(end)),
        });
    }

    /// Adds something to put after the flush. There is room unless
    /// [`Self::is_full`].
    ///
    /// # Panics
    /// If there is no room: what does not fit would be lost.
    pub fn add(&mut self, put: T) {
        let slot = self.puts.get_mut(self.put_count);
        *slot.unwrap_or_else(|| unreachable!("users stop when it is full")) = Some(put);
        self.put_count += 1;
    }

    /// Adds an unlinked table. There is room unless [`Self::is_full`].
    pub(super) fn add_table(&mut self, table: NonNull<PtDesc>) {
        let slot = self.unlinked.get_mut(self.unlinked_count);
        *slot.unwrap_or_else(|| unreachable!("users stop when it is full")) = Some(table);
        self.unlinked_count += 1;
    }

    /// Whether the batch has no room for one more of each.
    pub const fn is_full(&self) -> bool {
        self.put_count == BATCH || self.unlinked_count > TABLES - 3
    }

    /// Whether nothing is collected.
    pub const fn is_empty(&self) -> bool {
        self.range.is_none() && self.put_count == 0 && self.unlinked_count == 0
    }

    /// Flushes since the start.
    pub const fn flushes(&self) -> u32 {
        self.flushes
    }

    /// Makes all CPUs forget the addresses, and keeps the rest: for who must
    /// not give up his lock before that.
    pub fn flush_tlb(&mut self) {
        let Some((start, end)) = self.range.take() else { return };
        let what = VaRange::new(start, end).map_or(TlbFlush::All, TlbFlush::Range);
        self.tables.flush(what);
        self.flushes += 1;
    }

    /// Flushes, then puts the references and hands the tables to their readers'
    /// grace period. Called without page-table locks: putting may free.
    pub fn flush<O: LeafOwner<Put = T>>(&mut self, owner: &mut O) {
        self.flush_tlb();
        for put in &mut self.puts[..self.put_count] {
            if let Some(put) = put.take() {
                owner.put(put);
            }
        }
        self.put_count = 0;
        for table in &mut self.unlinked[..self.unlinked_count] {
            if let Some(table) = table.take() {
                // SAFETY: unlinked by `free_tables`, once; its addresses were flushed above,
                // so neither a walk of ours nor one of the MMU finds it any more.
                unsafe { self.tables.base().defer_table(table) };
            }
        }
        self.unlinked_count = 0;
    }
}

impl<P: Platform, T> Drop for TlbGather<'_, P, T> {
    fn drop(&mut self) {
        debug_assert!(self.is_empty(), "a gather dropped before its flush leaks: {self:?}");
    }
}

impl<P: Platform, T> fmt::Debug for TlbGather<'_, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlbGather")
            .field("range", &self.range)
            .field("puts", &self.put_count)
            .field("tables", &self.unlinked_count)
            .finish_non_exhaustive()
    }
}
