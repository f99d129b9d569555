//! The host's side: the real balloon behind the real transport, and its doorbells.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use abi::{PageCount, mmio};
use devices::balloon::{Balloon, BalloonOptions, ReleaseJob, ReleaseMode};
use devices::ram::GuestRam;
use devices::testing::CountingIrq;
use devices::transport::MmioTransport;
use devices::virtio::QueueProgress;
use guest_mm::virtio::MmioBus;
use vm_memory::{Bytes, GuestAddress};

use super::platform::SimMachine;

/// Queues of the balloon that the driver uses.
const QUEUES: usize = 2;

/// One balloon device, and what waits for the scheduler.
pub struct Host {
    machine: Arc<SimMachine>,
    transport: MmioTransport<Balloon>,
    irq: Arc<CountingIrq>,
    /// Edges that the guest has seen.
    delivered: u64,
    /// Doorbells that the device has not looked at.
    kicks: BTreeSet<u16>,
    /// Whether a queue has to be served again without a kick.
    pending: bool,
    /// A release that its worker has taken and not begun.
    release: Option<ReleaseJob>,
    /// Ring addresses as the driver wrote them: available and used, by queue.
    rings: [[u64; 2]; QUEUES],
    selected: usize,
}

impl Host {
    /// A balloon over the machine's RAM, target 0; `deferred`: releases are
    /// steps of their own.
    pub fn new(machine: &Arc<SimMachine>, deferred: bool, deflate_on_oom: bool) -> Self {
        let ram = machine.ram();
        let pages = ram.ram_ranges().iter().fold(PageCount::ZERO, |n, r| n.saturating_add(r.len()));
        let release = if deferred { ReleaseMode::Deferred } else { ReleaseMode::Inline };
        let options = BalloonOptions { release, deflate_on_oom, ..BalloonOptions::default() };
        let balloon = Balloon::new(pages, options, machine.clone());
        let irq = Arc::new(CountingIrq::default());
        Self {
            machine: machine.clone(),
            transport: MmioTransport::new(balloon, ram, irq.clone()),
            irq,
            delivered: 0,
            kicks: BTreeSet::new(),
            pending: false,
            release: None,
            rings: [[0; 2]; QUEUES],
            selected: 0,
        }
    }

    /// The device.
    pub fn transport(&self) -> &MmioTransport<Balloon> {
        &self.transport
    }

    /// Sets the target and announces it.
    ///
    /// # Panics
    /// Above the machine's RAM.
    pub fn set_target(&mut self, pages: u64) {
        let set = self.transport.device_mut().set_target(PageCount::new(pages));
        set.expect("a target within RAM");
        self.transport.config_changed();
    }

    /// Queues whose doorbell has rung.
    pub fn kicked(&self) -> Vec<u16> {
        self.kicks.iter().copied().collect()
    }

    /// Whether the device has anything to do.
    pub fn has_work(&self) -> bool {
        self.pending || self.release.is_some() || !self.kicks.is_empty()
    }

    /// Lets the device look at one queue that was kicked.
    pub fn serve(&mut self, queue: u16) {
        self.kicks.remove(&queue);
        self.pending |= self.transport.queue_notified(queue) == QueueProgress::Pending;
    }

    /// Lets the device go on where it stopped.
    pub fn serve_pending(&mut self) {
        // The worker takes a job in one step and does it in another.
        if let Some(job) = self.release.take() {
            let done = job.run();
            self.transport.device_mut().release_done(done);
        } else {
            self.release = self.transport.device_mut().take_release();
        }
        if self.pending {
            self.pending = self.transport.serve_pending() == QueueProgress::Pending;
        }
    }

    /// Takes the interrupt edges since the last time; whether there was one.
    pub fn take_interrupt(&mut self) -> bool {
        let edges = self.irq.edges();
        std::mem::replace(&mut self.delivered, edges) != edges
    }

    /// Whether the guest has an interrupt to look at.
    pub fn has_interrupt(&self) -> bool {
        self.irq.edges() != self.delivered
    }

    /// A hostile device: puts `head` into the used ring of `queue` behind the device's back.
    pub fn forge_used(&mut self, queue: usize, head: u32) {
        let [_, used] = self.rings[queue];
        let size = u16::try_from(queue).ok().and_then(|q| self.transport.enabled_queue_size(q));
        let (true, Some(size)) = (used != 0, size) else { return };
        let ram = self.machine.ram();
        let index: u16 = ram.memory().read_obj(GuestAddress(used + 2)).expect("a ring in RAM");
        let slot = u64::from(index % size);
        let element = GuestAddress(used + 4 + 8 * slot);
        ram.memory().write_obj([head, 0u32], element).expect("a ring in RAM");
        let next = index.wrapping_add(1);
        ram.memory().write_obj(next, GuestAddress(used + 2)).expect("a ring in RAM");
    }

    /// A broken guest: makes the ring of `queue` contradict itself, so that the
    /// device asks for a reset when it looks next.
    pub fn break_ring(&mut self, queue: usize) {
        let [available, _] = self.rings[queue];
        if available == 0 || !self.transport.is_running() {
            return;
        }
        let ram = self.machine.ram();
        let at = GuestAddress(available + 2);
        let index: u16 = ram.memory().read_obj(at).expect("a ring in RAM");
        ram.memory().write_obj(index.wrapping_add(0x4000), at).expect("a ring in RAM");
        self.kicks.insert(u16::try_from(queue).expect("a small number"));
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            // A doorbell is an eventfd on a real host: the device looks when it is scheduled.
            mmio::QUEUE_NOTIFY => {
                self.kicks.insert(u16::try_from(value).expect("a queue's number"));
                return;
            }
            mmio::QUEUE_SEL => self.selected = usize::try_from(value).unwrap_or(QUEUES),
            mmio::QUEUE_DRIVER_LOW => self.note_ring(0, value),
            mmio::QUEUE_DEVICE_LOW => self.note_ring(1, value),
            mmio::STATUS if value == 0 => {
                self.rings = [[0; 2]; QUEUES];
                self.kicks.clear();
            }
            _ => {}
        }
        let progress = self.transport.write(offset, &value.to_le_bytes());
        self.pending = progress == QueueProgress::Pending;
    }

    /// The machine's RAM lies below 4 GiB, so the low half is the address.
    fn note_ring(&mut self, part: usize, low: u32) {
        if let Some(ring) = self.rings.get_mut(self.selected) {
            ring[part] = u64::from(low);
        }
    }
}

/// The driver's way to the device's registers.
#[derive(Clone)]
pub struct SimBus(pub Rc<RefCell<Host>>);

// SAFETY: a simulated machine runs in one thread; the driver goes behind a lock
// that asks for `Send` because a real one is shared by CPUs.
unsafe impl Send for SimBus {}

impl MmioBus for SimBus {
    fn read32(&self, offset: u64) -> u32 {
        self.0.borrow_mut().read(offset)
    }

    fn write32(&self, offset: u64, value: u32) {
        self.0.borrow_mut().write(offset, value);
    }

    fn read8(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.0.borrow_mut().transport.read(offset, &mut byte);
        byte[0]
    }
}
