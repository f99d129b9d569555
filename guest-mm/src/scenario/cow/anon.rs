//! Private anonymous memory.

use super::super::{Ctx, Machine, Outcome, check, check_eq};
use super::memory::How;
use super::{Kind, Memory, NEW, OLD, On, pins_show};
use crate::gup::GupFlags;
use crate::pgtable::PageProt;

/// What a test does with memory.
type Test<M> = fn(&Memory<'_, '_, M>) -> Outcome;

/// The tests, by their names in Linux's `cow`; the last four are those that it does by io_uring.
const fn tests<M: Machine>() -> [(&'static str, Test<M>); 13] {
    [
        ("test_cow_in_parent", |memory| cow_in_parent(memory, false)),
        ("test_cow_in_parent_mprotect", |memory| cow_in_parent(memory, true)),
        ("test_cow_in_child", cow_in_child),
        ("test_ro_pin_on_shared", |memory| ro_pin(memory, How::Slow, Before::Shared)),
        ("test_ro_fast_pin_on_shared", |memory| ro_pin(memory, How::Fast, Before::Shared)),
        ("test_ro_pin_on_ro_previously_shared", |memory| {
            ro_pin(memory, How::Slow, Before::PreviouslyShared)
        }),
        ("test_ro_fast_pin_on_ro_previously_shared", |memory| {
            ro_pin(memory, How::Fast, Before::PreviouslyShared)
        }),
        ("test_ro_pin_on_ro_exclusive", |memory| ro_pin(memory, How::Slow, Before::Exclusive)),
        ("test_ro_fast_pin_on_ro_exclusive", |memory| ro_pin(memory, How::Fast, Before::Exclusive)),
        ("pin_ro_before_fork", |memory| pin_before_fork(memory, GupFlags::empty())),
        ("pin_rw_before_fork", |memory| pin_before_fork(memory, GupFlags::WRITE)),
        ("pin_rw_after_fork", pin_rw_after_fork),
        ("pin_rw_of_read_only_memory", pin_rw_of_read_only_memory),
    ]
}

/// Runs the tests on all kinds of memory.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut outcome = Ok(());
    for (name, test) in tests::<M>() {
        for kind in Kind::ALL {
            let ended = match Memory::new(ctx, kind) {
                Ok(Some(memory)) => test(&memory),
                Ok(None) => {
                    ctx.print(format_args!("skip {}: cannot be had here", On(name, kind)));
                    continue;
                }
                Err(failure) => Err(failure),
            };
            outcome = outcome.and(ctx.report(On(name, kind), ended));
        }
    }
    outcome
}

/// The child goes on seeing what was there when it was made, whatever the parent writes.
fn cow_in_parent<M: Machine>(memory: &Memory<'_, '_, M>, by_way_of_mprotect: bool) -> Outcome {
    let child = memory.process.fork()?;
    child.expect(memory.start, memory.pages, OLD)?;
    if by_way_of_mprotect {
        // The pages may not become writable on the way: they are shared.
        memory.protect(PageProt::READ)?;
        memory.protect(PageProt::READ | PageProt::WRITE)?;
    }
    memory.fill(NEW)?;
    child.expect(memory.start, memory.pages, OLD)?;
    memory.process.expect(memory.start, memory.pages, NEW)
}

/// The parent goes on seeing what was there, whatever the child writes.
fn cow_in_child<M: Machine>(memory: &Memory<'_, '_, M>) -> Outcome {
    let child = memory.process.fork()?;
    child.fill(memory.start, memory.pages, NEW)?;
    memory.process.expect(memory.start, memory.pages, OLD)?;
    drop(child);
    memory.process.expect(memory.start, memory.pages, OLD)?;
    memory.fill(NEW)?;
    memory.process.expect(memory.start, memory.pages, NEW)
}

/// What became of the memory before it is pinned for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// A child has it too.
    Shared,
    /// A child had it too.
    PreviouslyShared,
    /// It is mapped read-only, and nobody else has it.
    Exclusive,
}

/// A pin for reading shows what the process writes afterwards.
fn ro_pin<M: Machine>(memory: &Memory<'_, '_, M>, how: How, before: Before) -> Outcome {
    let child = match before {
        Before::Shared => Some(memory.process.fork()?),
        Before::PreviouslyShared => {
            drop(memory.process.fork()?);
            None
        }
        Before::Exclusive => {
            memory.protect(PageProt::READ)?;
            None
        }
    };
    let pins = memory.pin(how, GupFlags::LONGTERM)?;
    pins_show(&memory.process, &pins, OLD)?;
    if before == Before::Exclusive {
        memory.protect(PageProt::READ | PageProt::WRITE)?;
    }
    memory.fill(NEW)?;
    pins_show(&memory.process, &pins, NEW)?;
    match child {
        Some(child) => child.expect(memory.start, memory.pages, OLD),
        None => Ok(()),
    }
}

/// Who pinned the memory before fork shares it with the parent, and never with the child.
fn pin_before_fork<M: Machine>(memory: &Memory<'_, '_, M>, flags: GupFlags) -> Outcome {
    let pins = memory.pin(How::Fast, flags | GupFlags::LONGTERM)?;
    let child = memory.process.fork()?;
    memory.fill(NEW)?;
    pins_show(&memory.process, &pins, NEW)?;
    child.expect(memory.start, memory.pages, OLD)?;
    child.fill(memory.start, memory.pages, 3)?;
    pins_show(&memory.process, &pins, NEW)?;
    memory.process.expect(memory.start, memory.pages, NEW)
}

/// A pin for writing takes shared memory away from the child first; what its holder writes is seen by the parent alone.
fn pin_rw_after_fork<M: Machine>(memory: &Memory<'_, '_, M>) -> Outcome {
    let child = memory.process.fork()?;
    let pins = memory.pin(How::Fast, GupFlags::WRITE)?;
    for (page, pin) in (0u64..).zip(pins.iter()) {
        memory.process.mm().write_user_page(pin, 1, page + 1000);
    }
    for page in 0..memory.pages {
        let at = memory.start + page * abi::PAGE_SIZE + 8;
        check_eq(memory.process.load(at)?, page + 1000, "the parent sees it")?;
        check_eq(child.load(at)?, 0, "the child does not")?;
    }
    child.expect(memory.start, memory.pages, OLD)
}

/// Rights of the mapping hold for pins too.
fn pin_rw_of_read_only_memory<M: Machine>(memory: &Memory<'_, '_, M>) -> Outcome {
    memory.protect(PageProt::READ)?;
    for how in [How::Slow, How::Fast] {
        check(memory.pin(how, GupFlags::WRITE).is_err(), "a pin for writing is refused")?;
        drop(memory.pin(how, GupFlags::empty())?);
    }
    memory.protect(PageProt::empty())?;
    for how in [How::Slow, How::Fast] {
        check(memory.pin(how, GupFlags::empty()).is_err(), "PROT_NONE is refused")?;
    }
    Ok(())
}
