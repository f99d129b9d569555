//! What ring 3 does with a reflected trap.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::{irq, panic, smp, user};

/// [`TrapFrame::vector`] of an interrupt that came while unmasked.
pub(super) const VECTOR_INTERRUPT: u64 = 0x200;
/// [`TrapFrame::vector`] of interrupts found pending on the way out of a trap.
pub(super) const VECTOR_REPLAY: u64 = 0x100;

/// Vectors of the architecture that this kernel speaks of.
pub(super) mod exception {
    /// Page fault.
    pub(crate) const PAGE_FAULT: u64 = 14;
    /// Breakpoint.
    pub(crate) const BREAKPOINT: u64 = 3;
}

/// The interrupted code, as the landing pushed it.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct TrapFrame {
    /// General registers.
    pub(super) r15: u64,
    pub(super) r14: u64,
    pub(super) r13: u64,
    pub(super) r12: u64,
    pub(super) r11: u64,
    pub(super) r10: u64,
    pub(super) r9: u64,
    pub(super) r8: u64,
    pub(super) rdi: u64,
    pub(super) rsi: u64,
    pub(super) rbp: u64,
    pub(super) rbx: u64,
    pub(super) rdx: u64,
    pub(super) rcx: u64,
    /// Faulting address of a page fault, otherwise 0.
    pub(super) cr2: u64,
    pub(super) rax: u64,
    /// Exception vector, [`VECTOR_INTERRUPT`] or [`VECTOR_REPLAY`].
    pub(super) vector: u64,
    /// Error code, or 0.
    pub(super) error: u64,
    pub(super) rip: u64,
    pub(super) cs: u64,
    pub(super) rflags: u64,
    pub(super) rsp: u64,
    pub(super) ss: u64,
}

impl TrapFrame {
    /// The registers of the caller, as if it had trapped here.
    #[inline(always)]
    pub(super) fn here() -> Self {
        let mut frame = Self::default();
        // SAFETY: stores every register into its field of `frame`, whose address is in one of them.
        unsafe {
            asm!(
                "mov [{0}], r15", "mov [{0} + 8], r14", "mov [{0} + 16], r13", "mov [{0} + 24], r12",
                "mov [{0} + 32], r11", "mov [{0} + 40], r10", "mov [{0} + 48], r9", "mov [{0} + 56], r8",
                "mov [{0} + 64], rdi", "mov [{0} + 72], rsi", "mov [{0} + 80], rbp", "mov [{0} + 88], rbx",
                "mov [{0} + 96], rdx", "mov [{0} + 104], rcx", "mov [{0} + 120], rax",
                "mov [{0} + 168], rsp", "lea {1}, [rip]", "mov [{0} + 144], {1}",
                "pushfq", "pop {1}", "mov [{0} + 160], {1}",
                in(reg) &raw mut frame,
                out(reg) _,
            );
        }
        (frame.cs, frame.ss) = (USER_CS, USER_SS);
        frame
    }
}

const _: () = {
    assert!(
        core::mem::offset_of!(TrapFrame, rbp) == 80 && core::mem::offset_of!(TrapFrame, rax) == 120
    );
    assert!(
        core::mem::offset_of!(TrapFrame, rip) == 144
            && core::mem::offset_of!(TrapFrame, rflags) == 160
    );
    assert!(core::mem::offset_of!(TrapFrame, rsp) == 168);
};

/// Code segment of ring 3.
const USER_CS: u64 = 0x33;
/// Stack segment of ring 3.
const USER_SS: u64 = 0x2b;

/// Handler of page faults: returns whether it has mended the mapping, or changed where to go on.
pub(super) type PageFaultHandler = fn(&mut TrapFrame) -> bool;

/// The installed [`PageFaultHandler`]; null: none.
static PAGE_FAULT_HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Installs or removes the handler of page faults.
pub(super) fn set_page_fault_handler(handler: Option<PageFaultHandler>) {
    let handler = handler.map_or(ptr::null_mut(), |handler| handler as *mut ());
    PAGE_FAULT_HANDLER.store(handler, Ordering::Release);
}

/// Called by the landing, masked: on the interrupted stack for interrupts and user faults, else on the trap stack.
#[unsafe(no_mangle)]
extern "C" fn trap_entry(frame: &mut TrapFrame) {
    // A frame from ring 0 means that the nucleus itself faulted.
    if frame.cs != USER_CS {
        panic::report_trap(frame);
    }
    match frame.vector {
        VECTOR_INTERRUPT | VECTOR_REPLAY => {
            irq::drain();
            // The frame is on the interrupted thread's own stack: it may as well stay there for a while.
            smp::preempt();
        }
        exception::PAGE_FAULT => {
            if !user::on_page_fault(frame) && !on_page_fault(frame) {
                panic::report_trap(frame);
            }
        }
        _ => panic::report_trap(frame),
    }
}

/// Asks the installed handler.
fn on_page_fault(frame: &mut TrapFrame) -> bool {
    let handler = PAGE_FAULT_HANDLER.load(Ordering::Acquire);
    if handler.is_null() {
        return false;
    }
    // SAFETY: only `set_page_fault_handler` writes other pointers than null, and those are `PageFaultHandler`s.
    let handler: PageFaultHandler = unsafe { core::mem::transmute(handler) };
    handler(frame)
}
