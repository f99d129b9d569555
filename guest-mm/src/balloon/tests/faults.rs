//! Failures at each step: nothing stays behind, and the target is reached later.

use super::*;
use crate::platform::FaultSite;
use std::sync::atomic::Ordering;

const PAGES: u64 = 16_384;

/// Lets virtual time pass until the driver is at rest.
fn outlast(rig: &mut Rig<'_>) {
    for _ in 0..200 {
        match rig.quiesce() {
            Wake::At(at) => {
                let now = rig.memory.platform().now_ns();
                rig.advance(at.saturating_sub(now));
            }
            Wake::OnInterrupt => return,
            Wake::Now => {}
        }
    }
}

#[test]
fn a_full_store_stops_inflation_with_nothing_to_undo() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(1500);
        let free = rig.memory.free_pages();
        rig.store.is_full.store(true, Ordering::Relaxed);
        rig.set_target(6000);
        assert!(matches!(rig.quiesce(), Wake::At(_)));
        assert_eq!(rig.memory.free_pages(), free);
        assert!(rig.status().counters.store_failures > 0);
        rig.store.is_full.store(false, Ordering::Relaxed);
        outlast(rig);
        assert_eq!(rig.told_actual(), 6000);
    });
}

#[test]
fn each_injected_fault_is_survived_wherever_it_strikes() {
    for site in [FaultSite::BuddyAlloc, FaultSite::QueueAdd] {
        for max_order in [0, 10] {
            for nth in 1..9 {
                with_rig(8192, Options { max_order, ..Options::default() }, |rig| {
                    rig.memory.platform().faults().fail_nth(site, nth);
                    rig.set_target(2000);
                    outlast(rig);
                    assert_eq!(rig.told_actual(), 2000, "{site:?} {nth}");
                    rig.memory.platform().faults().fail_nth(site, nth);
                    rig.set_target(300);
                    outlast(rig);
                    assert_eq!(rig.told_actual(), 300, "{site:?} {nth}");
                    rig.memory.platform().faults().fail_nth(site, 0);
                });
            }
        }
    }
}

#[test]
fn a_ring_that_refuses_everything_leaves_nothing_behind() {
    with_rig(PAGES, Options::default(), |rig| {
        let free = rig.memory.free_pages();
        rig.memory.platform().faults().fail_randomly(FaultSite::QueueAdd, 1);
        rig.set_target(3000);
        for _ in 0..20 {
            let Wake::At(at) = rig.quiesce() else { panic!("gave up") };
            let now = rig.memory.platform().now_ns();
            rig.advance(at - now);
        }
        assert_eq!(rig.memory.free_pages(), free);
        assert_eq!((rig.store.blocks(), rig.host.len()), (0, 0));
        assert_eq!(rig.status().counters.inflated_pages, 0);
        rig.memory.platform().faults().fail_randomly(FaultSite::QueueAdd, 0);
        outlast(rig);
        assert_eq!(rig.told_actual(), 3000);
    });
}

#[test]
fn a_split_without_memory_is_put_off_not_forced() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(2048);
        rig.store.cannot_split.store(true, Ordering::Relaxed);
        rig.set_target(2000);
        assert!(matches!(rig.quiesce(), Wake::At(_)));
        assert_eq!(rig.told_actual(), 2048);
        rig.store.cannot_split.store(false, Ordering::Relaxed);
        outlast(rig);
        assert_eq!(rig.told_actual(), 2000);
    });
}

#[test]
fn a_device_that_never_answers_degrades_the_driver_and_an_answer_mends_it() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.set_target(1000);
        rig.poll();
        let mut waited = 0;
        while rig.status().phase != BalloonPhase::Degraded {
            let Wake::At(at) = rig.poll() else { panic!("nobody watches the device") };
            let now = rig.memory.platform().now_ns();
            waited += at - now;
            rig.advance(at - now);
        }
        assert!((10_000_000_000..12_000_000_000).contains(&waited), "{waited} ns");
        assert_eq!(rig.status().counters.ack_timeouts, 1);
        rig.set_target(3000);
        rig.poll();
        assert_eq!(rig.status().inflating.get(), 1000, "published more to a dead device");
        assert_eq!(rig.store.pages().get(), 1000, "took pages back that the host may discard");
        rig.quiesce();
        assert_eq!(rig.status().phase, BalloonPhase::Running);
        assert_eq!(rig.told_actual(), 3000);
    });
}

#[test]
fn spurious_interrupts_cost_nothing() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(700);
        for _ in 0..10 {
            rig.driver.interrupt();
            assert_eq!(rig.poll(), Wake::OnInterrupt);
        }
        assert_eq!(rig.status().counters.spurious_interrupts, 10);
        assert_eq!(rig.told_actual(), 700);
    });
}

#[test]
fn a_lost_interrupt_is_noticed_by_polling() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.set_target(700);
        rig.poll();
        for chain in rig.buffers(INFLATE) {
            rig.host.extend(rig.pfns(chain));
            rig.fake.give_back(INFLATE, u32::from(chain.head), 0);
        }
        let Wake::At(at) = rig.poll() else {
            assert_eq!(rig.told_actual(), 700);
            return;
        };
        rig.advance(at);
        assert_eq!(rig.told_actual(), 700);
    });
}

#[test]
fn a_buffer_scribbled_over_by_the_device_costs_a_reset_and_no_page() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(1024);
        rig.set_target(1324);
        rig.poll();
        let chain = rig.buffers(INFLATE)[0];
        rig.fake.write_guest(chain.gpa, &[0xff; 1024]);
        rig.fake.give_back(INFLATE, u32::from(chain.head), 0);
        rig.driver.interrupt();
        rig.host.clear();
        while rig.driver.poll() == Wake::Now {}
        assert_eq!(rig.status().counters.scribbled_buffers, 1);
        assert_eq!(rig.status().counters.resets, 1);
        rig.quiesce();
        assert_eq!(rig.told_actual(), 1324);
    });
}

/// The wire has 32 bits for a frame number: what lies above is given back at once, not cut short.
#[test]
fn frames_that_the_wire_cannot_name_are_never_lent_and_never_lost() {
    const HALF: u64 = 4096;
    let memory =
        crate::testing::memory_of(&[crate::testing::range((1 << 32) - HALF, 2 * HALF)], &[]);
    let store = MapStore::default();
    let fake = FakeDevice::new(memory.platform(), VIRTIO_ID_BALLOON, OFFERED, &[256, 256]);
    let free = memory.free_pages();
    let driver = BalloonDriver::start(&memory, &store, &fake, order_zero()).unwrap();
    let mut rig =
        Rig { memory: &memory, store: &store, fake: &fake, driver, host: BTreeSet::new() };
    rig.set_target(u32::try_from(2 * HALF).unwrap());
    outlast(&mut rig);
    let status = rig.status();
    assert!(status.counters.unaddressable_blocks > 0, "{status:?}");
    assert!(status.actual.get() <= HALF, "{status:?}");
    rig.inflate_to(0);
    let Rig { mut driver, .. } = rig;
    driver.unbind();
    while driver.poll() != Wake::OnInterrupt {}
    assert!(driver.finish().is_ok());
    assert_eq!(memory.free_pages(), free);
}

/// Frames that the store has no place for counted as memory corruption.
#[test]
fn frames_outside_the_range_of_the_store_are_given_back_and_are_no_inconsistency() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.store.range_end.store(1, Ordering::Relaxed);
        let free = rig.memory.free_pages();
        rig.set_target(2000);
        assert!(matches!(rig.quiesce(), Wake::At(_)));
        let counters = rig.status().counters;
        assert!(counters.unaddressable_blocks > 0, "{counters:?}");
        assert_eq!(counters.inconsistencies, 0, "{counters:?}");
        assert_eq!(rig.memory.free_pages(), free);
        rig.store.range_end.store(0, Ordering::Relaxed);
        outlast(rig);
        assert_eq!(rig.told_actual(), 2000);
    });
}
