//! Setting up memory.

use abi::{PageCount, Pfn};

use super::assert_consistent;
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Kind, MAX_REGIONS, Order};
use crate::memory::{InitError, Memory};
use crate::testing::{TestPlatform, memory, memory_of, range};

fn error_of(ram: &[abi::PfnRange], reserved: &[abi::PfnRange]) -> InitError {
    Memory::new(TestPlatform::new(ram, 0), ram, reserved).unwrap_err()
}

#[test]
fn tables_take_eight_bytes_per_page_and_one_per_pageblock() {
    let memory = memory(65_536);
    let tables = (65_536u64 * 8 + 128).div_ceil(4096);
    assert_eq!(memory.managed_pages().get(), 65_536 - tables);
    assert_eq!(memory.census().pages(Kind::Reserved).get(), tables);
    assert_consistent(&memory);
}

#[test]
fn the_gap_costs_no_words() {
    let memory = memory_of(&[range(0, 4096), range(1 << 20, 4096)], &[]);
    assert_eq!(memory.words().len(), PageCount::new(8192));
    assert!(memory.words().load(Pfn::new(5000).unwrap()).is_err());
    assert_consistent(&memory);
}

#[test]
fn reserved_ranges_are_never_handed_out() {
    let reserved = [range(0, 256), range(200, 100), range(1000, 0), range(2000, 100_000)];
    let memory = memory_of(&[range(0, 4096)], &reserved);
    let mut blocks = Vec::new();
    let all = memory.free_pages();
    memory.alloc_many(all, Order::MAX, Gfp::MEMALLOC, &mut |frames| blocks.push(frames));
    for frames in &blocks {
        assert!(reserved.iter().all(|r| r.intersection(frames.range()).is_none()), "{frames:?}");
    }
    assert_consistent(&memory);
}

#[test]
fn adjacent_ranges_in_any_order_are_one() {
    let memory = memory_of(&[range(2048, 2048), range(0, 2048), range(9, 0)], &[]);
    assert_eq!(memory.words().regions().count(), 1);
    // A block across the seam exists.
    assert_consistent(&memory);
}

#[test]
fn senseless_ranges_are_refused() {
    assert_eq!(error_of(&[], &[]), InitError::NoMemory);
    assert_eq!(error_of(&[range(5, 0)], &[]), InitError::NoMemory);
    let overlap = [range(0, 100), range(50, 100)];
    assert!(matches!(error_of(&overlap, &[]), InitError::Overlap(..)));
    let twice = [range(0, 100), range(0, 100)];
    assert!(matches!(error_of(&twice, &[]), InitError::Overlap(..)));
    let far = [range(0, 10), range(1 << 26, 10)];
    assert!(matches!(error_of(&far, &[]), InitError::ZoneTooLarge(_)));
    let many: Vec<_> = (0..=MAX_REGIONS as u64).map(|i| range(i * 10, 5)).collect();
    assert_eq!(error_of(&many, &[]), InitError::TooManyRanges);
    assert!(matches!(error_of(&[range(0, 1000)], &[range(0, 999)]), InitError::NoRoomForTables(_)));
}

#[test]
fn low_memory_is_handed_out_first() {
    let memory = memory(8192);
    let frames = memory.alloc_frozen(Order::MAX, Gfp::USER).unwrap();
    assert_eq!(frames.head(), Pfn::ZERO);
    memory.free_frozen(frames);
}

/// The largest guest: words of 3 GiB below the gap and 61 above. The host has
/// memory for the tables only; nothing else of the guest's is touched.
#[test]
fn sixty_four_gib_are_set_up_and_used() {
    let ram = [range(0, 3 << 18), range(1 << 20, 61 << 18)];
    let top = ram[1].end().number();
    let platform = TestPlatform::new(&[range(top - 40_000, 40_000)], 0);
    let memory = Memory::new(platform, &ram, &[range(0, 512)]).unwrap();
    assert_eq!(memory.words().len(), PageCount::new(64 << 18));
    let frames = memory.alloc_frozen(Order::MAX, Gfp::BALLOON).unwrap();
    let block = memory.make_offline(frames, DriverId::BALLOON).unwrap();
    let frames = memory.online(block).unwrap();
    memory.free_reported(frames);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}
