//! A split virtqueue, the driver's side (virtio 1.2 §2.7).
//!
//! Each buffer is one descriptor, or two for a request with room for its answer,
//! and carries a cookie, found again by its head when the device returns it. [`SplitQueue::add`] fills descriptors and ring
//! entries, [`SplitQueue::publish`] shows them all to the device at once, so a
//! batch costs one kick.
//!
//! The device is not trusted: a used element must name a buffer that is
//! outstanding, once, and may not claim more bytes than the buffer has.
//! Anything else marks the queue broken; only a device reset mends it.
//!
//! # Orderings
//! * descriptors and ring entries → `avail.idx`: Release store in `publish`,
//!   pairs with the device's Acquire load of `avail.idx`;
//! * `used.idx` → used elements and buffer contents: Acquire load in `pop`,
//!   pairs with the device's Release store after it has written both;
//! * `avail.idx` store → `used.flags` load: SeqCst fence in `publish`, pairs
//!   with the device's fence between its `used.flags` store and its last look
//!   at `avail.idx`. Without it both sides could miss each other and the buffer
//!   would wait for a kick that never comes.

use core::fmt;

#[cfg(not(loom))]
use core::sync::atomic::{Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{Ordering, fence};

use abi::virtio::ring::{VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_USED_F_NO_NOTIFY};

use super::ring::RingMemory;

/// Who writes a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The driver wrote it, the device reads it.
    DeviceReads,
    /// The device writes it.
    DeviceWrites,
}

/// A buffer in memory lent to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Bytes, not 0.
    pub len: u32,
    /// Who writes it.
    pub access: Access,
}

/// A buffer that the device has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion<T> {
    /// What [`SplitQueue::add`] was given with the buffer.
    pub cookie: T,
    /// Bytes that the device wrote, at most the buffer's length; 0 for
    /// [`Access::DeviceReads`], where the device's figure means nothing.
    pub written: u32,
}

/// A step on a queue failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueError {
    /// Every entry is outstanding: try again after a completion.
    Full,
    /// The buffer has no byte: the caller's bug.
    EmptyBuffer,
    /// The device returned a head that is not outstanding (or returned it twice).
    UnknownHead {
        /// The head it named.
        head: u32,
    },
    /// The device moved its used index past all outstanding buffers.
    UsedIndexJump {
        /// Elements it claims to have returned since the last look.
        claimed: u16,
        /// Buffers that it had.
        outstanding: u16,
    },
    /// The device claims to have written more than the buffer holds.
    LengthTooLong {
        /// Bytes it claims.
        claimed: u32,
        /// Bytes of the buffer.
        len: u32,
    },
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("Every entry of the virtqueue is outstanding"),
            Self::EmptyBuffer => f.write_str("A virtqueue buffer has no byte"),
            Self::UnknownHead { head } => {
                write!(f, "The device returned head {head}, which is not outstanding")
            }
            Self::UsedIndexJump { claimed, outstanding } => write!(
                f,
                "The device claims {claimed} returned buffers, {outstanding} were outstanding"
            ),
            Self::LengthTooLong { claimed, len } => {
                write!(f, "The device claims {claimed} bytes written to a buffer of {len}")
            }
        }
    }
}

impl core::error::Error for QueueError {}

#[derive(Debug, Clone, Copy)]
struct Outstanding<T> {
    cookie: T,
    /// Bytes that the device may write; `None` if it may not.
    writable: Option<u32>,
    /// The answer's descriptor, if it has one of its own.
    answer: Option<u16>,
    /// How many buffers had been added before: tells whether the device has seen it.
    serial: u64,
}

/// One virtqueue with at most `N` buffers outstanding, each with a cookie `T`.
#[derive(Debug)]
pub struct SplitQueue<T, const N: usize> {
    ring: RingMemory,
    outstanding: [Option<Outstanding<T>>; N],
    /// A stack of the heads that are free: the first `free_len` are valid.
    free: [u16; N],
    free_len: u16,
    /// Buffers added and not yet returned.
    in_use: u16,
    /// Buffers ever added; `avail.idx` after the next publication, modulo 2^16.
    added: u64,
    /// Buffers ever published; `avail.idx` as the device sees it, modulo 2^16.
    published: u64,
    /// The used element to look at next.
    next_used: u16,
    broken: Option<QueueError>,
}

impl<T: Copy, const N: usize> SplitQueue<T, N> {
    /// A queue over zeroed `ring`, or `None` if the ring has more than `N` entries.
    pub fn new(ring: RingMemory) -> Option<Self> {
        let entries = ring.entries();
        if usize::from(entries) > N {
            return None;
        }
        let mut free = [0; N];
        for (head, slot) in (0..entries).rev().zip(free.iter_mut()) {
            *slot = head;
        }
        Some(Self {
            ring,
            outstanding: [None; N],
            free,
            free_len: entries,
            in_use: 0,
            added: 0,
            published: 0,
            next_used: 0,
            broken: None,
        })
    }

    /// The memory of the ring.
    pub const fn ring(&self) -> &RingMemory {
        &self.ring
    }

    /// Entries of the ring.
    pub fn capacity(&self) -> u16 {
        self.ring.entries()
    }

    /// Descriptors that are free: buffers that can still be added, if each is one.
    pub const fn free_entries(&self) -> u16 {
        self.free_len
    }

    /// Buffers added and not yet returned.
    pub const fn outstanding(&self) -> u16 {
        self.in_use
    }

    /// What broke the queue, if anything did.
    pub const fn broken(&self) -> Option<QueueError> {
        self.broken
    }

    /// Adds a buffer; the device sees it after the next [`Self::publish`].
    ///
    /// # Errors
    /// [`QueueError::Full`], [`QueueError::EmptyBuffer`], or what broke the queue.
    pub fn add(&mut self, buffer: Buffer, cookie: T) -> Result<(), QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if buffer.len == 0 {
            return Err(QueueError::EmptyBuffer);
        }
        let head = self.take_descriptor().ok_or(QueueError::Full)?;
        let writable = match buffer.access {
            Access::DeviceReads => None,
            Access::DeviceWrites => Some(buffer.len),
        };
        self.describe(head, buffer, 0);
        self.add_head(head, Outstanding { cookie, writable, answer: None, serial: self.added });
        Ok(())
    }

    /// Adds a request with room for the device's answer: a chain of two, as most
    /// devices want it. Completes as one buffer, whose length is the answer's.
    ///
    /// # Errors
    /// As [`Self::add`]; [`QueueError::Full`] with a single free descriptor.
    pub fn add_request(
        &mut self,
        (request_gpa, request_len): (u64, u32),
        (answer_gpa, answer_len): (u64, u32),
        cookie: T,
    ) -> Result<(), QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if request_len == 0 || answer_len == 0 {
            return Err(QueueError::EmptyBuffer);
        }
        if self.free_len < 2 {
            return Err(QueueError::Full);
        }
        let head = self.take_descriptor().ok_or(QueueError::Full)?;
        let tail = self.take_descriptor().ok_or(QueueError::Full)?;
        let request = Buffer { gpa: request_gpa, len: request_len, access: Access::DeviceReads };
        let answer = Buffer { gpa: answer_gpa, len: answer_len, access: Access::DeviceWrites };
        self.describe(tail, answer, 0);
        // Relaxed: as in `describe`.
        self.ring.desc_next(head).store(tail.to_le(), Ordering::Relaxed);
        self.describe(head, request, VIRTQ_DESC_F_NEXT);
        let (writable, answer) = (Some(answer_len), Some(tail));
        self.add_head(head, Outstanding { cookie, writable, answer, serial: self.added });
        Ok(())
    }

    fn take_descriptor(&mut self) -> Option<u16> {
        let top = self.free_len.checked_sub(1)?;
        self.free_len = top;
        Some(self.free[usize::from(top)])
    }

    fn give_descriptor(&mut self, descriptor: u16) {
        self.free[usize::from(self.free_len)] = descriptor;
        self.free_len += 1;
    }

    fn describe(&self, descriptor: u16, buffer: Buffer, flags: u16) {
        let access = match buffer.access {
            Access::DeviceReads => 0,
            Access::DeviceWrites => VIRTQ_DESC_F_WRITE,
        };
        // Relaxed: `publish` orders these stores before the index.
        self.ring.desc_addr(descriptor).store(buffer.gpa.to_le(), Ordering::Relaxed);
        self.ring.desc_len(descriptor).store(buffer.len.to_le(), Ordering::Relaxed);
        self.ring.desc_flags(descriptor).store((flags | access).to_le(), Ordering::Relaxed);
    }

    fn add_head(&mut self, head: u16, outstanding: Outstanding<T>) {
        self.outstanding[usize::from(head)] = Some(outstanding);
        // Relaxed: as in `describe`.
        self.ring.avail_entry(ring_index(self.added)).store(head.to_le(), Ordering::Relaxed);
        self.added += 1;
        self.in_use += 1;
    }

    /// Shows the device everything added so far; returns whether it wants a kick.
    #[must_use = "the device may sleep until it is kicked"]
    pub fn publish(&mut self) -> bool {
        if self.published == self.added {
            return false;
        }
        self.published = self.added;
        // Release: pairs with the device's Acquire load of `avail.idx`.
        self.ring.avail_idx().store(ring_index(self.published).to_le(), Ordering::Release);
        // Orders the store above before the load below; see the module's page.
        fence(Ordering::SeqCst);
        let flags = u16::from_le(self.ring.used_flags().load(Ordering::Relaxed));
        flags & VIRTQ_USED_F_NO_NOTIFY == 0
    }

    /// Takes the next buffer that the device has returned, if there is one.
    ///
    /// # Errors
    /// The device broke a rule: the queue is broken from here on, nothing more
    /// is taken from it and its outstanding buffers stay the device's.
    pub fn pop(&mut self) -> Result<Option<Completion<T>>, QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let popped = self.pop_checked();
        if let Err(error) = popped {
            self.broken = Some(error);
        }
        popped
    }

    fn pop_checked(&mut self) -> Result<Option<Completion<T>>, QueueError> {
        // Acquire: pairs with the device's Release store of `used.idx`.
        let used_idx = u16::from_le(self.ring.used_idx().load(Ordering::Acquire));
        let claimed = used_idx.wrapping_sub(self.next_used);
        if claimed == 0 {
            return Ok(None);
        }
        let outstanding = self.outstanding();
        if claimed > outstanding {
            return Err(QueueError::UsedIndexJump { claimed, outstanding });
        }
        // Each field is read once; only these copies are judged and used.
        let head = u32::from_le(self.ring.used_id(self.next_used).load(Ordering::Relaxed));
        let len = u32::from_le(self.ring.used_len(self.next_used).load(Ordering::Relaxed));
        let (head, buffer) = self.take(head)?;
        let written = match buffer.writable {
            None => 0,
            Some(writable) if len <= writable => len,
            Some(writable) => {
                return Err(QueueError::LengthTooLong { claimed: len, len: writable });
            }
        };
        self.next_used = self.next_used.wrapping_add(1);
        self.in_use -= 1;
        buffer.answer.into_iter().for_each(|descriptor| self.give_descriptor(descriptor));
        self.give_descriptor(head);
        Ok(Some(Completion { cookie: buffer.cookie, written }))
    }

    /// Takes the outstanding buffer that the device calls `head`.
    fn take(&mut self, head: u32) -> Result<(u16, Outstanding<T>), QueueError> {
        let index = u16::try_from(head).map_err(|_| QueueError::UnknownHead { head })?;
        let slot = self.outstanding.get_mut(usize::from(index));
        // A buffer that was not published is one that the device cannot have used.
        let seen = slot.and_then(|slot| slot.take_if(|buffer| buffer.serial < self.published));
        let buffer = seen.ok_or(QueueError::UnknownHead { head })?;
        Ok((index, buffer))
    }

    /// The cookies of the buffers that the device still has, in no order.
    pub fn outstanding_cookies(&self) -> impl Iterator<Item = T> + '_ {
        self.outstanding.iter().flatten().map(|buffer| buffer.cookie)
    }
}

/// A count of buffers as the 16-bit index that the ring shows.
fn ring_index(count: u64) -> u16 {
    u16::try_from(count & u64::from(u16::MAX)).expect("masked to 16 bits")
}

#[cfg(test)]
mod tests;
