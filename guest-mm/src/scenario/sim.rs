//! Scenarios on the host: threads as CPUs, the simulated MMU as theirs.
//!
//! CPUs run truly at once, as far as the host has cores, and where there are several they take turns at
//! random places: wherever somebody waits, and at accesses to user memory. So
//! with one thread a scenario does the same in every run of a seed; with more
//! the seed decides what the threads do but not how they interleave.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::cell::{Cell, RefCell};
use std::string::{String, ToString};
use std::vec::Vec;

use abi::PfnRange;

use super::{Access, Args, Caller, Ctx, Failure, Machine, Name, Rng, Signal, run};
use crate::addr::{USER_END, VirtAddr};
use crate::balloon::{BalloonDriver, BalloonStatus, Options, Patience, SharedBalloon};
use crate::errno::Errno;
use crate::fault::FaultAccess;
use crate::memdesc::{Kind, SECTION_PAGES};
use crate::memory::Memory;
use crate::mm::{Base, Mm};
use crate::platform::{AtomicCpuSet, FaultSite, MAX_CPUS, Platform};
use crate::space::AddressSpace;
use crate::store::{MAX_BLOCK_ORDER, PfnStore, XArrayStore};
use crate::testing::balloon::BalloonDevice;
use crate::testing::mmu::{MmuAccess, PageFault};
use crate::testing::{self, TestPlatform, set_cpu};

/// A thread yields at one in so many accesses.
const YIELD_ONE_IN: u64 = 16;

std::thread_local! {
    /// The set of CPUs of the space that the thread has entered.
    static SPACE_CPUS: Cell<*const AtomicCpuSet> = const { Cell::new(core::ptr::null()) };
    /// Where the thread yields; nowhere while it is alone: on a busy host each yield may cost a
    /// time slice of everybody else.
    static TURNS: RefCell<Option<Rng>> = const { RefCell::new(None) };
}

impl Machine for TestPlatform {
    fn spare(&self) -> Option<PfnRange> {
        TestPlatform::spare(self)
    }

    fn cpus(&self) -> usize {
        MAX_CPUS
    }

    fn run_on(
        &self,
        _mm: &Mm<'_, Self>,
        threads: usize,
        seed: u64,
        work: &(dyn Fn(usize) + Sync),
        serve: &mut dyn FnMut(),
    ) -> Result<(), Errno> {
        if threads > MAX_CPUS {
            return Err(Errno::EINVAL);
        }
        // Each thread is a CPU of its own, the first the caller's: two flows on one
        // would have to mask each other out.
        let run = |thread: usize| {
            set_cpu(thread);
            TURNS.set((threads > 1).then(|| Rng::new(seed).stream(thread as u64)));
            work(thread);
            TURNS.set(None);
            self.leave();
        };
        let has_panicked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 1..threads {
                let (run, has_panicked) = (&run, &has_panicked);
                scope.spawn(move || {
                    let notice = NoticePanic(has_panicked);
                    run(thread);
                    core::mem::forget(notice);
                });
            }
            if threads > 0 {
                run(0);
            }
        });
        assert!(!has_panicked.into_inner(), "a CPU panicked");
        serve();
        Ok(())
    }

    fn yield_now(&self) {
        std::thread::yield_now();
    }

    fn enter(&self, space: &AddressSpace<'_, Self>) {
        if core::ptr::eq(SPACE_CPUS.get(), &raw const space.cpus) {
            return;
        }
        self.leave();
        space.cpus.insert(self.cpu());
        SPACE_CPUS.set(&raw const space.cpus);
        self.load_root(Some(space.root()));
    }

    fn leave(&self) {
        let cpus = SPACE_CPUS.replace(core::ptr::null());
        if cpus.is_null() {
            return;
        }
        self.load_root(None);
        // SAFETY: the space lives until every thread has left it (`Machine::enter`).
        unsafe { &*cpus }.remove(self.cpu());
    }

    fn access<'m>(
        &self,
        mm: &Mm<'m, Self>,
        space: &AddressSpace<'m, Self>,
        va: u64,
        access: Access,
    ) -> Result<u64, Signal> {
        self.enter(space);
        let is_turn = |rng: &mut Rng| rng.once_in(YIELD_ONE_IN);
        if TURNS.with_borrow_mut(|turns| turns.as_mut().is_some_and(is_turn)) {
            std::thread::yield_now();
        }
        let address = VirtAddr::new(va).filter(|_| va < USER_END).ok_or(Signal::SegvMapErr)?;
        assert!(va.is_multiple_of(access.bytes()), "{access:?} at {va:#x}");
        let kind = if access.is_write() { MmuAccess::Write } else { MmuAccess::Read };
        loop {
            let touch = |byte| perform(byte, access);
            let fault = match self.mmu().access(mm.memory(), space.root(), va, kind, touch) {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            assert!(!fault.reserved, "the tables are broken: {fault}");
            let tried = FaultAccess::from_error_code(PageFault::error_code(fault));
            mm.handle_fault(space, address, tried)
                .map_err(|error| Signal::of_fault(error, space.is_dead()))?;
        }
    }
}

/// The load or store itself, at its place in RAM.
fn perform(byte: NonNull<u8>, access: Access) -> u64 {
    // SAFETY: RAM of the simulated machine, shared with other CPUs by atomics only.
    let byte_cell = || unsafe { byte.cast::<AtomicU8>().as_ref() };
    // SAFETY: as above; `access` has checked the alignment.
    let word_cell = || unsafe { byte.cast::<AtomicU64>().as_ref() };
    // The orderings are x86's: loads acquire, stores release, locked instructions are barriers.
    match access {
        Access::LoadU8 => u64::from(byte_cell().load(Ordering::Acquire)),
        Access::StoreU8(value) => {
            byte_cell().store(value, Ordering::Release);
            0
        }
        Access::LoadU64 => word_cell().load(Ordering::Acquire),
        Access::StoreU64(value) => {
            word_cell().store(value, Ordering::Release);
            0
        }
        Access::CompareExchangeU64 { current, new } => {
            match word_cell().compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(before) | Err(before) => before,
            }
        }
    }
}

/// Set when dropped: on the way out of a panic.
struct NoticePanic<'a>(&'a AtomicBool);

impl Drop for NoticePanic<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a scenario printed, and how it ended.
#[derive(Debug)]
pub struct Report {
    /// The lines.
    pub lines: Vec<String>,
    /// The end.
    pub outcome: Result<(), Failure>,
    /// Steps that failed because they were to.
    pub faults: u64,
}

struct Lines<'a> {
    lines: Vec<String>,
    balloon: Option<&'a dyn HostedBalloon>,
}

impl Caller for Lines<'_> {
    fn print(&mut self, line: core::fmt::Arguments<'_>) {
        self.lines.push(line.to_string());
    }

    fn serve(&mut self) {
        if let Some(balloon) = self.balloon {
            balloon.serve();
        }
    }

    fn balloon(&mut self) -> Option<BalloonStatus> {
        self.balloon.and_then(HostedBalloon::status)
    }

    fn set_balloon_target(&mut self, pages: u64) -> bool {
        self.balloon.is_some_and(|balloon| balloon.set_target(pages))
    }
}

/// Pages of a simulated machine that no map names, to be added: 64 MiB.
const SPARE_PAGES: u64 = 1 << 14;

/// Scenarios for which a machine has a balloon.
const BALLOONED: [Name; 3] = [Name::BalloonMigrate, Name::BalloonMigrateOom, Name::MigrateHammer];

/// Runs scenario `name` on a new simulated machine with `pages` frames.
///
/// # Panics
/// If the machine cannot be set up, and wherever the simulated machine notices
/// what a real one would not: stale translations, wrong lock orders.
pub fn simulate(name: Name, args: Args, pages: u64) -> Report {
    simulate_with_faults(name, args, pages, &[])
}

/// As [`simulate`], with one step in so many failing at random at each of these sites. The
/// scenario may fail then; its last lines say whether the machine was left as it was.
///
/// # Panics
/// As [`simulate`].
pub fn simulate_with_faults(
    name: Name,
    args: Args,
    pages: u64,
    faults: &[(FaultSite, u64)],
) -> Report {
    let ram = [testing::range(0, pages)];
    // Beyond the hole behind RAM, as a device has it.
    let start = pages.next_multiple_of(SECTION_PAGES.get()) + SECTION_PAGES.get();
    let spare = testing::range(start, SPARE_PAGES);
    let platform = TestPlatform::new(&ram, 0).with_spare(spare);
    let memory = Memory::new(platform, &ram, &[]).unwrap_or_else(|error| panic!("{error}"));
    let base = Base::new(memory).unwrap_or_else(|error| panic!("{error}"));
    if !BALLOONED.contains(&name) {
        return simulate_on((name, args), &Mm::new(&base), None, faults);
    }
    // Declared before what borrows them.
    let device = BalloonDevice::new(base.platform());
    let all = testing::range(0, pages);
    let store = XArrayStore::new(&base.rcu, base.xa_nodes(), all);
    let shared = SharedBalloon::new(base.platform(), Patience::default());
    let mm = Mm::new(&base);
    // Page by page, or in the largest blocks.
    let max_order = if args.seed.is_multiple_of(2) { MAX_BLOCK_ORDER } else { 0 };
    let options = Options { max_order, ..Options::default() };
    let driver = BalloonDriver::start(&base.memory, &store, &device, options);
    shared.install(driver.unwrap_or_else(|error| panic!("{error}")));
    mm.set_movable_ops(Kind::Offline, &shared).unwrap_or_else(|error| panic!("{error}"));
    mm.set_oom_notifier(Some(&shared));
    let hosted = (&device, &shared);
    let report = simulate_on((name, args), &mm, Some(&hosted), faults);
    // Whatever the scenario left: the host holds what the guest says, and no more.
    assert_eq!(hosted.status().map(|status| status.actual.get()), Some(device.held()));
    report
}

fn simulate_on(
    (name, args): (Name, Args),
    mm: &Mm<'_, TestPlatform>,
    balloon: Option<&dyn HostedBalloon>,
    faults: &[(FaultSite, u64)],
) -> Report {
    for (site, one_in) in faults {
        mm.platform().faults().fail_randomly(*site, *one_in);
    }
    let mut caller = Lines { lines: Vec::new(), balloon };
    let outcome = run(name, &mut Ctx::new(mm, args, &mut caller));
    let faults = faults.iter().map(|(site, _)| mm.platform().faults().struck(*site)).sum();
    Report { lines: caller.lines, outcome, faults }
}

/// A balloon as the host and the main loop of its guest see it.
trait HostedBalloon {
    /// The main loop's turn.
    fn serve(&self);
    /// Where the driver stands.
    fn status(&self) -> Option<BalloonStatus>;
    /// What the host wishes; `false` if it has no such device.
    fn set_target(&self, pages: u64) -> bool;
}

impl<'m, S: PfnStore> HostedBalloon
    for (&BalloonDevice<'m>, &SharedBalloon<'m, TestPlatform, &'m BalloonDevice<'m>, S>)
{
    fn serve(&self) {
        self.1.serve(self.0.has_interrupt());
    }

    fn status(&self) -> Option<BalloonStatus> {
        self.1.status()
    }

    fn set_target(&self, pages: u64) -> bool {
        u32::try_from(pages).is_ok_and(|pages| {
            self.0.set_target(pages);
            true
        })
    }
}
