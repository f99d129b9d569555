//! User memory: loads and stores at addresses of the lower half, and what becomes of their page faults.
//!
//! All code is ring 3's, so the CPU does not keep the kernel from user addresses. This module does: only the
//! instructions between `user_access_begin` and `user_access_end` may fault there, by RIP. A fault anywhere else, or in
//! the upper half, or masked, is the kernel's bug and ends in the trap report. The handler is the thread's
//! ([`with_faults`]); it runs on the thread's stack, unmasked, may wait and be preempted. If it answers with a signal,
//! the access goes on at `user_access_failed`, which returns the signal to its caller.

use core::arch::global_asm;

use guest_mm::fault::FaultAccess;
use guest_mm::scenario::{Access, Signal};

use super::smp;
use super::trap::TrapFrame;
use super::{irq, trap};

/// A page fault at a user address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UserFault {
    /// The address, CR2.
    pub(super) address: u64,
    /// What was tried.
    pub(super) access: FaultAccess,
}

/// What mends faults; valid as long as the access that it was set for.
pub(super) type FaultHandler = *const (dyn Fn(UserFault) -> Result<(), Signal> + 'static);

// Each access is one instruction between the labels: RAX = what was there, RDX = 0, or by way of `user_access_failed`
// the code of the signal.
global_asm!(
    ".text",
    ".balign 16",
    "user_access_begin:",
    "user_load8:",
    "xor edx, edx",
    "movzx eax, byte ptr [rdi]",
    "ret",
    "user_store8:",
    "xor edx, edx",
    "mov byte ptr [rdi], sil",
    "ret",
    "user_load64:",
    "xor edx, edx",
    "mov rax, qword ptr [rdi]",
    "ret",
    "user_store64:",
    "xor edx, edx",
    "mov qword ptr [rdi], rsi",
    "ret",
    "user_compare_exchange64:",
    "mov rcx, rdx",
    "mov rax, rsi",
    "xor edx, edx",
    "lock cmpxchg qword ptr [rdi], rcx",
    "ret",
    "user_access_end:",
    "user_access_failed:",
    "ret",
);

/// RAX and RDX of an access.
#[repr(C)]
struct Done {
    value: u64,
    code: u64,
}

unsafe extern "C" {
    fn user_load8(address: u64) -> Done;
    fn user_store8(address: u64, value: u64) -> Done;
    fn user_load64(address: u64) -> Done;
    fn user_store64(address: u64, value: u64) -> Done;
    fn user_compare_exchange64(address: u64, current: u64, new: u64) -> Done;
    static user_access_begin: u8;
    static user_access_end: u8;
    static user_access_failed: u8;
}

/// In a page fault's error code: an entry has a bit set that must be clear. The tables are broken.
const RESERVED_BIT: u64 = 1 << 3;

/// Signals as codes other than 0.
const SIGNALS: [Signal; 5] =
    [Signal::SegvMapErr, Signal::SegvAccErr, Signal::Bus, Signal::Oom, Signal::Killed];

fn code_of(signal: Signal) -> u64 {
    SIGNALS.iter().zip(1..).find(|(other, _)| **other == signal).map_or(1, |(_, code)| code)
}

fn result_of(done: &Done) -> Result<u64, Signal> {
    if done.code == 0 {
        return Ok(done.value);
    }
    let index = usize::try_from(done.code - 1).unwrap_or(0);
    Err(SIGNALS.get(index).copied().unwrap_or(Signal::SegvMapErr))
}

/// One access of the calling thread at a user address, in the address space that it has entered.
///
/// # Errors
/// The signal that the handler answered; [`Signal::SegvMapErr`] in the upper half, or without a handler.
pub(super) fn access(address: u64, access: Access) -> Result<u64, Signal> {
    // The upper half is not a process' to name, and the hole between would be a general protection fault.
    if address.checked_add(access.bytes()).is_none_or(|end| end > guest_mm::addr::USER_END) {
        return Err(Signal::SegvMapErr);
    }
    let done = match access {
        // SAFETY: a user address holds nothing that Rust knows of; faults come back as a code.
        Access::LoadU8 => unsafe { user_load8(address) },
        // SAFETY: as above.
        Access::StoreU8(value) => unsafe { user_store8(address, value.into()) },
        // SAFETY: as above.
        Access::LoadU64 => unsafe { user_load64(address) },
        // SAFETY: as above.
        Access::StoreU64(value) => unsafe { user_store64(address, value) },
        // SAFETY: as above.
        Access::CompareExchangeU64 { current, new } => unsafe {
            user_compare_exchange64(address, current, new)
        },
    };
    result_of(&done)
}

/// Runs `body`, whose user faults `handler` mends, on the calling thread.
pub(super) fn with_faults<R>(
    handler: &dyn Fn(UserFault) -> Result<(), Signal>,
    body: impl FnOnce() -> R,
) -> R {
    let before = smp::current_faults();
    // SAFETY: only the lifetime changes; the handler is taken away again before this function returns, and a panic ends
    // the machine.
    let handler = unsafe {
        core::mem::transmute::<&dyn Fn(UserFault) -> Result<(), Signal>, FaultHandler>(handler)
    };
    smp::set_current_faults(Some(handler));
    let result = body();
    smp::set_current_faults(before);
    result
}

/// Mends a page fault of [`access`], or sends it to its failed end; `false` for any other fault.
pub(super) fn on_page_fault(frame: &mut TrapFrame) -> bool {
    let range =
        (&raw const user_access_begin).addr() as u64..(&raw const user_access_end).addr() as u64;
    let is_masked = frame.rflags & irq::FLAG_ID != 0;
    if frame.cr2 >> 63 != 0
        || !range.contains(&frame.rip)
        || frame.error & RESERVED_BIT != 0
        || is_masked
    {
        return false;
    }
    let fault = UserFault { address: frame.cr2, access: FaultAccess::from_error_code(frame.error) };
    let answer = match smp::current_faults() {
        None => Err(Signal::SegvMapErr),
        Some(handler) => {
            irq::unmask();
            // SAFETY: `with_faults` of this thread is under way, and with it the borrow.
            let answer = unsafe { (*handler)(fault) };
            irq::mask();
            answer
        }
    };
    if let Err(signal) = answer {
        frame.rip = (&raw const user_access_failed).addr() as u64;
        frame.rdx = code_of(signal);
    }
    true
}

const _: trap::PageFaultHandler = on_page_fault;
