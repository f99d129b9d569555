use super::*;

#[cfg(not(loom))]
mod by_the_book {
    use super::*;
    use crate::virtio::testing::{FakeDevice, TestRam};
    use crate::virtio::{MmioDevice, SetupError};
    use abi::virtio::VIRTIO_ID_BALLOON;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Queue = SplitQueue<u32, 256>;

    fn start(fake: &FakeDevice<'_>, ram: &TestRam, entries: u16) -> Result<Queue, SetupError> {
        let device = MmioDevice::probe(fake).unwrap();
        device.reset()?;
        device.negotiate(0)?;
        let entries = device.queue_entries(0, entries)?;
        let descriptors = ram.page().slice(0, 4096).unwrap();
        let rings = ram.page().slice(0, 4096).unwrap();
        let ring = RingMemory::new(entries, descriptors, rings).unwrap();
        device.enable_queue(0, &ring)?;
        device.start()?;
        Ok(SplitQueue::new(ring).unwrap())
    }

    fn read(gpa: u64) -> Buffer {
        Buffer { gpa, len: 16, access: Access::DeviceReads }
    }

    fn written(len: u32) -> Buffer {
        Buffer { gpa: 0x1000, len, access: Access::DeviceWrites }
    }

    #[test]
    fn nothing_is_seen_before_publication_and_all_of_it_after() {
        let ram = TestRam::new(8);
        let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[256]);
        let mut queue = start(&fake, &ram, 256).unwrap();
        queue.add(read(0x1000), 7).unwrap();
        queue.add(written(32), 8).unwrap();
        assert_eq!(fake.take(0), None);
        assert!(queue.publish());
        assert!(!queue.publish(), "nothing new to publish");
        let (first, second) = (fake.take(0).unwrap(), fake.take(0).unwrap());
        assert_eq!((first.gpa, first.len, first.flags), (0x1000, 16, 0));
        assert_eq!((second.len, second.flags), (32, VIRTQ_DESC_F_WRITE));
        assert_eq!(fake.take(0), None);
    }

    #[test]
    fn buffers_come_back_in_any_order_with_their_cookies() {
        let ram = TestRam::new(8);
        let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[4]);
        let mut queue = start(&fake, &ram, 256).unwrap();
        for cookie in 0..4 {
            queue.add(written(8), cookie).unwrap();
        }
        assert_eq!(queue.add(written(8), 9), Err(QueueError::Full));
        assert!(queue.publish());
        let chains: std::vec::Vec<_> = core::iter::from_fn(|| fake.take(0)).collect();
        for index in [2, 0, 3, 1] {
            fake.give_back(0, u32::from(chains[index].head), 5);
        }
        let popped = core::iter::from_fn(|| queue.pop().unwrap()).map(|done| done.cookie);
        assert_eq!(popped.collect::<std::vec::Vec<_>>(), [2, 0, 3, 1]);
        assert_eq!(queue.free_entries(), 4);
    }

    #[test]
    fn a_device_that_asks_for_no_kick_gets_none() {
        let ram = TestRam::new(8);
        let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[4]);
        let mut queue = start(&fake, &ram, 256).unwrap();
        fake.set_used_flags(0, VIRTQ_USED_F_NO_NOTIFY);
        queue.add(read(0x1000), 0).unwrap();
        assert!(!queue.publish());
        fake.set_used_flags(0, 0);
        queue.add(read(0x1000), 0).unwrap();
        assert!(queue.publish());
    }

    #[test]
    fn an_empty_buffer_is_refused_and_costs_no_entry() {
        let ram = TestRam::new(8);
        let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[4]);
        let mut queue = start(&fake, &ram, 256).unwrap();
        assert_eq!(queue.add(written(0), 0), Err(QueueError::EmptyBuffer));
        assert_eq!(queue.free_entries(), 4);
    }

    fn broken_by(len: u32, lie: impl FnOnce(&FakeDevice<'_>, u32)) -> QueueError {
        let ram = TestRam::new(8);
        let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[8]);
        let mut queue = start(&fake, &ram, 256).unwrap();
        queue.add(written(len), 1).unwrap();
        queue.add(written(len), 2).unwrap();
        assert!(queue.publish());
        queue.add(written(len), 3).unwrap();
        let head = u32::from(fake.take(0).unwrap().head);
        lie(&fake, head);
        let error = loop {
            match queue.pop() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the lie was believed"),
                Err(error) => break error,
            }
        };
        assert_eq!(queue.broken(), Some(error));
        assert_eq!(queue.pop(), Err(error), "a broken queue stays broken");
        assert_eq!(queue.add(written(len), 4), Err(error));
        error
    }

    #[test]
    fn each_lie_in_the_used_ring_breaks_the_queue_by_name() {
        assert_eq!(
            broken_by(8, |fake, _| fake.give_back(0, 77, 0)),
            QueueError::UnknownHead { head: 77 }
        );
        assert_eq!(
            broken_by(8, |fake, _| fake.give_back(0, 0x1_0000, 0)),
            QueueError::UnknownHead { head: 0x1_0000 }
        );
        let twice = broken_by(8, |fake, head| {
            fake.give_back(0, head, 0);
            fake.give_back(0, head, 0);
        });
        assert!(matches!(twice, QueueError::UnknownHead { .. }));
        assert_eq!(
            broken_by(8, |fake, head| fake.give_back(0, head, 9)),
            QueueError::LengthTooLong { claimed: 9, len: 8 }
        );
        assert_eq!(
            broken_by(8, |fake, _| fake.jump_used_index(0, 4)),
            QueueError::UsedIndexJump { claimed: 4, outstanding: 3 }
        );
    }

    #[test]
    fn a_buffer_that_was_never_published_cannot_be_returned() {
        // Heads are handed out in ascending order: the third is added, not published.
        let error = broken_by(8, |fake, head| fake.give_back(0, head + 2, 0));
        assert!(matches!(error, QueueError::UnknownHead { .. }));
    }

    #[test]
    fn lengths_claimed_for_buffers_that_the_device_only_reads_mean_nothing() {
        let ram = TestRam::new(8);
        let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[4]);
        let mut queue = start(&fake, &ram, 256).unwrap();
        queue.add(read(0x1000), 1).unwrap();
        assert!(queue.publish());
        let head = u32::from(fake.take(0).unwrap().head);
        fake.give_back(0, head, u32::MAX);
        assert_eq!(queue.pop(), Ok(Some(Completion { cookie: 1, written: 0 })));
    }

    proptest! {
        /// Any interleaving of honest steps, far enough for the 16-bit indices to
        /// wrap, returns each cookie once; arbitrary used elements never panic.
        #[test]
        fn every_cookie_returns_exactly_once(
            steps in proptest::collection::vec((0u8..4, any::<u16>()), 1..200),
            log in 0u32..9,
        ) {
            let ram = TestRam::new(4);
            let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[1 << log]);
            let mut queue = start(&fake, &ram, 256).unwrap();
            let (mut next, mut expected) = (0u32, BTreeMap::new());
            let mut held = std::vec::Vec::new();
            for (kind, pick) in steps {
                match kind {
                    0 => if queue.add(read(0x1000 + u64::from(next) * 16), next).is_ok() {
                        expected.insert(next, ());
                        next += 1;
                    },
                    1 => { let _kick = queue.publish(); held.extend(core::iter::from_fn(|| fake.take(0))); }
                    2 => if !held.is_empty() {
                        let chain: crate::virtio::testing::Chain = held.swap_remove(usize::from(pick) % held.len());
                        fake.give_back(0, u32::from(chain.head), 0);
                    },
                    _ => while let Some(done) = queue.pop().unwrap() {
                        prop_assert!(expected.remove(&done.cookie).is_some());
                    },
                }
                prop_assert_eq!(usize::from(queue.outstanding()) >= held.len(), true);
            }
        }

        #[test]
        fn arbitrary_used_elements_never_panic_or_invent_a_cookie(
            lies in proptest::collection::vec((any::<u32>(), any::<u32>(), 0u16..3), 1..20),
        ) {
            let ram = TestRam::new(4);
            let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[16]);
            let mut queue = start(&fake, &ram, 16).unwrap();
            for cookie in 0..10 {
                queue.add(written(8), cookie).unwrap();
            }
            let _kick = queue.publish();
            let mut seen = std::collections::BTreeSet::new();
            for (head, len, jump) in lies {
                fake.give_back(0, head % 20, len % 12);
                fake.jump_used_index(0, jump);
                while let Ok(Some(done)) = queue.pop() {
                    prop_assert!(done.cookie < 10 && done.written <= 8);
                    prop_assert!(seen.insert(done.cookie));
                }
            }
        }
    }

    #[test]
    fn indices_wrap_around_sixteen_bits() {
        let ram = TestRam::new(8);
        let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[2]);
        let mut queue = start(&fake, &ram, 256).unwrap();
        for cookie in 0..0x1_0010 {
            queue.add(read(0x1000), cookie).unwrap();
            assert!(queue.publish());
            fake.give_back(0, u32::from(fake.take(0).unwrap().head), 0);
            assert_eq!(queue.pop().unwrap().map(|done| done.cookie), Some(cookie));
        }
    }
}

/// The queue's orderings under the model checker: `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --lib loom_`.
#[cfg(loom)]
mod loom_model {
    use super::*;
    use loom::thread;

    #[test]
    fn loom_device_sees_whole_buffers_and_driver_sees_its_cookie() {
        loom::model(|| {
            let ring = RingMemory::modelled(2);
            let shared = ring.clone();
            let device = thread::spawn(move || {
                // Acquire/Release: the pairs that the module's page names.
                if shared.avail_idx().load(Ordering::Acquire) == 0 {
                    return false;
                }
                let head = shared.avail_entry(0).load(Ordering::Relaxed);
                assert_eq!(shared.desc_addr(head).load(Ordering::Relaxed), 0x1000);
                assert_eq!(shared.desc_len(head).load(Ordering::Relaxed), 16);
                shared.used_id(0).store(u32::from(head), Ordering::Relaxed);
                shared.used_len(0).store(16, Ordering::Relaxed);
                shared.used_idx().store(1, Ordering::Release);
                true
            });
            let mut queue = SplitQueue::<u32, 2>::new(ring).unwrap();
            let buffer = Buffer { gpa: 0x1000, len: 16, access: Access::DeviceWrites };
            queue.add(buffer, 42).unwrap();
            let _kick = queue.publish();
            let early = queue.pop().unwrap();
            let returned = device.join().unwrap();
            let done = early.or_else(|| queue.pop().unwrap());
            assert_eq!(done.is_some(), returned);
            assert!(done.is_none_or(|done| done.cookie == 42 && done.written == 16));
        });
    }

    #[test]
    fn loom_a_buffer_is_kicked_or_seen_before_the_device_sleeps() {
        loom::model(|| {
            let ring = RingMemory::modelled(2);
            let shared = ring.clone();
            // The device re-enables kicks, then looks once more, then sleeps.
            shared.used_flags().store(VIRTQ_USED_F_NO_NOTIFY, Ordering::Relaxed);
            let device = thread::spawn(move || {
                shared.used_flags().store(0, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                shared.avail_idx().load(Ordering::Acquire) == 1
            });
            let mut queue = SplitQueue::<u32, 2>::new(ring).unwrap();
            let buffer = Buffer { gpa: 0x1000, len: 16, access: Access::DeviceReads };
            queue.add(buffer, 1).unwrap();
            let kicked = queue.publish();
            let seen = device.join().unwrap();
            assert!(kicked || seen, "the buffer waits for a kick that never comes");
        });
    }
}
