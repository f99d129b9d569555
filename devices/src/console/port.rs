//! One port: its bounded buffers, and moving bytes between them and the rings.

use std::collections::VecDeque;

use vm_memory::GuestMemoryMmap;

use super::control::Due;
use super::counters::ConsoleCounters;
use crate::ring::{PoppedChain, Virtqueue};
use crate::virtio::{GuestFault, Interrupt, QueueProgress};

/// Bytes that a port holds in each direction.
pub const PORT_BUFFER_BYTES: usize = 64 << 10;

/// Bytes copied from guest memory at a time.
const COPY_BYTES: usize = 4 << 10;

/// What happens to the guest's bytes while the host does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// They stay in the ring: the guest waits.
    Wait,
    /// The oldest are overwritten. A console's driver spins until its buffer
    /// comes back, so waiting would hang a guest that nobody watches.
    Overwrite,
}

/// Columns and rows of the terminal behind a console; 0 when they are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsoleSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// One port.
#[derive(Debug)]
pub(super) struct Port {
    /// Empty for the console port, which has no name.
    name: String,
    when_full: WhenFull,
    /// Messages that the driver has not been sent yet.
    pub(super) due: Due,
    guest_open: bool,
    sessions: u64,
    from_guest: VecDeque<u8>,
    to_guest: VecDeque<u8>,
    /// A transmit chain of which so many bytes have been taken.
    partial: Option<(PoppedChain, u32)>,
    /// Transmit chains returned so far.
    returned: u64,
    /// The driver has been told, or is owed to be, what the port is.
    introduced: bool,
}

impl Port {
    pub(super) fn new(name: &str, when_full: WhenFull) -> Self {
        Self {
            name: name.to_owned(),
            when_full,
            due: Due::empty(),
            guest_open: false,
            sessions: 0,
            from_guest: VecDeque::new(),
            to_guest: VecDeque::new(),
            partial: None,
            returned: 0,
            introduced: false,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_open(&self) -> bool {
        self.guest_open
    }

    pub(super) fn sessions(&self) -> u64 {
        self.sessions
    }

    pub(super) fn readable(&self) -> usize {
        self.from_guest.len()
    }

    /// Whether it is the console port, which has no name.
    pub(super) fn is_console(&self) -> bool {
        self.name.is_empty()
    }

    pub(super) fn set_when_full(&mut self, when_full: WhenFull) {
        self.when_full = when_full;
    }

    /// Transmit chains returned so far.
    pub(super) fn returned(&self) -> u64 {
        self.returned
    }

    /// DEVICE_READY: the driver wants to hear of the port.
    pub(super) fn announce(&mut self) {
        self.due = Due::ADD;
        self.introduced = false;
    }

    /// PORT_READY: the driver wants to know what the port is; `sized`: and how large.
    pub(super) fn introduce(&mut self, sized: bool) {
        self.due |= if self.is_console() { Due::CONSOLE } else { Due::NAME } | Due::OPEN;
        self.introduced = true;
        if sized {
            self.resized();
        }
    }

    /// The terminal has another size. A driver that does not know the port yet hears of it then.
    pub(super) fn resized(&mut self) {
        if self.is_console() && self.introduced {
            self.due |= Due::SIZE;
        }
    }

    /// PORT_OPEN 1.
    pub(super) fn open(&mut self) {
        if !self.guest_open {
            self.guest_open = true;
            self.sessions += 1;
        }
    }

    /// PORT_OPEN 0: nobody will read what the guest has not taken yet. What it
    /// has sent stays for the host.
    pub(super) fn close(&mut self, counters: &mut ConsoleCounters) {
        self.guest_open = false;
        counters.bytes_discarded += count_of(self.to_guest.len());
        self.to_guest.clear();
    }

    /// The rings are gone. The output of a console stays readable, since it is
    /// what explains the reset; half a conversation does not.
    pub(super) fn reset(&mut self, counters: &mut ConsoleCounters) {
        self.close(counters);
        self.introduced = false;
        if !self.is_console() {
            counters.bytes_discarded += count_of(self.from_guest.len());
            self.from_guest.clear();
        }
        self.due = Due::empty();
        if let Some((chain, _)) = self.partial.take() {
            chain.abandon_at_reset();
        }
    }

    /// Queues host bytes for the guest; returns how many were taken.
    ///
    /// None while the guest's side is closed: a driver discards such bytes.
    pub(super) fn push(&mut self, data: &[u8]) -> usize {
        let taken = data.get(..self.room_to_guest()).unwrap_or(data);
        self.to_guest.extend(taken);
        taken.len()
    }

    /// Bytes that [`Self::push`] would take.
    pub(super) fn room_to_guest(&self) -> usize {
        let limit = if self.guest_open { PORT_BUFFER_BYTES } else { 0 };
        limit.saturating_sub(self.to_guest.len())
    }

    /// Moves at most `max` bytes that the guest has sent to `out`; returns how many.
    pub(super) fn pull(&mut self, out: &mut Vec<u8>, max: usize) -> usize {
        let len = self.from_guest.len().min(max);
        out.extend(self.from_guest.drain(..len));
        len
    }

    /// Takes bytes from the transmit ring while there is room (guest to host).
    pub(super) fn drain_transmit(
        &mut self,
        queue: &mut Virtqueue,
        mem: &GuestMemoryMmap,
        interrupt: &dyn Interrupt,
        counters: &mut ConsoleCounters,
    ) -> Result<QueueProgress, GuestFault> {
        let mut progress = QueueProgress::Pending;
        let mut returned = false;
        for _ in 0..queue.size() {
            if self.is_full() {
                // The host's next read comes back here.
                progress = QueueProgress::Idle;
                break;
            }
            let (chain, offset) = match self.partial.take() {
                Some(partial) => partial,
                None => match queue.pop(mem)? {
                    Some(chain) => (chain, 0),
                    None => {
                        progress = QueueProgress::Idle;
                        break;
                    }
                },
            };
            match self.accept(&chain, offset, mem, counters) {
                Accepted::Whole => {
                    queue.complete(mem, chain, 0)?;
                    self.returned += 1;
                    returned = true;
                }
                Accepted::UpTo(offset) => self.partial = Some((chain, offset)),
            }
        }
        if returned {
            queue.signal_used(mem, interrupt)?;
        }
        Ok(progress)
    }

    /// Gives waiting bytes to the receive ring (host to guest).
    pub(super) fn fill_receive(
        &mut self,
        queue: &mut Virtqueue,
        mem: &GuestMemoryMmap,
        interrupt: &dyn Interrupt,
        counters: &mut ConsoleCounters,
    ) -> Result<QueueProgress, GuestFault> {
        let mut returned = false;
        // Chains that take bytes are bounded by the bytes; only useless ones count.
        let mut useless = 0;
        while !self.to_guest.is_empty() && useless < queue.size() {
            let Some(chain) = queue.pop(mem)? else { break };
            let written = self.offer(&chain, mem, counters);
            if written == 0 {
                useless += 1;
            }
            queue.complete(mem, chain, written)?;
            returned = true;
        }
        if returned {
            queue.signal_used(mem, interrupt)?;
        }
        let gave_up = useless == queue.size();
        Ok(if gave_up { QueueProgress::Pending } else { QueueProgress::Idle })
    }

    /// Whether the guest has to wait until the host reads.
    pub(super) fn is_full(&self) -> bool {
        self.when_full == WhenFull::Wait && self.from_guest.len() >= PORT_BUFFER_BYTES
    }

    /// Copies from a transmit chain, from `offset` on, as much as there is room for.
    fn accept(
        &mut self,
        chain: &PoppedChain,
        offset: u32,
        mem: &GuestMemoryMmap,
        counters: &mut ConsoleCounters,
    ) -> Accepted {
        let buffers = match chain.buffers() {
            Ok(buffers) => buffers,
            Err(fault) => {
                counters.bad_chain(fault);
                return Accepted::Whole;
            }
        };
        if !buffers.writable().is_empty() {
            counters.chain_wrong_direction += 1;
            return Accepted::Whole;
        }
        let total = buffers.readable_bytes();
        let (mut offset, end) = match self.when_full {
            WhenFull::Wait => (offset, total.min(offset.saturating_add(self.room()))),
            // The host may have stopped reading in the middle of a chain.
            WhenFull::Overwrite => {
                let left = total.saturating_sub(offset);
                (offset.saturating_add(self.make_room(left, counters)), total)
            }
        };
        let mut block = [0; COPY_BYTES];
        while offset < end {
            let want = usize::try_from(end - offset).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let read = block.get_mut(..want).map_or(Ok(0), |out| buffers.read(mem, offset, out));
            match read {
                // Neither happens to a checked chain; the rest of it is skipped.
                Ok(0) => return Accepted::Whole,
                Err(fault) => {
                    counters.bad_chain(fault);
                    return Accepted::Whole;
                }
                Ok(read) => {
                    self.from_guest.extend(block.iter().take(read));
                    counters.bytes_from_guest += count_of(read);
                    offset = offset.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
                }
            }
        }
        if offset < total { Accepted::UpTo(offset) } else { Accepted::Whole }
    }

    fn room(&self) -> u32 {
        u32::try_from(PORT_BUFFER_BYTES.saturating_sub(self.from_guest.len())).unwrap_or(0)
    }

    /// Overwrites the oldest output for `total` new bytes; returns how many of
    /// those would be overwritten themselves and need not be read.
    fn make_room(&mut self, total: u32, counters: &mut ConsoleCounters) -> u32 {
        let capacity = u32::try_from(PORT_BUFFER_BYTES).unwrap_or(u32::MAX);
        let skipped = total.saturating_sub(capacity);
        let missing = usize::try_from(total - skipped)
            .unwrap_or(PORT_BUFFER_BYTES)
            .saturating_add(self.from_guest.len())
            .saturating_sub(PORT_BUFFER_BYTES);
        self.from_guest.drain(..missing.min(self.from_guest.len()));
        counters.bytes_from_guest += u64::from(skipped);
        counters.bytes_overwritten += u64::from(skipped) + count_of(missing);
        skipped
    }

    /// Moves waiting bytes into a receive chain; returns how many.
    fn offer(
        &mut self,
        chain: &PoppedChain,
        mem: &GuestMemoryMmap,
        counters: &mut ConsoleCounters,
    ) -> u32 {
        let waiting = self.to_guest.make_contiguous();
        let written = chain.buffers().and_then(|buffers| {
            if buffers.readable().is_empty() { buffers.write(mem, 0, waiting) } else { Ok(0) }
        });
        match written {
            Ok(0) => counters.chain_wrong_direction += 1,
            Ok(written) => {
                self.to_guest.drain(..written);
                counters.bytes_to_guest += count_of(written);
                return u32::try_from(written).unwrap_or(u32::MAX);
            }
            Err(fault) => counters.bad_chain(fault),
        }
        0
    }
}

/// How much of a transmit chain was taken.
enum Accepted {
    /// All that there is to take: return the chain.
    Whole,
    /// Bytes up to this offset; the rest when there is room.
    UpTo(u32),
}

/// A length as a counter's increment.
fn count_of(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
