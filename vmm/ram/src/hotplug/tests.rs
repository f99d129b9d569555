//! Real memory of this host: what is plugged is there, what is unplugged is gone and costs nothing.

use abi::{PageCount, Pfn};
use devices::ram::GuestRam;
use vm_memory::{Bytes, GuestMemoryBackend};

use super::*;
use crate::{HostRam, Prefault};

const MIB: u64 = 1 << 20;
const BASE: u64 = 4 << 30;

fn ram(kind: BackingKind) -> HostRam {
    HostRam::with_hotplug(4 * MIB, kind, Prefault::All, Some(64 * MIB)).expect("68 MiB")
}

/// `mib` MiB from the `at`-th MiB of the region on.
fn part(at: u64, mib: u64) -> PfnRange {
    let start = Pfn::containing(BASE + at * MIB);
    PfnRange::from_start(start, PageCount::new(mib << 8)).expect("a small range")
}

fn fill(ram: &HostRam, range: PfnRange) {
    let bytes = vec![0x5a; to_usize(range.len().bytes())];
    ram.present().write_slice(&bytes, GuestAddress(range.start().gpa())).expect("plugged");
}

fn held(ram: &HostRam) -> u64 {
    ram.hotplug_resident_bytes().expect("readable").expect("verified")
}

fn is_there(ram: &HostRam, mib: u64) -> bool {
    ram.present().check_range(GuestAddress(BASE + mib * MIB), 1 << 20)
}

#[test]
fn nothing_is_there_and_nothing_held_before_a_plug() {
    for kind in BackingKind::ALL {
        let ram = ram(kind);
        assert_eq!(held(&ram), 0, "{kind}");
        assert_eq!(
            ram.resident_bytes().expect("readable"),
            Some(4 * MIB),
            "{kind}: prefaulted RAM alone"
        );
        assert!((0..64).all(|mib| !is_there(&ram, mib)));
        assert!(ram.is_unplugged(part(0, 64)));
        assert_eq!(ram.hotplug_region().map(|region| region.gpa()), Some(BASE));
        assert!(!ram.memory().address_in_range(GuestAddress(BASE)));
    }
}

#[test]
fn plugged_memory_is_held_when_touched_and_given_back_when_unplugged() {
    for kind in BackingKind::ALL {
        let ram = ram(kind);
        ram.plug(part(2, 4)).expect("plugged");
        assert_eq!(held(&ram), 0, "{kind}: untouched");
        fill(&ram, part(2, 4));
        assert_eq!(held(&ram), 4 * MIB, "{kind}");
        assert_eq!(ram.resident_bytes().expect("readable"), Some(8 * MIB), "{kind}");
        let mut unmapped = false;
        ram.unplug(&[part(3, 1), part(5, 1)], || unmapped = true).expect("released");
        assert!(unmapped);
        assert_eq!(held(&ram), 2 * MIB, "{kind}");
        let there: Vec<u64> = (0..64).filter(|&mib| is_there(&ram, mib)).collect();
        assert_eq!(there, [2, 4], "{kind}");
        assert!(!ram.is_unplugged(part(0, 3)) && ram.is_unplugged(part(5, 59)));
        ram.plug(part(3, 1)).expect("plugged again");
        let byte: u8 = ram.present().read_obj(GuestAddress(BASE + 3 * MIB)).expect("plugged");
        assert_eq!(byte, 0, "{kind}: reads zero");
    }
}

#[test]
fn a_buffer_may_lie_across_blocks_that_were_plugged_one_by_one() {
    let ram = ram(BackingKind::Anon);
    for at in [7, 9, 8] {
        ram.plug(part(at, 1)).expect("plugged");
    }
    assert!(ram.present().check_range(GuestAddress(BASE + 7 * MIB), 3 << 20));
    let slice = ram.present().get_slices(GuestAddress(BASE + 7 * MIB), 3 << 20).count();
    assert_eq!(slice, 1, "one region");
}

/// Who took its memory before an unplug may write after it, and the host would hold that for ever.
#[test]
fn what_is_written_late_is_released_when_the_writer_has_gone() {
    for kind in BackingKind::ALL {
        let ram = ram(kind);
        ram.plug(part(0, 2)).expect("plugged");
        let early = ram.present();
        ram.unplug(&[part(0, 2)], || {}).expect("released");
        early.write_slice(&[1; 8192], GuestAddress(BASE)).expect("still mapped");
        assert_eq!(held(&ram), 8192, "{kind}");
        assert!(ram.settle(), "{kind}: it may write more");
        assert_eq!(held(&ram), 8192, "{kind}");
        drop(early);
        assert!(!ram.settle());
        assert_eq!(held(&ram), 0, "{kind}");
    }
}

#[test]
fn settling_leaves_alone_what_has_been_plugged_again() {
    let ram = ram(BackingKind::Anon);
    ram.plug(part(0, 2)).expect("plugged");
    let early = ram.present();
    ram.unplug(&[part(0, 2)], || {}).expect("released");
    ram.plug(part(1, 1)).expect("plugged again");
    fill(&ram, part(1, 1));
    early.write_slice(&[1; 4096], GuestAddress(BASE)).expect("still mapped");
    drop(early);
    assert!(!ram.settle());
    assert_eq!(held(&ram), MIB);
}

#[test]
fn a_balloon_discards_in_both_at_once() {
    for kind in BackingKind::ALL {
        let ram = ram(kind);
        ram.plug(part(0, 1)).expect("plugged");
        fill(&ram, part(0, 1));
        let low = PfnRange::from_start(Pfn::ZERO, PageCount::new(3)).expect("small");
        let high = PfnRange::from_start(Pfn::containing(BASE), PageCount::new(5)).expect("small");
        let done = ram.discard(&[low, high]).expect("released");
        assert_eq!(done.pages.get(), 8, "{kind}");
        assert_eq!(ram.resident_bytes().expect("readable"), Some(5 * MIB - 8 * 4096), "{kind}");
        assert!(ram.discard(&[part(63, 2)]).is_err(), "beyond the region");
    }
}

#[test]
fn ranges_outside_the_region_cannot_be_plugged() {
    let ram = ram(BackingKind::Anon);
    assert!(ram.plug(part(63, 2)).is_err());
    let below = PfnRange::from_start(Pfn::ZERO, PageCount::ONE).expect("small");
    assert!(ram.plug(below).is_err());
    assert!((0..64).all(|mib| !is_there(&ram, mib)));
    let plain = HostRam::new(4 * MIB, BackingKind::Anon, Prefault::OnDemand).expect("4 MiB");
    assert!(plain.plug(part(0, 1)).is_err() && plain.hotplug_region().is_none());
}

#[test]
fn memory_outlives_the_owner_while_someone_refers_to_it() {
    let ram = ram(BackingKind::Anon);
    ram.plug(part(0, 1)).expect("plugged");
    fill(&ram, part(0, 1));
    let memory: GuestMemoryMmap = (*ram.present()).clone();
    drop(ram);
    let byte: u8 = memory.read_obj(GuestAddress(BASE)).expect("still mapped");
    assert_eq!(byte, 0x5a);
}

#[test]
fn runs_are_kept_maximal() {
    let runs = [part(0, 1), part(2, 1), part(4, 1)];
    assert_eq!(with(&runs, part(1, 1)), [part(0, 3), part(4, 1)]);
    assert_eq!(with(&runs, part(6, 1)), [part(0, 1), part(2, 1), part(4, 1), part(6, 1)]);
    assert_eq!(with(&[], part(6, 1)), [part(6, 1)]);
    assert_eq!(without(&[part(0, 8)], part(3, 2)), [part(0, 3), part(5, 3)]);
    assert_eq!(without(&runs, part(0, 8)), []);
    assert_eq!(without(&runs, part(8, 1)), runs);
}
