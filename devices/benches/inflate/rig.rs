//! A balloon behind its transport over real memory, and a driver that keeps the rules.

use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::virtio::VIRTIO_F_VERSION_1;
use abi::{PageCount, Pfn, PfnRange};
use devices::balloon::{Balloon, BalloonOptions, queues};
use devices::clock::Clock;
use devices::ram::GuestRam;
use devices::testing::{CountingIrq, DriverQueue, DriverRegisters};
use devices::transport::MmioTransport;
use devices::virtio::QueueProgress;
use guest_ram::{BackingKind, HostRam, Prefault};
use vm_memory::{Bytes, GuestAddress};

/// Frames of one inflate: a full ring of 256 buffers of 256.
pub(crate) const PAGES: u32 = 65_536;
/// First frame inflated: 64 MiB.
pub(crate) const FIRST_PFN: u32 = 16_384;
/// Guest RAM: 1 GiB.
const RAM_BYTES: u64 = 1 << 30;
/// Where the frame numbers lie, a page for each buffer.
const BUFFERS: u64 = 0x10_0000;

/// The host's monotonic clock.
struct HostClock(Instant);

impl Clock for HostClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// One timed iteration.
pub(crate) struct Sample {
    pub(crate) time: Duration,
    pub(crate) calls: u64,
    pub(crate) freed_bytes: u64,
}

pub(crate) struct Rig {
    kind: BackingKind,
    ram: Arc<HostRam>,
    transport: MmioTransport<Balloon>,
    inflate: DriverQueue,
    deflate: DriverQueue,
    /// The frame numbers that the buffers hold.
    written: Vec<u32>,
}

impl Rig {
    pub(crate) fn new(kind: BackingKind) -> Self {
        let ram = Arc::new(HostRam::new(RAM_BYTES, kind, Prefault::OnDemand).expect("1 GiB"));
        let clock = Arc::new(HostClock(Instant::now()));
        let balloon = Balloon::new(ram.pages(), BalloonOptions::default(), clock);
        let irq = Arc::new(CountingIrq::default());
        let mut transport = MmioTransport::new(balloon, ram.clone(), irq);
        let inflate = DriverQueue::new(ram.memory(), 0x1000, 256);
        let deflate = DriverQueue::new(ram.memory(), 0x4000, 256);
        transport.negotiate(VIRTIO_F_VERSION_1);
        transport.enable_queue(queues::INFLATE, inflate.layout());
        transport.enable_queue(queues::DEFLATE, deflate.layout());
        transport.start();
        assert!(transport.is_running());
        println!("{kind}: released by {}, verified by {}", ram.release_method(), ram.truth_name());
        Self { kind, ram, transport, inflate, deflate, written: Vec::new() }
    }

    pub(crate) fn kind(&self) -> BackingKind {
        self.kind
    }

    /// One release call over 256 MiB.
    pub(crate) fn floor(&mut self) -> Sample {
        let start = Pfn::from_u32(FIRST_PFN);
        let range = PfnRange::from_start(start, PageCount::new(PAGES.into())).expect("in RAM");
        self.populate(FIRST_PFN..FIRST_PFN + PAGES);
        let before = self.resident_bytes();
        let started = Instant::now();
        let done = self.ram.discard(&[range]).expect("the host releases");
        let time = started.elapsed();
        Sample { time, calls: done.calls, freed_bytes: before - self.resident_bytes() }
    }

    /// Inflates `frames`, populated before.
    pub(crate) fn inflate(&mut self, frames: &[u32]) -> Sample {
        self.populate(frames.iter().copied());
        self.write_buffers(frames);
        offer(&mut self.inflate);
        let calls = self.transport.device().counters().discard_calls;
        let before = self.resident_bytes();
        let started = Instant::now();
        self.kick(queues::INFLATE);
        let time = started.elapsed();
        let freed_bytes = before - self.resident_bytes();
        assert_eq!(self.inflate.take_all_used().len(), 256, "every buffer came back");
        assert_eq!(freed_bytes, u64::from(PAGES) * abi::PAGE_SIZE, "every byte was freed");
        Sample {
            time,
            calls: self.transport.device().counters().discard_calls - calls,
            freed_bytes,
        }
    }

    /// Deflates `frames`, inflated before.
    pub(crate) fn deflate(&mut self, frames: &[u32]) -> Sample {
        self.inflate(frames);
        offer(&mut self.deflate);
        let calls = self.transport.device().counters().discard_calls;
        let started = Instant::now();
        self.kick(queues::DEFLATE);
        let time = started.elapsed();
        assert_eq!(self.deflate.take_all_used().len(), 256, "every buffer came back");
        let calls = self.transport.device().counters().discard_calls - calls;
        Sample { time, calls, freed_bytes: 0 }
    }

    fn kick(&mut self, queue: u16) {
        let mut progress = self.transport.queue_notified(queue);
        while progress == QueueProgress::Pending {
            progress = self.transport.serve_pending();
        }
    }

    fn populate(&self, frames: impl IntoIterator<Item = u32>) {
        for pfn in frames {
            let at = GuestAddress(Pfn::from_u32(pfn).gpa());
            self.ram.memory().write_obj(0xa5u8, at).expect("in RAM");
        }
    }

    fn write_buffers(&mut self, frames: &[u32]) {
        if self.written == frames {
            return;
        }
        for (at, chunk) in (BUFFERS..).step_by(4096).zip(frames.chunks(256)) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
            self.ram.memory().write_slice(&bytes, GuestAddress(at)).expect("in RAM");
        }
        self.written = frames.to_vec();
    }

    fn resident_bytes(&self) -> u64 {
        self.ram.resident_bytes().expect("readable").expect("verified")
    }
}

/// Makes all 256 buffers available.
fn offer(queue: &mut DriverQueue) {
    for (head, at) in (0..256).zip((BUFFERS..).step_by(4096)) {
        queue.offer_chain(head, &[(at, 1024, false)]);
    }
}
