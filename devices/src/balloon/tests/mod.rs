//! The balloon behind its transport, driven by a driver that may misbehave.

mod good_guest;
mod hostile_guest;
mod lifecycle;
mod ordering;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use abi::{PageCount, Pfn, PfnRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::clock::Clock;
use crate::ram::{DiscardError, Discarded, GuestRam, ReleaseUnit};
use crate::testing::{CountingIrq, DriverQueue, DriverRegisters, TestRam, UsedElement};
use crate::transport::MmioTransport;
use crate::virtio::QueueProgress;

const VERSION_1: u64 = abi::virtio::VIRTIO_F_VERSION_1;
const MUST_TELL_HOST: u64 = abi::balloon::feature::MUST_TELL_HOST;

/// One past the last frame below the gap.
const LOW_END: u32 = 4096;
/// First frame above the gap, and one past the last.
const HIGH_START: u32 = 1 << 20;
const HIGH_END: u32 = HIGH_START + 1024;
const RAM_PAGES: u64 = LOW_END as u64 + 1024;

/// Rings and buffers live in the first 512 pages; tests inflate frames from here on.
const FREE_PFN: u32 = 512;
const INFLATE_RING: u64 = 0x1000;
const DEFLATE_RING: u64 = 0x4000;
/// A page for each of 256 buffers.
const BUFFERS: u64 = 0x10_0000;

/// A clock that a nanosecond passes on each look at.
#[derive(Default)]
struct TickingClock(AtomicU64);

impl Clock for TickingClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

type OnDiscard = Box<dyn Fn(&GuestMemoryMmap) + Send>;

/// RAM that can refuse a frame, and that shows what a driver sees while memory is released.
struct WatchedRam {
    inner: TestRam,
    unit: ReleaseUnit,
    refused: Mutex<Option<Pfn>>,
    on_discard: Mutex<Option<OnDiscard>>,
    batches: AtomicU64,
}

impl WatchedRam {
    /// Frames released so far.
    fn holes(&self) -> BTreeSet<u64> {
        self.inner.discards().iter().flat_map(|run| run.iter()).map(Pfn::number).collect()
    }
}

impl GuestRam for WatchedRam {
    fn memory(&self) -> &GuestMemoryMmap {
        self.inner.memory()
    }

    fn ram_ranges(&self) -> &[PfnRange] {
        self.inner.ram_ranges()
    }

    fn release_unit(&self) -> ReleaseUnit {
        self.unit
    }

    fn discard(&self, ranges: &[PfnRange]) -> Result<Discarded, DiscardError> {
        self.batches.fetch_add(1, Ordering::Relaxed);
        if let Some(look) = &*self.on_discard.lock().unwrap() {
            look(self.memory());
        }
        let refused = *self.refused.lock().unwrap();
        let is_bad = |run: &&PfnRange| refused.is_some_and(|pfn| run.contains(pfn));
        let good: Vec<PfnRange> = ranges.iter().filter(|run| !is_bad(run)).copied().collect();
        let done = self.inner.discard(&good)?;
        match ranges.iter().find(is_bad) {
            None => Ok(done),
            Some(&range) => {
                let source = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
                Err(DiscardError { range, done, source })
            }
        }
    }
}

/// A balloon, its transport, RAM, and a driver.
struct Rig {
    transport: MmioTransport<Balloon>,
    ram: Arc<WatchedRam>,
    irq: Arc<CountingIrq>,
    inflate: DriverQueue,
    deflate: DriverQueue,
}

impl Rig {
    /// A driver that has set DRIVER_OK with everything negotiated.
    fn new() -> Self {
        Self::with(BalloonOptions::default(), ReleaseUnit::Page)
    }

    fn with(options: BalloonOptions, unit: ReleaseUnit) -> Self {
        let inner = TestRam::new(&[(0, 16 << 20), (u64::from(HIGH_START) << 12, 4 << 20)]);
        let ram = Arc::new(WatchedRam {
            inner,
            unit,
            refused: Mutex::default(),
            on_discard: Mutex::default(),
            batches: AtomicU64::default(),
        });
        let irq = Arc::new(CountingIrq::default());
        let clock = Arc::new(TickingClock::default());
        let device = Balloon::new(PageCount::new(RAM_PAGES), options, clock);
        let inflate = DriverQueue::new(ram.memory(), INFLATE_RING, 256);
        let deflate = DriverQueue::new(ram.memory(), DEFLATE_RING, 256);
        let transport = MmioTransport::new(device, ram.clone(), irq.clone());
        let mut rig = Self { transport, ram, irq, inflate, deflate };
        rig.start(VERSION_1 | MUST_TELL_HOST);
        rig
    }

    /// Resets, negotiates and starts the device with fresh rings.
    fn start(&mut self, features: u64) {
        let offered = self.transport.offered_features();
        self.transport.negotiate(features & offered);
        self.inflate = DriverQueue::new(self.ram.memory(), INFLATE_RING, 256);
        self.deflate = DriverQueue::new(self.ram.memory(), DEFLATE_RING, 256);
        assert!(self.transport.enable_queue(queues::INFLATE, self.inflate.layout()));
        assert!(self.transport.enable_queue(queues::DEFLATE, self.deflate.layout()));
        self.transport.start();
        assert!(self.transport.is_running());
    }

    fn balloon(&self) -> &Balloon {
        self.transport.device()
    }

    fn counters(&self) -> &BalloonCounters {
        self.balloon().counters()
    }

    /// Writes `pfns` into buffer page `page` and gives it back as a descriptor.
    fn buffer(&self, page: u64, pfns: &[u32]) -> (u64, u32, bool) {
        let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        let at = BUFFERS + page * abi::PAGE_SIZE;
        self.ram.memory().write_slice(&bytes, GuestAddress(at)).unwrap();
        (at, u32::try_from(bytes.len()).unwrap(), false)
    }

    /// Offers `pfns` on the inflate queue, 256 in a buffer; at most 256 buffers.
    fn offer_inflate(&mut self, pfns: &[u32]) -> usize {
        for (head, chunk) in (0..).zip(pfns.chunks(256)) {
            let buffer = self.buffer(head.into(), chunk);
            self.inflate.offer_chain(head, &[buffer]);
        }
        pfns.len().div_ceil(256)
    }

    /// Kicks `queue` and serves it until nothing is pending.
    fn kick(&mut self, queue: u16) {
        let mut progress = self.transport.queue_notified(queue);
        while progress == QueueProgress::Pending {
            progress = self.transport.serve_pending();
        }
    }

    /// Inflates; returns what came back.
    fn inflate(&mut self, pfns: &[u32]) -> Vec<UsedElement> {
        let offered = self.offer_inflate(pfns);
        self.kick(queues::INFLATE);
        let used = self.inflate.take_all_used();
        assert_eq!(used.len(), offered, "every buffer comes back once");
        used
    }

    fn deflate(&mut self, pfns: &[u32]) -> Vec<UsedElement> {
        for (head, chunk) in (0..).zip(pfns.chunks(256)) {
            let buffer = self.buffer(head.into(), chunk);
            self.deflate.offer_chain(head, &[buffer]);
        }
        self.kick(queues::DEFLATE);
        self.deflate.take_all_used()
    }

    /// Offers one chain of `(address, length, writable)` on the inflate queue and checks that it comes back empty.
    fn offer_one(&mut self, buffers: &[(u64, u32, bool)]) {
        self.inflate.offer_chain(7, buffers);
        self.kick(queues::INFLATE);
        assert_eq!(self.inflate.take_all_used(), [UsedElement { head: 7, written: 0 }]);
    }

    fn write_config(&mut self, offset: u64, value: u32) {
        self.transport.write(abi::mmio::CONFIG + offset, &value.to_le_bytes());
    }

    fn read_config(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(abi::mmio::CONFIG + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn fill(&self, pfn: u32, byte: u8) {
        let at = GuestAddress(u64::from(pfn) << 12);
        self.ram.memory().write_slice(&[byte; 4096], at).unwrap();
    }

    fn byte(&self, pfn: u32) -> u8 {
        self.ram.memory().read_obj(GuestAddress((u64::from(pfn) << 12) + 99)).unwrap()
    }
}

fn set(pfns: impl IntoIterator<Item = u32>) -> BTreeSet<u64> {
    pfns.into_iter().map(u64::from).collect()
}
