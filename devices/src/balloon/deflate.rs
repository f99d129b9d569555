//! The deflate queue: pages go back to the guest. No system call: the guest's next touch gets a fresh zero page.

use vm_memory::GuestMemoryMmap;

use super::counters::BalloonCounters;
use super::inflate::WINDOW_PFNS;
use super::page_set::{PageSet, RamIndex};
use super::pfns::{FrameCounts, Reading, ReadingChain};
use crate::ring::Virtqueue;
use crate::virtio::{GuestFault, Interrupt, QueueProgress};

/// A deflate chain that has been read in part.
#[derive(Debug, Default)]
pub(super) struct DeflateWindow {
    reading: Option<ReadingChain>,
}

impl DeflateWindow {
    /// Takes available chains, removes their frames from `ballooned` and returns each chain.
    ///
    /// # Errors
    /// [`GuestFault::BadRing`].
    pub(super) fn serve(
        &mut self,
        queue: &mut Virtqueue,
        (mem, index, interrupt): (&GuestMemoryMmap, &RamIndex, &dyn Interrupt),
        ballooned: &mut PageSet,
        counters: &mut BalloonCounters,
    ) -> Result<QueueProgress, GuestFault> {
        let mut budget = WINDOW_PFNS;
        let mut chains = 0;
        let (mut removed, mut unknown) = (0, 0);
        let result = loop {
            let mut count = FrameCounts { queue: "deflate", counters: &mut counters.deflate };
            let chain = match self.reading.take() {
                Some(chain) => chain,
                None if chains >= queue.size() => break Ok(QueueProgress::Pending),
                None => match queue.pop(mem) {
                    Ok(Some(chain)) => {
                        count.check_direction(&chain);
                        ReadingChain::new(chain)
                    }
                    Ok(None) => break Ok(QueueProgress::Idle),
                    Err(fault) => break Err(fault),
                },
            };
            let unmark = |number| {
                let known = u64::from(ballooned.remove(number));
                removed += known;
                unknown += 1 - known;
            };
            match chain.read(mem, index, &mut budget, &mut count, unmark) {
                Reading::Done(chain) => {
                    chains += 1;
                    counters.deflate.buffers += 1;
                    if let Err(fault) = queue.complete(mem, chain, 0) {
                        break Err(fault);
                    }
                }
                Reading::More(chain) => self.reading = Some(chain),
            }
            if budget == 0 {
                break Ok(QueueProgress::Pending);
            }
        };
        counters.returned_pages += removed;
        counters.not_inflated_pages += unknown;
        let signalled = if chains > 0 { queue.signal_used(mem, interrupt) } else { Ok(()) };
        result.and_then(|progress| signalled.map(|()| progress))
    }
}

impl Drop for DeflateWindow {
    fn drop(&mut self) {
        // As for the inflate window: the queue is going away.
        if let Some(chain) = self.reading.take() {
            chain.into_chain().abandon_at_reset();
        }
    }
}
