//! The inflate queue: gather a window, release it, then answer the driver.

use vm_memory::GuestMemoryMmap;

use super::counters::BalloonCounters;
use super::page_set::{PageSet, RamIndex};
use super::pfns::{FrameCounts, Reading, ReadingChain};
use crate::ring::{PoppedChain, Virtqueue};
use crate::virtio::{GuestFault, Interrupt};

/// Frame numbers gathered before they are released: a full ring of 256 buffers of 256.
///
/// Bounds the time of one step and the memory that a driver can make the
/// device hold; a chain with more is read on in the next window.
pub(super) const WINDOW_PFNS: usize = 65_536;

/// Chains taken from the ring and not yet returned, and the pages that they name.
///
/// Invariant: a chain is in exactly one of `read` and `reading`; it is returned
/// only when the pages of `read` have been released.
#[derive(Debug)]
pub(super) struct InflateWindow {
    /// Read in full.
    read: Vec<PoppedChain>,
    /// Read in part: the window was full.
    reading: Option<ReadingChain>,
    /// Distinct frames; `None` while a release job has them.
    pub(super) pages: Option<PageSet>,
    /// The ring broke while gathering; reported when the window has been published.
    broken: Option<GuestFault>,
}

/// Why gathering ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gathered {
    /// The ring is empty and kicks are armed, or the ring is broken.
    All,
    /// The window is full; more may be there.
    Full,
}

impl InflateWindow {
    pub(super) fn new(index: &RamIndex) -> Self {
        Self { read: Vec::new(), reading: None, pages: Some(PageSet::new(index)), broken: None }
    }

    /// Whether no chain has been taken.
    pub(super) fn is_empty(&self) -> bool {
        self.read.is_empty() && self.reading.is_none() && self.broken.is_none()
    }

    /// Takes available chains and marks their frames until the ring is empty or the window full.
    pub(super) fn gather(
        &mut self,
        queue: &mut Virtqueue,
        mem: &GuestMemoryMmap,
        index: &RamIndex,
        counters: &mut BalloonCounters,
    ) -> Gathered {
        let Some(pages) = self.pages.as_mut() else { return Gathered::Full };
        let mut count = FrameCounts { queue: "inflate", counters: &mut counters.inflate };
        let mut budget = WINDOW_PFNS;
        let mut repeated = 0;
        let end = loop {
            let chain = match self.reading.take() {
                Some(chain) => chain,
                // A ring's worth of chains ends the window too: empty ones cost no budget.
                None if self.read.len() >= usize::from(queue.size()) => break Gathered::Full,
                None => match queue.pop(mem) {
                    Ok(Some(chain)) => {
                        count.check_direction(&chain);
                        ReadingChain::new(chain)
                    }
                    Ok(None) => break Gathered::All,
                    Err(fault) => {
                        self.broken = Some(fault);
                        break Gathered::All;
                    }
                },
            };
            let mark = |number| repeated += u64::from(!pages.insert(number));
            match chain.read(mem, index, &mut budget, &mut count, mark) {
                Reading::Done(chain) => self.read.push(chain),
                Reading::More(chain) => self.reading = Some(chain),
            }
            if budget == 0 {
                break Gathered::Full;
            }
        };
        counters.repeated_pages += repeated;
        counters.inflated_pages += pages.count();
        if budget < WINDOW_PFNS {
            counters.window_pages.record(pages.count());
        }
        end
    }

    /// Returns every chain that has been read in full and calls the driver once.
    ///
    /// The caller has released the window's pages: once a used element is
    /// published, the guest may reuse the pages (the virtqueue orders both).
    ///
    /// # Errors
    /// [`GuestFault::BadRing`] found here or while gathering.
    pub(super) fn publish(
        &mut self,
        queue: &mut Virtqueue,
        mem: &GuestMemoryMmap,
        interrupt: &dyn Interrupt,
        counters: &mut BalloonCounters,
    ) -> Result<(), GuestFault> {
        let mut result = Ok(());
        let any = !self.read.is_empty();
        for chain in self.read.drain(..) {
            counters.inflate.buffers += 1;
            result = result.and(queue.complete(mem, chain, 0));
        }
        if any {
            result = result.and(queue.signal_used(mem, interrupt));
        }
        self.broken.take().map_or(result, Err)
    }
}

impl Drop for InflateWindow {
    fn drop(&mut self) {
        // Dropped only with the activation: the queue is being reset, or the VM ends.
        self.read.drain(..).for_each(PoppedChain::abandon_at_reset);
        if let Some(chain) = self.reading.take() {
            chain.into_chain().abandon_at_reset();
        }
    }
}
