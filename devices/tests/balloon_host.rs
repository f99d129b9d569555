//! The balloon over the backings that the VMM uses: the source of truth falls, and reuse reads zeros.

use std::ops::Range;
use std::sync::Arc;

use abi::{PAGE_SIZE, Pfn};
use devices::balloon::BalloonOptions;
use devices::ram::GuestRam;
use devices::testing::{BalloonMachine, FIRST_FREE_PFN};
use guest_ram::{BackingKind, HostRam, Prefault};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use vm_memory::{Bytes, GuestAddress};

const RAM_BYTES: u64 = 320 << 20;
const RAM_PAGES: u32 = 81_920;
/// Frames inflated: a full ring of 256 buffers of 256.
const INFLATED: Range<u32> = FIRST_FREE_PFN..FIRST_FREE_PFN + 65_536;

fn prefaulted(kind: BackingKind) -> (Arc<HostRam>, BalloonMachine) {
    let ram = Arc::new(HostRam::new(RAM_BYTES, kind, Prefault::All).expect("320 MiB"));
    let machine = BalloonMachine::new(ram.clone(), BalloonOptions::default());
    (ram, machine)
}

fn resident(ram: &HostRam) -> u64 {
    ram.resident_bytes().expect("readable").expect("verified")
}

/// Marks each frame with its own number.
fn mark(ram: &HostRam, frames: impl Iterator<Item = u32>) {
    for pfn in frames {
        let at = GuestAddress(Pfn::from_u32(pfn).gpa() + 8);
        ram.memory().write_obj(pfn, at).expect("in RAM");
    }
}

fn marked(ram: &HostRam, pfn: u32) -> u32 {
    ram.memory().read_obj(GuestAddress(Pfn::from_u32(pfn).gpa() + 8)).expect("in RAM")
}

#[test]
fn any_order_frees_every_byte_with_at_most_one_call_per_run() {
    let ascending: Vec<u32> = INFLATED.collect();
    let descending: Vec<u32> = INFLATED.rev().collect();
    let mut shuffled = ascending.clone();
    shuffled.shuffle(&mut StdRng::seed_from_u64(5));
    let half = FIRST_FREE_PFN..FIRST_FREE_PFN + 32_768;
    let mut duplicated: Vec<u32> = half.clone().chain(half.clone()).collect();
    duplicated.shuffle(&mut StdRng::seed_from_u64(6));
    let orders = [
        (&ascending, INFLATED),
        (&descending, INFLATED),
        (&shuffled, INFLATED),
        (&duplicated, half),
    ];
    for kind in BackingKind::ALL {
        for (frames, holes) in orders.clone() {
            let (ram, mut machine) = prefaulted(kind);
            mark(&ram, FIRST_FREE_PFN..RAM_PAGES);
            let before = resident(&ram);
            machine.inflate(frames);
            let freed = before - resident(&ram);
            assert_eq!(freed, holes.len() as u64 * PAGE_SIZE, "{kind}");
            let counters = machine.balloon().counters();
            assert_eq!(counters.discard_calls, 1, "{kind}: one run in one window");
            assert_eq!((counters.released_pages, counters.refused_pages), (holes.len() as u64, 0));
            // The holes are exactly the frames named: they read zero, all others as before.
            assert!(
                (FIRST_FREE_PFN..RAM_PAGES)
                    .all(|pfn| { marked(&ram, pfn) == if holes.contains(&pfn) { 0 } else { pfn } })
            );
        }
    }
}

#[test]
fn scattered_pages_are_freed_in_few_calls() {
    for kind in BackingKind::ALL {
        let (ram, mut machine) = prefaulted(kind);
        let frames: Vec<u32> = (FIRST_FREE_PFN..RAM_PAGES).step_by(2).collect();
        let before = resident(&ram);
        machine.inflate(&frames);
        assert_eq!(before - resident(&ram), frames.len() as u64 * PAGE_SIZE, "{kind}");
        let counters = machine.balloon().counters();
        assert_eq!(counters.run_pages.count(), frames.len() as u64);
        // 1,024 to a call where the kernel takes batches.
        let batches = frames.len().div_ceil(1024);
        let most = if ram.release_method() == "madvise" { frames.len() } else { batches };
        assert!(counters.discard_calls <= most as u64, "{kind}: {}", counters.discard_calls);
    }
}

#[test]
fn deflated_pages_read_zero_and_hold_what_is_written_next() {
    for kind in BackingKind::ALL {
        let (ram, mut machine) = prefaulted(kind);
        let frames: Vec<u32> = INFLATED.collect();
        mark(&ram, FIRST_FREE_PFN..RAM_PAGES);
        machine.inflate(&frames);
        let calls = machine.balloon().counters().discard_calls;
        machine.deflate(&frames);
        assert_eq!(machine.balloon().counters().discard_calls, calls, "deflate makes no call");
        assert!(frames.iter().all(|&pfn| marked(&ram, pfn) == 0), "{kind}");
        mark(&ram, INFLATED);
        assert!((FIRST_FREE_PFN..RAM_PAGES).all(|pfn| marked(&ram, pfn) == pfn), "{kind}");
    }
}
