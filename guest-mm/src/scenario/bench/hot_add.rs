//! `exp-e10`: blocks of memory are added when little or nothing is free.
//!
//! Arms: `self-hosted` is [`Memory::add_block`]: words and bitmap lie in the block. `allocated` takes pages for the words
//! one by one, as a kernel does that maps its page descriptors from free memory, writes them, and enters the pieces that wait
//! into an XArray; what it got by then goes back when one thing is missing. `allocated-reserve` does the same with the
//! reserve below the *min* watermark open to it.

use abi::{Pfn, PfnRange};

use super::Samples;
use crate::bench::{Experiment, Param, Sample};
use crate::buddy::Gfp;
use crate::hotplug::{BlockLayout, NewBlock};
use crate::memdesc::{DriverId, Hold, Offline, Order, Word};
use crate::memory::{FrozenFrames, Memory};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::scenario::come_to_life::remove;
use crate::scenario::hoard::Hoard;
use crate::scenario::{Ctx, Failure, Machine, OrFail, Outcome, check_eq};
use crate::store::{Block, PfnStore, Reservation, XArrayStore};
use crate::xarray::SlabNodes;

/// Attempts that are counted together.
const ATTEMPTS: usize = 8;
/// Rounds by default.
const ROUNDS: u64 = 1;
/// Pages that are left free, in single pages as chance will have it.
const FREE: [u64; 8] = [0, 16, 32, 64, 96, 128, 256, 512];
/// Orders in which pieces come to life: pages as on Hyper-V and Xen, 2 MiB as virtio-mem's.
const UNITS: [Order; 2] = [Order::ZERO, Order::PAGEBLOCK];
/// Pages of words at most.
const WORD_PAGES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    SelfHosted,
    Allocated,
    AllocatedReserve,
}

impl Arm {
    const ALL: [Self; 3] = [Self::SelfHosted, Self::Allocated, Self::AllocatedReserve];

    const fn name(self) -> &'static str {
        match self {
            Self::SelfHosted => "self-hosted",
            Self::Allocated => "allocated",
            Self::AllocatedReserve => "allocated-reserve",
        }
    }
}

/// What came of some attempts.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    added: u64,
    /// Of each that succeeded.
    ns: [u64; ATTEMPTS],
    /// Pages that it took from free memory.
    taken: u64,
}

impl Tally {
    /// One more success.
    fn add(&mut self, ns: u64, taken: u64) {
        if let Some(slot) = usize::try_from(self.added).ok().and_then(|at| self.ns.get_mut(at)) {
            *slot = ns;
        }
        self.added += 1;
        self.taken = taken;
    }
}

pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut samples = Samples::new(Experiment::E10, ctx.args.seed);
    let Some(spare) = ctx.machine().spare() else {
        ctx.print(format_args!("no RAM is kept for it: boot with spare=128M"));
        samples.end(ctx);
        return Ok(());
    };
    for _ in 0..ctx.rounds(ROUNDS) {
        for unit in UNITS {
            for free in FREE {
                measure(ctx, &mut samples, spare, unit, free)?;
            }
        }
    }
    samples.end(ctx);
    Ok(())
}

/// All arms with the same pages free.
fn measure<M: Machine>(
    ctx: &mut Ctx<'_, '_, M>,
    samples: &mut Samples,
    spare: PfnRange,
    unit: Order,
    free: u64,
) -> Outcome {
    let mm = ctx.mm;
    mm.base().settle();
    let mut hoard = Hoard::new(mm.memory());
    hoard.take_all(Order::ZERO);
    hoard.free_some(free, &mut ctx.rng);
    let mut tallies = [Tally::default(); Arm::ALL.len()];
    for _ in 0..ATTEMPTS {
        for (arm, tally) in Arm::ALL.into_iter().zip(&mut tallies) {
            attempt(mm, arm, spare, unit, tally)?;
            // Slabs that a failed attempt has left would help the next one.
            mm.base().settle();
            check_eq(mm.memory().free_pages().get(), free, "free pages after an attempt")?;
        }
    }
    drop(hoard);
    let params = [
        ("free", Param::Number(free)),
        ("unit", Param::Number(unit.pages().get())),
        ("block", Param::Number(spare.len().get())),
    ];
    for (arm, tally) in Arm::ALL.into_iter().zip(tallies) {
        let mut print = |metric, unit, value| {
            let sample = Sample { arm: arm.name(), params: &params, metric, unit, value };
            samples.print(ctx, &sample);
        };
        print("blocks added", "of 8 attempts", tally.added * 1000);
        let added = usize::try_from(tally.added).unwrap_or(ATTEMPTS);
        if added > 0 {
            tally.ns.iter().take(added).for_each(|&ns| print("time to add", "us", ns));
            print("pages taken", "pages", tally.taken * 1000);
        }
    }
    Ok(())
}

fn attempt<P: Platform>(
    mm: &Mm<'_, P>,
    arm: Arm,
    spare: PfnRange,
    unit: Order,
    tally: &mut Tally,
) -> Outcome {
    let (memory, before) = (mm.memory(), mm.memory().free_pages());
    let gfp = match arm {
        Arm::SelfHosted => {
            let start = mm.platform().now_ns();
            let added = memory.add_block(NewBlock { range: spare, plugged: spare.len(), unit });
            let ns = mm.platform().now_ns().saturating_sub(start);
            added.or_fail()?;
            let taken = before.saturating_sub(memory.free_pages()).get();
            tally.add(ns, taken);
            return remove(mm, spare);
        }
        Arm::Allocated => Gfp::KERNEL,
        Arm::AllocatedReserve => Gfp::MEMALLOC,
    };
    let start = mm.platform().now_ns();
    let nodes = SlabNodes::new(memory, &mm.base().caches.xa_node, gfp);
    let store = XArrayStore::new(&mm.base().rcu, nodes, spare);
    let mut words = Words { memory, pages: [const { None }; WORD_PAGES] };
    let is_added = words.allocate(spare, unit, gfp) && enter(&store, spare, unit)?;
    let ns = mm.platform().now_ns().saturating_sub(start);
    if is_added {
        let taken = before.saturating_sub(memory.free_pages()).get();
        tally.add(ns, taken);
    }
    leave(&store, spare, unit);
    store.trim();
    Ok(())
}

/// The words of a block in single pages; frees them when dropped.
struct Words<'m, P: Platform> {
    memory: &'m Memory<P>,
    pages: [Option<FrozenFrames>; WORD_PAGES],
}

impl<P: Platform> Words<'_, P> {
    /// Allocates and writes the words of `range`, all offline; `false` if there are not enough pages.
    fn allocate(&mut self, range: PfnRange, unit: Order, gfp: Gfp) -> bool {
        const PER_PAGE: usize = 4096 / size_of::<Word>();
        let mut frames = range.iter().peekable();
        for slot in &mut self.pages {
            if frames.peek().is_none() {
                return true;
            }
            let Ok(mut page) = self.memory.alloc_frozen(Order::ZERO, gfp) else { return false };
            let bytes = self.memory.bytes_mut(&mut page);
            for (cell, pfn) in bytes.chunks_exact_mut(8).zip(frames.by_ref().take(PER_PAGE)) {
                cell.copy_from_slice(&word(pfn, unit).bits().to_le_bytes());
            }
            *slot = Some(page);
        }
        frames.peek().is_none()
    }
}

impl<P: Platform> Drop for Words<'_, P> {
    fn drop(&mut self) {
        self.pages
            .iter_mut()
            .filter_map(Option::take)
            .for_each(|page| self.memory.free_frozen(page));
    }
}

/// What the word of a frame that waits to come to life says.
fn word(pfn: Pfn, unit: Order) -> Word {
    if !pfn.is_aligned(unit.get()) {
        return crate::buddy::tail_word(pfn);
    }
    let (driver, hold) = (DriverId::HOTPLUG, Hold::Parked);
    Offline { order: unit, driver, hold, skippable: true }.encode()
}

/// The pieces that wait: those of the block's payload, so that both designs keep books of as many.
fn pieces(spare: PfnRange, unit: Order) -> Result<impl Iterator<Item = Block>, Failure> {
    let payload = BlockLayout::of(spare).or_fail()?.payload();
    let first = payload.start().number().next_multiple_of(unit.pages().get());
    let starts = (first..payload.end().number()).step_by(1 << unit.get());
    Ok(starts.filter_map(move |start| Block::new(Pfn::new(start)?, unit.get())))
}

/// Enters every piece; `false` if there was no memory for a node.
fn enter<S: PfnStore>(store: &S, spare: PfnRange, unit: Order) -> Result<bool, Failure> {
    for piece in pieces(spare, unit)? {
        let Ok(room) = store.reserve() else { return Ok(false) };
        room.commit(piece).or_fail()?;
    }
    Ok(true)
}

fn leave<S: PfnStore>(store: &S, spare: PfnRange, unit: Order) {
    let Ok(mut pieces) = pieces(spare, unit) else { return };
    // Entered in order: the first that is missing is the end.
    while let Some(piece) = pieces.next()
        && store.remove(piece.head()).is_some()
    {}
}
