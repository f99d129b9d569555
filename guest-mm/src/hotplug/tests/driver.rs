//! The driver against the naive device.

use abi::mem::{request, response};
use abi::{PageCount, Pfn};

use super::blocks::{SECTION, UNIT, exhaust, section};
use super::device::{Mischief, NaiveDevice};
use crate::balloon::Wake;
use crate::buddy::Gfp;
use crate::hotplug::{
    DriverError, HotplugDriver, HotplugError, HotplugOptions, HotplugPhase, HotplugStatus,
    RegionError, region_of,
};
use crate::memdesc::{DriverId, Order};
use crate::memory::{FrozenFrames, Memory};
use crate::mm::{Base, Mm};
use crate::platform::{FaultSite, MapError, Platform};
use crate::testing::{TestPlatform, range};
use crate::virtio::SetupError;

/// Frames of the machine: 16 MiB.
const RAM: u64 = 4096;

type Driver<'a, 'm> = HotplugDriver<'a, 'm, TestPlatform, &'a NaiveDevice<'m>>;

/// A machine with three sections of memory to come, and its device with blocks of `unit` frames.
pub(super) struct Rig<'a, 'm> {
    pub(super) mm: &'a Mm<'m, TestPlatform>,
    pub(super) device: &'a NaiveDevice<'m>,
    pub(super) driver: Driver<'a, 'm>,
}

pub(super) fn with_rig<R>(unit: u64, test: impl FnOnce(&mut Rig<'_, '_>) -> R) -> R {
    with_device(unit, |mm, device| {
        let driver = HotplugDriver::start(mm, device, HotplugOptions::default()).unwrap();
        let mut rig = Rig { mm, device, driver };
        let result = test(&mut rig);
        // Whatever it was put through, all of it can go again.
        let Rig { device, mut driver, .. } = rig;
        device.mischief.borrow_mut().clear();
        if driver.status().phase == HotplugPhase::Running {
            device.request(0);
            settle(&mut driver, device, mm);
            let status = driver.status();
            assert_eq!((status.plugged.get(), status.blocks), (0, 0), "{status:?}");
            assert_eq!(device.plugged(), 0);
            assert!(driver.finish().is_ok());
        }
        result
    })
}

fn with_device<R>(
    unit: u64,
    test: impl for<'a, 'm> FnOnce(&'a Mm<'m, TestPlatform>, &'a NaiveDevice<'m>) -> R,
) -> R {
    let ram = [range(0, RAM)];
    let region = range(2 * SECTION, 3 * SECTION);
    let platform = TestPlatform::new(&ram, 0).with_spare(region);
    let base = Base::new(Memory::new(platform, &ram, &[]).unwrap()).unwrap();
    let mm = Mm::new(&base);
    let device = NaiveDevice::new(base.platform(), region, unit);
    test(&mm, &device)
}

/// Lets driver and device work until neither has anything to do.
fn settle(driver: &mut Driver<'_, '_>, device: &NaiveDevice<'_>, mm: &Mm<'_, TestPlatform>) {
    // A driver that never comes to rest goes through some of its pauses.
    let (mut pauses, mut requests) = (0, 0);
    while pauses < 24 {
        if requests != driver.status().counters.requests {
            (pauses, requests) = (0, driver.status().counters.requests);
        }
        if device.has_interrupt() {
            driver.interrupt();
        }
        let wake = driver.poll();
        device.serve();
        let now = mm.memory().platform().now_ns();
        match wake {
            Wake::Now => {}
            Wake::At(at) => {
                pauses += 1;
                mm.memory().platform().advance_ns(at.saturating_sub(now));
            }
            Wake::OnInterrupt if device.has_interrupt() => {}
            Wake::OnInterrupt => return,
        }
    }
}

impl<'m> Rig<'_, 'm> {
    pub(super) fn settle(&mut self) {
        settle(&mut self.driver, self.device, self.mm);
        self.assert_consistent();
    }

    pub(super) fn request(&mut self, pages: u64) -> HotplugStatus {
        self.device.request(pages);
        self.settle();
        self.driver.status()
    }

    pub(super) fn memory(&self) -> &'m Memory<TestPlatform> {
        self.mm.memory()
    }

    #[track_caller]
    pub(super) fn assert_consistent(&self) {
        let census = self.mm.census(&[]);
        let found: Vec<_> = census.discrepancies().iter().collect();
        assert_eq!(census.discrepancies().total(), 0, "{found:?}");
        assert_eq!(self.driver.status().counters.inconsistencies, 0);
    }

    /// The driver's books against the device's.
    #[track_caller]
    pub(super) fn assert_agreed(&self, pages: u64) {
        let status = self.driver.status();
        assert_eq!((status.plugged.get(), self.device.plugged()), (pages, pages), "{status:?}");
        // Nothing but tables is missing from what is plugged.
        assert_eq!(status.alive.get(), pages - 67 * status.blocks, "{status:?}");
        let offline = self.mm.memory().census().offline_total(DriverId::HOTPLUG).get();
        assert_eq!(offline, status.blocks * SECTION - pages);
    }

    fn hold_a_page_in(&self, wanted: abi::PfnRange) -> FrozenFrames {
        let mut others = Vec::new();
        let found = loop {
            let frames = self.memory().alloc_frozen(Order::ZERO, Gfp::MEMALLOC).unwrap();
            if wanted.contains(frames.head()) {
                break frames;
            }
            others.push(frames);
        };
        others.into_iter().for_each(|frames| self.memory().free_frozen(frames));
        self.memory().drain();
        found
    }
}

#[test]
fn memory_comes_and_goes_as_the_device_wishes() {
    with_rig(UNIT, |rig| {
        let free = rig.memory().free_pages();
        for pages in [UNIT, 5 * UNIT, SECTION, SECTION + UNIT, 3 * SECTION, SECTION + 3 * UNIT, 0] {
            let status = rig.request(pages);
            assert_eq!(status.phase, HotplugPhase::Running);
            rig.assert_agreed(pages);
        }
        let status = rig.driver.status();
        assert_eq!((status.counters.errors, status.counters.refusals), (0, 0), "{status:?}");
        assert_eq!(status.counters.added_blocks, status.counters.removed_blocks);
        assert_eq!(rig.memory().free_pages(), free);
    });
}

#[test]
fn blocks_of_every_size_that_devices_have_work() {
    for unit in [1, 16, 1024, 4096, SECTION] {
        with_rig(unit, |rig| {
            // As many as its tables take, rounded up, must be given with a block's first.
            rig.request(2 * SECTION);
            rig.assert_agreed(2 * SECTION);
            if unit < SECTION {
                let some = SECTION + 2 * unit.max(128);
                rig.request(some);
                rig.assert_agreed(some);
            }
        });
    }
}

#[test]
fn with_no_free_page_memory_is_added_and_used() {
    with_rig(UNIT, |rig| {
        let held = exhaust(rig.memory());
        rig.device.request(4 * UNIT);
        settle(&mut rig.driver, rig.device, rig.mm);
        assert_eq!(rig.memory().free_pages().get(), 4 * UNIT - 67);
        let mut frames = rig.memory().alloc_frozen(Order::PAGEBLOCK, Gfp::MEMALLOC).unwrap();
        assert!(section(0).contains(frames.head()));
        rig.memory().bytes_mut(&mut frames).fill(3);
        rig.memory().free_frozen(frames);
        held.into_iter().for_each(|frames| rig.memory().free_frozen(frames));
        rig.assert_agreed(4 * UNIT);
    });
}

#[test]
fn a_piece_in_use_stays_until_its_user_is_done() {
    with_rig(UNIT, |rig| {
        rig.request(4 * UNIT);
        let piece = range(2 * SECTION + 2 * UNIT, UNIT);
        let mut held = rig.hold_a_page_in(piece);
        rig.memory().bytes_mut(&mut held).fill(0x77);
        // All but the piece in use and the tables goes.
        let status = rig.request(0);
        assert_eq!(status.plugged.get(), 2 * UNIT, "{status:?}");
        assert!(status.counters.busy_units > 0);
        assert_eq!(status.phase, HotplugPhase::Running);
        assert!(rig.memory().bytes(&held).iter().all(|byte| *byte == 0x77));
        rig.memory().free_frozen(held);
        rig.settle();
        rig.assert_agreed(0);
    });
}

#[test]
fn nothing_is_unplugged_while_memory_is_short() {
    with_rig(UNIT, |rig| {
        rig.request(8 * UNIT);
        let mut held = Vec::new();
        let high = rig.memory().watermarks().high;
        while rig.memory().free_pages().get() > high {
            held.push(rig.memory().alloc_frozen(Order::ZERO, Gfp::MEMALLOC).unwrap());
        }
        let status = rig.request(4 * UNIT);
        assert!(status.counters.short_of_memory > 0);
        rig.assert_agreed(8 * UNIT);
        held.into_iter().for_each(|frames| rig.memory().free_frozen(frames));
        rig.memory().drain();
        rig.settle();
        rig.assert_agreed(4 * UNIT);
    });
}

#[test]
fn a_device_that_refuses_for_the_moment_is_asked_again() {
    for refusal in [response::VIRTIO_MEM_RESP_NACK, response::VIRTIO_MEM_RESP_BUSY] {
        with_rig(UNIT, |rig| {
            // Before each kind of request: for a new block, for more of it, for less, for the rest.
            for pages in [UNIT, 3 * UNIT, 2 * UNIT, UNIT, 0] {
                let refusals = [Mischief::Answer(refusal); 3];
                rig.device.mischief.borrow_mut().extend(refusals);
                rig.device.request(pages);
                let now = rig.memory().platform().now_ns();
                rig.settle();
                rig.assert_agreed(pages);
                let waited = rig.memory().platform().now_ns() - now;
                assert!(waited >= 20_000_000, "three pauses took {waited} ns");
            }
            assert_eq!(rig.driver.status().counters.refusals, 15);
        });
    }
}

#[test]
fn a_device_that_calls_a_request_wrong_is_asked_no_more_and_nothing_is_lost() {
    for before in [0, 3 * UNIT, UNIT] {
        for mischief in [Mischief::Answer(response::VIRTIO_MEM_RESP_ERROR), Mischief::Answer(77)] {
            with_rig(UNIT, |rig| {
                rig.request(before);
                rig.device.mischief.borrow_mut().push_back(mischief);
                let status = rig.request(if before == 0 { UNIT } else { 0 });
                assert_eq!((status.phase, status.counters.errors), (HotplugPhase::Refused, 1));
                rig.assert_agreed(before);
                let requests = status.counters.requests;
                assert_eq!(rig.request(5 * UNIT).counters.requests, requests);
            });
        }
    }
}

#[test]
fn a_reset_in_the_middle_loses_no_memory_whatever_became_of_the_request() {
    for mischief in [Mischief::Reset, Mischief::DoneThenReset, Mischief::WrongHead, Mischief::Empty]
    {
        // Wishes one after the other, the fault at the nth request of each.
        for nth in 0..3 {
            with_rig(UNIT, |rig| {
                for pages in [4 * UNIT, 2 * UNIT, SECTION + UNIT, UNIT, 0] {
                    let mut list = rig.device.mischief.borrow_mut();
                    list.clear();
                    list.extend((0..nth).map(|_| Mischief::Answer(response::VIRTIO_MEM_RESP_BUSY)));
                    list.push_back(mischief);
                    drop(list);
                    let status = rig.request(pages);
                    if mischief == Mischief::Empty {
                        // An answer of no byte is none.
                        return assert_eq!(status.phase, HotplugPhase::Refused);
                    }
                    assert_eq!(status.phase, HotplugPhase::Running, "{mischief:?}: {status:?}");
                    rig.assert_agreed(pages);
                }
                assert!(rig.driver.status().counters.resets >= 5);
            });
        }
    }
}

#[test]
fn a_device_that_forgets_ends_the_driver_and_what_is_alive_stays() {
    with_rig(UNIT, |rig| {
        rig.request(4 * UNIT);
        rig.device.forgets.set(true);
        rig.device.needs_reset();
        rig.settle();
        let status = rig.driver.status();
        let (device, driver) = (PageCount::ZERO, PageCount::new(4 * UNIT));
        assert_eq!(status.failure, Some(DriverError::StateLost { device, driver }));
        assert_eq!(status.alive.get(), 4 * UNIT - 67);
        rig.request(0);
        assert_eq!(rig.driver.status().phase, HotplugPhase::Failed);
    });
}

#[test]
fn a_device_that_did_what_it_was_asked_for_before_it_faulted_has_three_restarts_again() {
    with_rig(UNIT, |rig| {
        *rig.device.mischief.borrow_mut() = [Mischief::DoneThenReset, Mischief::Reset].into();
        rig.request(UNIT);
        *rig.device.mischief.borrow_mut() = [Mischief::Reset; 2].into();
        let status = rig.request(23 * UNIT);
        assert_eq!((status.phase, status.counters.resets), (HotplugPhase::Running, 4));
        rig.assert_agreed(23 * UNIT);
    });
}

#[test]
fn a_device_that_always_faults_is_given_up_after_three_restarts() {
    with_rig(UNIT, |rig| {
        rig.device.mischief.borrow_mut().extend([Mischief::Reset; 10]);
        let status = rig.request(UNIT);
        assert_eq!((status.phase, status.counters.resets), (HotplugPhase::Failed, 4));
        assert_eq!(status.failure, Some(DriverError::NeedsReset));
    });
}

#[test]
fn a_silent_device_leaves_everything_as_it_is_until_it_answers() {
    with_rig(UNIT, |rig| {
        rig.request(2 * UNIT);
        rig.device.mischief.borrow_mut().push_back(Mischief::Silence);
        rig.device.request(3 * UNIT);
        settle(&mut rig.driver, rig.device, rig.mm);
        let status = rig.driver.status();
        assert_eq!((status.phase, status.counters.answer_timeouts), (HotplugPhase::Degraded, 1));
        assert_eq!(status.alive.get(), 2 * UNIT - 67);
        // It did what it was asked for. A reset brings that to light.
        rig.device.needs_reset();
        rig.driver.interrupt();
        rig.settle();
        rig.assert_agreed(3 * UNIT);
    });
}

#[test]
fn what_was_plugged_before_the_driver_began_is_unplugged_first() {
    with_device(UNIT, |mm, device| {
        device.plug_silently(2 * SECTION + 5 * UNIT);
        device.mischief.borrow_mut().push_back(Mischief::Answer(response::VIRTIO_MEM_RESP_BUSY));
        device.request(2 * UNIT);
        let mut driver = HotplugDriver::start(mm, device, HotplugOptions::default()).unwrap();
        settle(&mut driver, device, mm);
        let kinds: Vec<_> = device.seen.borrow().iter().map(|(kind, ..)| *kind).collect();
        let (all, plug) = (request::VIRTIO_MEM_REQ_UNPLUG_ALL, request::VIRTIO_MEM_REQ_PLUG);
        assert_eq!(kinds, [all, all, plug, plug]);
        assert_eq!(driver.status().plugged.get(), 2 * UNIT);
    });
}

#[test]
fn a_wish_changed_in_mid_flight_is_followed() {
    with_rig(UNIT, |rig| {
        rig.device.request(3 * SECTION);
        for round in 0..40 {
            rig.driver.poll();
            rig.device.serve();
            if round % 7 == 3 {
                rig.device.request((round * 37) % 80 * UNIT);
            }
            if rig.device.has_interrupt() {
                rig.driver.interrupt();
            }
            rig.assert_consistent();
        }
        rig.request(9 * UNIT);
        rig.assert_agreed(9 * UNIT);
    });
}

#[test]
fn a_wish_that_cannot_be_met_is_met_as_far_as_it_goes() {
    with_rig(16, |rig| {
        // Less than the tables of a block.
        assert_eq!(rig.request(64).plugged.get(), 0);
        // Tables and a little.
        rig.request(96);
        rig.assert_agreed(96);
        // Not a multiple of the device's blocks.
        assert_eq!(rig.request(123).plugged.get(), 112);
        // More than there is, and more than can be used now.
        rig.device.set_usable(SECTION + 160);
        assert_eq!(rig.request(100 * SECTION).plugged.get(), SECTION + 160);
        rig.device.set_usable(3 * SECTION);
        rig.settle();
        rig.assert_agreed(3 * SECTION);
    });
}

#[test]
fn a_block_that_cannot_be_mapped_is_given_back_and_tried_again() {
    with_rig(UNIT, |rig| {
        rig.memory().platform().faults().fail_nth(FaultSite::MapBlock, 1);
        let status = rig.request(2 * UNIT);
        assert_eq!(status.counters.failed_blocks, 1);
        assert_eq!(status.last_refusal, Some(HotplugError::Map(MapError::Injected)));
        rig.assert_agreed(2 * UNIT);
        // Removal that the device refuses must map it again, which fails as well.
        rig.device
            .mischief
            .borrow_mut()
            .push_back(Mischief::Answer(response::VIRTIO_MEM_RESP_BUSY));
        rig.device.request(UNIT);
        rig.settle();
        rig.device
            .mischief
            .borrow_mut()
            .push_back(Mischief::Answer(response::VIRTIO_MEM_RESP_BUSY));
        rig.memory().platform().faults().fail_nth(FaultSite::MapBlock, 1);
        rig.request(0);
        rig.assert_agreed(0);
    });
}

#[test]
fn a_region_beyond_the_machine_is_used_as_far_as_it_is_mapped() {
    let ram = [range(0, RAM)];
    let platform = TestPlatform::new(&ram, 0).with_spare(range(2 * SECTION, SECTION));
    let base = Base::new(Memory::new(platform, &ram, &[]).unwrap()).unwrap();
    let mm = Mm::new(&base);
    let device = NaiveDevice::new(base.platform(), range(2 * SECTION, 3 * SECTION), UNIT);
    let mut driver = HotplugDriver::start(&mm, &device, HotplugOptions::default()).unwrap();
    device.request(3 * SECTION);
    // Giving the memory of the block back is all that the device sees of it.
    settle(&mut driver, &device, &mm);
    let status = driver.status();
    assert_eq!((status.plugged.get(), status.blocks), (SECTION, 1), "{status:?}");
    assert_eq!(device.plugged(), SECTION);
    assert!(matches!(status.last_refusal, Some(HotplugError::Map(MapError::OutOfReach(_)))));
}

/// The driver once looked for a place in all of a region, which took hours.
#[test]
fn a_region_as_large_as_the_address_space_is_used_as_far_as_the_zone_reaches() {
    with_device(UNIT, |mm, device| {
        let most = (1 << 63) / abi::PAGE_SIZE;
        device.claimed_bytes.set(Some(1 << 63));
        device.set_usable(most);
        device.request(most);
        let mut driver = HotplugDriver::start(mm, device, HotplugOptions::default()).unwrap();
        settle(&mut driver, device, mm);
        let status = driver.status();
        assert_eq!((status.plugged.get(), status.blocks), (3 * SECTION, 3), "{status:?}");
        assert_eq!(status.phase, HotplugPhase::Running);
        assert_eq!(device.plugged(), 3 * SECTION);
    });
}

#[test]
fn a_configuration_that_never_settles_ends_the_driver_and_what_is_alive_stays() {
    with_rig(UNIT, |rig| {
        rig.request(4 * UNIT);
        rig.device.is_restless.set(true);
        let status = rig.request(8 * UNIT);
        assert_eq!(status.failure, Some(DriverError::Region(RegionError::Unstable)));
        assert_eq!(status.alive.get(), 4 * UNIT - 67);
    });
}

#[test]
fn without_a_page_to_lend_to_its_device_no_driver_starts() {
    with_device(UNIT, |mm, device| {
        let free = mm.memory().free_pages();
        mm.memory().platform().faults().fail_nth(FaultSite::BuddyAlloc, 1);
        let refused = HotplugDriver::start(mm, device, HotplugOptions::default()).err();
        assert_eq!(refused, Some(DriverError::Setup(SetupError::NoMemory)));
        assert_eq!(mm.memory().free_pages(), free);
        assert!(HotplugDriver::start(mm, device, HotplugOptions::default()).is_ok());
    });
}

/// Small device blocks are unplugged a pageblock at a time: once so many of them that less
/// stayed free than the driver was to leave.
#[test]
fn small_pieces_taken_together_leave_the_high_watermark_free() {
    with_rig(16, |rig| {
        rig.request(SECTION);
        let memory = rig.memory();
        let mut held = exhaust(memory);
        // The topmost pageblock is free, and a little more than has to be.
        let top = range(3 * SECTION - UNIT, UNIT);
        let enough = |memory: &Memory<TestPlatform>| {
            memory.free_pages().get() >= memory.watermarks().high + 40
        };
        held.sort_by_key(|frames| !top.contains(frames.head()));
        let mut kept = Vec::new();
        for frames in held {
            if top.contains(frames.head()) || !enough(memory) {
                for page in split_up(memory, frames) {
                    if top.contains(page.head()) || !enough(memory) {
                        memory.free_frozen(page);
                    } else {
                        kept.push(page);
                    }
                }
            } else {
                kept.push(frames);
            }
        }
        memory.drain();
        let status = rig.request(0);
        let (free, high) = (memory.free_pages().get(), memory.watermarks().high);
        assert!(free + 16 >= high, "{free} pages are free, {high} are to be");
        assert!(status.plugged.get() < SECTION, "{status:?}");
        assert!(status.counters.short_of_memory > 0, "{status:?}");
        kept.into_iter().for_each(|frames| memory.free_frozen(frames));
        memory.drain();
        rig.settle();
    });
}

/// The pages of a block.
fn split_up(memory: &Memory<TestPlatform>, frames: FrozenFrames) -> Vec<FrozenFrames> {
    if frames.order() == Order::ZERO {
        return vec![frames];
    }
    let (lower, upper) = memory.split_frozen(frames).unwrap();
    [lower, upper].into_iter().flat_map(|half| split_up(memory, half)).collect()
}

#[test]
fn senseless_devices_are_refused_at_start_and_keep_no_page() {
    with_device(UNIT, |mm, device| {
        let free = mm.memory().free_pages();
        for bytes in [0, 1, 2048, 3 << 20, 256 << 20, 1 << 63] {
            device.claimed_unit.set(Some(bytes));
            let refused = HotplugDriver::start(mm, device, HotplugOptions::default()).err();
            assert_eq!(refused, Some(DriverError::Region(RegionError::BlockSize { bytes })));
        }
        mm.memory().drain();
        assert_eq!(mm.memory().free_pages(), free);
    });
}

#[test]
fn where_memory_can_be_plugged_is_known_before_there_is_a_driver() {
    with_device(UNIT, |_, device| {
        assert_eq!(region_of(device), Some(range(2 * SECTION, 3 * SECTION)));
        device.claimed_unit.set(Some(1));
        assert_eq!(region_of(device), None, "no sense in it");
        device.claimed_unit.set(None);
        device.is_restless.set(true);
        assert_eq!(region_of(device), None, "never the same");
    });
}

#[test]
fn an_unplugged_piece_is_one_that_the_device_took_back() {
    with_rig(UNIT, |rig| {
        rig.request(SECTION);
        rig.request(10 * UNIT);
        let bits = rig.memory().offline_bits(section(0).start()).unwrap();
        for pfn in section(0).iter().step_by(usize::try_from(UNIT).unwrap()) {
            let last = Pfn::new(pfn.number() + UNIT - 1).unwrap();
            assert_eq!(bits.contains(last), !rig.device.is_plugged(pfn), "{pfn:?}");
        }
    });
}
