//! Blocks without a device.

use abi::{PageCount, Pfn, PfnRange};

use crate::buddy::Gfp;
use crate::hotplug::{BlockLayout, HotplugError, NewBlock};
use crate::memdesc::{DriverId, Hold, Kind, Memdesc, Order};
use crate::memory::Memory;
use crate::platform::{FaultSite, MapError};
use crate::testing::{TestPlatform, range};

/// Frames of the machine: 16 MiB.
const RAM: u64 = 4096;
/// Frames of a section.
pub(super) const SECTION: u64 = 1 << 15;
/// Frames of a piece of 2 MiB.
pub(super) const UNIT: u64 = 512;

/// A machine with `sections` sections of spare RAM behind a hole.
pub(super) fn machine(sections: u64) -> Memory<TestPlatform> {
    let ram = [range(0, RAM)];
    let spare = range(2 * SECTION, sections * SECTION);
    let platform = TestPlatform::new(&ram, 0).with_spare(spare);
    Memory::new(platform, &ram, &[]).unwrap()
}

pub(super) fn section(n: u64) -> PfnRange {
    range((2 + n) * SECTION, SECTION)
}

pub(super) fn block(range: PfnRange) -> NewBlock {
    NewBlock { range, plugged: PageCount::new(UNIT), unit: Order::PAGEBLOCK }
}

/// Takes everything there is, down to the last page.
pub(super) fn exhaust(memory: &Memory<TestPlatform>) -> Vec<crate::memory::FrozenFrames> {
    let mut held = Vec::new();
    let all = PageCount::new(RAM + 4 * SECTION);
    memory.alloc_many(all, Order::MAX, Gfp::MEMALLOC, &mut |frames| held.push(frames));
    assert!(memory.free_pages().is_zero());
    held
}

#[track_caller]
pub(super) fn assert_consistent(memory: &Memory<TestPlatform>) {
    let census = memory.census();
    let found: Vec<_> = census.discrepancies().iter().collect();
    assert_eq!(census.discrepancies().total(), 0, "{found:?}");
}

fn payload_of_first_unit(layout: BlockLayout) -> PfnRange {
    PfnRange::new(layout.payload().start(), Pfn::new(layout.header().number() + UNIT).unwrap())
        .unwrap()
}

#[test]
fn a_block_is_added_and_comes_to_life_without_a_free_page() {
    let memory = machine(1);
    let held = exhaust(&memory);
    let layout = memory.add_block(block(section(0))).unwrap();
    assert_eq!(layout.metadata_pages().get(), 67);
    assert!(memory.free_pages().is_zero());
    let census = memory.census();
    assert_eq!(census.offline_pages(DriverId::HOTPLUG, Hold::Parked).get(), SECTION - 67);
    assert_consistent(&memory);

    let alive = memory.bring_to_life(payload_of_first_unit(layout)).unwrap();
    assert_eq!((alive.get(), memory.free_pages().get()), (UNIT - 67, UNIT - 67));
    assert_eq!(memory.offline_bits(layout.words()).unwrap().pages().get(), SECTION - UNIT);
    assert_consistent(&memory);

    // It is memory like any other.
    let mut frames = memory.alloc_frozen(Order::ZERO, Gfp::MEMALLOC).unwrap();
    assert!(section(0).contains(frames.head()));
    memory.bytes_mut(&mut frames).fill(7);
    memory.free_frozen(frames);
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_eq!(memory.free_pages(), memory.managed_pages());
    assert_consistent(&memory);
}

#[test]
fn watermarks_follow_what_comes_to_life() {
    let memory = machine(1);
    let (before, low) = (memory.managed_pages(), memory.watermarks().low);
    let layout = memory.add_block(block(section(0))).unwrap();
    assert_eq!(memory.managed_pages(), before, "what is not alive is not managed");
    memory.bring_to_life(layout.payload()).unwrap();
    assert_eq!(memory.managed_pages(), before.saturating_add(layout.payload().len()));
    assert!(memory.watermarks().low > low);
    assert_consistent(&memory);
}

#[test]
fn a_block_that_never_came_to_life_is_removed_and_can_come_again() {
    let memory = machine(2);
    for round in 0..3 {
        let layout = memory.add_block(block(section(0))).unwrap();
        memory.add_block(block(section(1))).unwrap();
        assert_eq!(memory.added_blocks().count(), 2);
        // The first of them has the page table of their GiB, which must survive it.
        let dying = memory.take_block_out(section(round % 2)).unwrap();
        assert!(memory.words().load(dying.range().start()).is_err());
        // SAFETY: this thread alone looks frames up.
        unsafe { dying.bury() };
        assert_consistent(&memory);
        let dying = memory.take_block_out(section(1 - round % 2)).unwrap();
        // SAFETY: as above.
        unsafe { dying.bury() };
        assert_eq!(memory.words().len().get(), RAM);
        assert_eq!(
            memory.bring_to_life(layout.payload()).unwrap_err(),
            HotplugError::NotAdded(layout.payload())
        );
        assert_consistent(&memory);
    }
}

#[test]
fn a_block_in_use_stays_and_so_does_one_whose_removal_is_given_up() {
    let memory = machine(1);
    let layout = memory.add_block(block(section(0))).unwrap();
    let dying = memory.take_block_out(section(0)).unwrap();
    assert_eq!(memory.added_blocks().count(), 0);
    assert_eq!(memory.take_block_out(section(0)).unwrap_err(), HotplugError::Busy);
    assert_eq!(memory.add_block(block(section(0))).unwrap_err(), HotplugError::Busy);
    drop(dying);
    assert_eq!(memory.added_blocks().collect::<Vec<_>>(), [section(0)]);

    memory.bring_to_life(payload_of_first_unit(layout)).unwrap();
    memory.drain();
    let refused = memory.take_block_out(section(0)).unwrap_err();
    let HotplugError::InUse(pfn, Memdesc::Buddy(_)) = refused else { panic!("{refused:?}") };
    assert_eq!(pfn, layout.payload().start());
    assert_consistent(&memory);
}

#[test]
fn frames_come_to_life_once_and_in_whole_pieces() {
    let memory = machine(1);
    let layout = memory.add_block(block(section(0))).unwrap();
    let first = range(2 * SECTION + UNIT, UNIT);
    let refused = |range| memory.bring_to_life(range).unwrap_err();
    let half = range(first.start().number(), UNIT / 2);
    let whole = HotplugError::NotWhole { head: first.start(), order: Order::PAGEBLOCK };
    assert_eq!(refused(half), whole);
    assert_eq!(refused(range(first.start().number() + 1, UNIT)), whole);
    let table = layout.table();
    assert!(
        matches!(refused(range(table.number(), 1)), HotplugError::NotOffline(at, _) if at == table)
    );
    assert!(matches!(refused(range(0, UNIT)), HotplugError::NotAdded(_)));
    assert!(matches!(refused(range(first.start().number(), 0)), HotplugError::NotAdded(_)));
    assert!(matches!(refused(range(3 * SECTION - UNIT, 2 * UNIT)), HotplugError::NotAdded(_)));
    memory.bring_to_life(first).unwrap();
    memory.drain();
    assert!(
        matches!(refused(first), HotplugError::NotOffline(at, Memdesc::Buddy(_)) if at == first.start())
    );
    // A range of which one piece is alive: none of it comes to life.
    let both = range(first.start().number(), 2 * UNIT);
    assert!(matches!(refused(both), HotplugError::NotOffline(..)));
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn senseless_blocks_are_refused_by_name() {
    let memory = machine(2);
    let refused = |range| memory.add_block(block(range)).unwrap_err();
    let odd = range(2 * SECTION + 512, 1024);
    assert_eq!(refused(odd), HotplugError::Misaligned(odd));
    let empty = range(2 * SECTION, 0);
    assert_eq!(refused(empty), HotplugError::Misaligned(empty));
    let wide = range(2 * SECTION + 1024, SECTION);
    assert_eq!(refused(wide), HotplugError::CrossesSection(wide));
    let ram = range(1024, 1024);
    assert_eq!(refused(ram), HotplugError::Overlap { range: ram, with: ram });
    let beyond = range(1 << 26, SECTION);
    let base = Pfn::ZERO;
    assert_eq!(refused(beyond), HotplugError::OutsideZone { range: beyond, base });
    // In the zone, but nothing is there.
    let nothing = range(10 * SECTION, SECTION);
    assert_eq!(refused(nothing), HotplugError::Map(MapError::OutOfReach(nothing)));
    let small = NewBlock { plugged: PageCount::new(66), ..block(section(0)) };
    let error = memory.add_block(small).unwrap_err();
    let needed = PageCount::new(67);
    assert_eq!(error, HotplugError::NoRoomForTables { plugged: small.plugged, needed });

    let part = range(2 * SECTION, 8192);
    memory.add_block(block(part)).unwrap();
    assert_eq!(refused(part), HotplugError::Overlap { range: part, with: part });
    let inside = range(2 * SECTION + 1024, 1024);
    assert_eq!(refused(inside), HotplugError::Overlap { range: inside, with: inside });
    let rest = range(2 * SECTION + 8192, 8192);
    assert_eq!(refused(rest), HotplugError::SectionTaken { range: rest, by: part });
    let removed = |range| memory.take_block_out(range).map(drop).unwrap_err();
    assert_eq!(removed(inside), HotplugError::NotAdded(inside));
    assert_eq!(removed(section(1)), HotplugError::NotAdded(section(1)));
    assert_eq!(removed(ram), HotplugError::NotAdded(ram));
    assert_eq!(memory.added_blocks().collect::<Vec<_>>(), [part]);
    assert_consistent(&memory);
}

#[test]
fn a_zone_that_begins_higher_takes_no_block_below_it() {
    let ram = [range(4 * SECTION, RAM)];
    let platform = TestPlatform::new(&ram, 0).with_spare(range(0, SECTION));
    let memory = Memory::new(platform, &ram, &[]).unwrap();
    let below = range(0, SECTION);
    let base = ram[0].start();
    let error = memory.add_block(block(below)).unwrap_err();
    assert_eq!(error, HotplugError::OutsideZone { range: below, base });
}

/// Between two ranges of RAM the zone's own table of pageblocks has bytes for the block.
#[test]
fn a_block_in_a_hole_of_the_boot_map_is_like_any_other() {
    let ram = [range(0, RAM), range(4 * SECTION, RAM)];
    let platform = TestPlatform::new(&ram, 0).with_spare(section(0));
    let memory = Memory::new(platform, &ram, &[]).unwrap();
    let layout = memory.add_block(block(section(0))).unwrap();
    memory.bring_to_life(layout.payload()).unwrap();
    assert_consistent(&memory);
    let all = memory.free_pages();
    let mut held = Vec::new();
    memory.alloc_many(all, Order::MAX, Gfp::MEMALLOC, &mut |frames| held.push(frames));
    assert!(memory.free_pages().is_zero());
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_consistent(&memory);
}

#[test]
fn a_block_that_cannot_be_mapped_leaves_no_trace() {
    let memory = machine(1);
    memory.platform().faults().fail_nth(FaultSite::MapBlock, 1);
    let error = memory.add_block(block(section(0))).unwrap_err();
    assert_eq!(error, HotplugError::Map(MapError::Injected));
    assert_eq!(memory.words().len().get(), RAM);
    memory.add_block(block(section(0))).unwrap();
    assert_consistent(&memory);
}

#[test]
fn what_lay_in_the_memory_before_does_not_matter() {
    let memory = machine(1);
    for pfn in section(0).iter().take(67) {
        let page = memory.platform().spare_ptr(pfn);
        // SAFETY: a page of spare RAM that nobody uses.
        unsafe { page.as_ptr().write_bytes(0xa5, 4096) };
    }
    let layout = memory.add_block(block(section(0))).unwrap();
    assert_consistent(&memory);
    memory.bring_to_life(layout.payload()).unwrap();
    assert_consistent(&memory);
    assert_eq!(memory.census().pages(Kind::Reserved).get() % 67, memory_tables() % 67);
}

/// Pages of tables of a machine without blocks.
fn memory_tables() -> u64 {
    machine(1).census().pages(Kind::Reserved).get()
}

#[test]
fn a_bit_that_does_not_fit_its_word_is_found() {
    let memory = machine(1);
    let layout = memory.add_block(block(section(0))).unwrap();
    let bits = memory.offline_bits(layout.header()).unwrap();
    bits.set(range(2 * SECTION + 1000, 3), false);
    assert_eq!(memory.census().discrepancies().total(), 3);
    bits.set(range(2 * SECTION + 1000, 3), true);
    bits.set(range(2 * SECTION, 1), true);
    assert_eq!(memory.census().discrepancies().total(), 1);
}
