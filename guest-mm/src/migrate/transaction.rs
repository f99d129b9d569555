//! Moving a batch of isolated pages.

use abi::Pfn;

use super::batch::MigrateBatch;
use super::destination::{Destinations, Remembered};
use super::folios::{FolioPages, WaitingParts};
use super::isolate::EntryKind;
use super::ops::{MigrateError, MigrateMode, Migrated, MovableKind, Move};
use super::settle::Settled;
use super::stats::MigrateStats;
use crate::memdesc::{Memdesc, Order};
use crate::memory::TransitFrames;
use crate::mm::Mm;
use crate::platform::{FaultSite, Platform};
use crate::sync::shim::Ordering;

/// Pages that an owner is asked to move at once, at most.
const GROUP: usize = 32;

impl MigrateMode {
    /// Times that a batch is gone through for pages which were busy
    /// (Linux `NR_MAX_MIGRATE_ASYNC_RETRY`, `NR_MAX_MIGRATE_PAGES_RETRY`).
    pub const fn passes(self) -> u32 {
        match self {
            Self::Async => 3,
            Self::SyncLight | Self::Sync => 10,
        }
    }
}

/// Isolated blocks and their destinations.
type Group = [Option<(Pfn, TransitFrames)>; GROUP];

/// A call of [`Mm::migrate_pages`].
struct Call<'c, 'a, 'm, P: Platform, const N: usize> {
    mm: &'c Mm<'m, P>,
    batch: &'c mut MigrateBatch<'a, 'm, P, N>,
    destinations: Remembered<'c>,
    mode: MigrateMode,
    /// Whether no further pass follows.
    is_last: bool,
    stats: MigrateStats,
    /// Pages of folios that were split, to be tried again.
    waiting: WaitingParts<'m>,
    /// Pages of one kind, with their destinations, for their owner to move at once.
    group: Group,
    grouped: usize,
    kind: MovableKind,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Moves the pages of `batch` to `destinations`, and puts back those that do
    /// not move: the batch is empty afterwards.
    ///
    /// Pages that are busy are tried again, [`MigrateMode::passes`] times in all. The
    /// caller holds no spin lock, and of the owners' locks only such as these try.
    pub fn migrate_pages<const N: usize>(
        &self,
        batch: &mut MigrateBatch<'_, 'm, P, N>,
        destinations: &mut dyn Destinations,
        mode: MigrateMode,
    ) -> MigrateStats {
        debug_assert!(core::ptr::eq(self.base(), batch.mm().base()), "another machine's batch");
        let mut call = Call {
            mm: self,
            batch,
            destinations: Remembered::new(destinations),
            mode,
            is_last: false,
            stats: MigrateStats::default(),
            waiting: WaitingParts::default(),
            group: [const { None }; GROUP],
            grouped: 0,
            kind: MovableKind::Offline,
        };
        for pass in 1..=mode.passes() {
            if call.batch.is_empty() && call.waiting.is_empty() {
                break;
            }
            if pass > 1 && mode != MigrateMode::Async {
                // Whoever is in the way gets on.
                self.platform().relax();
            }
            call.is_last = pass == mode.passes();
            call.pass();
        }
        call.stop_waiting();
        let stats = call.stats;
        batch.release_guards();
        self.migration.note(&stats);
        stats
    }
}

impl<P: Platform, const N: usize> Call<'_, '_, '_, P, N> {
    /// Tries each entry once; those that are to be tried again stay in the batch. The same
    /// for pages that wait, of folios that were split in passes before.
    fn pass(&mut self) {
        self.stats.passes += 1;
        let (waiting, destinations) = (&mut self.waiting, &mut self.destinations);
        let pages = self.mm.migrate_waiting(waiting, destinations, self.mode);
        self.note_folio(&pages);
        for at in 0..self.batch.start_pass() {
            let Some(entry) = self.batch.entry(at) else { break };
            match self.mm.entry_kind(entry) {
                EntryKind::Folio => self.try_folio(entry),
                EntryKind::Owned(kind) => self.try_owned(entry, kind),
            }
        }
        self.flush();
    }

    fn try_folio(&mut self, entry: Pfn) {
        let pages = self.mm.isolated_folio_pages(entry);
        let (destinations, waiting) = (&mut self.destinations, &mut self.waiting);
        match self.mm.migrate_folio(entry, destinations, self.mode, waiting) {
            Ok(pages) => {
                self.mm.migration.folios.fetch_sub(1, Ordering::Relaxed);
                self.note_folio(&pages);
            }
            Err(error) => self.failed(entry, EntryKind::Folio, pages, error),
        }
    }

    fn note_folio(&mut self, pages: &FolioPages) {
        self.stats.migrated += pages.moved;
        self.stats.freed += pages.freed;
        if let Some(error) = pages.error {
            self.stats.note_failed(error, pages.failed);
        }
    }

    /// Puts back what waits after the last pass.
    fn stop_waiting(&mut self) {
        let pages = self.mm.putback_waiting(core::mem::take(&mut self.waiting));
        self.note_folio(&pages);
    }

    /// Finds a destination for a page that is no folio, and puts it in its owner's group.
    fn try_owned(&mut self, entry: Pfn, kind: MovableKind) {
        if self.mm.is_doomed(entry) {
            self.mm.free_doomed(entry, kind);
            self.stats.freed += 1;
            return;
        }
        let most = self.batch.guard(kind).map_or(1, |guard| guard.ops().batch());
        if kind != self.kind {
            self.flush();
            self.kind = kind;
        }
        let found = self.take_destination(entry, kind);
        match found {
            Err(error) => {
                let pages = self.mm.owned_order(entry).pages().get();
                self.failed(entry, EntryKind::Owned(kind), pages, error);
            }
            Ok(dst) => {
                if let Some(slot) = self.group.get_mut(self.grouped) {
                    *slot = Some((entry, dst));
                    self.grouped += 1;
                }
                if self.grouped >= most.clamp(1, GROUP) {
                    self.flush();
                }
            }
        }
    }

    /// A destination for the block at `src`, which is cut to a page if there is none.
    fn take_destination(
        &mut self,
        src: Pfn,
        kind: MovableKind,
    ) -> Result<TransitFrames, MigrateError> {
        let order = self.mm.owned_order(src);
        let whole = self.take_frames(src, order);
        if order == Order::ZERO || whole.is_ok() {
            return whole;
        }
        let guard = self.batch.guard(kind).ok_or(MigrateError::Busy)?;
        match guard.ops().split(self.mm, src) {
            Ok(()) => self.take_frames(src, self.mm.owned_order(src)),
            Err(MigrateError::Again) => Err(MigrateError::Again),
            Err(MigrateError::Busy | MigrateError::NoMemory | MigrateError::NotTaken) => whole,
        }
    }

    fn take_frames(&mut self, src: Pfn, order: Order) -> Result<TransitFrames, MigrateError> {
        let fails = self.mm.platform().inject_fault(FaultSite::MigrateDestination);
        let frames = if fails { None } else { self.destinations.take(order, src) };
        let frames = frames.ok_or(MigrateError::NoMemory)?;
        debug_assert_eq!(frames.order(), order, "a destination of another order");
        // Not what its handle says: leaked, not risked.
        self.mm.memory().put_in_transit(frames).map_err(|_| MigrateError::NoMemory)
    }

    /// Has the pages of the group moved by their owner, and looks what became of them.
    fn flush(&mut self) {
        if self.grouped == 0 {
            return;
        }
        self.grouped = 0;
        let group = core::mem::replace(&mut self.group, [const { None }; GROUP]);
        let fails = self.mm.platform().inject_fault(FaultSite::MigrateCallback);
        let mut answers = [const { None }; GROUP];
        if !fails && let Some(guard) = self.batch.guard(self.kind) {
            let mut moves = [const { None }; GROUP];
            for (step, slot) in moves.iter_mut().zip(&group) {
                *step = slot.as_ref().map(|(src, dst)| Move::new(*src, dst));
            }
            guard.ops().migrate_batch(self.mm, &mut moves, self.mode);
            answers = moves.map(|step| step.map(|step| step.ended));
        }
        for (slot, answer) in group.into_iter().zip(answers) {
            if let Some((src, dst)) = slot {
                self.settle(src, dst, answer.unwrap_or(Err(MigrateError::Again)));
            }
        }
    }

    fn settle(&mut self, src: Pfn, dst: TransitFrames, answer: Result<Migrated, MigrateError>) {
        let kind = self.kind;
        let pages = dst.pages().get();
        let settled = self.mm.settle_move(src, dst, kind, answer);
        if let Some(unused) = settled.unused {
            self.destinations.give_back(unused);
        }
        match settled.end {
            Settled::Moved => self.stats.migrated += pages,
            Settled::Released => self.stats.released += pages,
            Settled::Kept => self.stats.kept += pages,
            Settled::Failed(error) => self.failed(src, EntryKind::Owned(kind), pages, error),
        }
    }

    /// Leaves an entry for the next pass, or puts it back.
    fn failed(&mut self, entry: Pfn, kind: EntryKind, pages: u64, error: MigrateError) {
        if error == MigrateError::Again && !self.is_last {
            self.batch.keep(entry);
            return;
        }
        let freed = self.batch.putback_entry(entry, kind);
        self.stats.freed += freed;
        self.stats.note_failed(error, pages.saturating_sub(freed));
    }
}

impl<P: Platform> Mm<'_, P> {
    /// The order of the isolated block at `entry`, which is no folio.
    fn owned_order(&self, entry: Pfn) -> Order {
        let memdesc = self.memory().words().decode(entry).ok();
        // Pages with a descriptor are single.
        memdesc.and_then(Memdesc::order).unwrap_or(Order::ZERO)
    }
}
