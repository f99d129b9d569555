//! The compressed device.

use std::vec::Vec;

use crate::mm::{Base, Mm};
use crate::platform::{FaultSite, Platform};
use crate::swap::zram::Zram;
use crate::swap::{SLOT_BYTES, SlotBytes, SwapDevice, SwapError, SwapIoError};
use crate::testing::{self, TestPlatform};

const SLOTS: u32 = 64;

/// A device on a machine of `pages` pages, which is left as it was.
fn with_device(
    pages: u64,
    test: impl for<'a, 'm> FnOnce(&'a Mm<'m, TestPlatform>, &'a Zram<'m, TestPlatform>),
) {
    let base = Base::new(testing::memory(pages)).unwrap();
    let mm = Mm::new(&base);
    base.settle();
    let before = base.memory.free_pages();
    let device = Zram::new(&mm, SLOTS).unwrap();
    test(&mm, &device);
    let census = mm.census(&[]);
    assert!(census.is_consistent(), "{:?}", census.discrepancies().iter().collect::<Vec<_>>());
    device.free(&mm);
    base.settle();
    assert_eq!(base.memory.free_pages(), before);
}

/// Pages that compress by more or less: `kind` 0 not at all, 1 a little, 2 well, 3 to a value.
fn page(kind: u64, tag: u64) -> SlotBytes {
    let mut state = tag | 1;
    let mut random = || {
        // xorshift64 (Marsaglia 2003): does not repeat within a page.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut page = [0; SLOT_BYTES];
    for (at, word) in page.chunks_exact_mut(8).enumerate() {
        let value = match kind {
            0 => random(),
            1 if at % 2 == 0 => random(),
            1 => 0x2020_2020_2020_2020,
            2 => tag + (at as u64 / 64),
            _ => (tag & 0xffff) * 0x1_0001_0001_0001,
        };
        word.copy_from_slice(&value.to_ne_bytes());
    }
    page
}

fn read(device: &Zram<'_, TestPlatform>, slot: u32) -> SlotBytes {
    let mut page = [0xa5; SLOT_BYTES];
    device.read(slot, &mut page).unwrap();
    page
}

#[test]
fn pages_of_every_kind_come_back_and_the_books_say_what_they_took() {
    with_device(1024, |_, device| {
        for slot in 0..SLOTS {
            device.write(slot, &page(u64::from(slot) % 4, u64::from(slot))).unwrap();
        }
        let stats = device.stats();
        assert_eq!((stats.pages, stats.same_pages, stats.whole_pages), (64, 16, 16));
        assert_eq!(stats.original_bytes, 64 * 4096);
        let little = stats.compressed_bytes - 16 * 4096;
        assert!((16 * 1500..16 * 3000).contains(&little), "{stats:?}");
        assert!(stats.memory_bytes >= stats.compressed_bytes, "{stats:?}");
        assert!(stats.ratio_percent().unwrap() > 200, "{stats:?}");
        for slot in (0..SLOTS).rev() {
            let expected = page(u64::from(slot) % 4, u64::from(slot));
            assert!(read(device, slot) == expected, "slot {slot}");
        }
        (0..SLOTS).for_each(|slot| device.discard(slot));
        let stats = device.stats();
        assert_eq!((stats.pages, stats.compressed_bytes, stats.failed_reads), (0, 0, 0));
    });
}

#[test]
fn a_slot_written_again_holds_the_later_page_and_the_memory_of_one() {
    with_device(1024, |_, device| {
        for tag in 1..20 {
            device.write(7, &page(tag % 4, tag)).unwrap();
            assert!(read(device, 7) == page(tag % 4, tag), "write {tag}");
            assert_eq!(device.stats().pages, 1);
        }
        device.discard(7);
        device.discard(7);
        assert_eq!(device.stats().pages, 0);
    });
}

#[test]
fn slots_that_are_not_there_or_hold_nothing_are_refused() {
    with_device(1024, |_, device| {
        let mut out = [0; SLOT_BYTES];
        assert_eq!(device.read(3, &mut out), Err(SwapIoError::NotWritten(3)));
        assert_eq!(device.read(SLOTS, &mut out), Err(SwapIoError::NoSlot(SLOTS)));
        assert_eq!(device.write(u32::MAX, &out), Err(SwapIoError::NoSlot(u32::MAX)));
        device.discard(SLOTS);
        device.write(3, &page(2, 3)).unwrap();
        device.discard(3);
        assert_eq!(device.read(3, &mut out), Err(SwapIoError::NotWritten(3)));
        assert_eq!(device.stats().failed_reads, 2);
    });
}

#[test]
fn a_compressed_page_that_was_overwritten_is_corrupt_not_garbage() {
    with_device(1024, |mm, device| {
        device.write(0, &page(1, 9)).unwrap();
        let mut frame = None;
        device.pool().for_each_page(&mut |pfn| frame = frame.or(Some(pfn)));
        let start = mm.platform().frame_ptr(frame.unwrap());
        // SAFETY: the pool's only page; nobody else uses it. Behind the header.
        let payload = unsafe { start.add(4) };
        // SAFETY: as above.
        unsafe { payload.write_bytes(0, 600) };
        let mut out = [0; SLOT_BYTES];
        assert_eq!(device.read(0, &mut out), Err(SwapIoError::Corrupt(0)));
    });
}

#[test]
fn without_memory_a_write_fails_and_leaves_the_slot_empty() {
    with_device(1024, |mm, device| {
        device.write(1, &page(0, 1)).unwrap();
        let mut taken = Vec::new();
        while let Ok(frames) =
            mm.memory().alloc_frozen(crate::memdesc::Order::ZERO, crate::buddy::Gfp::MEMALLOC)
        {
            taken.push(frames);
        }
        assert_eq!(device.write(2, &page(0, 2)), Err(SwapIoError::NoMemory(2)));
        // One value takes none, and what is overwritten makes room.
        device.write(3, &page(3, 3)).unwrap();
        device.write(1, &page(0, 4)).unwrap();
        assert!(read(device, 1) == page(0, 4));
        assert_eq!(device.stats().failed_writes, 1);
        taken.into_iter().for_each(|frames| mm.memory().free_frozen(frames));
        device.write(2, &page(0, 2)).unwrap();
        assert!(read(device, 2) == page(0, 2));
    });
}

/// Each allocation of a switching-on fails once, and of a write then.
#[test]
fn whichever_allocation_fails_nothing_is_kept() {
    let mut failures = 0;
    for nth in 1.. {
        let base = Base::new(testing::memory(1024)).unwrap();
        let mm = Mm::new(&base);
        base.settle();
        let before = base.memory.free_pages();
        base.platform().faults().fail_nth(FaultSite::BuddyAlloc, nth);
        let done = mm.swapon_zram(SLOTS);
        base.platform().faults().fail_nth(FaultSite::BuddyAlloc, 0);
        match done {
            Err(error) => assert!(matches!(error, SwapError::NoMemory(_)), "{error:?}"),
            Ok(()) => {
                mm.swapoff().unwrap();
                break;
            }
        }
        base.settle();
        assert_eq!(base.memory.free_pages(), before, "allocation {nth}");
        assert!(mm.census(&[]).is_consistent());
        failures = nth;
    }
    assert!(failures >= 6, "slots, pool, streams, words, area: {failures}");
}

#[test]
fn two_devices_are_not_on_at_once_and_sizes_are_checked() {
    let base = Base::new(testing::memory(1024)).unwrap();
    let mm = Mm::new(&base);
    assert_eq!(mm.swapon_zram(0), Err(SwapError::BadSize));
    assert_eq!(mm.swapon_zram(u32::MAX), Err(SwapError::BadSize));
    assert_eq!(mm.zram_stats(), None);
    mm.swapon_zram(SLOTS).unwrap();
    assert_eq!(mm.swapon_zram(SLOTS), Err(SwapError::Busy));
    assert_eq!(mm.zram_stats().unwrap().pages, 0);
    mm.swapoff().unwrap();
    assert!(mm.census(&[]).is_consistent());
}
