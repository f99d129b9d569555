//! `verify`: sentinels are unchanged, and what the host discarded reads as zero.

use abi::{PAGE_SIZE, Pfn};
use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::memdesc::Order;
use guest_mm::memory::FrozenFrames;
use guest_mm::store::PfnStore;

use crate::image::kernel::Kernel;

/// Reported blocks noted at a time: one page of 16-byte entries.
const NOTED: usize = 256;

/// Blocks of a walk that start at or above a frame, the lowest [`NOTED`] of them, in ascending order.
struct Batch {
    blocks: [(Pfn, Order); NOTED],
    len: usize,
    /// There were more.
    overflow: bool,
}

impl Batch {
    const fn new() -> Self {
        Self { blocks: [(Pfn::ZERO, Order::ZERO); NOTED], len: 0, overflow: false }
    }

    /// Notes a block, or drops the highest for it.
    fn note(&mut self, pfn: Pfn, order: Order) {
        let taken = self.blocks.get(..self.len).unwrap_or(&[]);
        let at = taken.partition_point(|(other, _)| *other < pfn);
        if self.len == NOTED {
            self.overflow = true;
            if at == NOTED {
                return;
            }
            self.len -= 1;
        }
        self.blocks.copy_within(at..self.len, at + 1);
        if let Some(slot) = self.blocks.get_mut(at) {
            *slot = (pfn, order);
            self.len += 1;
        }
    }
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn verify(&mut self) -> u8 {
        let mut code = SUCCESS;
        match self.sentinels.check(self.memory) {
            Ok(count) => self.print(format_args!("{count} sentinel pages unchanged")),
            Err(changed) => {
                self.print(format_args!(
                    "SENTINEL CHANGED at {:#x}: {:#018x} instead of {:#018x}",
                    changed.gpa, changed.found, changed.expected
                ));
                code = FAILURE;
            }
        }
        let (pages, dirty) = self.check_reported();
        match dirty {
            None => self.print(format_args!("{pages} discarded pages read as zero")),
            Some(gpa) => {
                self.print(format_args!("NOT ZERO: discarded page at {gpa:#x}"));
                code = FAILURE;
            }
        }
        code
    }

    /// Reads every free page that the host holds nothing for; returns how many there were, and the first that is not
    /// zero.
    ///
    /// The free lists are walked under the zone's lock, the pages are read without it, so that devices are served in
    /// between; a block that was allocated meanwhile is no longer looked at.
    fn check_reported(&mut self) -> (u64, Option<u64>) {
        let (mut pages, mut dirty) = (0, None);
        let mut from = Pfn::ZERO;
        loop {
            let mut batch = Batch::new();
            self.memory.for_each_free(&mut |pfn, order, reported| {
                if reported && pfn >= from {
                    batch.note(pfn, order);
                }
            });
            for (pfn, order) in batch.blocks.iter().take(batch.len).copied() {
                if self.is_still_reported(pfn, order) {
                    pages += order.pages().get();
                    dirty = dirty.or_else(|| self.first_nonzero(pfn, order));
                }
                self.serve();
                from = pfn.checked_add(order.pages()).unwrap_or(pfn);
            }
            if !batch.overflow {
                return (pages, dirty);
            }
        }
    }

    /// Whether the word still says: free, of this order, reported.
    fn is_still_reported(&self, pfn: Pfn, order: Order) -> bool {
        let word = self.memory.words().load(pfn).ok();
        word.and_then(|word| word.as_buddy())
            .is_some_and(|buddy| buddy.reported && buddy.order == order)
    }

    /// The first page of a free block that has a byte other than 0.
    fn first_nonzero(&self, pfn: Pfn, order: Order) -> Option<u64> {
        // SAFETY: not a free's handle: it is only read through and never freed, and nothing runs here that could
        // allocate the block meanwhile.
        let frames = unsafe { FrozenFrames::from_raw(pfn, order) };
        let mut pages = self.memory.bytes(&frames).chunks_exact(4096);
        let dirty =
            pages.position(|page| page.as_chunks::<8>().0.iter().any(|word| *word != [0; 8]));
        let _forgotten = frames.into_raw();
        dirty.map(|index| pfn.gpa() + index as u64 * PAGE_SIZE)
    }
}
