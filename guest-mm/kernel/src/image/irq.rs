//! Masking by RFLAGS.ID, the pending word, and what an interrupt does.
//!
//! Handlers only count and leave a mark, and take no lock: all work is done by the main loop. So they may also run where
//! a masked CPU waits for another one.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use guest_kernel::layout::{CPUS, FIRST_VECTOR, VECTORS};

use super::{apic, smp, timer};

/// RFLAGS.ID: set while masked.
pub(super) const FLAG_ID: u64 = 0x20_0000;

/// This CPU's words, shared with the nucleus; GS base points at them.
#[repr(C)]
pub(super) struct SharedWords {
    /// One bit per vector, set by the nucleus, cleared here.
    pub(super) pending: AtomicU32,
    /// Interrupts on vectors that nobody owns.
    pub(super) stray: AtomicU32,
    /// Number of this CPU.
    cpu: u32,
}

/// Handler of a vector: runs masked, on the trap stack.
pub(super) type Handler = fn(u8);

/// What one CPU has taken; on cache lines of its own.
#[repr(align(64))]
struct Taken {
    /// Interrupts by vector; written by this CPU only.
    counts: [AtomicU64; VECTORS as usize],
    /// Something may have changed since its first thread last looked.
    work: AtomicBool,
}

static TAKEN: [Taken; CPUS] = [const {
    Taken { counts: [const { AtomicU64::new(0) }; VECTORS as usize], work: AtomicBool::new(true) }
}; CPUS];
/// Handlers of [`VECTORS`]; null: count only.
static HANDLERS: [AtomicPtr<()>; VECTORS as usize] =
    [const { AtomicPtr::new(ptr::null_mut()) }; VECTORS as usize];

/// This CPU's shared words.
pub(super) fn shared() -> &'static SharedWords {
    let words: *const SharedWords;
    // SAFETY: the nucleus points GS base at this CPU's words; their own address is at offset 48.
    unsafe {
        asm!("mov {}, gs:[48]", out(reg) words, options(nostack, pure, readonly, preserves_flags))
    };
    // SAFETY: the words live in a page mapped from link time on; all fields are atomics or never written.
    unsafe { &*words }
}

/// The CPU that runs the caller.
pub(super) fn cpu() -> usize {
    shared().cpu as usize
}

/// Whether this CPU is masked.
pub(super) fn is_masked() -> bool {
    let flags: u64;
    // SAFETY: reads RFLAGS through the stack; the asm may push.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & FLAG_ID != 0
}

/// Masks; returns whether it was masked before.
pub(super) fn mask() -> bool {
    let flags: u64;
    // SAFETY: POPFQ sets ID and clears DF, which the ABI wants clear; IF and IOPL cannot change in ring 3.
    unsafe { asm!("pushfq", "pop {}", "push 0x200202", "popfq", out(reg) flags) };
    flags & FLAG_ID != 0
}

/// Unmasks, and handles what came meanwhile. Clear, then look, then handle: no other order loses nothing.
pub(super) fn unmask() {
    loop {
        // SAFETY: POPFQ clears ID; see `mask`.
        unsafe { asm!("push 0x202", "popfq") };
        if shared().pending.load(Ordering::Relaxed) == 0 {
            return;
        }
        mask();
        drain();
        smp::preempt();
    }
}

/// Undoes a [`mask`] that returned `was_masked`.
pub(super) fn restore(was_masked: bool) {
    if !was_masked {
        unmask();
    }
}

/// Handles every pending interrupt; the caller is masked. Each gets an EOI, wanted or not: a conforming APIC needs it.
pub(super) fn drain() {
    let pending = &shared().pending;
    loop {
        let bits = pending.load(Ordering::Relaxed);
        if bits == 0 {
            return;
        }
        let bit = bits.trailing_zeros();
        // Cleared before the handler looks at anything, so that what comes after it is seen again.
        pending.fetch_and(!(1 << bit), Ordering::AcqRel);
        apic::end_of_interrupt();
        handle(bit as usize);
    }
}

/// Counts, marks and calls the handler.
fn handle(index: usize) {
    let cpu = cpu() % CPUS;
    let Some(count) = TAKEN[cpu].counts.get(index) else { return };
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    let vector = FIRST_VECTOR + u8::try_from(index).unwrap_or(0);
    match vector {
        smp::VECTOR => return smp::on_interrupt(),
        timer::VECTOR if !timer::on_interrupt() => return,
        _ => {}
    }
    note_work(cpu);
    smp::request_preemption();
    let handler = HANDLERS.get(index).map_or(ptr::null_mut(), |slot| slot.load(Ordering::Acquire));
    if !handler.is_null() {
        // SAFETY: only `set_handler` writes other pointers than null, and those are `Handler`s.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        handler(vector);
    }
}

/// Installs or removes a handler. Vectors outside the nucleus' sixteen are ignored.
pub(super) fn set_handler(vector: u8, handler: Option<Handler>) {
    let index = usize::from(vector.wrapping_sub(FIRST_VECTOR));
    if let Some(slot) = HANDLERS.get(index) {
        slot.store(
            handler.map_or(ptr::null_mut(), |handler| handler as *mut ()),
            Ordering::Release,
        );
    }
}

/// Interrupts taken on `vector` by the boot CPU, which is where devices send theirs.
pub(super) fn count(vector: u8) -> u64 {
    let index = usize::from(vector.wrapping_sub(FIRST_VECTOR));
    TAKEN[0].counts.get(index).map_or(0, |count| count.load(Ordering::Relaxed))
}

/// Marks that something may have changed for the first thread of `cpu`.
pub(super) fn note_work(cpu: usize) {
    TAKEN[cpu % CPUS].work.store(true, Ordering::Release);
}

/// Whether it is marked.
pub(super) fn has_work(cpu: usize) -> bool {
    TAKEN[cpu % CPUS].work.load(Ordering::Acquire)
}

/// Takes this CPU's mark.
pub(super) fn take_work() -> bool {
    TAKEN[cpu() % CPUS].work.swap(false, Ordering::AcqRel)
}

/// Halts until an interrupt, unless one is pending. Masked.
pub(super) fn halt_unless_pending() {
    if shared().pending.load(Ordering::Relaxed) == 0 {
        super::gate::halt();
    }
}
