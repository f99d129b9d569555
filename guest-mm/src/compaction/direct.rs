//! Compaction by an allocation that finds no block.

use super::run::{CompactResult, Goal, Request};
use super::stats::CompactEvent;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::FrozenFrames;
use crate::migrate::MigrateMode;
use crate::mm::Mm;
use crate::platform::Platform;

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes a block of `order` by moving what stands between free pages, and
    /// allocates it (Linux `__alloc_pages_direct_compact`).
    ///
    /// Requests after one that failed are put off, twice as many each time; ones for
    /// single pages, or where memory is lacking, are refused at once. Never
    /// recursive: destinations come from the free scanner, and whoever allocates in
    /// the middle of a migration does so without reclaim. The caller holds no spin
    /// lock.
    ///
    /// # Errors
    /// How the run ended; [`CompactResult::Success`] if there was nothing to do, or
    /// somebody else took the block.
    pub fn alloc_by_compaction(
        &self,
        order: Order,
        gfp: Gfp,
        mode: MigrateMode,
    ) -> Result<FrozenFrames, CompactResult> {
        if order == Order::ZERO {
            return Err(CompactResult::NotSuitable);
        }
        if self.with_compaction(|state| state.deferral.defers(order)) {
            self.count_compact(CompactEvent::Deferred, 1);
            return Err(CompactResult::Deferred);
        }
        let request = Request {
            goal: Goal::Block(order),
            gfp,
            mode,
            whole_zone: false,
            ignore_skips: false,
            capture: true,
            budget: None,
        };
        let ended = self.compact_zone(&request);
        let frames = match ended.captured {
            Some(frames) => Some(self.fill_captured(frames, gfp)),
            // Where a block was free all the time, memory is not what the allocation failed for.
            None if ended.result == CompactResult::Success && ended.has_begun => {
                self.memory().alloc_frozen(order, gfp).ok()
            }
            None => None,
        };
        if !ended.has_begun {
            return Err(ended.result);
        }
        self.note_direct(order, mode, ended.result, frames.is_some());
        frames.ok_or(ended.result)
    }

    fn fill_captured(&self, mut frames: FrozenFrames, gfp: Gfp) -> FrozenFrames {
        if gfp.contains(Gfp::ZERO) {
            self.memory().bytes_mut(&mut frames).fill(0);
        }
        frames
    }

    fn note_direct(&self, order: Order, mode: MigrateMode, result: CompactResult, allocated: bool) {
        self.count_compact(CompactEvent::Stall, 1);
        let event = if allocated { CompactEvent::Success } else { CompactEvent::Fail };
        self.count_compact(event, 1);
        let is_over = matches!(result, CompactResult::Partial | CompactResult::Complete);
        self.with_compaction(|state| {
            if allocated || result == CompactResult::Success {
                state.deferral.note_success(order, allocated);
            } else if is_over && mode != MigrateMode::Async {
                state.deferral.note_failure(order);
            }
        });
    }
}
