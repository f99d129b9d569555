//! What goes to the device and comes back: configuration, requests, answers.

use core::fmt;

use abi::mem::{
    CONFIG_ADDR, CONFIG_BLOCK_SIZE, CONFIG_PLUGGED_SIZE, CONFIG_REGION_SIZE, CONFIG_REQUESTED_SIZE,
    CONFIG_USABLE_REGION_SIZE, GUEST_REQUEST_QUEUE, REQUEST_ADDR, REQUEST_BYTES, REQUEST_NB_BLOCKS,
    REQUEST_TYPE, RESPONSE_BYTES, RESPONSE_STATE, RESPONSE_TYPE, request, response, state,
};
use abi::virtio::VIRTIO_ID_MEM;
use abi::{PAGE_SIZE, PageCount, Pfn, PfnRange};

use super::MAX_BLOCK_PAGES;
use crate::virtio::{
    DmaMemory, DmaPages, DmaSlice, MmioBus, MmioDevice, QueueError, RingMemory, SetupError,
    SplitQueue,
};

/// Ring entries: a request takes two, and there is one at a time.
const ENTRIES: u16 = 8;
/// Where the page has the request, behind the ring.
const REQUEST_AT: usize = 1024;
/// Where the page has the answer.
const ANSWER_AT: usize = 2048;

/// What a device says of itself that makes no sense, or that this driver has no use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionError {
    /// The block size is no power of two between a page and 128 MiB.
    BlockSize {
        /// The size in bytes.
        bytes: u64,
    },
    /// The region does not begin and end at blocks, or leaves the address space.
    Misplaced {
        /// Where it begins.
        gpa: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// The device changes its configuration faster than it can be read.
    Unstable,
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockSize { bytes } => {
                write!(
                    f,
                    "Device blocks of {bytes} bytes: not a power of two from 4 KiB to 128 MiB"
                )
            }
            Self::Misplaced { gpa, bytes } => {
                write!(f, "The region of {bytes} bytes at {gpa:#x} is not made of device blocks")
            }
            Self::Unstable => f.write_str("The configuration changes faster than it can be read"),
        }
    }
}

impl core::error::Error for RegionError {}

/// Where a device has memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// All of it.
    pub(super) range: PfnRange,
    /// Pages of a device block: what is plugged and unplugged at once.
    pub(super) unit: PageCount,
}

/// Where the memory device in `bus` has memory, for what must be as large before there is
/// a driver; `None`: it is no memory device, or says nothing that makes sense.
///
/// Writes nothing.
pub fn region_of<B: MmioBus>(bus: B) -> Option<PfnRange> {
    let device = MmioDevice::probe(bus).ok()?.expect_id(VIRTIO_ID_MEM).ok()?;
    Region::read(&device).ok().map(|region| region.range)
}

/// What a device wants, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Config {
    /// Pages from the region's start that can be plugged.
    pub(super) usable: PageCount,
    /// Pages that are plugged.
    pub(super) plugged: PageCount,
    /// Pages that should be.
    pub(super) requested: PageCount,
}

impl Region {
    pub(super) fn read<B: MmioBus>(device: &MmioDevice<B>) -> Result<Self, RegionError> {
        let fields = [CONFIG_BLOCK_SIZE, CONFIG_ADDR, CONFIG_REGION_SIZE];
        let [unit, gpa, bytes] = device.read_config64(fields).ok_or(RegionError::Unstable)?;
        let largest = MAX_BLOCK_PAGES.bytes();
        if !unit.is_power_of_two() || !(PAGE_SIZE..=largest).contains(&unit) {
            return Err(RegionError::BlockSize { bytes: unit });
        }
        let misplaced = RegionError::Misplaced { gpa, bytes };
        if !gpa.is_multiple_of(unit)
            || !bytes.is_multiple_of(unit)
            || gpa.checked_add(bytes).is_none()
        {
            return Err(misplaced);
        }
        let start = Pfn::from_aligned(gpa).ok_or(misplaced)?;
        let range = PfnRange::from_start(start, PageCount::new(bytes / PAGE_SIZE));
        Ok(Self { range: range.ok_or(misplaced)?, unit: PageCount::new(unit / PAGE_SIZE) })
    }

    /// The part of `range`, in device blocks, that the request names.
    fn blocks(self, range: PfnRange) -> u16 {
        u16::try_from(range.len().get() / self.unit.get()).unwrap_or(u16::MAX)
    }
}

impl Config {
    /// Reads what the device with `region` wants: no more than it has.
    pub(super) fn read<B: MmioBus>(
        device: &MmioDevice<B>,
        region: Region,
    ) -> Result<Self, RegionError> {
        let fields = [CONFIG_USABLE_REGION_SIZE, CONFIG_PLUGGED_SIZE, CONFIG_REQUESTED_SIZE];
        let fields = device.read_config64(fields).ok_or(RegionError::Unstable)?;
        let [usable, plugged, requested] = fields.map(|bytes| PageCount::new(bytes / PAGE_SIZE));
        let most = region.range.len();
        Ok(Self { usable: usable.min(most), plugged, requested: requested.min(most) })
    }
}

/// A request to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug(PfnRange),
    Unplug(PfnRange),
    UnplugAll,
    State(PfnRange),
}

/// What the device says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done; to a question: all blocks are plugged.
    Ack,
    /// To a question: all blocks are unplugged.
    Unplugged,
    /// To a question: some are, some are not.
    Mixed,
    /// Not now.
    Nack,
    /// Try again later.
    Busy,
    /// The request was wrong; or the answer is.
    Error,
}

/// The device's queue and the page that ring, request and answer share.
#[derive(Debug)]
pub(super) struct Wire {
    page: DmaPages<1>,
    /// `None` from a device reset until the device is set up again.
    queue: Option<SplitQueue<Request, { ENTRIES as usize }>>,
}

impl Wire {
    /// A wire without a ring, in a lent page.
    pub(super) fn lend<M: DmaMemory + ?Sized>(memory: &M) -> Option<Self> {
        Some(Self { page: DmaPages::lend(memory, 1)?, queue: None })
    }

    /// Gives the page back.
    ///
    /// # Safety
    /// The device is reset: it uses none of it.
    pub(super) unsafe fn take_back<M: DmaMemory + ?Sized>(self, memory: &M) {
        // SAFETY: the caller's promise; slices are made per call and the queue dies here.
        unsafe { self.page.take_back(memory) }
    }

    /// Forgets the ring: after a device reset.
    pub(super) fn detach(&mut self) {
        self.queue = None;
    }

    /// Sets the queue up.
    pub(super) fn attach<B: MmioBus>(&mut self, device: &MmioDevice<B>) -> Result<(), SetupError> {
        self.detach();
        let queue = GUEST_REQUEST_QUEUE;
        let entries = device.queue_entries(queue, ENTRIES)?;
        let ring = self.page.slice(0, 0, REQUEST_AT);
        let ring = ring.and_then(|page| RingMemory::in_one_piece(entries, page));
        let ring = ring.filter(|_| entries >= 2).ok_or(SetupError::QueueRefused { queue })?;
        device.enable_queue(queue, &ring)?;
        self.queue = SplitQueue::new(ring);
        Ok(())
    }

    fn part(&self, at: usize, bytes: usize) -> DmaSlice {
        self.page.slice(0, at, bytes).unwrap_or_else(|| unreachable!("the page was lent at start"))
    }

    /// Sends a request; the device has none. Returns whether it wants a kick.
    pub(super) fn send(&mut self, what: Request, region: Region) -> Result<bool, QueueError> {
        let (kind, range) = match what {
            Request::Plug(range) => (request::VIRTIO_MEM_REQ_PLUG, Some(range)),
            Request::Unplug(range) => (request::VIRTIO_MEM_REQ_UNPLUG, Some(range)),
            Request::UnplugAll => (request::VIRTIO_MEM_REQ_UNPLUG_ALL, None),
            Request::State(range) => (request::VIRTIO_MEM_REQ_STATE, Some(range)),
        };
        let mut bytes = [0; REQUEST_BYTES];
        bytes[REQUEST_TYPE..REQUEST_TYPE + 2].copy_from_slice(&kind.to_le_bytes());
        if let Some(range) = range {
            let gpa = range.start().gpa().to_le_bytes();
            bytes[REQUEST_ADDR..REQUEST_ADDR + 8].copy_from_slice(&gpa);
            let blocks = region.blocks(range).to_le_bytes();
            bytes[REQUEST_NB_BLOCKS..REQUEST_NB_BLOCKS + 2].copy_from_slice(&blocks);
        }
        let (to, from) =
            (self.part(REQUEST_AT, REQUEST_BYTES), self.part(ANSWER_AT, RESPONSE_BYTES));
        to.write(&bytes);
        // What a device leaves unwritten is no answer.
        from.write(&[0xff; RESPONSE_BYTES]);
        let Some(queue) = &mut self.queue else { return Err(QueueError::Full) };
        let sizes = [REQUEST_BYTES, RESPONSE_BYTES].map(|len| u32::try_from(len).unwrap_or(0));
        queue.add_request((to.gpa(), sizes[0]), (from.gpa(), sizes[1]), what)?;
        Ok(queue.publish())
    }

    /// The answer to the request under way, if it has come.
    pub(super) fn receive(&mut self) -> Result<Option<Answer>, QueueError> {
        let Some(queue) = &mut self.queue else { return Ok(None) };
        let Some(done) = queue.pop()? else { return Ok(None) };
        let mut bytes = [0; RESPONSE_BYTES];
        self.part(ANSWER_AT, RESPONSE_BYTES).read(0, &mut bytes);
        let is_question = matches!(done.cookie, Request::State(_));
        // A device need not write the state where there is none.
        let least = if is_question { RESPONSE_BYTES } else { RESPONSE_TYPE + 2 };
        if (done.written as usize) < least {
            return Ok(Some(Answer::Error));
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Ok(Some(match (half(RESPONSE_TYPE), half(RESPONSE_STATE)) {
            (response::VIRTIO_MEM_RESP_ACK, _) if !is_question => Answer::Ack,
            (response::VIRTIO_MEM_RESP_ACK, state::VIRTIO_MEM_STATE_PLUGGED) => Answer::Ack,
            (response::VIRTIO_MEM_RESP_ACK, state::VIRTIO_MEM_STATE_UNPLUGGED) => Answer::Unplugged,
            (response::VIRTIO_MEM_RESP_ACK, state::VIRTIO_MEM_STATE_MIXED) => Answer::Mixed,
            (response::VIRTIO_MEM_RESP_NACK, _) => Answer::Nack,
            (response::VIRTIO_MEM_RESP_BUSY, _) => Answer::Busy,
            _ => Answer::Error,
        }))
    }
}
