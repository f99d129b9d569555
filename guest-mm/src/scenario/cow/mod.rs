//! `cow`: copy-on-write, fork and pins; the cases of Linux's `cow` selftest, tested anew.
//!
//! A case is a test under its name there and the kind of memory that it is run
//! on ([`Kind`]), `test_cow_in_parent/thp` for instance. Absent: what goes by
//! vmsplice, io_uring (pins stand in for both) or hugetlb, and collapse.

mod anon;
mod file;
mod memory;

use core::fmt;

pub(super) use memory::{How, Kind, Memory, PinList};

use super::{Ctx, Machine, OrFail, Outcome, Process, check_eq, pattern};

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mm = ctx.mm;
    // Somebody else's swap does as well.
    let is_ours = mm.swapon_ram(SWAP_SLOTS).is_ok();
    let outcome = anon::run(ctx).and(file::run(ctx));
    if is_ours {
        mm.swapoff().or_fail()?;
    }
    outcome
}

/// Slots for a THP, and for what is still in the swap cache.
const SWAP_SLOTS: u32 = 2048;

/// A test on a kind of memory, by name.
struct On<T>(&'static str, T);

impl<T: fmt::Display> fmt::Display for On<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

/// What the process wrote before the test.
const OLD: u64 = 1;
/// What it writes in the test.
const NEW: u64 = 2;

/// Whether the pages that somebody pinned show what the process wrote with `tag`.
fn pins_show<'m, M: Machine>(
    process: &Process<'_, 'm, M>,
    pins: &PinList<'_, 'm, M>,
    tag: u64,
) -> Outcome {
    for (page, pin) in (0u64..).zip(pins.iter()) {
        for index in [0, 511] {
            let seen = process.mm().read_user_page(pin, index);
            let expected = pattern(tag, page, index as u64 * 8);
            check_eq(seen, expected, "what a pinned page shows")?;
        }
    }
    Ok(())
}
