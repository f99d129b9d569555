//! E2's batches on the host, to count the misses of its caches: times are not taken.
//!
//! `guest-mm/benches/batch.sh` runs this below Cachegrind, once without batches and once for each arm, and prints the difference per page.
//! By itself: `cargo bench -p guest-mm --features testing --bench batch -- none|array|list [PAGES]`.
#![allow(missing_docs, reason = "a bench has no API")]

use guest_mm::bench::batch::{Arm, Caches, MAX_SIZE, scatter, with_subject};
use guest_mm::scenario::Rng;
use guest_mm::testing::memory;

/// Frames of the machine: 512 MiB, of which the batches use what a table of 4 MiB describes.
const FRAMES: u64 = 1 << 17;
/// Batches, each of other pages.
const BATCHES: usize = 100;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let arm = match args.next().as_deref() {
        // Tried only, or all that is there before and after.
        None | Some("none") => None,
        Some("array") => Some(Arm::Array),
        Some("list") => Some(Arm::List),
        Some(other) => panic!("none, array or list, not {other:?}"),
    };
    let size = args.next().map_or(MAX_SIZE, |size| size.parse().expect("a number of pages"));
    assert!((1..=MAX_SIZE).contains(&size), "1 to {MAX_SIZE} pages, not {size}");
    let memory = memory(FRAMES);
    let measured = with_subject(&memory, |subject| {
        let mut rng = Rng::new(1);
        let mut pages = [0; MAX_SIZE];
        for _ in 0..BATCHES {
            scatter(&mut pages[..size], subject.span(), &mut rng);
            if let Some(arm) = arm {
                // Flooded: what was there of the batch before is not.
                subject.sample(arm, &pages[..size], Caches::Flooded)?;
            } else {
                // As often as an arm does.
                (0..3).for_each(|_| subject.flood());
            }
        }
        Ok(())
    });
    measured.unwrap_or_else(|failure| panic!("{failure}"));
    println!("{BATCHES} batches of {size} pages");
}
