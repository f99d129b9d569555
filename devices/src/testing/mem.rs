//! A memory device behind its transport, memory that comes and goes in blocks, and a driver that can say anything.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use abi::mem::{CONFIG_PLUGGED_SIZE, CONFIG_REQUESTED_SIZE, CONFIG_USABLE_REGION_SIZE};
use abi::mem::{REQUEST_BYTES, RESPONSE_BYTES, feature};
use abi::virtio::VIRTIO_F_VERSION_1;
use abi::{PageCount, Pfn, PfnRange};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use super::{CountingIrq, DriverQueue, DriverRegisters, TestRam};
use crate::mem::{BlockMemory, MemRegion, MemoryDevice};
use crate::ram::{DiscardError, Discarded, GuestRam, PresentMemory};
use crate::transport::MmioTransport;
use crate::virtio::QueueProgress;

/// Heap RAM with a region above it, of which blocks come and go.
pub struct HotplugRam {
    /// RAM, and every block whether plugged or not.
    all: TestRam,
    /// RAM alone.
    ram: GuestMemoryMmap,
    ram_range: PfnRange,
    region: MemRegion,
    present: RwLock<Arc<GuestMemoryMmap>>,
    refuse: AtomicBool,
    plugs: Mutex<Vec<PfnRange>>,
}

impl HotplugRam {
    /// `ram_bytes` of RAM from 0 on, and nothing plugged of `region`, which is above it and small.
    ///
    /// # Panics
    /// If it is not.
    pub fn new(ram_bytes: usize, region: MemRegion) -> Self {
        let block = usize::try_from(region.block_bytes()).expect("small");
        let blocks =
            (0..region.blocks()).map(|n| (region.addr() + n * region.block_bytes(), block));
        let all: Vec<_> = std::iter::once((0, ram_bytes)).chain(blocks).collect();
        let all = TestRam::new(&all);
        let ram_range = *all.ram_ranges().first().expect("RAM");
        let first = all.memory().iter().next().map(again).expect("RAM");
        let ram = GuestMemoryMmap::from_regions(vec![first]).expect("RAM");
        let present = RwLock::new(Arc::new(ram.clone()));
        let (refuse, plugs) = (AtomicBool::new(false), Mutex::default());
        Self { all, ram, ram_range, region, present, refuse, plugs }
    }

    /// Whether the host refuses to plug from now on.
    pub fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }

    /// Everything plugged so far, in order.
    pub fn plugs(&self) -> Vec<PfnRange> {
        self.plugs.lock().expect("not poisoned").clone()
    }

    /// Everything given back so far, in order.
    pub fn discards(&self) -> Vec<PfnRange> {
        self.all.discards()
    }

    /// RAM and every block, plugged or not: to look behind the curtain.
    pub fn everything(&self) -> &GuestMemoryMmap {
        self.all.memory()
    }

    /// Puts the blocks for which `is_there` says so, and RAM, into sight.
    fn show(&self, is_there: impl Fn(Pfn) -> bool) {
        let keep = |at: u64| at == 0 || is_there(Pfn::containing(at));
        let regions = self.all.memory().iter().filter(|region| keep(region.start_addr().0));
        let present = GuestMemoryMmap::from_regions(regions.map(again).collect());
        let present = present.expect("sorted");
        *self.present.write().expect("not poisoned") = Arc::new(present);
    }

    fn is_present(&self, pfn: Pfn) -> bool {
        self.present().address_in_range(GuestAddress(pfn.gpa()))
    }
}

impl GuestRam for HotplugRam {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    fn present(&self) -> PresentMemory<'_> {
        PresentMemory::Snapshot(self.present.read().expect("not poisoned").clone())
    }

    fn ram_ranges(&self) -> &[PfnRange] {
        std::slice::from_ref(&self.ram_range)
    }

    fn hotplug_range(&self) -> Option<PfnRange> {
        Some(self.region.pfns())
    }

    fn discard(&self, ranges: &[PfnRange]) -> Result<Discarded, DiscardError> {
        self.all.discard(ranges)
    }
}

/// The same region once more.
fn again(region: &GuestRegionMmap) -> GuestRegionMmap {
    GuestRegionMmap::with_arc(region.get_mmap(), region.start_addr()).expect("it was one before")
}

/// The handle that a device gets.
pub struct TestBlocks(pub Arc<HotplugRam>);

impl BlockMemory for TestBlocks {
    /// # Panics
    /// If a block of `range` is plugged, or outside the region.
    fn plug(&mut self, range: PfnRange) -> io::Result<()> {
        assert!(self.0.region.pfns().contains_range(range), "{range:?} is outside");
        assert!(range.iter().all(|pfn| !self.0.is_present(pfn)), "{range:?} is plugged");
        if self.0.refuse.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        self.0.plugs.lock().expect("not poisoned").push(range);
        self.0.show(|pfn| self.0.is_present(pfn) || range.contains(pfn));
        Ok(())
    }

    /// # Panics
    /// If a block of `ranges` is not plugged.
    fn unplug(&mut self, ranges: &[PfnRange]) -> io::Result<()> {
        let is_going = |pfn| ranges.iter().any(|range| range.contains(pfn));
        assert!(ranges.iter().flat_map(|range| range.iter()).all(|pfn| self.0.is_present(pfn)));
        self.0.show(|pfn| self.0.is_present(pfn) && !is_going(pfn));
        self.0.discard(ranges).map(|_| ()).map_err(|error| error.source)
    }
}

/// Device, transport and driver in one.
pub struct MemMachine {
    /// The memory.
    pub ram: Arc<HotplugRam>,
    /// The device behind its registers.
    pub transport: MmioTransport<MemoryDevice>,
    /// Interrupts so far.
    pub irq: Arc<CountingIrq>,
    /// The driver's ring.
    pub queue: DriverQueue,
}

impl MemMachine {
    /// Entries of the ring.
    pub const ENTRIES: u16 = 64;
    /// Where requests lie, [`REQUEST_BYTES`] apart.
    pub const REQUESTS: u64 = 0x4000;
    /// Where answers lie, 16 bytes apart.
    pub const ANSWERS: u64 = 0x5000;
    const RING: u64 = 0x1000;

    /// A started device with 64 KiB of RAM and nothing plugged.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn new(region: MemRegion) -> Self {
        let ram = Arc::new(HotplugRam::new(0x1_0000, region));
        let device = MemoryDevice::new(region, Box::new(TestBlocks(ram.clone())));
        let irq = Arc::new(CountingIrq::default());
        let transport = MmioTransport::new(device, ram.clone(), irq.clone());
        let queue = DriverQueue::new(&ram.present(), Self::RING, Self::ENTRIES);
        let mut machine = Self { ram, transport, irq, queue };
        machine.bring_up();
        machine
    }

    /// Resets the device and starts it again, as a driver does.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn bring_up(&mut self) {
        self.queue = DriverQueue::new(&self.ram.present(), Self::RING, Self::ENTRIES);
        self.transport.negotiate(VIRTIO_F_VERSION_1 | feature::VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE);
        self.transport.enable_queue(0, self.queue.layout());
        self.transport.start();
        assert!(self.transport.is_running(), "the device comes up");
    }

    /// The device.
    pub fn device(&self) -> &MemoryDevice {
        self.transport.device()
    }

    /// Requests `bytes` of the guest, as the VMM does.
    ///
    /// # Panics
    /// If they cannot be requested.
    pub fn ask_for(&mut self, bytes: u64) {
        let pages = PageCount::from_bytes_exact(bytes).expect("whole pages");
        if self.transport.device_mut().request(pages).expect("a size that can be") {
            self.transport.config_changed();
        }
    }

    /// Writes a request of `kind` into slot `slot` and offers it, without a kick.
    pub fn offer(&mut self, slot: u16, (kind, addr, nb_blocks): (u16, u64, u16)) {
        let (request, answer) = Self::places(slot);
        let bytes = request_bytes(kind, addr, nb_blocks);
        self.ram.everything().write_slice(&bytes, GuestAddress(request)).expect("RAM");
        self.ram.everything().write_slice(&[0xff; 16], GuestAddress(answer)).expect("RAM");
        let (request_len, answer_len) = (24, 10);
        self.queue
            .offer_chain(2 * slot, &[(request, request_len, false), (answer, answer_len, true)]);
    }

    /// Kicks and serves until nothing is pending.
    pub fn kick(&mut self) {
        let mut progress = self.transport.queue_notified(0);
        while progress == QueueProgress::Pending {
            progress = self.transport.serve_pending();
        }
    }

    /// Makes a request; returns type and state of the answer.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn request(&mut self, kind: u16, addr: u64, nb_blocks: u16) -> (u16, u16) {
        self.offer(0, (kind, addr, nb_blocks));
        self.kick();
        let used = self.queue.take_all_used();
        assert_eq!(used.len(), 1, "one request, one answer");
        assert_eq!(used.first().map(|element| element.written), Some(10));
        self.answer(0)
    }

    /// Type and state of the answer in slot `slot`.
    pub fn answer(&self, slot: u16) -> (u16, u16) {
        let (_, answer) = Self::places(slot);
        let mut bytes = [0; RESPONSE_BYTES];
        self.ram.everything().read_slice(&mut bytes, GuestAddress(answer)).expect("RAM");
        let [k0, k1, .., s0, s1] = bytes;
        (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([s0, s1]))
    }

    /// `usable_region_size`, `plugged_size`, `requested_size` as the driver reads them.
    pub fn sizes(&mut self) -> [u64; 3] {
        [CONFIG_USABLE_REGION_SIZE, CONFIG_PLUGGED_SIZE, CONFIG_REQUESTED_SIZE]
            .map(|at| self.config(at))
    }

    /// A le64 of configuration space.
    pub fn config(&mut self, at: u64) -> u64 {
        let at = abi::mmio::CONFIG + at;
        u64::from(self.transport.load(at)) | u64::from(self.transport.load(at + 4)) << 32
    }

    /// Where the request and the answer of slot `slot` lie.
    pub const fn places(slot: u16) -> (u64, u64) {
        (Self::REQUESTS + 24 * slot as u64, Self::ANSWERS + 16 * slot as u64)
    }
}

/// A request as bytes, its padding filled with what a device has to ignore.
pub fn request_bytes(kind: u16, addr: u64, nb_blocks: u16) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0xa5; REQUEST_BYTES];
    let parts =
        [(0, &kind.to_le_bytes()[..]), (8, &addr.to_le_bytes()), (16, &nb_blocks.to_le_bytes())];
    for (at, part) in parts {
        bytes.iter_mut().skip(at).zip(part).for_each(|(to, from)| *to = *from);
    }
    bytes
}
