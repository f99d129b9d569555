//! Masking by RFLAGS.ID, the pending word, and what an interrupt does.
//!
//! Handlers only count and leave a mark: all work is done by the main loop.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use guest_kernel::layout::{FIRST_VECTOR, VECTORS};

use super::apic;

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

/// Interrupts taken, by vector; written by this CPU only.
static COUNTS: [AtomicU64; VECTORS as usize] = [const { AtomicU64::new(0) }; VECTORS as usize];
/// Something may have changed since the main loop last looked.
static WORK: AtomicBool = AtomicBool::new(true);
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
    let Some(count) = COUNTS.get(index) else { return };
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    WORK.store(true, Ordering::Release);
    let handler = HANDLERS.get(index).map_or(ptr::null_mut(), |slot| slot.load(Ordering::Acquire));
    if !handler.is_null() {
        // SAFETY: only `set_handler` writes other pointers than null, and those are `Handler`s.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        handler(FIRST_VECTOR + u8::try_from(index).unwrap_or(0));
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

/// Interrupts taken on `vector`.
pub(super) fn count(vector: u8) -> u64 {
    COUNTS
        .get(usize::from(vector.wrapping_sub(FIRST_VECTOR)))
        .map_or(0, |count| count.load(Ordering::Relaxed))
}

/// Takes the mark that something may have changed.
pub(super) fn take_work() -> bool {
    WORK.swap(false, Ordering::AcqRel)
}

/// Sleeps until something may have changed: returns at once if it already has.
pub(super) fn wait_for_work() {
    let was_masked = mask();
    if !WORK.load(Ordering::Acquire) && shared().pending.load(Ordering::Relaxed) == 0 {
        super::gate::halt();
    }
    if was_masked {
        drain();
    } else {
        unmask();
    }
}
