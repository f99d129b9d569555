//! One run: a seed decides who moves next, and what goes wrong.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use abi::Pfn;
use devices::ram::GuestRam;
use guest_mm::balloon::{
    BalloonCounters, BalloonDriver, BalloonPhase, BalloonStatus, Mutant, Options, Patience,
    SharedBalloon, Wake,
};
use guest_mm::census::BalloonClaim;
use guest_mm::memdesc::{DriverId, Kind};
use guest_mm::memory::Memory;
use guest_mm::migrate::MigrateStats;
use guest_mm::mm::{Base, Mm};
use guest_mm::store::{BitmapStore, PfnStore, XArrayStore};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};

use super::host::{Host, SimBus};
use super::platform::{SimMachine, SimPlatform};
use super::workload::Workload;

/// Steps that a run may take to come to rest.
const MAX_SETTLE_STEPS: u32 = 20_000;
/// How long migration waits for the device.
const PATIENCE_NS: u64 = 5_000_000;

/// Which store the driver uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// The default.
    XArray,
    /// The preallocated one.
    Bitmap,
}

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Pages of RAM.
    pub pages: u64,
    /// Steps under load before the run is brought to rest.
    pub steps: u32,
    /// The driver's store.
    pub store: StoreKind,
    /// The driver's largest order.
    pub max_order: u32,
    /// One step in so many fails at every fault site; 0 = none.
    pub faults_one_in: u64,
    /// The device lies, the guest's rings break, drivers are rebound.
    pub is_hostile: bool,
    /// Somebody isolates blocks of the balloon and puts them back.
    pub isolates: bool,
    /// Blocks of the balloon migrate.
    pub migrates: bool,
    /// The target only grows while the run is under load, up to half of RAM: the balloon never deflates.
    pub only_grows: bool,
    /// The device and the guest stop for seconds at a time.
    pub pauses: bool,
    /// Releases run beside the device, as on a worker thread.
    pub deferred: bool,
    /// DEFLATE_ON_OOM is negotiated, and the guest runs out of memory now and then.
    pub out_of_memory: bool,
    /// A defect of the driver, which the run must notice.
    pub mutant: Option<Mutant>,
    /// What is looked at while the run is under load.
    pub checks: Checks,
}

/// What is looked at while a run is under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Everything.
    All,
    /// Only what the guest's pages hold: what a user would notice.
    ContentsOnly,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            pages: 8192,
            steps: 1500,
            store: StoreKind::XArray,
            max_order: 10,
            faults_one_in: 0,
            is_hostile: false,
            isolates: true,
            migrates: false,
            only_grows: false,
            pauses: true,
            deferred: false,
            out_of_memory: false,
            mutant: None,
            checks: Checks::All,
        }
    }
}

/// A rule that a run has broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A page that the guest uses lost its contents.
    GuestPageDiscarded(Pfn),
    /// A page that should read as zero does not.
    ReportedPageNotZero(Pfn),
    /// The host holds a page that the guest has not given away: (claimed, offline).
    ClaimedNotOffline(u64, u64),
    /// The guest calls pages settled that the host does not hold: (settled, claimed).
    SettledNotClaimed(u64, u64),
    /// While pages moved, the host held less than it had been told: (claimed, told).
    HostShort(u64, u64),
    /// The books of the guest disagree.
    Census(String),
    /// The driver met a state of words or store that it had not made.
    Inconsistent(u64),
    /// The target was not reached although nothing stood in the way: (target, actual, claimed).
    TargetMissed(u64, u64, u64),
    /// Memory is missing after everything was given back: (before, after).
    Leak(u64, u64),
    /// The run did not come to rest.
    Restless,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a run did.
#[derive(Debug, Clone, Copy)]
pub struct SimOutcome {
    /// The driver's counters.
    pub driver: BalloonCounters,
    /// Steps that were made to fail.
    pub faults: u64,
    /// Pages known to be zero that the guest used again.
    pub zero_pages_seen: u64,
    /// What migration did.
    pub migrated: MigrateStats,
}

/// Runs `scenario` with `seed`.
///
/// # Errors
/// The first [`Violation`].
///
/// # Panics
/// If the machine cannot be set up.
pub fn run(scenario: Scenario, seed: u64) -> Result<SimOutcome, Violation> {
    let machine = SimMachine::new(scenario.pages, seed);
    let ranges = machine.ram().ram_ranges().to_vec();
    let platform = SimPlatform(machine.clone());
    let memory = Memory::new(platform, &ranges, &[]).expect("a machine with memory");
    let base = Base::new(memory).expect("a machine with memory");
    let all = abi::PfnRange::new(Pfn::ZERO, ranges.last().expect("RAM").end()).expect("ascending");
    match scenario.store {
        StoreKind::XArray => {
            let store = XArrayStore::new(&base.rcu, base.xa_nodes(), all);
            run_with(scenario, seed, &machine, &base, &store, || {
                store.trim();
                base.settle();
            })
        }
        StoreKind::Bitmap => {
            let mut words = vec![0; BitmapStore::<SimPlatform>::words_for(all).expect("small")];
            let store = BitmapStore::new(base.platform(), all, &mut words).expect("enough words");
            run_with(scenario, seed, &machine, &base, &store, || base.settle())
        }
    }
}

fn run_with<S: PfnStore>(
    scenario: Scenario,
    seed: u64,
    machine: &Arc<SimMachine>,
    base: &Base<SimPlatform>,
    store: &S,
    trim: impl Fn(),
) -> Result<SimOutcome, Violation> {
    let free = base.memory.free_pages().get();
    let patience = Patience { oom_ns: PATIENCE_NS, migrate_ns: PATIENCE_NS };
    let balloon = SharedBalloon::new(base.platform(), patience);
    let outcome = {
        let mm = Mm::new(base);
        Run::new(scenario, seed, machine, &mm, store, &balloon).play()?
    };
    trim();
    let after = base.memory.free_pages().get();
    if free == after { Ok(outcome) } else { Err(Violation::Leak(free, after)) }
}

type Balloon<'m, S> = SharedBalloon<'m, SimPlatform, SimBus, S>;
type Driver<'m, S> = BalloonDriver<'m, SimPlatform, SimBus, S>;

struct Run<'r, 'm, S: PfnStore> {
    scenario: Scenario,
    rng: StdRng,
    machine: &'m Arc<SimMachine>,
    memory: &'m Memory<SimPlatform>,
    mm: &'r Mm<'m, SimPlatform>,
    store: &'m S,
    host: Rc<RefCell<Host>>,
    balloon: &'m Balloon<'m, S>,
    workload: Workload<'r, 'm, SimPlatform>,
    wake: Wake,
    /// What the host held and had been told when it held less, while pages moved.
    short: Rc<Cell<Option<(u64, u64)>>>,
    /// Steps for which the device, one of its queues, or the guest stands still.
    device_paused: u32,
    queue_paused: [u32; 2],
    guest_paused: u32,
}

impl<'r, 'm, S: PfnStore> Run<'r, 'm, S> {
    fn new(
        scenario: Scenario,
        seed: u64,
        machine: &'m Arc<SimMachine>,
        mm: &'r Mm<'m, SimPlatform>,
        store: &'m S,
        balloon: &'m Balloon<'m, S>,
    ) -> Self {
        let memory = mm.memory();
        let host =
            Rc::new(RefCell::new(Host::new(machine, scenario.deferred, scenario.out_of_memory)));
        let options = Options { max_order: scenario.max_order, ..Options::default() };
        let driver = BalloonDriver::start(memory, store, SimBus(host.clone()), options);
        let mut driver = driver.unwrap_or_else(|error| panic!("{error}"));
        if let Some(mutant) = scenario.mutant {
            driver.mutate(mutant);
        }
        balloon.install(driver);
        mm.set_movable_ops(Kind::Offline, balloon).expect("nobody else moves its pages");
        machine.fail_one_in(scenario.faults_one_in);
        Self {
            scenario,
            rng: StdRng::seed_from_u64(seed),
            machine,
            memory,
            mm,
            store,
            host,
            balloon,
            workload: Workload::new(mm),
            short: Rc::new(Cell::new(None)),
            wake: Wake::Now,
            device_paused: 0,
            queue_paused: [0; 2],
            guest_paused: 0,
        }
    }

    /// Does something with the driver, which is there until the end of the run.
    fn driver<R>(&self, act: impl FnOnce(&mut Driver<'m, S>) -> R) -> R {
        self.balloon.with(act).expect("the driver lives until the end of the run")
    }

    fn status(&self) -> BalloonStatus {
        self.driver(|driver| driver.status())
    }

    fn play(&mut self) -> Result<SimOutcome, Violation> {
        for step in 0..self.scenario.steps {
            self.step()?;
            self.check(step % 50 == 0)?;
        }
        self.machine.fail_one_in(0);
        (self.device_paused, self.queue_paused, self.guest_paused) = (0, [0; 2], 0);
        self.workload.put_all_back();
        // A driver that has given up for good reason starts anew, as after a module reload.
        if self.status().phase == BalloonPhase::Failed {
            self.restart_driver();
        }
        let possible = self.memory.managed_pages().get() / 2;
        for target in [possible, 77, possible / 3, 0] {
            self.bring_to(target)?;
            self.check(true)?;
        }
        self.workload.end()?;
        let counters = self.status().counters;
        self.finish_driver();
        Ok(SimOutcome {
            driver: counters,
            faults: self.machine.faults_struck(),
            zero_pages_seen: self.workload.zero_pages_seen,
            migrated: self.workload.migrated,
        })
    }

    /// One move of somebody.
    fn step(&mut self) -> Result<(), Violation> {
        self.device_paused = self.device_paused.saturating_sub(1);
        self.guest_paused = self.guest_paused.saturating_sub(1);
        self.queue_paused = self.queue_paused.map(|steps| steps.saturating_sub(1));
        match self.rng.random_range(0..100) {
            0..30 => self.guest_moves(),
            30..55 => self.device_moves(),
            55..80 if self.guest_paused == 0 => self.workload.step(&mut self.rng)?,
            80..86 if self.guest_paused == 0 && self.scenario.isolates => {
                self.workload.isolate_or_put_back(self.store, &mut self.rng);
            }
            86..89 if self.scenario.migrates && self.rng.random_bool(0.7) => self.migrate(),
            86..89 => self.retarget(),
            89..92 => self.machine.advance(self.rng.random_range(0..20_000_000)),
            92 if self.guest_paused == 0 => {
                self.driver(|driver| driver.interrupt());
            }
            93..95 if self.scenario.pauses => self.pause(),
            95..97 if self.scenario.is_hostile => self.sabotage(),
            97 if self.guest_paused == 0 => self.workload.verify()?,
            98 if self.guest_paused == 0 && self.scenario.out_of_memory => self.run_out_of_memory(),
            _ => self.guest_moves(),
        }
        Ok(())
    }

    fn guest_moves(&mut self) {
        if self.guest_paused > 0 {
            return;
        }
        if self.rng.random_bool(0.6) && self.host.borrow_mut().take_interrupt() {
            self.driver(|driver| driver.interrupt());
        }
        self.wake = self.driver(|driver| driver.poll());
    }

    fn device_moves(&mut self) {
        if self.device_paused > 0 {
            return;
        }
        let mut host = self.host.borrow_mut();
        let paused = |queue: &u16| self.queue_paused[usize::from(*queue)] == 0;
        let kicked: Vec<u16> = host.kicked().into_iter().filter(paused).collect();
        match kicked.choose(&mut self.rng) {
            Some(&queue) => host.serve(queue),
            None => host.serve_pending(),
        }
    }

    /// The driver is notified; the device answers at a look of its choice, or not at all.
    fn run_out_of_memory(&mut self) {
        let (host, machine) = (Rc::clone(&self.host), Arc::clone(self.machine));
        let mut silent =
            if self.device_paused > 0 { u32::MAX } else { self.rng.random_range(0..5) };
        let mut looks = 0;
        let mut wait = || {
            looks += 1;
            machine.advance(100_000);
            match silent.checked_sub(1) {
                Some(left) => silent = left,
                None => {
                    let mut host = host.borrow_mut();
                    match host.kicked().first() {
                        Some(&queue) => host.serve(queue),
                        None => host.serve_pending(),
                    }
                }
            }
            looks < 50
        };
        self.driver(|driver| driver.deflate_on_oom(&mut wait));
    }

    /// Blocks of the balloon migrate; the device answers as it can meanwhile.
    fn migrate(&mut self) {
        if self.guest_paused > 0 {
            return;
        }
        let (host, machine, short) = (Rc::clone(&self.host), Arc::clone(self.machine), &self.short);
        let (short, paused) = (Rc::clone(short), self.queue_paused.map(|steps| steps > 0));
        let (is_silent, status) = (self.device_paused > 0, self.status());
        // A driver that resets its device tells it nothing more.
        let is_running = status.phase == BalloonPhase::Running;
        let mut rng = StdRng::seed_from_u64(self.rng.next_u64());
        let time = Arc::clone(&machine);
        let moves = move || {
            time.advance(100_000);
            if !is_silent && rng.random_bool(0.5) {
                let mut host = host.borrow_mut();
                let may_look = |queue: &u16| !paused[usize::from(*queue)];
                let kicked: Vec<u16> = host.kicked().into_iter().filter(may_look).collect();
                match kicked.choose(&mut rng) {
                    Some(&queue) => host.serve(queue),
                    None => host.serve_pending(),
                }
            }
            let host = host.borrow();
            let device = host.transport().device();
            // What is told is at most what the host has, unless the driver has the balloon shrink.
            let told = device.actual().get().min(status.target.get());
            if is_running && host.transport().is_running() && device.ballooned().get() < told {
                short.set(Some((device.ballooned().get(), told)));
            }
        };
        machine.while_waiting(Some(Box::new(moves)));
        self.workload.migrate(self.store, &mut self.rng);
        machine.while_waiting(None);
    }

    fn retarget(&mut self) {
        let most = self.scenario.pages;
        let target = match self.rng.random_range(0..6) {
            _ if self.scenario.only_grows => {
                let target = self.host.borrow().transport().device().target().get();
                (target + self.rng.random_range(0..400)).min(most / 2)
            }
            0 => 0,
            1 => most,
            2 => self.rng.random_range(0..64),
            _ => self.rng.random_range(0..most),
        };
        self.host.borrow_mut().set_target(target);
    }

    fn pause(&mut self) {
        let steps = self.rng.random_range(1..60);
        match self.rng.random_range(0..9) {
            0 => self.silence(),
            1..3 => self.device_paused = steps,
            3..5 => self.guest_paused = steps,
            5..7 => self.queue_paused[0] = steps,
            _ => self.queue_paused[1] = steps,
        }
        if self.rng.random_bool(0.3) {
            self.machine.advance(self.rng.random_range(0..3_000_000_000));
        }
    }

    /// The device does not answer for many seconds, the guest looks now and then.
    fn silence(&mut self) {
        for _ in 0..self.rng.random_range(2..16) {
            self.machine.advance(1_100_000_000);
            self.guest_moves();
        }
    }

    fn sabotage(&mut self) {
        let queue = self.rng.random_range(0..2);
        match self.rng.random_range(0..8) {
            0..3 => {
                let head = self.rng.random_range(256..100_000);
                self.host.borrow_mut().forge_used(queue, head);
            }
            3..6 => self.host.borrow_mut().break_ring(queue),
            6 if self.guest_paused == 0 => self.driver(|driver| driver.rebind()),
            _ if self.guest_paused == 0 && self.status().phase == BalloonPhase::Failed => {
                self.restart_driver();
            }
            _ => {}
        }
    }

    /// Ends a driver that has given up and starts another, if the old one has
    /// taken all its pages back.
    fn restart_driver(&mut self) {
        let faults = self.scenario.faults_one_in;
        self.machine.fail_one_in(0);
        if self.store.blocks() == 0 {
            self.finish_driver();
            let options = Options { max_order: self.scenario.max_order, ..Options::default() };
            let bus = SimBus(self.host.clone());
            let driver = BalloonDriver::start(self.memory, self.store, bus, options);
            self.balloon.install(driver.unwrap_or_else(|error| panic!("{error}")));
        }
        self.machine.fail_one_in(faults);
    }

    fn finish_driver(&mut self) {
        let mut driver = self.balloon.take().expect("the driver lives until here");
        driver.unbind();
        for _ in 0..MAX_SETTLE_STEPS {
            match driver.poll() {
                Wake::Now => {}
                Wake::At(at) => self.machine.advance(at.saturating_sub(self.machine.now())),
                Wake::OnInterrupt => break,
            }
        }
        assert!(driver.finish().is_ok(), "pages stayed in the balloon after its end");
    }

    /// Lets everybody work until `target` is reached and all is quiet.
    fn bring_to(&mut self, target: u64) -> Result<(), Violation> {
        self.host.borrow_mut().set_target(target);
        // A hostile host's last blow may be met only now, by a driver with no restart left.
        let mut may_restart = self.scenario.is_hostile;
        for _ in 0..MAX_SETTLE_STEPS {
            if self.host.borrow_mut().take_interrupt() {
                self.driver(|driver| driver.interrupt());
            }
            let wake = self.driver(|driver| driver.poll());
            self.device_moves();
            let (has_work, has_interrupt) = {
                let host = self.host.borrow();
                (host.has_work(), host.has_interrupt())
            };
            if has_work || has_interrupt || wake == Wake::Now {
                continue;
            }
            if self.is_at(target) {
                return self.workload.verify();
            }
            match wake {
                Wake::At(at) => self.machine.advance(at.saturating_sub(self.machine.now())),
                Wake::Now | Wake::OnInterrupt => {
                    let has_given_up = self.status().phase == BalloonPhase::Failed;
                    if !std::mem::take(&mut may_restart) || !has_given_up {
                        break;
                    }
                    self.restart_driver();
                }
            }
        }
        let actual = self.status().actual.get();
        let claimed = self.host.borrow().transport().device().ballooned().get();
        if self.status().actual.get() == target {
            return Err(Violation::Restless);
        }
        Err(Violation::TargetMissed(target, actual, claimed))
    }

    fn is_at(&mut self, target: u64) -> bool {
        let status = self.status();
        let host = self.host.borrow();
        let device = host.transport().device();
        status.phase == BalloonPhase::Running
            && status.inflating.is_zero()
            && status.deflating.is_zero()
            && [status.actual, device.actual(), device.ballooned(), self.store.pages()]
                .iter()
                .all(|pages| pages.get() == target)
    }

    fn check(&mut self, with_census: bool) -> Result<(), Violation> {
        if self.scenario.checks == Checks::ContentsOnly {
            return Ok(());
        }
        if let Some((claimed, told)) = self.short.get() {
            return Err(Violation::HostShort(claimed, told));
        }
        let status = self.status();
        if status.counters.inconsistencies > 0 {
            return Err(Violation::Inconsistent(status.counters.inconsistencies));
        }
        let claimed = self.host.borrow().transport().device().ballooned().get();
        let offline = self.store.pages().get();
        // A page goes offline before the host hears of it, and stays so until after it has answered.
        if status.phase == BalloonPhase::Running || status.phase == BalloonPhase::Degraded {
            if claimed > offline {
                return Err(Violation::ClaimedNotOffline(claimed, offline));
            }
            let running = self.host.borrow().transport().is_running();
            if running && status.actual.get() > claimed {
                return Err(Violation::SettledNotClaimed(status.actual.get(), claimed));
            }
        }
        if with_census { self.census() } else { Ok(()) }
    }

    fn census(&mut self) -> Result<(), Violation> {
        let status = self.status();
        let claim = BalloonClaim {
            driver: DriverId::BALLOON,
            store: self.store,
            actual: status.actual,
            in_flight: status.inflating.saturating_add(status.deflating),
        };
        let census = self.mm.census(&[claim]);
        match census.discrepancies().iter().next() {
            None => Ok(()),
            Some(first) => {
                Err(Violation::Census(format!("{first} (of {})", census.discrepancies().total())))
            }
        }
    }
}
