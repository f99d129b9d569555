//! Random memory, compacted, against a model that knows pageblocks by three numbers.

use proptest::prelude::*;

use super::world::{Fate, with_world};
use crate::compaction::CompactResult;
use crate::migrate::MigrateMode;

/// Free and movable pages of a pageblock; the rest stays where it is.
type Counts = (u64, u64);

/// The naive compaction: one page at a time, from the lowest pageblock with
/// movable pages to the highest with free ones, which is not free as a whole.
fn compact(blocks: &mut [Counts]) {
    let (mut low, mut high) = (0, blocks.len() - 1);
    while low < high {
        if blocks[low].1 == 0 {
            low += 1;
        } else if blocks[high].0 == 0 || blocks[high].0 == 512 {
            high -= 1;
        } else {
            blocks[low] = (blocks[low].0 + 1, blocks[low].1 - 1);
            blocks[high] = (blocks[high].0 - 1, blocks[high].1 + 1);
        }
    }
}

fn empty(blocks: &[Counts]) -> usize {
    blocks.iter().filter(|block| block.0 == 512).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn random_memory_is_compacted_as_the_model_does(
        seed: u64,
        freed in 15u64..70,
        pinned in prop_oneof![Just(0u64), 0u64..3],
        clumps in 0u32..6,
    ) {
        with_world(10 * 512, |world| {
            world.fill(64);
            // Neighbours share their fate, more or less.
            let draw = |pfn: u64| {
                let mut z = (pfn >> clumps).wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                z = (z ^ (z >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                (z ^ (z >> 29)) % 100
            };
            world.sort(|pfn| match draw(pfn) {
                n if n < freed => Fate::Freed,
                n if n < freed + pinned => Fate::Pinned,
                _ => Fate::Stays,
            });
            let before = world.by_pageblock();
            let movable = world.movable().len();
            let done = world.mm.compact_memory(MigrateMode::Sync);
            assert_eq!(done, CompactResult::Complete);
            world.check();
            let after = world.by_pageblock();
            assert_eq!(world.movable().len(), movable);
            // What neither scanner may touch.
            for (n, (before, after)) in before.iter().zip(&after).enumerate() {
                assert_eq!(before.0 + before.1, after.0 + after.1, "pageblock {n}");
            }
            // The scanners met in one pageblock: nothing that can move is left below it,
            // and above it nothing free but whole pageblocks.
            let met = after.iter().position(|block| block.1 > 0).unwrap_or(after.len());
            for (n, block) in after.iter().enumerate().skip(met + 2) {
                assert!(block.0 == 0 || block.0 == 512, "pageblock {n}, met at {met}: {after:?}");
            }
            let mut model = before;
            compact(&mut model);
            // Destinations are taken by batches, so at most one pageblock is left half done.
            assert!(empty(&after) + 1 >= empty(&model), "{after:?} {model:?}");
            assert!(empty(&after) <= empty(&model), "{after:?} {model:?}");
        });
    }
}
