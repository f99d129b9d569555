//! The three ways in which a pending interrupt must come through, each alone: no other interrupt is there to help.

use core::sync::atomic::Ordering;

use super::super::super::{apic, gate, irq, time, timer};
use super::course::Findings;
use super::windows::Window;
use super::{IPI_VECTOR, LOST_NS, count, shared};

/// Rounds of all probes.
const ROUNDS: u64 = 200;
/// A halt that lasts until this guard was not ended by what was pending.
const GUARD_NS: u64 = 100_000_000;
/// The bit of [`IPI_VECTOR`] in the pending word.
const PENDING_BIT: u32 = 1 << (IPI_VECTOR - guest_kernel::layout::FIRST_VECTOR);
/// Failures after which nothing new is learned.
const ENOUGH: u64 = 5;

/// Sends this CPU an IPI and waits until the nucleus has recorded it. Masked, it stays there.
pub(super) fn send_and_await_pending() {
    debug_assert!(irq::is_masked());
    count(&shared().ipis_sent);
    apic::send_to_self(IPI_VECTOR);
    let start = time::now_ns();
    while irq::shared().pending.load(Ordering::Relaxed) & PENDING_BIT == 0 {
        if time::now_ns() - start > LOST_NS {
            // Found as lost by the probe that asked for it.
            return;
        }
        core::hint::spin_loop();
    }
}

/// Whether every IPI sent has been handled.
fn all_handled() -> bool {
    shared().ipis_seen.load(Ordering::Acquire) == shared().ipis_sent.load(Ordering::Relaxed)
}

/// Runs all probes.
pub(super) fn all(findings: &mut Findings) {
    for round in 0..ROUNDS {
        if findings.lost >= ENOUGH {
            break;
        }
        // Pending when a trap returns to unmasked code: replayed before that code goes on.
        shared().probe_in_fault.store(true, Ordering::Relaxed);
        shared().windows.touch(Window::Main, round);
        findings.expect_handled();
        // Pending when unmasked: handled before `unmask` returns.
        irq::mask();
        send_and_await_pending();
        irq::unmask();
        findings.expect_handled();
        // Pending when halted: the halt is none.
        timer::arm(GUARD_NS);
        let ticks = shared().ticks.load(Ordering::Relaxed);
        irq::mask();
        send_and_await_pending();
        gate::halt();
        irq::unmask();
        if shared().ticks.load(Ordering::Relaxed) != ticks {
            findings.lost += 1;
        }
        timer::disarm();
        findings.expect_handled();
    }
}

impl Findings {
    /// Counts an IPI that has not been handled by now as lost, and lets it come late.
    fn expect_handled(&mut self) {
        if !all_handled() {
            self.lost += 1;
            irq::mask();
            irq::unmask();
        }
    }
}
