//! What is done to the frames of each layout, and what it cost.

use super::region::Block;
use super::{Layout, Pages32, Pages64, Region, Use, Words};
use crate::bench::{Bench, Spread};
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{FrozenFrames, Memory};
use crate::platform::Platform;
use crate::scenario::{Failure, OrFail, Outcome, Rng};

/// Frames that are described, if there is memory for the largest table: 256 MiB.
const MOST_FRAMES: u32 = 1 << 16;
/// Fewest that tell anything.
const FEWEST_FRAMES: u32 = 1 << 11;
/// Frames of a GiB.
const GIB_FRAMES: u64 = 1 << 18;

/// A share of a mix: a use, its order, and its part of all frames in thousandths.
type Share = (Use, u32, u32);

/// How memory is used.
struct Mix {
    name: &'static str,
    shares: &'static [Share],
}

/// Largest blocks first, so that they find room; the rest stays free.
const MIXES: &[Mix] = &[
    Mix { name: "90% order 0", shares: &[(Use::Folio, 0, 900)] },
    Mix {
        name: "small folios",
        shares: &[
            (Use::Folio, 4, 100),
            (Use::Folio, 2, 200),
            (Use::Folio, 0, 500),
            (Use::Table, 0, 30),
            (Use::Slab, 0, 70),
        ],
    },
    Mix {
        name: "large folios",
        shares: &[
            (Use::Folio, 9, 500),
            (Use::Folio, 4, 200),
            (Use::Folio, 0, 150),
            (Use::Table, 0, 10),
            (Use::Slab, 0, 40),
        ],
    },
    Mix {
        name: "mostly kernel and free",
        shares: &[(Use::Folio, 0, 150), (Use::Table, 0, 100), (Use::Slab, 0, 300)],
    },
];

/// Orders of the folios whose creation is timed alone.
const ORDERS: [u32; 4] = [0, 2, 4, 9];

/// Runs the experiment: all layouts, all mixes. `seed` decides which folios are
/// replaced and looked up.
///
/// Figures: `layout init` in ns per GiB of frames; `layout pair`, a folio made
/// and freed, by order; by mix `layout bytes` per frame, `layout churn`, one block
/// freed and made again, and `layout lookup`, a reference by a random frame.
///
/// # Errors
/// There is no memory for the tables, or the books of a layout do not agree.
pub fn run<P: Platform>(memory: &Memory<P>, bench: &mut Bench<'_>, seed: u64) -> Outcome {
    let frames = frames_for(memory).or_fail()?;
    one::<P, Words<true>>(memory, bench, frames, seed)?;
    one::<P, Words<false>>(memory, bench, frames, seed)?;
    one::<P, Pages32>(memory, bench, frames, seed)?;
    one::<P, Pages64>(memory, bench, frames, seed)
}

/// As many as the memory that may be used allows: the largest table, and a list
/// of blocks and their descriptors.
fn frames_for<P: Platform>(memory: &Memory<P>) -> Option<u32> {
    let available = memory.free_pages().get().saturating_sub(memory.watermarks().low);
    let pages = |frames: u32| u64::from(frames) * (64 + 80 + size_of::<Block>() as u64) / 4096;
    let mut frames = MOST_FRAMES;
    while frames >= FEWEST_FRAMES {
        if pages(frames) * 2 <= available {
            return Some(frames);
        }
        frames /= 2;
    }
    None
}

fn one<P: Platform, L: Layout>(
    memory: &Memory<P>,
    bench: &mut Bench<'_>,
    frames: u32,
    seed: u64,
) -> Outcome {
    let mut region = Region::<P, L>::new(memory, frames).or_fail()?;
    let init = bench.rounds(|bench| {
        let ns = bench.elapsed(|| {
            region.init();
            Ok::<_, Failure>(())
        })?;
        Ok::<_, Failure>((ns * (GIB_FRAMES / u64::from(frames)), 1))
    })?;
    bench.print("layout init", format_args!("{}", L::NAME), "ns/GiB", init);
    for order in ORDERS {
        bench.figure("layout pair", format_args!("{}, order {order}", L::NAME), || {
            let block = region.begin(order, Use::Folio).or_fail()?;
            region.end(block);
            Ok::<_, Failure>(())
        })?;
    }
    let mut blocks = Blocks::new(memory, frames).or_fail()?;
    for mix in MIXES {
        let ended = run_mix(&mut region, &mut blocks, bench, mix, frames, seed);
        while let Some(block) = blocks.pop() {
            region.end(block);
        }
        ended?;
    }
    blocks.destroy();
    region.destroy();
    Ok(())
}

fn run_mix<P: Platform, L: Layout>(
    region: &mut Region<'_, P, L>,
    blocks: &mut Blocks<'_, P>,
    bench: &mut Bench<'_>,
    mix: &Mix,
    frames: u32,
    seed: u64,
) -> Outcome {
    for &(what, order, thousandths) in mix.shares {
        for _ in 0..(frames / 1000 * thousandths) >> order {
            let block = region.begin(order, what).or_fail()?;
            blocks.push(block);
        }
    }
    let case = format_args!("{}, {}", L::NAME, mix.name);
    let bytes = region.bytes().saturating_mul(1000) / u64::from(frames);
    bench.print("layout bytes", case, "B/frame", Spread::exactly(bytes));
    // The same choices for every layout.
    let mut rng = Rng::new(seed);
    let churn = bench.rounds(|bench| {
        let ops = u64::from(frames / 8);
        let ns = bench.elapsed(|| (0..ops).try_for_each(|_| replace(region, blocks, &mut rng)))?;
        Ok::<_, Failure>((ns, ops))
    })?;
    bench.print("layout churn", case, "ns", churn);
    let lookup = bench.rounds(|bench| {
        let ops = u64::from(frames);
        let ns = bench.elapsed(|| {
            for _ in 0..ops {
                core::hint::black_box(region.look_up(random_below(&mut rng, frames)));
            }
            Ok::<_, Failure>(())
        })?;
        Ok::<_, Failure>((ns, ops))
    })?;
    bench.print("layout lookup", case, "ns", lookup);
    Ok(())
}

/// Frees a random block and makes another one like it.
fn replace<P: Platform, L: Layout>(
    region: &mut Region<'_, P, L>,
    blocks: &mut Blocks<'_, P>,
    rng: &mut Rng,
) -> Outcome {
    let n = random_below(rng, u32::try_from(blocks.len).unwrap_or(u32::MAX)) as usize;
    let block = blocks.take(n).or_fail()?;
    region.end(block);
    blocks.push(region.begin(u32::from(block.order), block.what).or_fail()?);
    Ok(())
}

fn random_below(rng: &mut Rng, bound: u32) -> u32 {
    u32::try_from(rng.below(u64::from(bound.max(1)))).unwrap_or(0)
}

/// The blocks in use, in memory of their own.
struct Blocks<'m, P: Platform> {
    memory: &'m Memory<P>,
    backing: FrozenFrames,
    len: usize,
    most: usize,
}

impl<'m, P: Platform> Blocks<'m, P> {
    fn new(memory: &'m Memory<P>, most: u32) -> Option<Self> {
        let most = most as usize;
        let pages = (most * size_of::<Block>()).div_ceil(4096).next_power_of_two();
        let order = Order::try_from(pages.trailing_zeros()).ok()?;
        let backing = memory.alloc_frozen(order, Gfp::KERNEL).ok()?;
        Some(Self { memory, backing, len: 0, most })
    }

    fn slot(&self, n: usize) -> core::ptr::NonNull<Block> {
        let start = self.memory.platform().frame_ptr(self.backing.head()).cast::<Block>();
        // SAFETY: below `most`, for which the block has room.
        unsafe { start.add(n) }
    }

    fn push(&mut self, block: Block) {
        assert!(self.len < self.most, "no more blocks than frames");
        // SAFETY: inside the backing, which is ours, and aligned.
        unsafe { self.slot(self.len).write(block) };
        self.len += 1;
    }

    fn pop(&mut self) -> Option<Block> {
        self.take(self.len.checked_sub(1)?)
    }

    /// Takes block `n` out; the last one comes in its place.
    fn take(&mut self, n: usize) -> Option<Block> {
        let last = self.len.checked_sub(1).filter(|last| n <= *last)?;
        // SAFETY: written by `push`.
        let taken = unsafe { self.slot(n).read() };
        // SAFETY: as above.
        let moved = unsafe { self.slot(last).read() };
        // SAFETY: as above.
        unsafe { self.slot(n).write(moved) };
        self.len = last;
        Some(taken)
    }

    fn destroy(self) {
        self.memory.free_frozen(self.backing);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;
    use crate::testing;

    #[test]
    fn every_layout_runs_every_mix_and_gives_all_memory_back() {
        let memory = testing::memory(8192);
        let free = memory.free_pages();
        let mut lines: Vec<String> = Vec::new();
        let mut print = |figure: &crate::bench::Figure<'_>| lines.push(figure.to_string());
        let mut bench = Bench::new(&|| 0, 3, &mut print);
        run(&memory, &mut bench, 1).expect("the books agree");
        assert_eq!(memory.free_pages(), free);
        assert_eq!(lines.len(), 4 * (1 + ORDERS.len() + 3 * MIXES.len()));
        let bytes_of = |layout: &str, mix: &str| {
            let line = lines.iter().find(|line| {
                line.contains("layout bytes") && line.contains(&std::format!("\"{layout}, {mix}"))
            });
            let value = line.and_then(|line| line.rsplit_once(':')).expect("a figure").1;
            value.trim_end_matches('}').parse::<u64>().expect("a number")
        };
        // No descriptor beside the page's in today's layout, whatever the mix.
        for mix in MIXES {
            assert_eq!(bytes_of("64 B", mix.name), 64_000);
        }
        // One folio per page costs more than it saves; large folios and kernel memory do not.
        assert!(bytes_of("8 B", "90% order 0") > 64_000);
        assert!(bytes_of("8 B", "large folios") < 32_000);
        assert!(bytes_of("8 B", "mostly kernel") < bytes_of("32 B", "mostly kernel"));
    }

    #[test]
    fn a_frame_of_a_folio_leads_to_its_count_in_every_layout() {
        fn check<L: Layout>() {
            let memory = testing::memory(4096);
            let mut region = Region::<_, L>::new(&memory, FEWEST_FRAMES).expect("memory");
            region.init();
            let folio = region.begin(3, Use::Folio).expect("memory");
            let table = region.begin(0, Use::Table).expect("memory");
            let slab = region.begin(1, Use::Slab).expect("memory");
            for at in folio.at..folio.at + 8 {
                assert!(region.look_up(at), "{} frame {at}", L::NAME);
            }
            assert!(!region.look_up(table.at) && !region.look_up(slab.at), "{}", L::NAME);
            region.end(folio);
            for at in 0..FEWEST_FRAMES {
                assert!(!region.look_up(at), "{} frame {at}", L::NAME);
            }
            region.end(table);
            region.end(slab);
            region.destroy();
            assert_eq!(memory.free_pages(), memory.managed_pages());
        }
        check::<Words<true>>();
        check::<Words<false>>();
        check::<Pages32>();
        check::<Pages64>();
    }
}
