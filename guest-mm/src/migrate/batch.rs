//! Isolated pages on their way: an array of frame numbers, and nothing else.

use core::fmt;

use abi::Pfn;

use super::isolate::{EntryKind, Guards, IsolateError};
use super::ops::MovableKind;
use super::registry::OpsGuard;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// Entries of a batch unless its type says otherwise (Linux's `SWAP_CLUSTER_MAX`).
pub const BATCH: usize = 32;

/// Pages that migration has isolated, at most `N`, 32 to 512.
///
/// The batch owns its entries: their owners can neither claim nor free them.
/// What is in it when it is dropped is put back. It has a guard of the
/// operations of each kind of which it has pages, so they cannot be unregistered.
///
/// Frame numbers suffice because the word of an isolated page says the rest:
/// kind, order, owner's descriptor.
pub struct MigrateBatch<'a, 'm, P: Platform, const N: usize = BATCH> {
    mm: &'a Mm<'m, P>,
    len: usize,
    entries: [Pfn; N],
    guards: Guards<'a, 'm, P>,
}

impl<'a, 'm, P: Platform, const N: usize> MigrateBatch<'a, 'm, P, N> {
    const CAPACITY: () = assert!(32 <= N && N <= 512, "a batch has 32 to 512 entries");

    /// An empty batch.
    pub const fn new(mm: &'a Mm<'m, P>) -> Self {
        let () = Self::CAPACITY;
        let guards = [const { None }; MovableKind::ALL.len()];
        Self { mm, len: 0, entries: [Pfn::ZERO; N], guards }
    }

    /// Pages, or blocks, in it.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no more fits.
    pub const fn is_full(&self) -> bool {
        self.len == N
    }

    /// Heads of its pages, in the order in which they came.
    pub fn entries(&self) -> &[Pfn] {
        self.entries.get(..self.len).unwrap_or(&[])
    }

    /// The memory manager whose pages they are.
    pub const fn mm(&self) -> &'a Mm<'m, P> {
        self.mm
    }

    /// Gives every page back to its owner; frees those that their owners have
    /// given up meanwhile. Returns how many pages that were.
    pub fn putback(&mut self) -> u64 {
        let mut freed = 0;
        for at in 0..self.start_pass() {
            let Some(entry) = self.entry(at) else { break };
            freed += self.putback_entry(entry, self.mm.entry_kind(entry));
        }
        self.release_guards();
        freed
    }

    /// Isolates the page at `pfn` and takes it in.
    pub(super) fn isolate(&mut self, pfn: Pfn) -> Result<(), IsolateError> {
        let Some(slot) = self.entries.get_mut(self.len) else {
            return Err(IsolateError::BatchFull);
        };
        match self.mm.isolate_page(pfn, &mut self.guards) {
            Ok(head) => {
                *slot = head;
                self.len += 1;
                Ok(())
            }
            Err(error) => {
                // None is kept for a page that is not there.
                if self.len == 0 {
                    self.release_guards();
                }
                Err(error)
            }
        }
    }

    /// Empties the batch, and returns how many entries it had, which [`Self::entry`] still
    /// reads. What unwinds meanwhile leaves them isolated, not put back twice.
    pub(super) const fn start_pass(&mut self) -> usize {
        core::mem::replace(&mut self.len, 0)
    }

    /// The entry at `at` when the pass began.
    pub(super) fn entry(&self, at: usize) -> Option<Pfn> {
        self.entries.get(at).copied()
    }

    /// Puts an entry in again that the pass has read.
    pub(super) fn keep(&mut self, entry: Pfn) {
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = entry;
            self.len += 1;
        }
    }

    /// The operations of `kind`, if a page of it came in.
    pub(super) fn guard(&self, kind: MovableKind) -> Option<&OpsGuard<'a, 'm, P>> {
        self.guards.get(kind as usize)?.as_ref()
    }

    /// Gives an entry back to its owner. Returns pages freed because he had given them up.
    pub(super) fn putback_entry(&self, entry: Pfn, kind: EntryKind) -> u64 {
        match kind {
            EntryKind::Folio => {
                self.mm.migration.folios.fetch_sub(1, Ordering::Relaxed);
                self.mm.putback_folio(entry);
                0
            }
            EntryKind::Owned(kind) => self.mm.putback_owned(entry, kind, self.guard(kind)),
        }
    }

    /// Lets the operations of kinds go of which no page is left.
    pub(super) fn release_guards(&mut self) {
        if self.is_empty() {
            self.guards = [const { None }; MovableKind::ALL.len()];
        }
    }
}

impl<P: Platform, const N: usize> Drop for MigrateBatch<'_, '_, P, N> {
    fn drop(&mut self) {
        self.putback();
    }
}

impl<P: Platform, const N: usize> fmt::Debug for MigrateBatch<'_, '_, P, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}
