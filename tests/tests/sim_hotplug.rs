//! The real virtio-mem driver against the real memory device, under a seeded scheduler.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use abi::{PageCount, Pfn, PfnRange};
use devices::mem::{BlockMemory, MemRegion, MemoryDevice};
use devices::ram::GuestRam;
use devices::testing::TestRam;
use guest_mm::balloon::Wake;
use guest_mm::buddy::Gfp;
use guest_mm::hotplug::{HotplugDriver, HotplugOptions, HotplugPhase};
use guest_mm::memdesc::Order;
use guest_mm::memory::{FrozenFrames, Memory};
use guest_mm::mm::{Base, Mm};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use system_tests::sim::{DirectBus, SimMachine, SimPlatform, seeds};
use vm_memory::{Bytes, GuestAddress};

type Bus = DirectBus<MemoryDevice>;
type Driver<'a, 'm> = HotplugDriver<'a, 'm, SimPlatform, Bus>;

const MIB: u64 = 1 << 20;
/// Frames of a device block.
const UNIT: u64 = 512;
/// Pages of RAM at the start.
const PAGES: u64 = 4096;
/// What lies where nothing is plugged: whoever writes there is found out at the next plug.
const NOTHING: [u8; 4096] = [0x5a; 4096];
/// Blocks of memory that the guest uses at most.
const MAX_HELD: usize = 24;
/// Pauses after which a driver that is not at rest is no more waited for.
const MAX_PAUSES: u32 = 24;

/// A region across a border of sections, so that the guest makes two blocks of it, of different size.
fn region() -> MemRegion {
    MemRegion::new(240 * MIB, 48 * MIB, 2 * MIB).expect("a region")
}

/// What is plugged as the host has it, and how often it refuses next.
#[derive(Default)]
struct Books {
    plugged: BTreeSet<u64>,
    refuse: u32,
}

/// The host's part: fresh memory reads zero, what was unplugged is overwritten at once, and the host may refuse.
struct Host {
    ram: Arc<TestRam>,
    books: Arc<Mutex<Books>>,
}

impl Host {
    /// `ram`, with nothing plugged of the region.
    fn new(ram: Arc<TestRam>) -> Self {
        let host = Self { ram, books: Arc::default() };
        region().pfns().iter().for_each(|pfn| host.fill(pfn, &NOTHING));
        host
    }

    fn fill(&self, pfn: Pfn, page: &[u8; 4096]) {
        let at = GuestAddress(pfn.gpa());
        self.ram.memory().write_slice(page, at).expect("inside the region");
    }

    fn is_untouched(&self, pfn: Pfn) -> bool {
        let mut page = [0; 4096];
        let at = GuestAddress(pfn.gpa());
        self.ram.memory().read_slice(&mut page, at).expect("inside the region");
        page == NOTHING
    }
}

impl BlockMemory for Host {
    fn plug(&mut self, range: PfnRange) -> io::Result<()> {
        let mut books = self.books.lock().expect("one thread");
        if let Some(left) = books.refuse.checked_sub(1) {
            books.refuse = left;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        for pfn in range.iter() {
            assert!(books.plugged.insert(pfn.number()), "{pfn} was plugged");
            assert!(
                self.is_untouched(pfn),
                "the guest has written to {pfn}, which was not plugged"
            );
            self.fill(pfn, &[0; 4096]);
        }
        Ok(())
    }

    fn unplug(&mut self, ranges: &[PfnRange]) -> io::Result<()> {
        let mut books = self.books.lock().expect("one thread");
        for pfn in ranges.iter().flat_map(|range| range.iter()) {
            assert!(books.plugged.remove(&pfn.number()), "{pfn} was not plugged");
            self.fill(pfn, &NOTHING);
        }
        Ok(())
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Nothing but what every host does: it refuses, it is slow, it changes its mind.
    None,
    /// The device asks for resets in mid-flight.
    Resets,
    /// One step in so many of the guest's fails.
    Faults(u64),
}

/// Everything but the driver, which borrows the guest's memory manager.
struct Sim<'m> {
    seed: u64,
    rng: StdRng,
    machine: Arc<SimMachine>,
    books: Arc<Mutex<Books>>,
    bus: Bus,
    memory: &'m Memory<SimPlatform>,
    held: Vec<(u8, FrozenFrames)>,
    /// Interrupt edges that the guest has seen.
    edges: u64,
    /// Blocks that had come or gone when the ring was last broken.
    broken_at: u64,
    trouble: Trouble,
}

impl Sim<'_> {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("one thread")
    }

    /// Delivers an interrupt, if there is one, and lets the driver work; `Some` when it has to be called again.
    fn guest_moves(&mut self, driver: &mut Driver<'_, '_>) -> Wake {
        if std::mem::replace(&mut self.edges, self.bus.edges()) != self.edges {
            driver.interrupt();
        }
        driver.poll()
    }

    fn request(&mut self, pages: u64) {
        self.bus.host(|device| device.request(PageCount::new(pages)).expect("within the region"));
        self.bus.transport(|transport| transport.config_changed());
    }

    /// Lets both work until neither has anything to do.
    fn settle(&mut self, driver: &mut Driver<'_, '_>) {
        let (mut pauses, mut requests) = (0, 0);
        // A driver that makes headway may pause as often as it likes.
        while pauses < MAX_PAUSES {
            if requests != driver.status().counters.requests {
                (pauses, requests) = (0, driver.status().counters.requests);
            }
            let wake = self.guest_moves(driver);
            self.bus.serve();
            match wake {
                Wake::At(at) => {
                    pauses += 1;
                    self.machine.advance(at.saturating_sub(self.machine.now()));
                }
                Wake::OnInterrupt if self.bus.edges() == self.edges => return,
                Wake::Now | Wake::OnInterrupt => {}
            }
        }
    }

    fn step(&mut self, driver: &mut Driver<'_, '_>) {
        match self.rng.random_range(0..24) {
            0..8 => {
                self.guest_moves(driver);
            }
            8..14 => self.bus.serve(),
            14..16 => self.machine.advance(self.rng.random_range(0..40_000_000)),
            16 => {
                let most = region().pfns().len().get() / UNIT;
                let pages = UNIT * self.rng.random_range(0..=most);
                self.request(pages);
            }
            17 => self.books().refuse = 0,
            18 => {
                let times = self.rng.random_range(0..4);
                self.books().refuse = times;
            }
            19..21 => self.use_memory(),
            21 => self.look_at_one(),
            22 => self.sabotage(driver),
            // The device is silent for long.
            _ => {
                for _ in 0..self.rng.random_range(1..8) {
                    self.machine.advance(1_100_000_000);
                    self.guest_moves(driver);
                }
            }
        }
    }

    fn sabotage(&mut self, driver: &mut Driver<'_, '_>) {
        if self.rng.random_bool(0.3) {
            // An edge without a reason.
            return driver.interrupt();
        }
        let counters = self.bus.host(|device| *device.counters());
        let changes = counters.plugged_blocks + counters.unplugged_blocks;
        // A driver gives a device up that does nothing but break: something has to be done in between.
        if self.trouble == Trouble::Resets && changes != self.broken_at {
            self.broken_at = changes;
            self.bus.break_ring(0);
        }
    }

    /// Allocates some memory and fills it.
    fn use_memory(&mut self) {
        if self.held.len() >= MAX_HELD {
            return self.look_at_one();
        }
        let order = Order::try_from(self.rng.random_range(0..=9u32)).expect("at most 10");
        let Ok(mut frames) = self.memory.alloc_frozen(order, Gfp::USER) else { return };
        let mark = self.rng.random_range(0..=u8::MAX);
        self.memory.bytes_mut(&mut frames).fill(mark);
        self.held.push((mark, frames));
    }

    /// Looks whether some memory in use holds what was written, and frees it.
    fn look_at_one(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let (mark, frames) = self.held.swap_remove(self.rng.random_range(0..self.held.len()));
        let bytes = self.memory.bytes(&frames);
        assert!(bytes.iter().all(|byte| *byte == mark), "seed {}: {frames:?}", self.seed);
        self.memory.free_frozen(frames);
    }

    /// What is true at every step, whatever goes wrong.
    fn check(&self, driver: &Driver<'_, '_>) {
        let (status, seed) = (driver.status(), self.seed);
        assert_eq!(status.counters.inconsistencies, 0, "seed {seed}: {status:?}");
        assert_ne!(status.phase, HotplugPhase::Refused, "seed {seed}: {status:?}");
        let (plugged, counters) =
            self.bus.host(|device| (device.plugged().get(), *device.counters()));
        assert_eq!(plugged, self.books().plugged.len() as u64, "seed {seed}");
        // What is alive is plugged, and what is plugged beyond that is in flight.
        assert!(status.alive.get() <= plugged, "seed {seed}: {plugged}, {status:?}");
        assert_eq!(counters.errors, 0, "seed {seed}: the driver keeps the rules: {counters:?}");
    }
}

/// How a run ended.
struct Outcome {
    phase: HotplugPhase,
    resets: u64,
    faults: u64,
    refusals: u64,
    removed_blocks: u64,
}

fn run(seed: u64, trouble: Trouble) -> Outcome {
    let machine = SimMachine::with_hotplug(PAGES, seed, Some(region().pfns()));
    let host = Host::new(machine.ram());
    let books = host.books.clone();
    let bus = Bus::new(MemoryDevice::new(region(), Box::new(host)), machine.ram());
    let platform = SimPlatform(machine.clone());
    let base = Base::new(Memory::new(platform, &machine.boot_ram(), &[]).expect("RAM"));
    let base = base.expect("caches");
    let mm = Mm::new(&base);
    mm.memory().drain();
    let free = mm.memory().free_pages();
    let options = HotplugOptions::default();
    let mut driver = HotplugDriver::start(&mm, bus.clone(), options).expect("a device");
    let mut sim = Sim {
        seed,
        rng: StdRng::seed_from_u64(seed),
        machine,
        books,
        bus,
        memory: mm.memory(),
        held: Vec::new(),
        edges: 0,
        broken_at: 0,
        trouble,
    };
    if let Trouble::Faults(one_in) = trouble {
        sim.machine.fail_one_in(one_in);
    }
    for step in 0..1500 {
        sim.step(&mut driver);
        sim.check(&driver);
        if step % 50 == 0 {
            assert_eq!(mm.census(&[]).discrepancies().total(), 0, "seed {seed}, step {step}");
        }
    }
    sim.machine.fail_one_in(0);
    sim.books().refuse = 0;
    while !sim.held.is_empty() {
        sim.look_at_one();
    }
    for pages in [UNIT * 7, region().pfns().len().get(), 0] {
        sim.request(pages);
        sim.settle(&mut driver);
        sim.check(&driver);
        let census = mm.census(&[]);
        let found: Vec<_> = census.discrepancies().iter().collect();
        assert!(found.is_empty(), "seed {seed}, {pages} pages: {found:?}");
        if driver.status().phase == HotplugPhase::Running {
            let (status, plugged) = (driver.status(), sim.bus.host(|device| device.plugged()));
            assert_eq!((status.plugged.get(), plugged.get()), (pages, pages), "seed {seed}");
        }
    }
    let status = driver.status();
    if status.phase == HotplugPhase::Running {
        assert_eq!(status.blocks, 0, "seed {seed}: {status:?}");
        assert!(driver.finish().is_ok(), "seed {seed}");
        mm.memory().drain();
        base.poll_rcu();
        assert_eq!(mm.memory().free_pages(), free, "seed {seed}: nothing is missing");
    }
    Outcome {
        phase: status.phase,
        resets: status.counters.resets,
        faults: sim.machine.faults_struck(),
        refusals: status.counters.refusals,
        removed_blocks: status.counters.removed_blocks,
    }
}

#[test]
fn memory_comes_and_goes_in_any_order_of_events_and_none_is_lost() {
    let (mut refusals, mut removed) = (0, 0);
    for seed in seeds(8) {
        let outcome = run(seed, Trouble::None);
        assert_eq!((outcome.phase, outcome.resets), (HotplugPhase::Running, 0), "seed {seed}");
        refusals += outcome.refusals;
        removed += outcome.removed_blocks;
    }
    assert!(refusals > 0 && removed > 0, "{refusals} refusals, {removed} blocks went");
}

#[test]
fn resets_in_mid_flight_lose_no_memory_and_leave_no_doubt_about_it() {
    let mut resets = 0;
    for seed in seeds(8) {
        let outcome = run(seed, Trouble::Resets);
        assert_eq!(outcome.phase, HotplugPhase::Running, "seed {seed}");
        resets += outcome.resets;
    }
    assert!(resets > 0);
}

#[test]
fn steps_that_fail_in_the_guest_cost_time_and_no_memory() {
    let mut faults = 0;
    for seed in seeds(8) {
        let outcome = run(seed, Trouble::Faults(12));
        // One that gives its device up leaves what is alive where it is, which `run` has looked at.
        assert!(
            matches!(outcome.phase, HotplugPhase::Running | HotplugPhase::Failed),
            "seed {seed}"
        );
        faults += outcome.faults;
    }
    assert!(faults > 0);
}

#[test]
fn with_no_page_free_memory_is_added_through_driver_and_device() {
    let machine = SimMachine::with_hotplug(PAGES, 1, Some(region().pfns()));
    let host = Host::new(machine.ram());
    let bus = Bus::new(MemoryDevice::new(region(), Box::new(host)), machine.ram());
    let platform = SimPlatform(machine.clone());
    let base = Base::new(Memory::new(platform, &machine.boot_ram(), &[]).expect("RAM"));
    let base = base.expect("caches");
    let mm = Mm::new(&base);
    let options = HotplugOptions::default();
    let mut driver = HotplugDriver::start(&mm, bus.clone(), options).expect("a device");
    let mut sim = Sim {
        seed: 1,
        rng: StdRng::seed_from_u64(1),
        machine,
        books: Arc::default(),
        bus,
        memory: mm.memory(),
        held: Vec::new(),
        edges: 0,
        broken_at: 0,
        trouble: Trouble::None,
    };
    let mut all = Vec::new();
    let pages = PageCount::new(PAGES);
    sim.memory.alloc_many(pages, Order::MAX, Gfp::MEMALLOC, &mut |frames| all.push(frames));
    assert!(sim.memory.free_pages().is_zero());
    sim.request(region().pfns().len().get());
    sim.settle(&mut driver);
    let status = driver.status();
    assert_eq!(status.plugged, region().pfns().len(), "{status:?}");
    // All but the tables of the two blocks.
    assert_eq!(sim.memory.free_pages(), status.alive, "{status:?}");
    let tables = status.plugged.get() - status.alive.get();
    assert!(tables > 0 && tables < 64, "{tables} pages of tables");
    all.into_iter().for_each(|frames| sim.memory.free_frozen(frames));
    assert_eq!(mm.census(&[]).discrepancies().total(), 0);
}
