//! More than one CPU: `docs/smp.md`.
//!
//! [`startup`] brings CPUs up, [`mailbox`] carries what they ask of each other, [`thread`] runs several flows of control
//! on each, [`run`] gives them work and waits for it.

mod mailbox;
mod run;
mod stack;
mod startup;
mod thread;

pub(super) use mailbox::{Counters, VECTOR, counters, flush_tlb, kick, on_interrupt, relax, serve};
pub(super) use run::{Preemption, RunError, run_beside, run_on};
pub(super) use stack::in_a_stack;
pub(super) use startup::{begin, online};
pub(super) use thread::{
    current_faults, enter, idle, leave, load_root, preempt, request_preemption, set_current_faults,
    wait_until, wake, yield_now,
};
