//! Start, reading, end.

use core::fmt;

use abi::virtio::VIRTIO_ID_RNG;

use crate::virtio::{
    Access, Buffer, DmaMemory, DmaPages, DmaSlice, MmioBus, MmioDevice, PAGE_BYTES, ProbeError,
    QueueError, RingMemory, SetupError, SplitQueue,
};

/// The one queue (§5.4.2).
const REQUEST_QUEUE: u16 = 0;
/// Entries of the queue; a device with fewer is served with fewer.
const RING_ENTRIES: u16 = 8;
/// Bytes of a buffer.
const BUFFER_BYTES: usize = PAGE_BYTES / RING_ENTRIES as usize;
/// Answers without a byte in a row that end the driver.
const MAX_EMPTY_ANSWERS: u32 = 64;
/// Lent pages: the ring, and the buffers.
const PAGES: usize = 2;
const RING_PAGE: usize = 0;
const BUFFER_PAGE: usize = 1;

type RequestQueue = SplitQueue<Request, { RING_ENTRIES as usize }>;

/// A buffer with the device.
#[derive(Debug, Clone, Copy)]
struct Request {
    buffer: u16,
    bytes: usize,
}

/// The entropy device cannot be used (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntropyError {
    /// The window holds no entropy device.
    Probe(ProbeError),
    /// The device could not be set up.
    Setup(SetupError),
    /// The device broke the rules of its queue.
    Queue(QueueError),
    /// The device returned too many buffers in a row without a byte in them.
    NoBytes,
    /// The device asks for a reset.
    NeedsReset,
}

impl fmt::Display for EntropyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(_) => f.write_str("No entropy device"),
            Self::Setup(_) => f.write_str("The entropy device could not be set up"),
            Self::Queue(_) => f.write_str("The entropy device broke the rules of a virtqueue"),
            Self::NoBytes => {
                write!(f, "The entropy device returned {MAX_EMPTY_ANSWERS} empty buffers in a row")
            }
            Self::NeedsReset => f.write_str("The entropy device needs a reset"),
        }
    }
}

impl core::error::Error for EntropyError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Probe(source) => Some(source),
            Self::Setup(source) => Some(source),
            Self::Queue(source) => Some(source),
            Self::NoBytes | Self::NeedsReset => None,
        }
    }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntropyCounters {
    /// Bytes that the device has sent.
    pub received_bytes: u64,
    /// Buffers posted.
    pub requests: u64,
    /// Buffers that came back without a byte.
    pub empty_answers: u64,
}

/// Bytes of a buffer that are still to be handed out.
#[derive(Debug, Clone, Copy)]
struct Left {
    buffer: u16,
    next: usize,
    end: usize,
}

/// The driver of one virtio-rng device.
#[derive(Debug)]
pub struct EntropyDriver<B> {
    device: MmioDevice<B>,
    pages: DmaPages<PAGES>,
    queue: RequestQueue,
    /// Bit `n`: buffer `n` is neither with the device nor being read.
    free: u16,
    left: Option<Left>,
    /// Bytes asked for in buffers that the device has.
    asked: usize,
    /// Answers without a byte since the last with one.
    empty_in_a_row: u32,
    failed: Option<EntropyError>,
    counters: EntropyCounters,
}

impl<B: MmioBus> EntropyDriver<B> {
    /// Starts the entropy device behind `bus`.
    ///
    /// # Errors
    /// [`EntropyError`]; no memory stays lent, except to a device that does not
    /// finish its reset.
    pub fn start<M: DmaMemory + ?Sized>(bus: B, memory: &M) -> Result<Self, EntropyError> {
        let device = MmioDevice::probe(bus)
            .and_then(|device| device.expect_id(VIRTIO_ID_RNG))
            .map_err(EntropyError::Probe)?;
        device.reset().map_err(EntropyError::Setup)?;
        let pages = DmaPages::lend(memory, PAGES);
        let pages = pages.ok_or(EntropyError::Setup(SetupError::NoMemory))?;
        match bring_up(&device, &pages) {
            Ok(queue) => Ok(Self {
                free: u16::try_from((1u32 << queue.capacity()) - 1).unwrap_or(u16::MAX),
                device,
                pages,
                queue,
                left: None,
                asked: 0,
                empty_in_a_row: 0,
                failed: None,
                counters: EntropyCounters::default(),
            }),
            Err(error) => {
                if device.reset().is_ok() {
                    // SAFETY: the reset is complete, so the device uses no queue any
                    // more; the queue that could hold slices was not made.
                    unsafe { pages.take_back(memory) };
                }
                Err(EntropyError::Setup(error))
            }
        }
    }

    /// Acknowledges an interrupt; to be called when the device's line fired.
    pub fn interrupt(&mut self) {
        if self.device.acknowledge_interrupt().config && self.device.needs_reset() {
            self.failed.get_or_insert(EntropyError::NeedsReset);
        }
    }

    /// Copies bytes that have arrived into `out`, asks the device for those that
    /// are missing, and returns how many were copied; bounded work, no waiting.
    ///
    /// Fewer than `out.len()`: call again, with the rest, after the next interrupt.
    ///
    /// # Errors
    /// What ended the driver; it gives no byte any more.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, EntropyError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let read = self.take_and_ask(out);
        if self.queue.publish() {
            self.device.notify(REQUEST_QUEUE);
        }
        read.map_err(|error| *self.failed.get_or_insert(error))
    }

    fn take_and_ask(&mut self, out: &mut [u8]) -> Result<usize, EntropyError> {
        let mut copied = 0;
        while let Some(rest) = out.get_mut(copied..).filter(|rest| !rest.is_empty()) {
            let Some(left) = self.left()? else { break };
            copied += self.hand_out(left, rest);
        }
        self.ask(out.len() - copied)?;
        Ok(copied)
    }

    /// The buffer that is being read, or the next one that has come back with bytes.
    fn left(&mut self) -> Result<Option<Left>, EntropyError> {
        if let Some(left) = self.left.take() {
            return Ok(Some(left));
        }
        while let Some(done) = self.queue.pop().map_err(EntropyError::Queue)? {
            let Request { buffer, bytes } = done.cookie;
            self.asked -= bytes;
            // `pop` has bounded it by the buffer's length.
            let end = done.written as usize;
            self.counters.received_bytes += u64::from(done.written);
            if end > 0 {
                self.empty_in_a_row = 0;
                return Ok(Some(Left { buffer, next: 0, end }));
            }
            self.free |= 1 << buffer;
            self.counters.empty_answers += 1;
            self.empty_in_a_row += 1;
            if self.empty_in_a_row >= MAX_EMPTY_ANSWERS {
                return Err(EntropyError::NoBytes);
            }
        }
        Ok(None)
    }

    /// Moves bytes of a buffer into `out`; what does not fit stays for the next call.
    fn hand_out(&mut self, left: Left, out: &mut [u8]) -> usize {
        let count = out.len().min(left.end - left.next);
        let memory = self.buffer(left.buffer);
        let copied = memory.read(left.next, out.get_mut(..count).unwrap_or(&mut []));
        // Nobody gets these again.
        if let Some(used) = memory.part(left.next, copied) {
            used.zero();
        }
        if left.next + copied == left.end {
            self.free |= 1 << left.buffer;
        } else {
            self.left = Some(Left { next: left.next + copied, ..left });
        }
        copied
    }

    /// Posts buffers until `wanted` bytes are on their way, or no buffer is free.
    fn ask(&mut self, wanted: usize) -> Result<(), EntropyError> {
        while self.asked < wanted && self.free != 0 {
            // Below 16: `free` has a bit set.
            let buffer = u16::try_from(self.free.trailing_zeros()).unwrap_or(0);
            let bytes = (wanted - self.asked).min(BUFFER_BYTES);
            let len = u32::try_from(bytes).unwrap_or(0);
            let gpa = self.buffer(buffer).gpa();
            self.queue
                .add(Buffer { gpa, len, access: Access::DeviceWrites }, Request { buffer, bytes })
                .map_err(EntropyError::Queue)?;
            self.free &= !(1 << buffer);
            self.asked += bytes;
            self.counters.requests += 1;
        }
        Ok(())
    }

    /// Buffer number `buffer`.
    ///
    /// # Panics
    /// If there is no such buffer: a bug here, since numbers come from cookies.
    fn buffer(&self, buffer: u16) -> DmaSlice {
        let offset = usize::from(buffer) * BUFFER_BYTES;
        self.pages.slice(BUFFER_PAGE, offset, BUFFER_BYTES).expect("a buffer lies in its page")
    }

    /// What happened so far.
    pub const fn counters(&self) -> EntropyCounters {
        self.counters
    }

    /// Resets the device and gives the memory back, the buffers erased.
    ///
    /// # Errors
    /// [`SetupError::ResetStuck`]: the device may still use the memory, which stays lent.
    pub fn shut_down<M: DmaMemory + ?Sized>(self, memory: &M) -> Result<(), SetupError> {
        self.device.reset()?;
        if let Some(buffers) = self.pages.slice(BUFFER_PAGE, 0, PAGE_BYTES) {
            buffers.zero();
        }
        // SAFETY: the reset is complete, so the device uses no queue any more; the
        // slices die with `self`, which is consumed here.
        unsafe { self.pages.take_back(memory) };
        Ok(())
    }
}

/// Negotiates and starts the device after a completed reset; the device knows no feature of its own (§5.4.3).
fn bring_up<B: MmioBus>(
    device: &MmioDevice<B>,
    pages: &DmaPages<PAGES>,
) -> Result<RequestQueue, SetupError> {
    device.negotiate(0)?;
    let entries = device.queue_entries(REQUEST_QUEUE, RING_ENTRIES)?;
    let refused = SetupError::QueueRefused { queue: REQUEST_QUEUE };
    let memory = pages.slice(RING_PAGE, 0, PAGE_BYTES).ok_or(SetupError::NoMemory)?;
    let ring = RingMemory::in_one_piece(entries, memory).ok_or(refused)?;
    device.enable_queue(REQUEST_QUEUE, &ring)?;
    let queue = RequestQueue::new(ring).ok_or(refused)?;
    device.start()?;
    Ok(queue)
}
