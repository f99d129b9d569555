//! The last report: message, registers, backtrace; then pvpanic.
//!
//! Addresses are printed raw: the embedded ELF carries line tables
//! (`addr2line -e FILE ADDRESS`).

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use guest_kernel::layout;

use super::serial::Serial;
use super::trap::{TrapFrame, VECTOR_INTERRUPT, exception};
use super::{irq, power, smp};

/// The CPU that reports, plus 1; a fault inside its report goes straight to the end.
static REPORTING: AtomicUsize = AtomicUsize::new(0);
/// Return addresses printed.
const MAX_FRAMES: usize = 32;

/// Masks, and ends at once if this CPU's report is already under way. If another CPU's is, that one ends the machine.
fn begin() {
    irq::mask();
    let me = irq::cpu() + 1;
    match REPORTING.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(reporter) if reporter == me => power::panicked(),
        Err(_) => power::halt_for_good(),
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    let frame = TrapFrame::here();
    // Writing to the serial port cannot fail.
    _ = write!(Serial, "\nguest {info}\n");
    registers(&frame);
    backtrace(None, frame.rbp);
    power::panicked()
}

/// Reports a trap that nobody mends: what happened, all registers, a backtrace.
pub(super) fn report_trap(frame: &TrapFrame) -> ! {
    begin();
    let what = match frame.vector {
        exception::BREAKPOINT => "breakpoint",
        exception::PAGE_FAULT => "page fault",
        6 => "invalid opcode",
        12 => "stack fault",
        13 => "general protection fault",
        // From ring 0, or it would not be reported; tests/src/lab knows these words and nucleus.S says them too.
        VECTOR_INTERRUPT => "interrupt delivered while interrupts were off",
        _ => "exception",
    };
    _ = write!(
        Serial,
        "\nguest panicked: {what}, vector={} error={:#x} cr2={:016x}\n",
        frame.vector, frame.error, frame.cr2
    );
    registers(frame);
    backtrace(Some(frame.rip), frame.rbp);
    power::panicked()
}

/// Prints the registers of a frame.
fn registers(frame: &TrapFrame) {
    let all = [
        ("rip", frame.rip),
        ("rsp", frame.rsp),
        ("rfl", frame.rflags),
        ("cs ", frame.cs),
        ("rax", frame.rax),
        ("rbx", frame.rbx),
        ("rcx", frame.rcx),
        ("rdx", frame.rdx),
        ("rsi", frame.rsi),
        ("rdi", frame.rdi),
        ("rbp", frame.rbp),
        ("r8 ", frame.r8),
        ("r9 ", frame.r9),
        ("r10", frame.r10),
        ("r11", frame.r11),
        ("r12", frame.r12),
        ("r13", frame.r13),
        ("r14", frame.r14),
        ("r15", frame.r15),
        ("ss ", frame.ss),
    ];
    for row in all.chunks(4) {
        for (name, value) in row {
            _ = write!(Serial, "{name}={value:016x} ");
        }
        _ = Serial.write_str("\n");
    }
}

/// Prints return addresses along the frame pointers, which the guest's build forces.
fn backtrace(first: Option<u64>, mut rbp: u64) {
    _ = Serial.write_str("backtrace:");
    if let Some(address) = first {
        _ = write!(Serial, " {address:016x}");
    }
    for _ in 0..MAX_FRAMES {
        if !in_a_stack(rbp) || !rbp.is_multiple_of(8) {
            break;
        }
        let frame = core::ptr::with_exposed_provenance::<[u64; 2]>(layout::word(rbp));
        // SAFETY: 16 bytes inside one of the stacks, which are mapped from link time on; any bits are integers.
        let [next, address] = unsafe { frame.read() };
        if address == 0 {
            break;
        }
        _ = write!(Serial, " {address:016x}");
        if next <= rbp {
            break;
        }
        rbp = next;
    }
    _ = Serial.write_str("\n");
}

/// Whether a saved frame pointer and return address at `rbp` lie in a stack.
fn in_a_stack(rbp: u64) -> bool {
    let within = |start: u64, bytes: u64| rbp >= start && rbp <= start + bytes - 16;
    within(layout::MAIN_STACK, layout::MAIN_STACK_BYTES)
        || smp::in_a_stack(rbp)
        || (0..layout::CPUS as u64).any(|cpu| {
            within(layout::TRAP_STACK + cpu * layout::TRAP_STACK_STRIDE, layout::TRAP_STACK_BYTES)
        })
}
