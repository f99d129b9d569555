//! Resets, devices that ask for one, devices that lie.

use super::*;
use crate::balloon::BalloonError;
use crate::virtio::testing::Misbehaviour;
use crate::virtio::{QueueError, SetupError};

const PAGES: u64 = 16_384;

/// The host's side of a reset: it forgets.
fn forget(rig: &mut Rig<'_>) {
    rig.host.clear();
}

#[test]
fn a_reset_in_mid_inflate_gives_every_page_back_and_keeps_the_target() {
    with_rig(PAGES, Options::default(), |rig| {
        let free = rig.memory.free_pages();
        rig.inflate_to(1000);
        rig.set_target(5000);
        rig.poll();
        let chains = rig.buffers(INFLATE);
        rig.serve_one(INFLATE, chains[0]);
        rig.driver.rebind();
        forget(rig);
        while rig.status().phase != BalloonPhase::Running {
            rig.driver.poll();
            rig.check();
        }
        assert_eq!(rig.memory.free_pages(), free);
        // What was in flight may hold anything: nobody may take it for discarded.
        assert_eq!(rig.memory.census().reported_pages(), PageCount::ZERO);
        assert_eq!(rig.status().counters.resets, 1);
        rig.quiesce();
        assert_eq!(rig.told_actual(), 5000);
    });
}

#[test]
fn nothing_is_freed_before_the_reset_is_complete() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(1000);
        rig.set_target(3000);
        rig.poll();
        let free = rig.memory.free_pages();
        rig.fake.misbehave(Misbehaviour { never_finishes_reset: true, ..Default::default() });
        rig.driver.rebind();
        for _ in 0..10 {
            assert!(matches!(rig.advance(20_000_000), Wake::At(_)));
            assert_eq!(rig.memory.free_pages(), free);
        }
        rig.fake.misbehave(Misbehaviour::default());
        rig.driver.rebind();
        forget(rig);
        rig.advance(20_000_000);
        rig.quiesce();
        assert_eq!(rig.told_actual(), 3000);
    });
}

#[test]
fn a_reset_that_never_completes_fails_the_driver_and_keeps_every_page() {
    let memory = memory(PAGES);
    let store = MapStore::default();
    let fake = FakeDevice::new(memory.platform(), VIRTIO_ID_BALLOON, OFFERED, &[256, 256]);
    let driver = BalloonDriver::start(&memory, &store, &fake, Options::default()).unwrap();
    let mut rig =
        Rig { memory: &memory, store: &store, fake: &fake, driver, host: BTreeSet::new() };
    rig.inflate_to(1000);
    fake.misbehave(Misbehaviour { never_finishes_reset: true, ..Default::default() });
    rig.driver.unbind();
    for _ in 0..600 {
        rig.advance(20_000_000);
    }
    let stuck = BalloonError::Setup(SetupError::ResetStuck);
    assert_eq!((rig.status().phase, rig.status().failure), (BalloonPhase::Failed, Some(stuck)));
    assert_eq!(store.pages().get(), 1000);
    let Err(_still_there) = rig.driver.finish() else { panic!("pages were forgotten") };
}

#[test]
fn a_device_that_needs_a_reset_gets_one_and_the_balloon_comes_back() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(1000);
        rig.set_target(2000);
        rig.poll();
        rig.fake.set_needs_reset();
        rig.driver.interrupt();
        forget(rig);
        rig.quiesce();
        assert_eq!(rig.told_actual(), 2000);
        assert_eq!(rig.status().counters.device_faults, 1);
    });
}

#[test]
fn a_device_that_lies_again_and_again_is_given_up_with_every_page_back() {
    with_rig(PAGES, Options::default(), |rig| {
        let free = rig.memory.free_pages();
        for _ in 0..4 {
            rig.set_target(2000);
            rig.poll();
            rig.fake.give_back(INFLATE, 999, 0);
            rig.driver.interrupt();
            rig.poll();
        }
        let lie = BalloonError::Queue(QueueError::UnknownHead { head: 999 });
        assert_eq!((rig.status().phase, rig.status().failure), (BalloonPhase::Failed, Some(lie)));
        assert_eq!(rig.memory.free_pages(), free);
        assert_ne!(rig.fake.status() & status::FAILED, 0);
    });
}

#[test]
fn a_device_that_works_in_between_is_forgiven() {
    with_rig(PAGES, Options::default(), |rig| {
        for round in 1..10 {
            rig.set_target(1000 + round);
            rig.poll();
            let head = u32::from(rig.buffers(INFLATE)[0].head);
            rig.fake.give_back(INFLATE, head, 0);
            rig.fake.give_back(INFLATE, head, 0);
            rig.driver.interrupt();
            forget(rig);
            rig.quiesce();
            assert_eq!(rig.told_actual(), 1000 + round);
        }
    });
}

#[test]
fn a_reset_waits_for_isolated_blocks() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(2048);
        let isolated = rig.isolate(rig.blocks()[0].block.head());
        rig.driver.rebind();
        forget(rig);
        for _ in 0..20 {
            assert!(matches!(rig.advance(20_000_000), Wake::At(_)));
            assert_eq!(rig.status().phase, BalloonPhase::Draining);
            assert_eq!(rig.store.pages().get(), 1024);
        }
        rig.memory.putback(isolated).unwrap();
        rig.advance(20_000_000);
        rig.quiesce();
        assert_eq!(rig.told_actual(), 2048);
    });
}

#[test]
fn unbinding_empties_the_balloon_and_binding_follows_the_target_again() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(3000);
        rig.driver.unbind();
        forget(rig);
        assert_eq!(rig.poll(), Wake::OnInterrupt);
        assert_eq!(rig.status().phase, BalloonPhase::Down);
        assert_eq!(rig.store.blocks(), 0);
        rig.driver.rebind();
        rig.quiesce();
        assert_eq!(rig.told_actual(), 3000);
    });
}

#[test]
fn a_store_in_use_is_refused() {
    let memory = memory(PAGES);
    let store = MapStore::default();
    let frames = crate::balloon::frames::Frames { memory: &memory, store: &store };
    let _block = frames.take(crate::memdesc::Order::ZERO).unwrap();
    let fake = FakeDevice::new(memory.platform(), VIRTIO_ID_BALLOON, OFFERED, &[256, 256]);
    let failed = BalloonDriver::start(&memory, &store, &fake, Options::default()).err();
    assert_eq!(failed, Some(BalloonError::StoreInUse));
}
