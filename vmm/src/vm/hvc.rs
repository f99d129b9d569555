//! Output of the console device's port 0, Linux's `hvc0`, on its way to a file that may be slow.
//!
//! The driver of such a console spins, its interrupts off, until its buffer
//! comes back. So a reader that is slow makes the guest wait, and one that is
//! absent does not: a buffer waits for at most [`PATIENCE`], then the reader
//! counts as absent, and the device keeps the newest output until the reader
//! has caught up.

use std::io;
use std::time::{Duration, Instant};

use devices::console::{Console, ConsoleQueue};
use devices::transport::MmioTransport;
use devices::virtio::QueueProgress;

use crate::serial::OutputQueue;

/// How long a buffer of the guest waits for the reader: far below what a kernel calls a lockup, far
/// above what a reader needs that runs at all.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// Moves output from the device to the queue that is written out.
pub(super) struct HvcOutput {
    queue: OutputQueue,
    /// Whether the device has been told that the host reads.
    is_reading: bool,
    /// Which of the guest's buffers waits, and since when.
    waiting: Option<(u64, Instant)>,
}

impl HvcOutput {
    /// Nothing to write yet; `started` is the origin of time stamps.
    pub(super) fn new(started: Instant) -> io::Result<Self> {
        Ok(Self { queue: OutputQueue::new(started)?, is_reading: false, waiting: None })
    }

    /// What has to be written out.
    pub(super) fn queue(&self) -> &OutputQueue {
        &self.queue
    }

    /// Moves what the queue has room for; call it when the device or the queue has changed, and at
    /// [`Self::deadline`]. Returns whether there is more to do at once.
    pub(super) fn pump(&mut self, transport: &mut MmioTransport<Console>, now: Instant) -> bool {
        if !self.is_reading && self.queue.is_empty() {
            self.set_reading(transport, true);
        }
        let mut bytes = Vec::new();
        if transport.device_mut().console_read(&mut bytes, self.queue.room()) > 0 {
            // The room that this made may have taken a ring's worth of buffers, and no more: then the
            // driver is still asked not to kick, and the transport has to know that it is to be served.
            _ = transport.resume_queue(ConsoleQueue::Transmit(0).index());
        }
        self.queue.push(&bytes);
        let (waits, number) = transport.device().console_waits();
        self.waiting = match self.waiting {
            _ if !waits || self.queue.room() > 0 => None,
            Some((known, since)) if known == number => Some((known, since)),
            Some(_) | None => Some((number, now)),
        };
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            log::info!("console: the reader of hvc0 is stuck, old output is dropped");
            self.waiting = None;
            self.set_reading(transport, false);
        }
        let more = transport.device().console_readable() > 0 && self.queue.room() > 0;
        more || transport.progress() == QueueProgress::Pending
    }

    /// When a reader that has not read counts as absent.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let (_, since) = self.waiting?;
        since.checked_add(PATIENCE)
    }

    /// What is left pending shows in the transport's progress, too.
    fn set_reading(
        &mut self,
        transport: &mut MmioTransport<Console>,
        is_reading: bool,
    ) -> QueueProgress {
        self.is_reading = is_reading;
        transport.device_mut().set_console_reader(is_reading);
        transport.resume_queue(ConsoleQueue::Transmit(0).index())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use abi::mmio;
    use abi::virtio::VIRTIO_F_VERSION_1;
    use devices::console::PORT_BUFFER_BYTES;
    use devices::ram::GuestRam;
    use devices::testing::{CountingIrq, DriverQueue, DriverRegisters, TestRam};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::serial::OUTPUT_CAPACITY;

    /// Bytes of each of the guest's buffers, as Linux's driver has them.
    const BLOCK: usize = 4096;
    const RING: u16 = 64;

    /// A driver without MULTIPORT that writes as Linux does, and a host that reads when told to.
    struct Bench {
        transport: MmioTransport<Console>,
        ram: Arc<TestRam>,
        ring: DriverQueue,
        output: HvcOutput,
        written: usize,
        read: Vec<u8>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let ram = Arc::new(TestRam::new(&[(0, 0x20_0000)]));
            let console = Console::new("agent", None);
            let irq = Arc::new(CountingIrq::default());
            let mut transport = MmioTransport::new(console, ram.clone(), irq);
            transport.negotiate(VIRTIO_F_VERSION_1);
            let receive = DriverQueue::new(ram.memory(), 0x1000, RING);
            let ring = DriverQueue::new(ram.memory(), 0x4000, RING);
            for (index, queue) in [(0, &receive), (1, &ring)] {
                assert!(transport.enable_queue(index, queue.layout()));
            }
            transport.start();
            let now = Instant::now();
            let output = HvcOutput::new(now).expect("eventfd");
            let mut bench =
                Self { transport, ram, ring, output, written: 0, read: Vec::new(), now };
            bench.pump();
            bench
        }

        /// Bytes that show any loss, repetition or reordering.
        fn text(from: usize, len: usize) -> Vec<u8> {
            let byte = |n: usize| u8::try_from(n % 251).expect("small");
            (from..from + len).map(byte).collect()
        }

        /// The guest writes a block, if it has its buffer back.
        fn write(&mut self) -> bool {
            let block = self.written / BLOCK;
            if block > 0 && usize::from(self.ring.used_index()) < block {
                return false;
            }
            let data = Self::text(self.written, BLOCK);
            self.ram.memory().write_slice(&data, GuestAddress(0x10_0000)).expect("in RAM");
            let head = u16::try_from(block % usize::from(RING)).expect("small");
            self.ring.offer_chain(head, &[(0x10_0000, 4096, false)]);
            self.written += BLOCK;
            self.transport.store(mmio::QUEUE_NOTIFY, 1);
            self.pump();
            true
        }

        fn pump(&mut self) {
            let mut turns = 0;
            while self.output.pump(&mut self.transport, self.now) {
                assert_eq!(self.transport.serve_pending(), QueueProgress::Idle);
                turns += 1;
                assert!(turns < 100, "the loop is held");
            }
        }

        fn host_reads(&mut self, most: usize) {
            let mut left = most;
            let read = &mut self.read;
            // WouldBlock is how a file says that it is full.
            let result = self.output.queue().drain(|bytes| {
                let take = bytes.len().min(left);
                left -= take;
                read.extend(&bytes[..take]);
                if take == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(take) }
            });
            assert!(result.is_ok() || left == 0);
            self.pump();
        }
    }

    #[test]
    fn a_slow_reader_gets_every_byte() {
        let mut bench = Bench::new();
        while bench.written < 1 << 20 {
            if !bench.write() {
                bench.now += PATIENCE / 4;
                bench.pump();
                bench.host_reads(BLOCK);
            }
        }
        while bench.read.len() < bench.written {
            bench.host_reads(BLOCK);
        }
        assert!(bench.read == Bench::text(0, bench.written));
        assert_eq!(bench.output.queue().dropped(), 0);
    }

    #[test]
    fn an_absent_reader_stops_the_guest_once_and_memory_stays_bounded() {
        let mut bench = Bench::new();
        while bench.write() {}
        let held = PORT_BUFFER_BYTES + OUTPUT_CAPACITY;
        assert_eq!(bench.written, held + BLOCK, "one buffer waits");
        let deadline = bench.output.deadline().expect("the guest waits");
        assert_eq!(deadline, bench.now + PATIENCE);
        bench.now = deadline;
        bench.pump();
        for _ in 0..100 {
            assert!(bench.write(), "the guest does not wait any more");
            assert_eq!(bench.output.deadline(), None);
        }
        let queued = OUTPUT_CAPACITY - bench.output.queue().room();
        assert_eq!(queued + bench.transport.device().console_readable(), held);
    }

    #[test]
    fn a_reader_that_comes_back_gets_the_oldest_and_the_newest_and_then_everything() {
        let mut bench = Bench::new();
        while bench.write() {}
        bench.now += PATIENCE;
        bench.pump();
        for _ in 0..100 {
            assert!(bench.write());
        }
        let gap_ends = bench.written - PORT_BUFFER_BYTES;
        while bench.read.len() < OUTPUT_CAPACITY + PORT_BUFFER_BYTES {
            bench.host_reads(BLOCK);
        }
        let expected =
            [Bench::text(0, OUTPUT_CAPACITY), Bench::text(gap_ends, PORT_BUFFER_BYTES)].concat();
        assert!(bench.read == expected);
        // It counts as a reader again: the guest waits for it.
        bench.read.clear();
        let from = bench.written;
        while bench.write() {}
        bench.host_reads(usize::MAX);
        bench.host_reads(usize::MAX);
        bench.host_reads(usize::MAX);
        assert!(bench.read == Bench::text(from, bench.written - from));
    }

    /// Exactly a ring of buffers waited, all were taken at once, and the driver was never asked to kick again.
    #[test]
    fn a_driver_that_filled_its_ring_is_asked_to_kick_when_it_is_empty() {
        let mut bench = Bench::new();
        bench.ram.memory().write_slice(&[b'x'; BLOCK], GuestAddress(0x10_0000)).expect("in RAM");
        let mut offered = 0;
        let mut offer = |bench: &mut Bench, len: u32| {
            bench.ring.offer_chain(offered % RING, &[(0x10_0000, len, false)]);
            offered += 1;
            bench.transport.store(mmio::QUEUE_NOTIFY, 1);
            bench.pump();
        };
        let blocks = (PORT_BUFFER_BYTES + OUTPUT_CAPACITY) / BLOCK;
        (0..blocks).for_each(|_| offer(&mut bench, 4096));
        // Nothing has room any more; these wait in the ring.
        (0..RING).for_each(|_| offer(&mut bench, 1));
        assert!(bench.transport.device().console_waits().0);
        let all = PORT_BUFFER_BYTES + OUTPUT_CAPACITY + usize::from(RING);
        for _ in 0..100 {
            bench.host_reads(usize::MAX);
        }
        assert_eq!(bench.read.len(), all);
        assert_eq!(bench.ring.used_flags(), 0, "the driver may kick");
    }

    /// A reader that takes a byte now and then would hold one buffer for minutes.
    #[test]
    fn no_buffer_waits_longer_than_the_patience_however_the_reader_dawdles() {
        let mut bench = Bench::new();
        while bench.write() {}
        let began = bench.now;
        while !bench.write() {
            bench.now += PATIENCE / 8;
            bench.host_reads(1);
            assert!(bench.now - began <= 2 * PATIENCE, "the buffer still waits");
        }
    }
}
