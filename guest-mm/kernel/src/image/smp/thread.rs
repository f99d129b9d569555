//! Threads: several flows of control on each CPU, each with a stack of its own.
//!
//! A thread never changes its CPU, so the run queue of a CPU is touched by that CPU alone, masked. Thread N below
//! [`CPUS`] is what CPU N did first: the kernel's main flow on the boot CPU, the idle loop elsewhere. The others are
//! workers; each waits for a job, does it, and waits for the next. Who waits for a short while looks again,
//! and lets others run in between ([`yield_now`]); who waits for a page that moves, or a folio's lock, sleeps until he is
//! woken ([`wait_until`]). An interrupt may take the CPU away at any unmasked point ([`preempt`]), also inside a page
//! fault that is being handled.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use abi::Pfn;
use guest_kernel::layout::{BootTable, CPUS, STACK_SLOT_COUNT, stack_top, word};
use guest_mm::balloon::Wake;
use guest_mm::memdesc::Order;
use guest_mm::memory::Memory;
use guest_mm::platform::{AtomicCpuSet, WaitKey};
use guest_mm::sync::Sleeper;

use super::mailbox;
use super::run::Run;
use super::stack::{self, NoStack};
use crate::image::platform::Machine;
use crate::image::user::FaultHandler;
use crate::image::{gate, irq, time, timer};

unsafe extern "C" {
    fn thread_switch(save: *mut u64, rsp: u64);
    fn thread_begin();
}

/// Threads: one slot each, see [`stack`].
pub(super) const THREADS: usize = STACK_SLOT_COUNT;
/// Workers among them.
pub(super) const WORKERS: usize = THREADS - CPUS;
/// Registers that [`thread_switch`] keeps on the stack, and the return address.
const SWITCH_WORDS: usize = 7;
/// Stacks of workers: 128 KiB.
const WORKER_STACK: Order = match Order::new(5) {
    Some(order) => order,
    None => unreachable!(),
};

/// A thread.
struct Thread {
    /// Where its registers are while it does not run.
    rsp: UnsafeCell<u64>,
    /// What it is to do, or does.
    job: UnsafeCell<Option<Job>>,
    /// A job has been posted and not yet taken.
    is_posted: AtomicBool,
    /// A job has been taken and has not ended.
    is_busy: AtomicBool,
    /// What it sleeps on.
    sleeper: Sleeper,
    /// Its CPU; none: it does not exist yet.
    cpu: AtomicUsize,
    /// GPA of the root table that its user addresses mean.
    root: AtomicU64,
    /// The set of CPUs of the address space that it has entered.
    space_cpus: AtomicPtr<AtomicCpuSet>,
    /// What mends faults of the user access under way.
    faults: UnsafeCell<Option<FaultHandler>>,
}

// SAFETY: `rsp`, `root`, `faults` and `space_cpus` are touched by the thread's CPU only, masked or by the thread itself;
// `job` is written by the poster while the thread is neither posted nor busy, and read by the thread after it has seen
// `is_posted` (Acquire, against the poster's Release).
unsafe impl Sync for Thread {}

/// A worker's job: its part of a run.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub(super) run: *const Run<'static>,
    pub(super) index: usize,
}

const NOWHERE: usize = usize::MAX;

static ALL: [Thread; THREADS] = [const {
    Thread {
        rsp: UnsafeCell::new(0),
        job: UnsafeCell::new(None),
        is_posted: AtomicBool::new(false),
        is_busy: AtomicBool::new(false),
        sleeper: Sleeper::new(),
        cpu: AtomicUsize::new(NOWHERE),
        root: AtomicU64::new(BootTable::Pml4.gpa()),
        space_cpus: AtomicPtr::new(ptr::null_mut()),
        faults: UnsafeCell::new(None),
    }
}; THREADS];

/// What a CPU runs.
struct Queue {
    /// The thread that runs; NOWHERE until first asked: the CPU's first thread.
    current: AtomicUsize,
    /// Another thread shall run at the next opportunity.
    is_due: AtomicBool,
    /// The first thread has nothing to do, and said so. Else it may hold what others wait for: it has its turns.
    is_first_asleep: AtomicBool,
    /// The root table that CR3 holds.
    loaded_root: AtomicU64,
}

static QUEUES: [Queue; CPUS] = [const {
    Queue {
        current: AtomicUsize::new(NOWHERE),
        is_due: AtomicBool::new(false),
        is_first_asleep: AtomicBool::new(false),
        loaded_root: AtomicU64::new(BootTable::Pml4.gpa()),
    }
}; CPUS];

fn queue() -> (usize, &'static Queue) {
    let cpu = irq::cpu() % CPUS;
    (cpu, &QUEUES[cpu])
}

/// The number of the thread that calls.
fn current_number() -> usize {
    let (cpu, queue) = queue();
    match queue.current.load(Ordering::Relaxed) {
        NOWHERE => cpu,
        number => number % THREADS,
    }
}

fn current() -> &'static Thread {
    &ALL[current_number()]
}

impl Thread {
    fn is_runnable(&self, cpu: usize) -> bool {
        self.cpu.load(Ordering::Relaxed) == cpu
            && self.sleeper.is_awake()
            && (self.is_busy.load(Ordering::Relaxed) || self.is_posted.load(Ordering::Acquire))
    }

    /// Whether it can be given a job.
    pub(super) fn is_free(&self) -> bool {
        !self.is_posted.load(Ordering::Acquire) && !self.is_busy.load(Ordering::Acquire)
    }
}

/// Who shall run on `cpu` after `current`: the workers in turn, and in its turn the first thread unless it sleeps and
/// nothing waits for it; without a worker, the first thread.
fn choose(cpu: usize, current: usize) -> usize {
    // A ring of the first thread and the workers.
    let at = if current < CPUS { 0 } else { current - CPUS + 1 };
    let ring = (1..=WORKERS + 1).map(|step| (at + step) % (WORKERS + 1));
    for place in ring {
        match place {
            0 if irq::has_work(cpu) => return cpu,
            0 if !QUEUES[cpu].is_first_asleep.load(Ordering::Relaxed) => return cpu,
            0 => {}
            worker => {
                let number = worker - 1 + CPUS;
                if ALL[number].is_runnable(cpu) {
                    return number;
                }
            }
        }
    }
    cpu
}

/// Runs the thread whose turn it is; returns when it is the caller's again, at once if it still is. Masked.
fn schedule(is_preemption: bool) {
    debug_assert!(irq::is_masked());
    let (cpu, queue) = queue();
    let from = current_number();
    queue.is_due.store(false, Ordering::Relaxed);
    let to = choose(cpu, from);
    if to == from {
        return;
    }
    queue.current.store(to, Ordering::Relaxed);
    mailbox::note_switch(is_preemption);
    let next = &ALL[to];
    load_if_other(queue, next.root.load(Ordering::Relaxed));
    timer::next_slice();
    // SAFETY: `to` does not run: it is of this CPU and not current, so its `rsp` is what `thread_switch` or `create` left.
    let rsp = unsafe { *next.rsp.get() };
    // SAFETY: both stacks are their threads' own; masked, on one CPU, so nobody else switches meanwhile.
    unsafe { thread_switch(ALL[from].rsp.get(), rsp) };
}

/// Loads a root table unless CR3 holds it.
fn load_if_other(queue: &Queue, root: u64) {
    if queue.loaded_root.load(Ordering::Relaxed) != root {
        queue.loaded_root.store(root, Ordering::Relaxed);
        // SAFETY: a root whose upper half is the kernel's (`Platform::init_root`), or the kernel's own.
        unsafe { gate::load_cr3(root) };
    }
}

/// Drops this CPU's translations by loading its root table again. Masked.
pub(super) fn reload_root() {
    let root = queue().1.loaded_root.load(Ordering::Relaxed);
    // SAFETY: the same root.
    unsafe { gate::load_cr3(root) };
}

/// `Platform::load_root` for the calling thread.
pub(in crate::image) fn load_root(root: Option<Pfn>) {
    let was_masked = irq::mask();
    let (_, queue) = queue();
    let root = root.map_or(BootTable::Pml4.gpa(), Pfn::gpa);
    current().root.store(root, Ordering::Relaxed);
    // Loaded again even if CR3 holds it: the caller wants cached translations gone.
    queue.loaded_root.store(root, Ordering::Relaxed);
    // SAFETY: as in `load_if_other`.
    unsafe { gate::load_cr3(root) };
    irq::restore(was_masked);
}

/// Makes `root` what the calling thread's user addresses mean; `cpus` is its space's set. Nothing if they mean that already.
///
/// # Safety
/// `cpus` must live until the thread enters another space or leaves.
pub(in crate::image) unsafe fn enter(root: Pfn, cpus: &AtomicCpuSet) {
    if ptr::eq(current().space_cpus.load(Ordering::Relaxed), cpus) {
        return;
    }
    let was_masked = irq::mask();
    cpus.insert(queue().0);
    load_root(Some(root));
    change_space(ptr::from_ref(cpus).cast_mut());
    irq::restore(was_masked);
}

/// Makes the calling thread's user addresses mean nothing.
pub(in crate::image) fn leave() {
    if current().space_cpus.load(Ordering::Relaxed).is_null() {
        return;
    }
    let was_masked = irq::mask();
    load_root(None);
    change_space(ptr::null_mut());
    irq::restore(was_masked);
}

/// Notes the space that the current thread is in, whose root has been loaded, and takes this CPU out of the one before
/// unless another thread of the CPU is in it too. Masked.
fn change_space(cpus: *mut AtomicCpuSet) {
    let (cpu, _) = queue();
    let before = current().space_cpus.swap(cpus, Ordering::Relaxed);
    let is_still_here = || {
        ALL.iter().any(|thread| {
            let is_ours = thread.cpu.load(Ordering::Relaxed) == cpu || ptr::eq(thread, &ALL[cpu]);
            is_ours && thread.space_cpus.load(Ordering::Relaxed) == before
        })
    };
    if !before.is_null() && !is_still_here() {
        // SAFETY: `enter`'s caller promised that it lives until the thread leaves, which is now.
        unsafe { &*before }.remove(cpu);
    }
}

/// The handler of the current thread's user faults.
pub(in crate::image) fn current_faults() -> Option<FaultHandler> {
    // SAFETY: written by this thread only, outside of its faults.
    unsafe { *current().faults.get() }
}

/// Sets or removes the handler of the current thread's user faults.
pub(in crate::image) fn set_current_faults(handler: Option<FaultHandler>) {
    // SAFETY: only the thread itself reads it, in a fault that it takes later.
    unsafe { *current().faults.get() = handler };
}

/// Asks for another thread to run on this CPU at the next interrupt's end or unmask.
pub(in crate::image) fn request_preemption() {
    queue().1.is_due.store(true, Ordering::Relaxed);
}

/// Lets another thread run if one is due. Called masked, where the interrupted or unmasking code was unmasked.
pub(in crate::image) fn preempt() {
    if queue().1.is_due.load(Ordering::Relaxed) {
        schedule(true);
    }
}

/// Lets other threads of this CPU run; `false` if there are none. Unmasked.
pub(in crate::image) fn yield_now() -> bool {
    let was_masked = irq::mask();
    let (cpu, _) = queue();
    let from = current_number();
    let is_alone = choose(cpu, from) == from;
    if !is_alone {
        schedule(false);
    }
    irq::restore(was_masked);
    !is_alone
}

/// The main flow has nothing to do before `wake`: lets workers run, or sleeps.
pub(in crate::image) fn idle(wake: Wake) {
    match wake {
        Wake::Now => return,
        Wake::OnInterrupt => {}
        Wake::At(deadline) => match deadline.checked_sub(time::now_ns()) {
            Some(delay) if delay > 0 => timer::arm(delay),
            Some(_) | None => return,
        },
    }
    sleep();
}

/// Lets workers run, or halts until something may have changed.
fn sleep() {
    let was_masked = irq::mask();
    let (cpu, queue) = queue();
    super::serve();
    if !irq::has_work(cpu) {
        if choose(cpu, cpu) != cpu {
            queue.is_first_asleep.store(true, Ordering::Relaxed);
            schedule(false);
            queue.is_first_asleep.store(false, Ordering::Relaxed);
        } else {
            irq::halt_unless_pending();
        }
    }
    if was_masked {
        irq::drain();
    } else {
        irq::unmask();
    }
}

/// `Platform::wait_until`: the calling thread sleeps until [`wake`] names its key and `is_over` says so.
///
/// It says what it sleeps on, then looks, then lets the CPU go; a waker changes what is looked at, then looks who sleeps:
/// one of the two sees the other. A CPU without a thread to run halts, and the waker's interrupt ends the halt.
pub(in crate::image) fn wait_until(key: WaitKey, is_over: &dyn Fn() -> bool) {
    if is_over() {
        return;
    }
    let was_masked = irq::mask();
    if was_masked {
        // Masked, it may hold what others spin for: it spins too.
        while !is_over() {
            mailbox::relax();
        }
        return;
    }
    let (cpu, _) = queue();
    let number = current_number();
    let this = &ALL[number];
    let mut has_taken_work = false;
    loop {
        this.sleeper.fall_asleep(key);
        if is_over() {
            break;
        }
        mailbox::note_sleep();
        if number < CPUS {
            has_taken_work |= rest_first(cpu);
        } else {
            schedule(false);
        }
    }
    this.sleeper.rise();
    if has_taken_work {
        // The main flow's loop looks at it later.
        irq::note_work(cpu);
    }
    irq::unmask();
}

/// The first thread of the CPU sleeps on something: lets a worker run, or halts until an interrupt. Returns whether it
/// has taken the mark that there is work for the main flow. Masked.
fn rest_first(cpu: usize) -> bool {
    super::serve();
    let (_, queue) = queue();
    let has_taken_work = irq::take_work();
    if choose(cpu, cpu) != cpu {
        queue.is_first_asleep.store(true, Ordering::Relaxed);
        schedule(false);
        queue.is_first_asleep.store(false, Ordering::Relaxed);
    } else {
        irq::halt_unless_pending();
        irq::drain();
    }
    has_taken_work
}

/// `Platform::wake`: makes the threads runnable that sleep on one of `count` keys from `first` on, and their CPUs look.
pub(in crate::image) fn wake(first: WaitKey, count: u64) {
    Sleeper::before_wake_up();
    for (number, thread) in ALL.iter().enumerate() {
        if thread.sleeper.wake_up(first, count) {
            super::kick(if number < CPUS { number } else { thread.cpu.load(Ordering::Relaxed) });
        }
    }
}

/// What the other CPUs do when they have no worker to run.
pub(super) fn idle_loop() -> ! {
    irq::unmask();
    loop {
        // Whatever woke it has been done by its handler: there is no main flow here to do more.
        irq::take_work();
        sleep();
    }
}

/// Makes worker `index` (in 0..[`WORKERS`]) on `cpu`, unless it exists; it stays there for good.
pub(super) fn create(memory: &Memory<Machine>, index: usize, cpu: usize) -> Result<(), NoStack> {
    let number = CPUS + index;
    let thread = ALL.get(number).ok_or(NoStack)?;
    if thread.cpu.load(Ordering::Relaxed) != NOWHERE {
        return Ok(());
    }
    stack::place(memory, number, WORKER_STACK)?;
    let rsp = stack_top(number as u64) - 8 * SWITCH_WORDS as u64;
    let frame = ptr::with_exposed_provenance_mut::<[u64; SWITCH_WORDS]>(word(rsp));
    // The registers that the switch pops, and where it returns to.
    let begin = (thread_begin as *const ()).expose_provenance() as u64;
    // SAFETY: the top of a stack that was just mapped and on which nobody runs.
    unsafe { frame.write([0, 0, 0, 0, 0, 0, begin]) };
    // SAFETY: the thread does not exist yet.
    unsafe { *thread.rsp.get() = rsp };
    thread.cpu.store(cpu, Ordering::Release);
    Ok(())
}

/// Gives worker `index` a job and wakes its CPU.
///
/// # Panics
/// If it has one.
pub(super) fn post(index: usize, job: Job) {
    let thread = &ALL[CPUS + index];
    assert!(thread.is_free(), "worker {index} is busy");
    // SAFETY: a free worker does not look at its job.
    unsafe { *thread.job.get() = Some(job) };
    thread.is_posted.store(true, Ordering::Release);
    super::kick(thread.cpu.load(Ordering::Relaxed));
}

/// Whether worker `index` has ended its job.
pub(super) fn is_free(index: usize) -> bool {
    ALL[CPUS + index].is_free()
}

/// A worker begins here, masked, and never ends.
#[unsafe(no_mangle)]
extern "C" fn thread_main() -> ! {
    let this = current();
    loop {
        while !this.is_posted.load(Ordering::Acquire) {
            schedule(false);
        }
        this.is_busy.store(true, Ordering::Relaxed);
        this.is_posted.store(false, Ordering::Release);
        // SAFETY: the poster wrote it before `is_posted` and does not again while the worker is busy.
        if let Some(job) = unsafe { *this.job.get() } {
            irq::unmask();
            // SAFETY: the run lives until this worker is free again (`run_on` waits for that).
            unsafe { (*job.run).do_part(job.index) };
            leave();
            irq::mask();
        }
        this.is_busy.store(false, Ordering::Release);
        // The one who waits sleeps on the boot CPU.
        super::kick(0);
    }
}
