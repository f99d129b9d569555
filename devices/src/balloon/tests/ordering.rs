//! Released before published, and releases that run without the device's lock.

use super::*;
use crate::virtio::VirtioDevice;

fn deferred() -> Rig {
    let options = BalloonOptions { release: ReleaseMode::Deferred, ..Default::default() };
    Rig::with(options, ReleaseUnit::Page)
}

#[test]
fn no_used_element_is_seen_while_memory_is_released() {
    let mut rig = Rig::new();
    let used_index = rig.inflate.layout().used + 2;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    *rig.ram.on_discard.lock().unwrap() = Some(Box::new(move |mem| {
        let index: u16 = mem.read_obj(GuestAddress(used_index)).unwrap();
        log.lock().unwrap().push(index);
    }));
    // More than 1,024 runs, so that the release takes several calls.
    let pfns: Vec<u32> = (0..1500).map(|n| FREE_PFN + 2 * n).collect();
    assert_eq!(rig.inflate(&pfns).len(), 6);
    assert_eq!(*seen.lock().unwrap(), [0, 0]);
    assert_eq!(rig.counters().release_ns.count(), 1);
}

#[test]
fn deferred_release_leaves_the_device_free_and_answers_afterwards() {
    let mut rig = deferred();
    rig.offer_inflate(&[600, 601]);
    assert_eq!(rig.transport.queue_notified(queues::INFLATE), QueueProgress::Pending);
    let job = rig.transport.device_mut().take_release().expect("a window was gathered");
    assert!(rig.transport.device_mut().take_release().is_none());
    // The device can be read and told things, and neither queue moves.
    assert_eq!(rig.read_config(0), 0);
    assert_eq!(rig.transport.queue_notified(queues::INFLATE), QueueProgress::Pending);
    assert_eq!(rig.inflate.take_used(), None);
    assert!(rig.ram.holes().is_empty());

    let done = job.run();
    assert_eq!(rig.inflate.take_used(), None, "released, not yet published");
    rig.transport.device_mut().release_done(done);
    assert_eq!(rig.transport.serve_pending(), QueueProgress::Idle);
    assert_eq!(rig.inflate.take_all_used().len(), 1);
    assert_eq!(rig.ram.holes(), set([600, 601]));
    assert_eq!(rig.counters().released_pages, 2);
}

#[test]
fn windows_follow_each_other_until_the_ring_is_empty() {
    let mut rig = deferred();
    let buffer = rig.buffer(0, &(0..150_000).map(|n| 2048 + n % 2000).collect::<Vec<_>>());
    rig.inflate.offer_chain(0, &[buffer]);
    let mut progress = rig.transport.queue_notified(queues::INFLATE);
    let mut windows = 0;
    while progress == QueueProgress::Pending {
        if let Some(job) = rig.transport.device_mut().take_release() {
            let done = job.run();
            rig.transport.device_mut().release_done(done);
            windows += 1;
        }
        progress = rig.transport.serve_pending();
    }
    assert_eq!((windows, rig.inflate.take_all_used().len()), (3, 1));
    assert_eq!(rig.counters().inflate.pfns, 150_000);
}

#[test]
fn deflate_waits_for_a_release_under_way() {
    let mut rig = deferred();
    rig.offer_inflate(&[600]);
    assert_eq!(rig.transport.queue_notified(queues::INFLATE), QueueProgress::Pending);
    let job = rig.transport.device_mut().take_release().expect("a window was gathered");
    let buffer = rig.buffer(100, &[600]);
    rig.deflate.offer_chain(0, &[buffer]);
    assert_eq!(rig.transport.queue_notified(queues::DEFLATE), QueueProgress::Pending);
    assert_eq!(rig.deflate.take_used(), None);
    let done = job.run();
    rig.transport.device_mut().release_done(done);
    assert_eq!(rig.transport.serve_pending(), QueueProgress::Idle);
    assert_eq!((rig.inflate.take_all_used().len(), rig.deflate.take_all_used().len()), (1, 1));
    assert_eq!(rig.balloon().ballooned(), PageCount::ZERO);
}

#[test]
fn release_taken_before_a_reset_touches_nothing_after_it() {
    let mut rig = deferred();
    rig.offer_inflate(&[600]);
    assert_eq!(rig.transport.queue_notified(queues::INFLATE), QueueProgress::Pending);
    let late = rig.transport.device_mut().take_release().expect("a window was gathered");
    rig.start(VERSION_1);
    rig.fill(600, 0x42);
    let done = late.run();
    assert_eq!(rig.byte(600), 0x42, "the guest uses the page again");
    rig.transport.device_mut().release_done(done);
    assert_eq!(rig.counters().released_pages, 0);
    // The new life is not confused by the old job.
    rig.offer_inflate(&[601]);
    assert_eq!(rig.transport.queue_notified(queues::INFLATE), QueueProgress::Pending);
    let done = rig.transport.device_mut().take_release().expect("a new window").run();
    rig.transport.device_mut().release_done(done);
    assert_eq!(rig.transport.serve_pending(), QueueProgress::Idle);
    assert_eq!(rig.ram.holes(), set([601]));
}

#[test]
fn reset_waits_for_a_release_that_is_running() {
    let mut rig = deferred();
    rig.offer_inflate(&[600]);
    assert_eq!(rig.transport.queue_notified(queues::INFLATE), QueueProgress::Pending);
    let job = rig.transport.device_mut().take_release().expect("a window was gathered");
    let (begun, release_begins) = std::sync::mpsc::channel();
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let is_released = Arc::new(AtomicU64::new(0));
    let flag = is_released.clone();
    *rig.ram.on_discard.lock().unwrap() = Some(Box::new(move |_| {
        begun.send(()).unwrap();
        held.recv().unwrap();
        flag.store(1, Ordering::SeqCst);
    }));
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || job.run());
        release_begins.recv().unwrap();
        let resetter = scope.spawn(|| {
            rig.transport.device_mut().reset();
            assert_eq!(is_released.load(Ordering::SeqCst), 1, "the release was over first");
        });
        go_on.send(()).unwrap();
        resetter.join().unwrap();
        drop(worker.join().unwrap());
    });
}
