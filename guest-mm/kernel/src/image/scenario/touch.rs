//! `touch`: dirties memory, checks that it kept what was written, frees it.

use abi::{PAGE_SIZE, Pfn};
use guest_kernel::scenario::{FAILURE, SUCCESS, TouchSize};
use guest_kernel::size::Human;
use guest_mm::buddy::Gfp;
use guest_mm::memdesc::Order;
use guest_mm::memory::{FrozenFrames, Memory};
use guest_mm::store::PfnStore;

use crate::image::kernel::Kernel;
use crate::image::platform::Machine;
use crate::image::time;

/// Pages between two rounds of serving the devices.
const SERVE_EVERY: u64 = 1024;

/// Blocks held, chained through their own first bytes: a list that needs no memory.
struct Held {
    top: Option<(Pfn, Order)>,
    blocks: u64,
}

/// Bytes that a link takes: the next block's frame, its order, whether there is one.
const LINK_BYTES: usize = 16;

impl Held {
    fn push(&mut self, memory: &Memory<Machine>, mut frames: FrozenFrames) {
        let (pfn, order) =
            self.top.map_or((u64::MAX, 0), |(pfn, order)| (pfn.number(), order.get()));
        let link = (u128::from(order) << 64) | u128::from(pfn);
        if let Some(slot) = memory.bytes_mut(&mut frames).first_chunk_mut::<LINK_BYTES>() {
            *slot = link.to_le_bytes();
        }
        self.top = Some(frames.into_raw());
        self.blocks += 1;
    }

    fn pop(&mut self, memory: &Memory<Machine>) -> Option<FrozenFrames> {
        let (pfn, order) = self.top?;
        // SAFETY: `push` gave this handle up; its frames have been ours since.
        let frames = unsafe { FrozenFrames::from_raw(pfn, order) };
        let link =
            memory.bytes(&frames).first_chunk::<LINK_BYTES>().copied().map(u128::from_le_bytes)?;
        let next = u64::try_from(link & u128::from(u64::MAX)).ok().and_then(Pfn::new);
        let order = u8::try_from(link >> 64).ok().and_then(Order::new);
        self.top = next.zip(order);
        Some(frames)
    }
}

/// What every word of page `pfn` holds, but for the link.
fn pattern(pfn: u64) -> u64 {
    pfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn touch(&mut self, size: TouchSize) -> u8 {
        let wanted = match size {
            TouchSize::Bytes(bytes) => bytes / PAGE_SIZE,
            TouchSize::All => u64::MAX,
        };
        let start = time::now_ns();
        let mut held = Held { top: None, blocks: 0 };
        let mut touched = 0;
        let mut order = Order::MAX;
        while touched < wanted {
            order = order.min(Order::fitting(wanted - touched));
            match self.memory.alloc_frozen(order, Gfp::USER) {
                Ok(mut frames) => {
                    touched += frames.pages().get();
                    self.fill(&mut frames);
                    held.push(self.memory, frames);
                }
                Err(_) => match order.down() {
                    Some(smaller) => order = smaller,
                    None => break,
                },
            }
            self.serve();
        }
        let filled = time::now_ns();
        let damaged = self.check_and_free(&mut held);
        let enough = size == TouchSize::All || touched == wanted;
        self.print(format_args!(
            "touched {touched} pages ({}) in {} ms; checked and freed {} blocks in {} ms",
            Human(touched * PAGE_SIZE),
            (filled - start) / 1_000_000,
            held.blocks,
            (time::now_ns() - filled) / 1_000_000,
        ));
        if !enough {
            self.print(format_args!("out of memory after {touched} of {wanted} pages"));
        }
        match damaged {
            None if enough => SUCCESS,
            None => FAILURE,
            Some(gpa) => {
                self.print(format_args!("LOST DATA: page {gpa:#x} does not hold what was written"));
                FAILURE
            }
        }
    }

    /// Writes each page's pattern all over it.
    fn fill(&mut self, frames: &mut FrozenFrames) {
        let first = frames.head().number();
        let pages = memory_pages(self.memory.bytes_mut(frames));
        for (number, page) in (first..).zip(pages) {
            let word = pattern(number).to_le_bytes();
            for slot in page.as_chunks_mut::<8>().0 {
                *slot = word;
            }
        }
    }

    /// Looks at two words of each page, then frees it; returns a page that lost its pattern.
    fn check_and_free(&mut self, held: &mut Held) -> Option<u64> {
        let mut damaged = None;
        let mut since_served = 0;
        while let Some(frames) = held.pop(self.memory) {
            let first = frames.head().number();
            let pages = self.memory.bytes(&frames).chunks_exact(4096);
            for (number, page) in (first..).zip(pages) {
                let word = pattern(number).to_le_bytes();
                let intact = page.get(LINK_BYTES..LINK_BYTES + 8) == Some(&word)
                    && page.last_chunk() == Some(&word);
                if !intact {
                    damaged = damaged.or(Some(number << 12));
                }
            }
            since_served += frames.pages().get();
            self.memory.free_frozen(frames);
            if since_served >= SERVE_EVERY {
                since_served = 0;
                self.serve();
            }
        }
        damaged
    }
}

/// The pages of a block.
fn memory_pages(bytes: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    bytes.chunks_exact_mut(4096)
}
