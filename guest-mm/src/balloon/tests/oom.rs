//! Deflation by a guest that is out of memory.

use super::*;
use crate::balloon::OOM_PAGES;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::platform::FaultSite;

const PAGES: u64 = 16_384;

impl Rig<'_> {
    /// Notifies the driver, with a device that answers at the third look; pages freed.
    fn run_out_of_memory(&mut self) -> u64 {
        self.notify(|looks| looks == 3)
    }

    fn notify(&mut self, answers_at: impl Fn(u32) -> bool) -> u64 {
        let (fake, platform, host) = (self.fake, self.memory.platform(), &mut self.host);
        let mut looks = 0;
        let free = self.memory.free_pages();
        let freed = self.driver.deflate_on_oom(&mut || {
            looks += 1;
            if answers_at(looks) {
                assert!(!TestPlatform::is_masked(), "waiting with interrupts masked");
                while let Some(chain) = fake.take(DEFLATE) {
                    for bytes in fake.guest_bytes(chain.gpa, chain.len).chunks(4) {
                        let pfn = u32::from_le_bytes(bytes.try_into().unwrap());
                        assert!(host.remove(&pfn), "page {pfn:#x} deflated but not held");
                        let word = self.memory.words().decode(Pfn::from_u32(pfn));
                        assert!(!matches!(word, Ok(Memdesc::Buddy(_))), "freed before the answer");
                    }
                    fake.give_back(DEFLATE, u32::from(chain.head), 0);
                }
            }
            platform.advance_ns(1000);
            looks < 100
        });
        assert_eq!(self.memory.free_pages().get() - free.get(), freed.get());
        self.check();
        freed.get()
    }
}

#[test]
fn an_allocation_without_memory_gets_256_pages_and_the_device_was_told_first() {
    for options in [Options::default(), order_zero()] {
        with_rig(PAGES, options, |rig| {
            rig.inflate_to(3000);
            rig.kicks();
            assert_eq!(rig.run_out_of_memory(), OOM_PAGES.get());
            assert_eq!(rig.kicks(), [DEFLATE]);
            assert_eq!(rig.status().actual.get(), 3000 - 256);
            assert_eq!(rig.told_actual(), 3000 - 256);
            let counters = rig.status().counters;
            assert_eq!((counters.oom_notifications, counters.oom_pages), (1, 256));
            assert_eq!(counters.oom_timeouts, 0);
        });
    }
}

#[test]
fn every_page_can_be_had_back_without_one_allocation() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(2 * 1024 + 512 + 64 + 3);
        let faults = rig.memory.platform().faults();
        for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc, FaultSite::StoreReserve] {
            faults.fail_randomly(site, 1);
        }
        let failed = rig.memory.counters().failed_allocations;
        let mut got = Vec::new();
        while !rig.status().actual.is_zero() {
            got.push(rig.run_out_of_memory());
            assert!((1..=256).contains(got.last().unwrap()), "{got:?}");
        }
        assert_eq!(got.iter().sum::<u64>(), 2 * 1024 + 512 + 64 + 3);
        assert_eq!(rig.memory.counters().failed_allocations, failed);
        assert_eq!(rig.run_out_of_memory(), 0, "an empty balloon has nothing");
        for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc, FaultSite::StoreReserve] {
            faults.fail_randomly(site, 0);
        }
    });
}

#[test]
fn what_was_taken_back_stays_out_until_the_device_asks_again() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(2048);
        rig.run_out_of_memory();
        for _ in 0..3 {
            rig.advance(1_000_000_000);
            rig.quiesce();
        }
        assert_eq!(rig.status().actual.get(), 2048 - 256);
        assert_eq!((rig.status().requested.get(), rig.status().target.get()), (2048, 1792));
        rig.inflate_to(2048);
    });
}

#[test]
fn pages_on_their_way_to_the_host_are_not_taken_but_inflation_ends() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.set_target(4096);
        rig.poll();
        assert_eq!(rig.run_out_of_memory(), 0, "the host has confirmed none yet");
        assert_eq!(rig.status().target.get(), 4096);
        rig.serve(INFLATE);
        // Settled by the notification itself.
        assert_eq!(rig.run_out_of_memory(), 256);
        rig.quiesce();
        assert_eq!(rig.status().actual.get(), 4096 - 256);
    });
}

#[test]
fn a_device_that_does_not_answer_is_given_up_and_its_pages_come_later() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(1024);
        assert_eq!(rig.notify(|_| false), 0);
        assert_eq!(rig.status().counters.oom_timeouts, 1);
        assert_eq!(rig.status().deflating.get(), 256);
        rig.quiesce();
        assert_eq!(rig.status().actual.get(), 1024 - 256);
        assert_eq!(rig.status().counters.freed_pages, 256);
    });
}

#[test]
fn isolated_blocks_are_not_waited_for() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(3);
        let isolated: Vec<_> = rig.blocks().iter().map(|b| rig.isolate(b.block.head())).collect();
        assert_eq!(rig.run_out_of_memory(), 0);
        for block in isolated {
            rig.memory.putback(block).unwrap();
        }
        assert_eq!(rig.run_out_of_memory(), 3);
    });
}

#[test]
fn blocks_that_migration_has_do_not_keep_the_others_in_the_balloon() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(300);
        let isolated: Vec<_> =
            rig.blocks().iter().take(40).map(|found| rig.isolate(found.block.head())).collect();
        assert_eq!(rig.run_out_of_memory(), OOM_PAGES.get());
        assert_eq!(rig.run_out_of_memory(), 300 - 40 - OOM_PAGES.get());
        assert_eq!(rig.run_out_of_memory(), 0);
        for block in isolated {
            rig.memory.putback(block).unwrap();
        }
        assert_eq!(rig.run_out_of_memory(), 40);
    });
}

#[test]
fn a_device_that_breaks_the_rules_costs_a_reset_and_no_page() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(1024);
        let fake = rig.fake;
        let freed = rig.driver.deflate_on_oom(&mut || {
            fake.give_back(DEFLATE, 999, 0);
            true
        });
        assert!(freed.is_zero());
        assert_eq!(rig.status().phase, BalloonPhase::Resetting);
        assert_eq!(rig.driver.deflate_on_oom(&mut || true), PageCount::ZERO);
        rig.host.clear();
    });
}

#[test]
fn without_the_feature_a_guest_out_of_memory_gets_nothing() {
    let memory = memory(4096);
    let store = MapStore::default();
    let offered = OFFERED & !feature::DEFLATE_ON_OOM;
    let fake = FakeDevice::new(memory.platform(), VIRTIO_ID_BALLOON, offered, &[256, 256]);
    let driver = BalloonDriver::start(&memory, &store, &fake, Options::default()).unwrap();
    let mut rig =
        Rig { memory: &memory, store: &store, fake: &fake, driver, host: BTreeSet::new() };
    rig.inflate_to(512);
    assert!(!rig.driver.may_deflate_on_oom());
    assert_eq!(rig.run_out_of_memory(), 0);
    assert_eq!(rig.status().counters.oom_notifications, 0);
}

#[test]
fn what_comes_back_ends_an_allocation_that_had_failed() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(4096);
        let mut taken = Vec::new();
        while let Ok(frames) = rig.memory.alloc_frozen(Order::ZERO, Gfp::KERNEL) {
            taken.push(frames);
        }
        assert_eq!(rig.run_out_of_memory(), 256);
        for _ in 0..200 {
            taken.push(rig.memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap());
        }
        for frames in taken {
            rig.memory.free_frozen(frames);
        }
    });
}
