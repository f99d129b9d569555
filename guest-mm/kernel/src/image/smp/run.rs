//! Work for several CPUs at once.

use core::ops::Range;

use guest_mm::balloon::Wake;
use guest_mm::memory::Memory;

use super::thread::{self, Job, WORKERS};
use crate::image::platform::Machine;
use crate::image::timer;

/// How workers are interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Preemption {
    /// Only by interrupts that wake another thread.
    None,
    /// Timer ticks after random times, seeded: another thread of the CPU runs, or the CPU stands still for a while.
    Random(u64),
}

/// Why work could not be given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum RunError {
    /// No memory for a worker's stack.
    NoStack,
    /// More workers than there are.
    TooMany,
}

impl core::fmt::Display for RunError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoStack => "no memory for a stack",
            Self::TooMany => "more threads than there can be",
        })
    }
}

/// One piece of work, as its workers see it.
pub(super) struct Run<'f> {
    work: &'f (dyn Fn(usize) + Sync),
}

impl Run<'_> {
    /// Does part `index`.
    pub(super) fn do_part(&self, index: usize) {
        (self.work)(index);
    }
}

/// Runs `work` with 0 to `count` - 1 at once, each as a thread of its own: the first on the boot CPU, the next on the
/// next CPU that is up, and round again; returns when all have ended. Meanwhile the caller, which is the main flow,
/// serves devices by `serve`.
///
/// # Errors
/// [`RunError`]; nothing has run then.
pub(in crate::image) fn run_on(
    memory: &Memory<Machine>,
    count: usize,
    preemption: Preemption,
    work: &(dyn Fn(usize) + Sync),
    serve: &mut dyn FnMut() -> Wake,
) -> Result<(), RunError> {
    run_beside(memory, 0..count, preemption, work, &mut |_| serve())
}

/// As [`run_on`], for the threads in `range`. `serve` is called once with `true` when all have been started: the time
/// for what the main flow does itself at the same time.
///
/// # Errors
/// [`RunError`]; nothing has run then.
pub(in crate::image) fn run_beside(
    memory: &Memory<Machine>,
    range: Range<usize>,
    preemption: Preemption,
    work: &(dyn Fn(usize) + Sync),
    serve: &mut dyn FnMut(bool) -> Wake,
) -> Result<(), RunError> {
    if range.end > WORKERS {
        return Err(RunError::TooMany);
    }
    // Workers are bound to CPUs by their number: the same in every run.
    let online = super::online();
    let cpus = online.iter().count();
    for index in range.clone() {
        let cpu = online.iter().nth(index % cpus).unwrap_or(0);
        thread::create(memory, index, cpu).map_err(|_| RunError::NoStack)?;
    }
    let run = Run { work };
    timer::set_slices(match preemption {
        Preemption::None => 0,
        Preemption::Random(seed) => seed | 1,
    });
    // The lifetime is erased: this function does not return before every worker is free again.
    let erased = (&raw const run).cast::<Run<'static>>();
    for index in range.clone() {
        thread::post(index, Job { run: erased, index });
    }
    let mut wake = serve(true);
    while !range.clone().all(thread::is_free) {
        thread::idle(wake);
        wake = serve(false);
    }
    timer::set_slices(0);
    Ok(())
}
