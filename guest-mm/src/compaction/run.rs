//! One run of the two scanners.

use abi::{Pfn, PfnRange};

use super::fragmentation::Suitability;
use super::free_scanner::{FreeRules, FreeScanner};
use super::migrate_scanner::ScanRules;
use super::stats::CompactEvent;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::FrozenFrames;
use crate::migrate::{MigrateBatch, MigrateError, MigrateMode};
use crate::mm::Mm;
use crate::platform::Platform;

/// How a compaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CompactResult {
    /// A block of the order is free, or memory is no longer scattered.
    Success,
    /// The scanners met, or memory to move to ran out; part of the zone was not looked at.
    Partial,
    /// The scanners met after looking at the whole zone.
    Complete,
    /// Not begun: the last requests failed.
    Deferred,
    /// Not begun: too little memory is free to move pages to.
    Skipped,
    /// Not begun: memory is lacking, not order; or a single page was asked for.
    NotSuitable,
    /// Given up, for somebody else held the zone lock and the mode does not wait.
    Contended,
}

/// What a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// A free block.
    Block(Order),
    /// At most this score of fragmentation (percent).
    Score(u32),
    /// Whatever can be had.
    Everything,
}

/// What somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) goal: Goal,
    pub(super) gfp: Gfp,
    pub(super) mode: MigrateMode,
    /// Begins at the ends of the zone instead of where the last run was.
    pub(super) whole_zone: bool,
    /// Looks at pageblocks too in which nothing was found before.
    pub(super) ignore_skips: bool,
    /// Takes the block where it is made.
    pub(super) capture: bool,
    /// Ends when about so many words were looked at by both scanners, a moved page for 32.
    pub(super) budget: Option<u64>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) result: CompactResult,
    /// The block, if it was to be captured and was.
    pub(super) captured: Option<FrozenFrames>,
    /// The scanners were set off.
    pub(super) has_begun: bool,
    /// The budget was used up before.
    pub(super) is_unfinished: bool,
    pub(super) migrate_scanned: u64,
    pub(super) free_scanned: u64,
}

/// Words that a moved page counts for in a budget: about what a copy takes.
const WORDS_PER_PAGE: u64 = 32;

impl<'m, P: Platform> Mm<'m, P> {
    /// Compacts all of memory, whoever needs it (Linux `/proc/sys/vm/compact_memory`).
    ///
    /// The caller holds no spin lock.
    pub fn compact_memory(&self, mode: MigrateMode) -> CompactResult {
        let request = Request {
            goal: Goal::Everything,
            gfp: Gfp::USER,
            mode,
            whole_zone: true,
            ignore_skips: true,
            capture: false,
            budget: None,
        };
        self.compact_zone(&request).result
    }

    /// One run. What it captured is the caller's.
    pub(super) fn compact_zone(&self, request: &Request) -> Ended {
        // Pages on CPUs' lists are neither free nor anybody's, and would stay in the way.
        self.memory().drain();
        let refused = match request.goal {
            Goal::Block(order) => match self.compaction_suitable(order, request.gfp) {
                Suitability::Available => Some(CompactResult::Success),
                Suitability::NoMemory => Some(CompactResult::Skipped),
                Suitability::NotFragmented => Some(CompactResult::NotSuitable),
                Suitability::Suitable => None,
            },
            Goal::Score(_) | Goal::Everything => None,
        };
        if let Some(result) = refused {
            return Ended {
                result,
                captured: None,
                has_begun: false,
                is_unfinished: false,
                migrate_scanned: 0,
                free_scanned: 0,
            };
        }
        let mut run = Run::begin(self, request);
        let result = run.go();
        run.end(result)
    }
}

/// A run under way.
struct Run<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    request: &'a Request,
    span: PfnRange,
    free: FreeScanner<'m, P>,
    /// The migrate scanner's next frame.
    migrate: Pfn,
    /// It began at the bottom of the zone.
    is_whole: bool,
    /// Pages isolated in the pageblock so far.
    in_block: u64,
    /// Something came free since the last look whether the goal is reached …
    is_fresh: bool,
    /// … and since the last block was to be captured.
    is_emptying: bool,
    scanned: u64,
    isolated: u64,
    captured: Option<FrozenFrames>,
    is_unfinished: bool,
}

impl<'a, 'm, P: Platform> Run<'a, 'm, P> {
    fn begin(mm: &'a Mm<'m, P>, request: &'a Request) -> Self {
        let span = mm.zone_span();
        let is_async = request.mode == MigrateMode::Async;
        let (cached, forget) = mm.with_compaction(|state| {
            let restarts = match request.goal {
                Goal::Block(order) => state.deferral.is_restarting(order),
                Goal::Score(_) | Goal::Everything => false,
            };
            // What asynchronous scans could not move, the next one cannot either.
            let forget = restarts || (state.flush_skips && !is_async);
            if forget {
                state.flush_skips = false;
                state.cached = super::state::Cached::NONE;
            }
            (state.cached, forget)
        });
        if forget {
            mm.forget_skips();
        }
        let inside =
            |pfn: Option<Pfn>| pfn.filter(|&pfn| span.contains(pfn) && !request.whole_zone);
        let migrate = inside(cached.migrate(request.mode)).unwrap_or(span.start());
        let free = inside(cached.free).unwrap_or(FreeScanner::<P>::top(span));
        let rules = FreeRules {
            ignore_skips: request.ignore_skips,
            try_only: is_async,
            budget: request.budget,
        };
        Self {
            mm,
            request,
            span,
            free: FreeScanner::new(mm.base(), span, free, rules),
            migrate,
            is_whole: migrate == span.start(),
            in_block: 0,
            is_fresh: true,
            is_emptying: false,
            scanned: 0,
            isolated: 0,
            captured: None,
            is_unfinished: false,
        }
    }

    fn go(&mut self) -> CompactResult {
        loop {
            if self.is_finished() {
                return CompactResult::Success;
            }
            self.free.set_limit(self.migrate);
            if self.free.has_met() || self.migrate >= self.span.end() {
                return self.meet();
            }
            let words = self.scanned + self.free.outcome.scanned;
            let spent = words + self.isolated * WORDS_PER_PAGE;
            if self.request.budget.is_some_and(|budget| spent >= budget) {
                self.is_unfinished = true;
                return CompactResult::Partial;
            }
            let Some(rest) = self.rest_of_block() else { continue };
            if let Some(result) = self.step(rest) {
                return result;
            }
        }
    }

    /// What of the migrate scanner's pageblock it has not seen; `None`, and on to the
    /// next, if nothing of it is to be looked at.
    fn rest_of_block(&mut self) -> Option<PfnRange> {
        let start = self.migrate.align_down(Order::PAGEBLOCK.get());
        let end = start.checked_add(Order::PAGEBLOCK.pages()).unwrap_or(self.span.end());
        let end = end.min(self.span.end());
        let _section = self.mm.read_pageblocks();
        let is_skipped = !self.request.ignore_skips
            && self.migrate == start
            && self.mm.memory().map().pageblocks.is_skipped(start);
        if is_skipped || !self.mm.is_migration_source(start, self.request.mode) {
            self.migrate = end;
            self.in_block = 0;
            return None;
        }
        PfnRange::new(self.migrate, end)
    }

    /// Isolates a batch in `rest` and moves it.
    fn step(&mut self, rest: PfnRange) -> Option<CompactResult> {
        let mut batch = MigrateBatch::new(self.mm);
        let scan = self.mm.isolate_movable(rest, self.rules(), &mut batch);
        let began_at_start = rest.start().is_aligned(Order::PAGEBLOCK.get());
        self.scanned += scan.scanned;
        self.in_block = if began_at_start { 0 } else { self.in_block } + scan.isolated;
        self.migrate = scan.at;
        let is_done = scan.at >= rest.end();
        if is_done && self.in_block == 0 {
            let _section = self.mm.read_pageblocks();
            self.mm.memory().map().pageblocks.set_skipped(rest.start());
        }
        if batch.is_empty() {
            self.capture();
            return None;
        }
        let stats = self.mm.migrate_pages(&mut batch, &mut self.free, self.request.mode);
        let pages = stats.vacated() + stats.failed();
        self.isolated += pages;
        self.mm.count_compact(CompactEvent::Isolated, pages);
        self.mm.count_compact(CompactEvent::Migrated, stats.vacated());
        self.mm.count_compact(CompactEvent::NotMigrated, stats.failed());
        if self.free.is_spent() && stats.failed_with(MigrateError::NoMemory) > 0 {
            // Not for want of free pages, but because they were not looked for any further: next time.
            self.migrate = rest.start();
        }
        self.is_fresh |= stats.vacated() > 0;
        self.is_emptying |= stats.vacated() > 0;
        self.note_positions();
        self.capture();
        if self.free.outcome.contended {
            return Some(CompactResult::Contended);
        }
        (self.free.outcome.starved && stats.vacated() == 0).then_some(CompactResult::Partial)
    }

    fn rules(&self) -> ScanRules {
        let is_async = self.request.mode == MigrateMode::Async;
        let give_up = match self.request.goal {
            Goal::Block(order) if is_async => Some(order.min(Order::PAGEBLOCK)),
            Goal::Block(_) | Goal::Score(_) | Goal::Everything => None,
        };
        ScanRules { skip_huge: true, give_up }
    }

    /// Takes the block that the last pages left, if it is one.
    fn capture(&mut self) {
        let Goal::Block(order) = self.request.goal else { return };
        if !self.request.capture || !self.is_emptying {
            return;
        }
        let Some(last) = self.migrate.number().checked_sub(1).and_then(Pfn::new) else { return };
        let block = last.align_down(order.get());
        if block.checked_add(order.pages()).is_none_or(|end| end > self.migrate) {
            return;
        }
        self.is_emptying = false;
        let memory = self.mm.memory();
        let reserve = self.request.gfp.reserve(memory.watermarks());
        self.captured = memory.take_free_at(block, order, reserve);
    }

    fn is_finished(&mut self) -> bool {
        if self.captured.is_some() {
            return true;
        }
        if !core::mem::take(&mut self.is_fresh) {
            return false;
        }
        let memory = self.mm.memory();
        match self.request.goal {
            Goal::Block(order) => {
                memory.drain_this_cpu();
                let found = self.mm.fragmentation(order);
                let reserve = self.request.gfp.reserve(memory.watermarks());
                found.suitable_blocks > 0 && found.free_pages >= order.pages().get() + reserve
            }
            Goal::Score(low) => {
                memory.drain_this_cpu();
                self.mm.fragmentation(Order::PAGEBLOCK).score() <= low
            }
            Goal::Everything => false,
        }
    }

    /// Notes where the next run begins.
    fn note_positions(&self) {
        let free = self.free.cached();
        self.mm.with_compaction(|state| {
            state.cached.set_migrate(self.request.mode, self.migrate);
            state.cached.free = Some(state.cached.free.map_or(free, |cached| cached.min(free)));
        });
    }

    /// The scanners have met: the next run begins at the ends again.
    fn meet(&self) -> CompactResult {
        self.mm.with_compaction(|state| {
            state.cached = super::state::Cached::NONE;
            state.flush_skips = true;
        });
        if self.is_whole { CompactResult::Complete } else { CompactResult::Partial }
    }

    fn end(mut self, result: CompactResult) -> Ended {
        if result != CompactResult::Complete && self.is_unfinished {
            self.note_positions();
        }
        let free = self.free.outcome;
        self.mm.count_compact(CompactEvent::MigrateScanned, self.scanned);
        self.mm.count_compact(CompactEvent::FreeScanned, free.scanned);
        self.mm.count_compact(CompactEvent::Isolated, free.isolated);
        let captured = self.captured.take();
        if captured.is_some() {
            self.mm.count_compact(CompactEvent::Captured, 1);
        }
        let ended = Ended {
            result,
            captured,
            has_begun: true,
            is_unfinished: self.is_unfinished,
            migrate_scanned: self.scanned,
            free_scanned: free.scanned,
        };
        let mm = self.mm;
        // Frees the destinations that were not used.
        drop(self);
        mm.memory().drain_this_cpu();
        ended
    }
}
