//! A queue in use: popping heads, returning them, and suppressing calls both ways.

use std::sync::atomic::{Ordering, fence};

use abi::virtio::ring::VIRTQ_AVAIL_F_NO_INTERRUPT;
use abi::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Buffers, ChainFault, Start, walk};
use super::layout::{LayoutFault, RingLayout};
use crate::virtio::{GuestFault, Interrupt};

/// Why a ring as a whole cannot be trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The available index is further ahead of the used index than the ring is long, or went back.
    #[error("available index {avail} contradicts {used} used of {size} entries")]
    AvailableIndex {
        /// The driver's index.
        avail: u16,
        /// Ours: the heads returned so far, modulo 2^16.
        used: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// The available ring names a descriptor that the table does not have: there is no head to return.
    #[error("head {head} is outside a table of {size} entries")]
    HeadOutOfRange {
        /// The head.
        head: u16,
        /// Entries of the table.
        size: u16,
    },
    /// The ring is not in RAM any more.
    #[error("the ring cannot be accessed")]
    Inaccessible,
}

impl RingFault {
    /// Name of the reason, for counters: lower case, words joined by `_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AvailableIndex { .. } => "available_index",
            Self::HeadOutOfRange { .. } => "head_out_of_range",
            Self::Inaccessible => "ring_inaccessible",
        }
    }
}

/// A split virtqueue in use by a device.
///
/// Invariants: the layout has been checked against RAM; `0 <= avail - used <=
/// size` modulo 2^16 at every pop; every head popped is owned by exactly one
/// [`PoppedChain`].
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    index: u16,
    indirect: bool,
    /// The driver will kick for the next buffer that it adds.
    kicks_armed: bool,
}

impl Virtqueue {
    /// Makes queue `index` usable: `features` are the acknowledged ones.
    ///
    /// # Errors
    /// [`LayoutFault`].
    pub fn new(
        index: u16,
        max_size: u16,
        layout: RingLayout,
        features: u64,
        mem: &GuestMemoryMmap,
    ) -> Result<Self, LayoutFault> {
        layout.check(max_size, mem)?;
        let state = QueueState {
            max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: features & VIRTIO_F_EVENT_IDX != 0,
            size: layout.size,
            ready: true,
            desc_table: layout.desc,
            avail_ring: layout.avail,
            used_ring: layout.used,
        };
        let queue = Queue::try_from(state).map_err(|_| LayoutFault::Size { size: layout.size })?;
        let indirect = features & VIRTIO_F_INDIRECT_DESC != 0;
        // The driver zeroes the used ring, so it kicks for its first buffer.
        Ok(Self { queue, index, indirect, kicks_armed: true })
    }

    /// The queue's index in its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next available chain, if there is one.
    ///
    /// While chains come out, the driver is asked not to kick. `Ok(None)` is
    /// given only after kicks have been re-armed and the ring found empty once
    /// more, so a device that drains until `None` never misses a buffer. A
    /// device that stops earlier must come back by itself: it reports
    /// [`crate::virtio::QueueProgress::Pending`], or resumes on a host event.
    ///
    /// # Errors
    /// [`GuestFault::BadRing`]. A bad *chain* is no error here: the chain comes
    /// out and says so from [`PoppedChain::buffers`].
    pub fn pop(&mut self, mem: &GuestMemoryMmap) -> Result<Option<PoppedChain>, GuestFault> {
        if self.available(mem)? == 0 {
            if self.kicks_armed {
                return Ok(None);
            }
            self.queue.enable_notification(mem).map_err(|_| self.inaccessible())?;
            self.kicks_armed = true;
            if self.available(mem)? == 0 {
                return Ok(None);
            }
        }
        if self.kicks_armed {
            self.queue.disable_notification(mem).map_err(|_| self.inaccessible())?;
            self.kicks_armed = false;
        }
        let head = self.take_head(mem)?;
        let start = Start {
            table: GuestAddress(self.queue.desc_table()),
            size: self.queue.size(),
            head,
            indirect: self.indirect,
        };
        Ok(Some(PoppedChain { head, queue: self.index, buffers: walk(mem, start), owned: true }))
    }

    /// Returns a chain to the driver; the device wrote `written` bytes into it.
    ///
    /// Everything that the device did to the buffers is visible to the driver
    /// before the used element is.
    ///
    /// # Errors
    /// [`GuestFault::BadRing`] if the used ring cannot be written; the chain is
    /// gone with the ring then.
    pub fn complete(
        &mut self,
        mem: &GuestMemoryMmap,
        chain: PoppedChain,
        written: u32,
    ) -> Result<(), GuestFault> {
        debug_assert_eq!(chain.queue, self.index, "a chain is returned where it came from");
        let head = chain.release();
        // `add_used` stores the index with Release; pairs with the driver's
        // read barrier after it has read the index.
        self.queue.add_used(mem, head, written).map_err(|_| self.inaccessible())
    }

    /// Calls the driver if it wants to be called for the chains completed since the last time.
    ///
    /// # Errors
    /// [`GuestFault::BadRing`].
    pub fn signal_used(
        &mut self,
        mem: &GuestMemoryMmap,
        interrupt: &dyn Interrupt,
    ) -> Result<(), GuestFault> {
        if self.wants_interrupt(mem)? {
            interrupt.used();
        }
        Ok(())
    }

    fn wants_interrupt(&mut self, mem: &GuestMemoryMmap) -> Result<bool, GuestFault> {
        if self.queue.event_idx_enabled() {
            return self.queue.needs_notification(mem).map_err(|_| self.inaccessible());
        }
        // Orders the used index before the read of the flags; pairs with the
        // driver's barrier between clearing NO_INTERRUPT and reading the index.
        fence(Ordering::SeqCst);
        let flags: u16 = mem
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|_| self.inaccessible())?;
        Ok(u16::from_le(flags) & VIRTQ_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Heads that the driver has made available and that have not been popped.
    ///
    /// # Errors
    /// [`GuestFault::BadRing`] if the index contradicts what was popped and returned.
    pub fn available(&self, mem: &GuestMemoryMmap) -> Result<u16, GuestFault> {
        // Acquire: the ring entries and descriptors are read after the index;
        // pairs with the driver's barrier before it stores the index.
        let avail =
            self.queue.avail_idx(mem, Ordering::Acquire).map_err(|_| self.inaccessible())?.0;
        let (next, used, size) = (self.queue.next_avail(), self.queue.next_used(), self.size());
        let waiting = avail.wrapping_sub(next);
        // What we hold counts too: the driver has only `size` descriptors.
        if avail.wrapping_sub(used) > size || waiting > size {
            return Err(self.fault(RingFault::AvailableIndex { avail, used, size }));
        }
        Ok(waiting)
    }

    /// Reads the next available head, which must be there, and moves past it.
    fn take_head(&mut self, mem: &GuestMemoryMmap) -> Result<u16, GuestFault> {
        let next = self.queue.next_avail();
        let slot = u64::from(next % self.size());
        // The ring was checked to be in RAM, so the address cannot overflow.
        let at = GuestAddress(self.queue.avail_ring() + 4 + 2 * slot);
        let head: u16 = mem.load(at, Ordering::Relaxed).map_err(|_| self.inaccessible())?;
        let head = u16::from_le(head);
        if head >= self.size() {
            return Err(self.fault(RingFault::HeadOutOfRange { head, size: self.size() }));
        }
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(head)
    }

    fn inaccessible(&self) -> GuestFault {
        self.fault(RingFault::Inaccessible)
    }

    fn fault(&self, fault: RingFault) -> GuestFault {
        GuestFault::BadRing { queue: self.index, fault }
    }
}

/// A chain that the driver has handed over and that has not been returned.
///
/// Not `Clone`: a head goes back exactly once, through [`Virtqueue::complete`].
#[must_use = "every popped chain is returned with `Virtqueue::complete`"]
#[derive(Debug)]
pub struct PoppedChain {
    head: u16,
    queue: u16,
    buffers: Result<Buffers, ChainFault>,
    owned: bool,
}

impl PoppedChain {
    /// The head's descriptor index.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The validated buffers.
    ///
    /// # Errors
    /// Why there are none: count it, and return the chain with nothing written.
    pub fn buffers(&self) -> Result<&Buffers, ChainFault> {
        self.buffers.as_ref().map_err(|fault| *fault)
    }

    /// Lets go of the chain because its queue is being reset: the only way not to return it.
    pub fn abandon_at_reset(self) {
        self.release();
    }

    /// Ends ownership; the caller puts the head where it belongs.
    fn release(mut self) -> u16 {
        self.owned = false;
        self.head
    }
}

impl Drop for PoppedChain {
    fn drop(&mut self) {
        // A second panic while unwinding would abort and hide the first.
        debug_assert!(
            !self.owned || std::thread::panicking(),
            "chain {} of queue {} was popped and never returned",
            self.head,
            self.queue
        );
    }
}
