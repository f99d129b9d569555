//! A byte stream over one pair of queues, with bounded buffers.

use super::driver::RING_ENTRIES;
use crate::virtio::{Access, Buffer, DmaSlice, PAGE_BYTES, QueueError, SplitQueue};

/// Bytes of a buffer.
const BUFFER_BYTES: usize = 512;
const _: () = assert!(BUFFER_BYTES * RING_ENTRIES as usize <= PAGE_BYTES);

/// A queue whose buffers are the equal parts of one page; the cookie is the part's number.
type BufferQueue = SplitQueue<u16, { RING_ENTRIES as usize }>;

/// The buffer that is being read.
#[derive(Debug, Clone, Copy)]
struct Reading {
    buffer: u16,
    next: usize,
    end: usize,
}

/// Device to driver.
#[derive(Debug)]
pub(super) struct Receiver {
    queue: BufferQueue,
    page: DmaSlice,
    reading: Option<Reading>,
}

impl Receiver {
    /// Posts every buffer of `page`; a kick is due if [`Self::publish`] says so.
    pub(super) fn start(queue: BufferQueue, page: DmaSlice) -> Result<Self, QueueError> {
        let mut receiver = Self { queue, page, reading: None };
        for buffer in 0..receiver.queue.capacity() {
            receiver.post(buffer)?;
        }
        Ok(receiver)
    }

    /// Copies what has arrived into `out`, at most its length.
    pub(super) fn receive(&mut self, out: &mut [u8]) -> Result<usize, QueueError> {
        let mut copied = 0;
        while copied < out.len() {
            let Some(reading) = self.reading()? else { break };
            let left = (reading.end - reading.next).min(out.len() - copied);
            let bytes = part(&self.page, reading.buffer);
            bytes.read(reading.next, &mut out[copied..copied + left]);
            copied += left;
            if reading.next + left == reading.end {
                self.post(reading.buffer)?;
            } else {
                self.reading = Some(Reading { next: reading.next + left, ..reading });
            }
        }
        Ok(copied)
    }

    /// Takes the buffer that is being read, or the next one that has arrived.
    fn reading(&mut self) -> Result<Option<Reading>, QueueError> {
        if let Some(reading) = self.reading.take() {
            return Ok(Some(reading));
        }
        let Some(done) = self.queue.pop()? else { return Ok(None) };
        // `pop` has bounded `written` by the buffer's length.
        Ok(Some(Reading { buffer: done.cookie, next: 0, end: done.written as usize }))
    }

    fn post(&mut self, buffer: u16) -> Result<(), QueueError> {
        self.queue.add(part_as(&self.page, buffer, BUFFER_BYTES, Access::DeviceWrites), buffer)
    }

    /// Shows the device the posted buffers; returns whether it wants a kick.
    pub(super) fn publish(&mut self) -> bool {
        self.queue.publish()
    }
}

/// Driver to device.
#[derive(Debug)]
pub(super) struct Sender {
    queue: BufferQueue,
    page: DmaSlice,
    /// Bit `n`: buffer `n` is free.
    free: u16,
}

impl Sender {
    /// A sender whose buffers are all free.
    pub(super) fn new(queue: BufferQueue, page: DmaSlice) -> Self {
        let free = (1u32 << queue.capacity()) - 1;
        Self { queue, page, free: u16::try_from(free).unwrap_or(u16::MAX) }
    }

    /// Copies as much of `bytes` as fits into free buffers and returns how much that was.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<usize, QueueError> {
        while let Some(done) = self.queue.pop()? {
            self.free |= 1 << done.cookie;
        }
        let mut sent = 0;
        for chunk in bytes.chunks(BUFFER_BYTES) {
            if self.free == 0 {
                break;
            }
            // Below 16: `free` has a bit set.
            let buffer = u16::try_from(self.free.trailing_zeros()).unwrap_or(0);
            let memory = part(&self.page, buffer);
            memory.write(chunk);
            self.queue
                .add(part_as(&self.page, buffer, chunk.len(), Access::DeviceReads), buffer)?;
            self.free &= !(1 << buffer);
            sent += chunk.len();
        }
        Ok(sent)
    }

    /// Shows the device the added buffers; returns whether it wants a kick.
    pub(super) fn publish(&mut self) -> bool {
        self.queue.publish()
    }
}

/// Buffer number `buffer` of `page`.
///
/// # Panics
/// If there is no such buffer: a bug here, since numbers come from cookies.
fn part(page: &DmaSlice, buffer: u16) -> DmaSlice {
    let part = page.part(usize::from(buffer) * BUFFER_BYTES, BUFFER_BYTES);
    part.expect("a buffer lies in its page")
}

fn part_as(page: &DmaSlice, buffer: u16, len: usize, access: Access) -> Buffer {
    let len = u32::try_from(len.min(BUFFER_BYTES)).expect("512 at most");
    Buffer { gpa: part(page, buffer).gpa(), len, access }
}
