//! One balloon queue with its PFN buffers: blocks in, whole groups out.
//!
//! A buffer carries up to 256 PFNs (1 KiB, four buffers to a page). Blocks
//! smaller than that share buffers; a block of order 8 or more fills 1, 2 or 4
//! of its own, a *group* that counts as used only when each of its buffers has
//! come back, in whatever order. So every block lies in exactly one group.
//!
//! The PFNs are read back from the buffer when it completes: the page is the
//! guest's own, the device only reads it. A device that wrote it all the same
//! could only name other blocks of the balloon, and the store refuses those
//! that are not in flight.

use abi::balloon::{PFN_BYTES, PFNS_PER_BUFFER};
use abi::{PageCount, Pfn};

use crate::store::Block;
use crate::virtio::{
    Access, Buffer, DmaMemory, DmaPages, DmaSlice, PAGE_BYTES, QueueError, RingMemory, SplitQueue,
};

/// Buffers of a queue at most: one for each ring entry.
pub(super) const MAX_BUFFERS: usize = 256;
const BUFFER_BYTES: usize = PFNS_PER_BUFFER * PFN_BYTES;
const BUFFERS_PER_PAGE: usize = PAGE_BYTES / BUFFER_BYTES;
/// Pages that a queue's buffers take at most.
pub(super) const MAX_BUFFER_PAGES: usize = MAX_BUFFERS / BUFFERS_PER_PAGE;
/// Blocks of at least this order have buffers of their own.
const WHOLE_BUFFER_ORDER: u32 = PFNS_PER_BUFFER.ilog2();

/// Number of a buffer; of a group, that of its first buffer.
type BufferIndex = u16;

/// Buffers that become used together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group(BufferIndex);

/// What is known of a buffer that is not free.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// PFNs in the buffer.
    len: u16,
    /// First buffer of the group.
    leader: BufferIndex,
    /// Next buffer of the group; the last names itself.
    next: BufferIndex,
    /// In the leader: buffers of the group that the device still has.
    pending: u8,
}

/// A balloon queue and the buffers that travel on it.
#[derive(Debug)]
pub(super) struct PfnQueue {
    /// `None` from a device reset until the device is set up again.
    queue: Option<SplitQueue<BufferIndex, MAX_BUFFERS>>,
    pages: DmaPages<MAX_BUFFER_PAGES>,
    records: [Record; MAX_BUFFERS],
    /// A stack of free buffers: the first `free_len` are valid.
    free: [BufferIndex; MAX_BUFFERS],
    free_len: u16,
    buffers: u16,
    /// The shared buffer that is being filled.
    filling: Option<BufferIndex>,
    /// Pages of blocks that entered and whose group has not been recycled.
    in_flight: PageCount,
}

impl PfnQueue {
    /// A queue without a ring, with `buffers` buffers (at most 256) in lent pages.
    pub(super) fn lend<M: DmaMemory + ?Sized>(memory: &M, buffers: u16) -> Option<Self> {
        let count = usize::from(buffers).clamp(1, MAX_BUFFERS);
        let pages = DmaPages::lend(memory, count.div_ceil(BUFFERS_PER_PAGE))?;
        let mut queue = Self {
            queue: None,
            pages,
            records: [Record::default(); MAX_BUFFERS],
            free: [0; MAX_BUFFERS],
            free_len: 0,
            buffers: u16::try_from(count).unwrap_or(1),
            filling: None,
            in_flight: PageCount::ZERO,
        };
        queue.detach();
        Some(queue)
    }

    /// Forgets the ring and everything that travelled on it: after a device reset.
    pub(super) fn detach(&mut self) {
        self.queue = None;
        self.filling = None;
        self.in_flight = PageCount::ZERO;
        self.free_len = self.buffers;
        for (slot, index) in self.free.iter_mut().zip((0..self.buffers).rev()) {
            *slot = index;
        }
    }

    /// Starts on a fresh ring; `false` if it has more entries than buffers can be.
    pub(super) fn attach(&mut self, ring: RingMemory) -> bool {
        self.detach();
        self.queue = SplitQueue::new(ring);
        self.queue.is_some()
    }

    /// Gives the buffers' pages back.
    ///
    /// # Safety
    /// The device is reset: it uses none of the buffers.
    pub(super) unsafe fn take_back<M: DmaMemory + ?Sized>(self, memory: &M) {
        // SAFETY: the caller's promise; slices are made per call and kept nowhere.
        unsafe { self.pages.take_back(memory) }
    }

    /// Pages of blocks that entered and did not come back yet.
    pub(super) const fn in_flight(&self) -> PageCount {
        self.in_flight
    }

    /// Whether the device has a buffer that it did not return yet, published or not.
    pub(super) fn is_outstanding(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.outstanding() > 0)
    }

    /// Whether a block of `order` can enter now.
    pub(super) fn has_room(&self, order: u32) -> bool {
        let Some(queue) = &self.queue else { return false };
        // A buffer that is being filled takes an entry of the ring, not a free buffer.
        let filling = u16::from(self.filling.is_some());
        let needed = buffers_of(order);
        let fits_in_filling = self
            .filling
            .is_some_and(|index| order < WHOLE_BUFFER_ORDER && self.space_in(index) >= 1 << order);
        if fits_in_filling {
            return queue.free_entries() >= 1;
        }
        self.free_len >= needed && queue.free_entries() >= needed + filling
    }

    /// Whether a shared buffer is being filled.
    pub(super) const fn is_filling(&self) -> bool {
        self.filling.is_some()
    }

    /// Whether a block of `order` would add a buffer to the ring at once.
    pub(super) fn would_add(&self, order: u32) -> bool {
        let is_full = |index| self.space_in(index) < 1 << order;
        order >= WHOLE_BUFFER_ORDER || self.filling.is_some_and(is_full)
    }

    /// The largest order up to `order` that can enter now.
    pub(super) fn largest_with_room(&self, order: u32) -> Option<u32> {
        (0..=order).rev().find(|&order| self.has_room(order))
    }

    fn space_in(&self, index: BufferIndex) -> usize {
        PFNS_PER_BUFFER - usize::from(self.records[usize::from(index)].len)
    }

    /// Takes a block in; it travels after the next [`Self::publish`].
    ///
    /// The caller has asked [`Self::has_room`]. `refuse` makes the ring refuse
    /// its next buffer (injected fault).
    ///
    /// # Errors
    /// A group that could not be added to the ring: the caller undoes its blocks
    /// and [recycles](Self::recycle) it. With a shared buffer that is an earlier
    /// group, and `block` itself did not enter.
    pub(super) fn push(&mut self, block: Block, refuse: bool) -> Result<(), Rejected> {
        let order = block.order();
        if order >= WHOLE_BUFFER_ORDER {
            self.seal(refuse).map_err(|group| Rejected { group, entered: false })?;
            let group = self.fill_whole(block);
            return self.add(group, refuse).map_err(|group| Rejected { group, entered: true });
        }
        if self.filling.is_some_and(|index| self.space_in(index) < 1 << order) {
            self.seal(refuse).map_err(|group| Rejected { group, entered: false })?;
        }
        let index = match self.filling {
            Some(index) => index,
            None => self.take_buffer(None),
        };
        self.filling = Some(index);
        self.append(index, block.head(), 1 << order);
        self.in_flight = self.in_flight.saturating_add(block.pages());
        Ok(())
    }

    /// Adds the buffer that is being filled to the ring.
    ///
    /// # Errors
    /// As for [`Self::push`]: the group whose blocks are to be undone.
    pub(super) fn seal(&mut self, refuse: bool) -> Result<(), Group> {
        match self.filling.take() {
            Some(index) => self.add(Group(index), refuse),
            None => Ok(()),
        }
    }

    /// Fills a group of its own with a large block.
    fn fill_whole(&mut self, block: Block) -> Group {
        let mut head = block.head();
        let mut previous = None;
        let mut leader = 0;
        for _ in 0..buffers_of(block.order()) {
            let index = self.take_buffer(previous);
            if previous.is_none() {
                leader = index;
            }
            self.append(index, head, PFNS_PER_BUFFER);
            // The last step may leave the address space; it is not used then.
            let step = PageCount::new(PFNS_PER_BUFFER as u64);
            head = head.checked_add(step).unwrap_or(head);
            previous = Some(index);
        }
        self.in_flight = self.in_flight.saturating_add(block.pages());
        Group(leader)
    }

    /// Takes a free buffer: the leader of a new group, or the next after `previous`.
    ///
    /// # Panics
    /// Without a free buffer: the caller's bug, which has not asked [`Self::has_room`].
    fn take_buffer(&mut self, previous: Option<BufferIndex>) -> BufferIndex {
        let top = self.free_len.checked_sub(1).expect("has_room was asked");
        self.free_len = top;
        let index = self.free[usize::from(top)];
        let leader = previous.map_or(index, |previous| self.records[usize::from(previous)].leader);
        self.records[usize::from(index)] = Record { len: 0, leader, next: index, pending: 0 };
        if let Some(previous) = previous {
            self.records[usize::from(previous)].next = index;
        }
        self.records[usize::from(leader)].pending += 1;
        index
    }

    fn append(&mut self, index: BufferIndex, head: Pfn, count: usize) {
        let memory = self.memory(index);
        let record = &mut self.records[usize::from(index)];
        for (slot, number) in (usize::from(record.len)..).zip(head.number()..).take(count) {
            // The driver takes no block at or above 2^32 (`frames`).
            let wire = u32::try_from(number).expect("checked when the block was taken");
            memory.write_u32(slot, wire);
        }
        record.len += u16::try_from(count).expect("256 at most");
    }

    /// Adds each buffer of `group` to the ring, or none.
    fn add(&mut self, group: Group, refuse: bool) -> Result<(), Group> {
        let members = self.records[usize::from(group.0)].pending;
        let mut at = group.0;
        for _ in 0..members {
            let len = usize::from(self.records[usize::from(at)].len) * PFN_BYTES;
            let buffer = Buffer {
                gpa: self.memory(at).gpa(),
                len: u32::try_from(len).expect("1 KiB at most"),
                access: Access::DeviceReads,
            };
            // `has_room` has left entries for all members and a broken ring refuses
            // the first, so a refusal cannot come between two of them.
            let queue = self.queue.as_mut().filter(|_| !refuse).ok_or(group)?;
            queue.add(buffer, at).map_err(|_| group)?;
            at = self.records[usize::from(at)].next;
        }
        Ok(())
    }

    /// Shows the device all buffers added so far; returns whether it wants a kick.
    pub(super) fn publish(&mut self) -> bool {
        self.queue.as_mut().is_some_and(SplitQueue::publish)
    }

    /// Takes used buffers until a group is complete; `None` if none is.
    ///
    /// # Errors
    /// The device broke the rules: the queue is dead until a reset.
    pub(super) fn pop(&mut self) -> Result<Option<Group>, QueueError> {
        let Some(queue) = &mut self.queue else { return Ok(None) };
        while let Some(done) = queue.pop()? {
            let leader = self.records[usize::from(done.cookie)].leader;
            let pending = &mut self.records[usize::from(leader)].pending;
            *pending -= 1;
            if *pending == 0 {
                return Ok(Some(Group(leader)));
            }
        }
        Ok(None)
    }

    /// The PFN at `index` of the group's first buffer.
    ///
    /// Blocks are found by walking it: the block at a PFN says how many of the
    /// next PFNs are its own. A block with buffers of its own is the only one.
    pub(super) fn pfn(&self, group: Group, index: usize) -> Option<Pfn> {
        let len = usize::from(self.records[usize::from(group.0)].len);
        let wire = (index < len).then(|| self.memory(group.0).read_u32(index)).flatten()?;
        Some(Pfn::from_u32(wire))
    }

    /// Frees the buffers of a group that was completed or refused; returns its pages.
    pub(super) fn recycle(&mut self, group: Group) -> PageCount {
        let mut pages = 0;
        let mut at = group.0;
        loop {
            let record = self.records[usize::from(at)];
            pages += u64::from(record.len);
            self.free[usize::from(self.free_len)] = at;
            self.free_len += 1;
            if record.next == at {
                break;
            }
            at = record.next;
        }
        let pages = PageCount::new(pages);
        self.in_flight = self.in_flight.saturating_sub(pages);
        pages
    }

    fn memory(&self, index: BufferIndex) -> DmaSlice {
        let index = usize::from(index);
        let offset = index % BUFFERS_PER_PAGE * BUFFER_BYTES;
        let slice = self.pages.slice(index / BUFFERS_PER_PAGE, offset, BUFFER_BYTES);
        slice.expect("the buffer's page was lent at start")
    }
}

/// A group that the ring refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rejected {
    /// The group.
    pub(super) group: Group,
    /// Whether the block that was pushed is in it; if not, it entered nowhere.
    pub(super) entered: bool,
}

/// Buffers that a block of `order` needs if none is being filled.
const fn buffers_of(order: u32) -> u16 {
    if order <= WHOLE_BUFFER_ORDER { 1 } else { 1 << (order - WHOLE_BUFFER_ORDER) }
}

#[cfg(test)]
mod tests;
