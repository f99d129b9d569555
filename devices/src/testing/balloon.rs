//! A balloon behind its transport, and a driver that keeps the rules, over any RAM.

use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::PageCount;
use abi::balloon::{PFN_BYTES, PFNS_PER_BUFFER, RING_ENTRIES};
use abi::virtio::VIRTIO_F_VERSION_1;
use vm_memory::{Bytes, GuestAddress};

use super::{CountingIrq, DriverQueue, DriverRegisters};
use crate::balloon::{Balloon, BalloonOptions, queues};
use crate::clock::Clock;
use crate::ram::GuestRam;
use crate::transport::MmioTransport;
use crate::virtio::QueueProgress;

/// Where the frame numbers lie, a page for each buffer; the rings lie below.
const BUFFERS: u64 = 0x10_0000;

/// Frames below this one hold the driver's rings and buffers.
pub const FIRST_FREE_PFN: u32 = 0x200;

/// The host's monotonic clock.
struct HostClock(Instant);

impl Clock for HostClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Device, transport and driver in one.
pub struct BalloonMachine {
    ram: Arc<dyn GuestRam>,
    transport: MmioTransport<Balloon>,
    inflate: DriverQueue,
    deflate: DriverQueue,
}

impl BalloonMachine {
    /// A started balloon over `ram`, which needs at least 2 MiB.
    ///
    /// # Panics
    /// If the device does not come up.
    pub fn new(ram: Arc<dyn GuestRam>, options: BalloonOptions) -> Self {
        let pages = ram.ram_ranges().iter().map(|range| range.len());
        let pages = pages.fold(PageCount::ZERO, PageCount::saturating_add);
        let balloon = Balloon::new(pages, options, Arc::new(HostClock(Instant::now())));
        let irq = Arc::new(CountingIrq::default());
        let mut transport = MmioTransport::new(balloon, ram.clone(), irq);
        let inflate = DriverQueue::new(ram.memory(), 0x1000, RING_ENTRIES);
        let deflate = DriverQueue::new(ram.memory(), 0x4000, RING_ENTRIES);
        let offered = transport.offered_features();
        transport.negotiate(offered & (VIRTIO_F_VERSION_1 | abi::balloon::feature::MUST_TELL_HOST));
        transport.enable_queue(queues::INFLATE, inflate.layout());
        transport.enable_queue(queues::DEFLATE, deflate.layout());
        transport.start();
        assert!(transport.is_running(), "the balloon comes up");
        Self { ram, transport, inflate, deflate }
    }

    /// The device.
    pub fn balloon(&self) -> &Balloon {
        self.transport.device()
    }

    /// Offers `frames` on the inflate queue, 256 in a buffer, without a kick.
    ///
    /// # Panics
    /// If they are more than a ring holds.
    pub fn offer_inflate(&mut self, frames: &[u32]) {
        offer(&*self.ram, &mut self.inflate, frames);
    }

    /// Offers `frames` on the deflate queue, without a kick.
    ///
    /// # Panics
    /// If they are more than a ring holds.
    pub fn offer_deflate(&mut self, frames: &[u32]) {
        offer(&*self.ram, &mut self.deflate, frames);
    }

    /// Kicks `queue` and serves it until nothing is pending.
    pub fn kick(&mut self, queue: u16) {
        let mut progress = self.transport.queue_notified(queue);
        while progress == QueueProgress::Pending {
            progress = self.transport.serve_pending();
        }
    }

    /// Takes what came back on either queue; returns how many buffers.
    pub fn take_used(&mut self) -> usize {
        self.inflate.take_all_used().len() + self.deflate.take_all_used().len()
    }

    /// Inflates `frames` and checks that every buffer came back.
    ///
    /// # Panics
    /// If one did not.
    pub fn inflate(&mut self, frames: &[u32]) {
        self.offer_inflate(frames);
        self.kick(queues::INFLATE);
        assert_eq!(self.take_used(), frames.len().div_ceil(PFNS_PER_BUFFER));
    }

    /// Deflates `frames` and checks that every buffer came back.
    ///
    /// # Panics
    /// If one did not.
    pub fn deflate(&mut self, frames: &[u32]) {
        self.offer_deflate(frames);
        self.kick(queues::DEFLATE);
        assert_eq!(self.take_used(), frames.len().div_ceil(PFNS_PER_BUFFER));
    }
}

fn offer(ram: &dyn GuestRam, queue: &mut DriverQueue, frames: &[u32]) {
    let buffers = frames.chunks(PFNS_PER_BUFFER);
    assert!(buffers.len() <= usize::from(RING_ENTRIES), "more than a ring holds");
    for ((head, at), chunk) in (0..).zip((BUFFERS..).step_by(4096)).zip(buffers) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        ram.memory().write_slice(&bytes, GuestAddress(at)).expect("buffers in RAM");
        let len = u32::try_from(chunk.len() * PFN_BYTES).expect("at most 1 KiB");
        queue.offer_chain(head, &[(at, len, false)]);
    }
}
