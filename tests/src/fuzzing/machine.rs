//! A device behind its transport, and everything that a driver can do to it.

use std::sync::Arc;

use abi::mmio;
use abi::virtio::status::{DEVICE_NEEDS_RESET, DRIVER_OK, FAILED, FEATURES_OK};
use abi::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1};
use devices::ram::GuestRam;
use devices::ring::RawDesc;
use devices::testing::{CountingIrq, DriverQueue, DriverRegisters, TestRam};
use devices::transport::MmioTransport;
use devices::virtio::{QueueProgress, VirtioDevice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::input::Input;

/// RAM with a hole, so that a buffer can straddle the edge of it.
const REGIONS: [(u64, usize); 2] = [(0, 0x20000), (0x30000, 0x10000)];
/// Rings lie below this address, buffers of good drivers above.
pub(super) const RINGS_END: u64 = 0x10000;
/// Actions of one input at most: a fuzzer finds nothing in longer ones.
const MAX_ACTIONS: usize = 512;
/// Rounds of service that may pass before a device has nothing left to do.
const MAX_ROUNDS: usize = 4096;

/// A device, its transport, RAM and rings.
pub(super) struct Machine<D: VirtioDevice> {
    pub(super) transport: MmioTransport<D>,
    pub(super) ram: Arc<TestRam>,
    rings: Vec<DriverQueue>,
    offered: Vec<u16>,
    /// Rings may hold anything: counting heads means nothing any more.
    pub(super) tampered: bool,
    /// What the device's owner does whenever a queue is pending.
    worker: fn(&mut Self),
}

impl<D: VirtioDevice> Machine<D> {
    /// A machine in the state that the input's first byte asks for.
    pub(super) fn new(device: D, worker: fn(&mut Self), input: &mut Input<'_>) -> Self {
        let ram = Arc::new(TestRam::new(&REGIONS));
        let irq = Arc::new(CountingIrq::default());
        let transport = MmioTransport::new(device, ram.clone(), irq);
        let (rings, offered) = (Vec::new(), Vec::new());
        let mut machine = Self { transport, ram, rings, offered, tampered: false, worker };
        machine.start(input.u8());
        machine
    }

    /// Resets; with the low bit of `how`, negotiates and starts as a good driver does.
    pub(super) fn start(&mut self, how: u8) {
        self.transport.reset();
        self.rings = (0..self.transport.queue_count())
            .map(|index| {
                let size = self.max_size(index).min(1 << (how >> 5));
                DriverQueue::new(self.ram.memory(), 0x1000 * (u64::from(index) + 1), size)
            })
            .collect();
        self.offered = vec![0; self.rings.len()];
        self.tampered = false;
        if how & 1 == 0 {
            return;
        }
        let mut features = VIRTIO_F_VERSION_1;
        for (bit, feature) in [(2, VIRTIO_F_INDIRECT_DESC), (4, VIRTIO_F_EVENT_IDX)] {
            features |= if how & bit != 0 { feature } else { 0 };
        }
        let of_device = self.transport.device().device_features();
        features |= if how & 8 != 0 { of_device } else { 0 };
        self.transport.negotiate(features);
        for (index, ring) in (0..).zip(&self.rings) {
            self.transport.enable_queue(index, ring.layout());
        }
        self.transport.start();
    }

    fn max_size(&mut self, index: u16) -> u16 {
        self.transport.store(mmio::QUEUE_SEL, index.into());
        u16::try_from(self.transport.load(mmio::QUEUE_NUM_MAX)).expect("16 bits")
    }

    /// Acts the whole input out; `host` is what the device's owner may do.
    pub(super) fn act(
        &mut self,
        input: &mut Input<'_>,
        mut host: impl FnMut(&mut Self, &mut Input<'_>),
    ) {
        for _ in 0..MAX_ACTIONS {
            if input.is_empty() {
                break;
            }
            match input.u8() % 16 {
                0 => self.write_register(input),
                1 => self.access(input),
                2 => self.write_ram(input),
                3..6 => self.offer_chain(input),
                6 => self.misuse_ring(input),
                7..10 => self.kick(input),
                10 => self.acknowledge(input),
                11 => self.start(input.u8()),
                12.. => host(self, input),
            }
            self.check();
        }
        self.settle();
        self.check();
    }

    fn write_register(&mut self, input: &mut Input<'_>) {
        let offset = 4 * u64::from(input.u8() & 0x3f);
        let value = if input.u8() & 1 == 0 { input.u8().into() } else { input.u32() };
        // Queues may be moved or the device reset: the rings are not ours then.
        self.tampered = true;
        self.transport.store(offset, value);
    }

    fn access(&mut self, input: &mut Input<'_>) {
        let offset = u64::from(input.u16() & 0x1fff);
        let how = input.u8();
        let width = usize::from(how & 15);
        if how & 16 == 0 {
            self.transport.read(offset, &mut vec![0xff; width]);
        } else {
            self.tampered = true;
            self.transport.write(offset, input.bytes(width));
        }
    }

    fn write_ram(&mut self, input: &mut Input<'_>) {
        let at = input.address();
        let len = usize::from(input.u8());
        let data = input.bytes(len);
        self.tampered |= at < RINGS_END;
        // Beyond RAM nothing is written, as on a machine.
        if self.ram.memory().check_range(GuestAddress(at), data.len()) {
            self.ram.memory().write_slice(data, GuestAddress(at)).expect("inside RAM");
        }
    }

    /// Writes some descriptors and makes the first available, in the order that rings have.
    fn offer_chain(&mut self, input: &mut Input<'_>) {
        let Some(queue) = self.pick_queue(input) else { return };
        let Some(ring) = self.rings.get_mut(queue) else { return };
        let shape = input.u8();
        let size = ring.layout().size;
        let head = u16::from(shape >> 4) % size;
        for position in 0..u16::from(shape & 3) + 1 {
            let (addr, len, flags) = (input.address(), input.len(), input.u8());
            let next = if flags & 0x80 == 0 { (head + position + 1) % size } else { input.u16() };
            let desc = RawDesc { addr, len, flags: u16::from(flags & 7), next };
            // The device may be told to write over the rings.
            self.tampered |= desc.is_writable() && addr < RINGS_END;
            ring.set_desc((head + position) % size, desc);
        }
        let Some(offered) = self.offered.get_mut(queue) else { return };
        // A driver that offers more than the ring holds is another action's subject.
        if offered.wrapping_sub(ring.used_index()) < size {
            *offered = offered.wrapping_add(1);
            ring.offer(head);
        }
    }

    /// Makes a chain of `(addr, len, writable)` buffers available on `queue`, as a good driver does,
    /// if the ring is large enough and not full.
    pub(super) fn offer_buffers(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) {
        let Some(ring) = self.rings.get_mut(queue) else { return };
        let Some(offered) = self.offered.get_mut(queue) else { return };
        let (size, len) = (ring.layout().size, u16::try_from(buffers.len()).unwrap_or(u16::MAX));
        let free = size.saturating_sub(offered.wrapping_sub(ring.used_index()));
        if len <= free {
            // Chains of one input may share descriptors: the device must not mind.
            let head = offered.wrapping_mul(len) % (size - len + 1);
            *offered = offered.wrapping_add(1);
            ring.offer_chain(head, buffers);
        }
    }

    fn misuse_ring(&mut self, input: &mut Input<'_>) {
        let Some(queue) = self.pick_queue(input) else { return };
        let Some(ring) = self.rings.get_mut(queue) else { return };
        let value = input.u16();
        self.tampered = true;
        match input.u8() % 4 {
            0 => ring.set_avail_index(value),
            1 => ring.offer(value),
            2 => ring.set_avail_flags(value),
            _ => ring.set_used_event(value),
        }
    }

    fn kick(&mut self, input: &mut Input<'_>) {
        let queue = u16::from(input.u8() & 15);
        if self.transport.queue_notified(queue) == QueueProgress::Pending {
            self.serve();
        }
    }

    fn acknowledge(&mut self, input: &mut Input<'_>) {
        let status = self.transport.interrupt_status();
        let bits = u32::from(input.u8());
        status.acknowledge(bits);
        assert_eq!(status.read() & bits & 3, 0, "acknowledged bits are clear");
    }

    fn pick_queue(&self, input: &mut Input<'_>) -> Option<usize> {
        usize::from(input.u8()).checked_rem(self.rings.len())
    }

    /// Kicks everything until nothing is left to do.
    fn settle(&mut self) {
        for queue in 0..self.transport.queue_count() {
            let mut rounds = 0;
            let mut progress = self.transport.queue_notified(queue);
            while progress == QueueProgress::Pending {
                progress = self.serve();
                rounds += 1;
                assert!(rounds < MAX_ROUNDS, "queue {queue} never comes to rest");
            }
        }
    }

    /// One more round for queues that were left pending.
    fn serve(&mut self) -> QueueProgress {
        (self.worker)(self);
        self.transport.serve_pending()
    }

    /// Heads offered on `queue` and not returned, if that can still be told.
    pub(super) fn outstanding(&self, queue: usize) -> Option<u16> {
        if self.tampered || !self.transport.is_running() {
            return None;
        }
        let ring = self.rings.get(queue)?;
        Some(self.offered.get(queue)?.wrapping_sub(ring.used_index()))
    }

    /// What holds after every action.
    fn check(&mut self) {
        let status = self.transport.status();
        let steps = status & !(DEVICE_NEEDS_RESET | FAILED);
        assert!([0, 1, 3, 11, 15].contains(&steps), "status {status:#x} cannot be");
        assert_eq!(self.transport.load(mmio::STATUS), status);
        assert_eq!(self.transport.load(mmio::MAGIC_VALUE), mmio::MAGIC);
        assert!(self.transport.load(mmio::INTERRUPT_STATUS) <= 3);
        let acked = self.transport.acked_features();
        assert_eq!(acked.is_some(), status & FEATURES_OK != 0);
        let accepted = acked.unwrap_or(VIRTIO_F_VERSION_1);
        assert_eq!(accepted & !self.transport.offered_features(), 0);
        assert_ne!(accepted & VIRTIO_F_VERSION_1, 0);
        if status & DRIVER_OK == 0 {
            assert_eq!(self.transport.progress(), QueueProgress::Idle);
        }
        for (index, ring) in self.rings.iter().enumerate() {
            if let Some(outstanding) = self.outstanding(index) {
                let size = ring.layout().size;
                assert!(outstanding <= size, "queue {index} returned a head that it never got");
            }
        }
    }
}
