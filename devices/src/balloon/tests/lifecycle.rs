//! Targets, resets, refusals of the host.

use abi::balloon::feature::DEFLATE_ON_OOM;
use abi::balloon::{CONFIG_ACTUAL, CONFIG_NUM_PAGES};

use super::*;
use crate::virtio::VirtioDevice;

#[test]
fn target_is_exact_and_bounded_by_ram() {
    let mut rig = Rig::new();
    for (target, changed) in [(0, false), (1, true), (1, false), (RAM_PAGES, true), (0, true)] {
        let result = rig.transport.device_mut().set_target(PageCount::new(target));
        assert_eq!(result, Ok(changed), "target {target}");
        assert_eq!(u64::from(rig.read_config(CONFIG_NUM_PAGES)), target);
    }
    for target in [RAM_PAGES + 1, 1 << 32, (1 << 32) + 1, (1 << 44) / 4096 + 1, u64::MAX] {
        let error = rig.transport.device_mut().set_target(PageCount::new(target)).unwrap_err();
        assert_eq!((error.requested.get(), error.max.get()), (target, RAM_PAGES));
        assert!(error.to_string().contains(&(RAM_PAGES * 4096).to_string()), "{error}");
    }
    assert_eq!(rig.balloon().target(), PageCount::ZERO);
}

#[test]
fn features_are_those_asked_for() {
    let offered = |must_tell_host, deflate_on_oom| {
        let options = BalloonOptions { must_tell_host, deflate_on_oom, ..Default::default() };
        Rig::with(options, ReleaseUnit::Page).balloon().device_features()
    };
    assert_eq!(offered(false, false), 0);
    assert_eq!(offered(true, false), MUST_TELL_HOST);
    assert_eq!(offered(true, true), MUST_TELL_HOST | DEFLATE_ON_OOM);
}

#[test]
fn queues_of_features_not_offered_do_not_exist() {
    let mut rig = Rig::new();
    assert_eq!(rig.transport.queue_count(), 2);
    let layout = rig.deflate.layout();
    assert!(!rig.transport.enable_queue(2, layout));
}

#[test]
fn driver_without_a_deflate_queue_is_told_to_reset() {
    let mut rig = Rig::new();
    rig.transport.negotiate(VERSION_1);
    assert!(rig.transport.enable_queue(queues::INFLATE, rig.inflate.layout()));
    rig.transport.start();
    assert!(!rig.transport.is_running());
}

#[test]
fn reset_keeps_the_target_and_drops_what_the_guest_said() {
    let mut rig = Rig::new();
    rig.transport.device_mut().set_target(PageCount::new(50)).unwrap();
    rig.inflate(&[600, 601]);
    rig.write_config(CONFIG_ACTUAL, 2);
    rig.start(VERSION_1 | MUST_TELL_HOST);
    assert_eq!(rig.balloon().target(), PageCount::new(50));
    assert_eq!(
        (rig.balloon().actual(), rig.balloon().ballooned()),
        (PageCount::ZERO, PageCount::ZERO)
    );
    // Start counts as a reset as well: the first negotiation began with one.
    assert_eq!(rig.counters().resets, 2);
    assert_eq!(rig.deflate(&[600]).len(), 1);
    assert_eq!(rig.counters().not_inflated_pages, 1, "the old balloon is forgotten");
}

#[test]
fn reset_forgets_pages_collected_for_a_huge_unit() {
    let mut rig = Rig::with(BalloonOptions::default(), ReleaseUnit::Block2M);
    rig.inflate(&(1024..1535).collect::<Vec<_>>());
    rig.start(VERSION_1 | MUST_TELL_HOST);
    rig.inflate(&[1535]);
    assert!(rig.ram.holes().is_empty(), "511 of the pages are the guest's again");
}

#[test]
fn reset_in_the_middle_of_a_long_buffer_drops_it() {
    let mut rig = Rig::new();
    let buffer = rig.buffer(0, &vec![600; 70_000]);
    rig.inflate.offer_chain(0, &[buffer]);
    assert_eq!(rig.transport.queue_notified(queues::INFLATE), QueueProgress::Pending);
    rig.start(VERSION_1);
    assert_eq!(rig.transport.serve_pending(), QueueProgress::Idle);
    rig.inflate(&[601]);
    assert_eq!(rig.ram.holes(), set([600, 601]));
}

#[test]
fn refusal_of_the_host_is_counted_and_the_buffer_comes_back() {
    let mut rig = Rig::new();
    *rig.ram.refused.lock().unwrap() = Pfn::new(610);
    rig.inflate(&[600, 601, 610, 620]);
    assert_eq!(rig.ram.holes(), set([600, 601, 620]));
    let counters = rig.counters();
    assert_eq!((counters.inflated_pages, counters.released_pages), (4, 3));
    assert_eq!((counters.refused_pages, counters.failed_windows), (1, 1));
    assert_eq!(rig.balloon().ballooned(), PageCount::new(4));
    *rig.ram.refused.lock().unwrap() = None;
    rig.inflate(&[610]);
    assert_eq!(rig.ram.holes(), set([600, 601, 610, 620]));
    assert_eq!(rig.counters().failed_windows, 1);
}

#[test]
fn target_set_before_any_driver_is_what_the_driver_reads() {
    let mut rig = Rig::new();
    rig.transport.reset();
    let generation = rig.transport.load(abi::mmio::CONFIG_GENERATION);
    assert_eq!(rig.transport.device_mut().set_target(PageCount::new(9)), Ok(true));
    rig.transport.config_changed();
    assert_ne!(rig.transport.load(abi::mmio::CONFIG_GENERATION), generation);
    rig.start(VERSION_1);
    assert_eq!(rig.read_config(CONFIG_NUM_PAGES), 9);
}
