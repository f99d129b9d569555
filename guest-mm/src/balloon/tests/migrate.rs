//! Pages of the balloon that move: the test plays the migration core and the device.

use super::*;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::TransitFrames;
use crate::migrate::{MigrateError, Migrated, Move, SourceMemory};
use crate::platform::FaultSite;
use std::sync::atomic::Ordering;

const PAGES: u64 = 16_384;

type Ended = Result<Migrated, MigrateError>;
const MOVED: Ended = Ok(Migrated::Moved(SourceMemory::Discarded));

/// What the device does at a look: it gets its queues, the look's number and the log.
type Device<'a> = &'a mut dyn FnMut(&mut HostSide<'_>, u32);

/// The host while the driver waits.
struct HostSide<'a> {
    memory: &'a Memory<TestPlatform>,
    fake: &'a FakeDevice<'a>,
    host: &'a mut BTreeSet<u32>,
    /// What the host heard, in order.
    log: &'a mut Vec<(u16, u32)>,
}

impl HostSide<'_> {
    fn answer(&mut self, queue: u16) {
        while let Some(chain) = self.fake.take(queue) {
            for bytes in self.fake.guest_bytes(chain.gpa, chain.len).chunks(4) {
                let pfn = u32::from_le_bytes(bytes.try_into().unwrap());
                let known =
                    if queue == INFLATE { self.host.insert(pfn) } else { self.host.remove(&pfn) };
                assert!(known, "page {pfn:#x} on queue {queue}");
                self.log.push((queue, pfn));
                let (_, word) = self.memory.words().head_of(Pfn::from_u32(pfn)).unwrap();
                let Memdesc::Offline(word) = word else { panic!("{pfn:#x} is {word:?}") };
                let expected = if queue == INFLATE { Hold::Parked } else { Hold::Isolated };
                assert_eq!(word.hold, expected, "{pfn:#x} on queue {queue}");
            }
            self.fake.give_back(queue, u32::from(chain.head), 0);
        }
    }
}

fn answers_all(host: &mut HostSide<'_>, _look: u32) {
    host.answer(INFLATE);
    host.answer(DEFLATE);
}

impl<'m> Rig<'m> {
    /// Isolates, migrates as the core does, and sees to whatever is the core's afterwards.
    fn migrate(&mut self, sources: &[Pfn], device: Device<'_>) -> (Vec<Ended>, Vec<(u16, u32)>) {
        let isolated: Vec<_> = sources.iter().map(|&pfn| self.isolate(pfn)).collect();
        let destinations: Vec<_> =
            isolated.iter().map(|block| self.destination(block.order())).collect();
        let mut moves: Vec<_> = sources
            .iter()
            .zip(&destinations)
            .map(|(&src, dst)| Some(Move::new(src, dst)))
            .collect();
        let mut log = Vec::new();
        let (memory, fake) = (self.memory, self.fake);
        let mut host = HostSide { memory, fake, host: &mut self.host, log: &mut log };
        let mut look = 0;
        self.driver.migrate(&mut moves, &mut || {
            look += 1;
            device(&mut host, look);
            memory.platform().advance_ns(1000);
            look < 20
        });
        let ended: Vec<Ended> = moves.into_iter().flatten().map(|step| step.ended).collect();
        for ((block, dst), ended) in isolated.into_iter().zip(destinations).zip(&ended) {
            let is_moved = matches!(ended, Ok(Migrated::Moved(_)));
            let is_kept = matches!(ended, Ok(Migrated::Kept));
            assert!(is_kept || dst.is_taken() == is_moved, "{ended:?}");
            if !dst.is_taken() {
                self.memory.free_frozen(self.memory.take_out_of_transit(dst).unwrap());
            }
            match ended {
                Ok(Migrated::Moved(source) | Migrated::Released(source)) => {
                    let frames = self.memory.retire(block).unwrap();
                    match source {
                        SourceMemory::Present => self.memory.free_frozen(frames),
                        SourceMemory::Discarded => self.memory.free_reported(frames),
                    }
                }
                Ok(Migrated::Kept) => {}
                Err(_) => self.memory.putback(block).unwrap(),
            }
        }
        (ended, log)
    }

    fn destination(&self, order: Order) -> TransitFrames {
        let frames = self.memory.alloc_frozen(order, Gfp::MOVABLE).unwrap();
        self.memory.put_in_transit(frames).unwrap()
    }

    fn heads(&self, count: usize) -> Vec<Pfn> {
        self.blocks().iter().take(count).map(|found| found.block.head()).collect()
    }

    /// Lets virtual time pass until driver and device are at rest.
    fn outlast(&mut self) {
        for _ in 0..200 {
            match self.quiesce() {
                Wake::At(at) => {
                    let now = self.memory.platform().now_ns();
                    self.advance(at.saturating_sub(now));
                }
                Wake::OnInterrupt => return,
                Wake::Now => {}
            }
        }
    }
}

#[test]
fn the_host_has_the_new_page_before_it_hears_of_the_old_one() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(100);
        let old = rig.heads(1)[0];
        let (ended, log) = rig.migrate(&[old], &mut answers_all);
        assert_eq!(ended, [MOVED]);
        let old = u32::try_from(old.number()).unwrap();
        let [(INFLATE, new), (DEFLATE, deflated)] = log[..] else { panic!("{log:?}") };
        assert_eq!(deflated, old);
        assert!(rig.host.contains(&new) && !rig.host.contains(&old) && rig.host.len() == 100);
        assert!(rig.store.contains(Pfn::from_u32(new)) && !rig.store.contains(Pfn::from_u32(old)));
        assert_eq!((rig.status().actual.get(), rig.told_actual()), (100, 100));
        let counters = rig.status().counters;
        assert_eq!((counters.migrated_pages, counters.freed_pages), (1, 0));
        rig.inflate_to(0);
    });
}

#[test]
fn a_batch_shares_buffers_and_notifications() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(500);
        rig.kicks();
        let sources = rig.heads(crate::balloon::MIGRATE_BATCH);
        let before = rig.status().counters.used_groups;
        let (ended, log) = rig.migrate(&sources, &mut answers_all);
        assert!(ended.iter().all(|&ended| ended == MOVED));
        assert_eq!(rig.kicks(), [INFLATE, DEFLATE]);
        assert_eq!(rig.status().counters.used_groups - before, 2);
        assert_eq!(log.len(), 2 * sources.len());
        assert!(log[..sources.len()].iter().all(|&(queue, _)| queue == INFLATE));
        assert_eq!(rig.told_actual(), 500);
    });
}

#[test]
fn large_blocks_move_whole_or_are_cut_to_the_page_that_moves() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(1024 + 512 + 8);
        for head in rig.heads(3) {
            assert_eq!(rig.migrate(&[head], &mut answers_all).0, [MOVED]);
        }
        assert_eq!(rig.told_actual(), 1024 + 512 + 8);
        let large = rig.blocks().into_iter().find(|found| found.block.order() == 10).unwrap();
        let head = large.block.head();
        assert_eq!(rig.driver.split_isolated(head), Err(MigrateError::Busy), "not isolated");
        let isolated = rig.isolate(head);
        rig.store.cannot_split.store(true, Ordering::Relaxed);
        assert_eq!(rig.driver.split_isolated(head), Err(MigrateError::NoMemory));
        rig.store.cannot_split.store(false, Ordering::Relaxed);
        assert_eq!(rig.driver.split_isolated(head), Ok(()));
        rig.check();
        drop(isolated);
        rig.memory.unisolate(head, DriverId::BALLOON).unwrap();
        assert_eq!(rig.migrate(&[head], &mut answers_all).0, [MOVED]);
        assert_eq!(rig.told_actual(), 1024 + 512 + 8);
        assert_eq!((rig.status().counters.splits, rig.status().counters.split_failures), (1, 1));
        rig.inflate_to(5);
    });
}

#[test]
fn a_device_that_takes_the_new_page_and_no_more_leaves_both_in_the_balloon() {
    for silent_from in [INFLATE, DEFLATE] {
        with_rig(PAGES, order_zero(), |rig| {
            rig.inflate_to(100);
            let sources = rig.heads(3);
            let (ended, _) = rig.migrate(&sources, &mut |host, _| {
                if silent_from == DEFLATE {
                    host.answer(INFLATE);
                }
            });
            assert!(ended.iter().all(|&ended| ended == Ok(Migrated::Kept)), "{ended:?}");
            rig.check();
            assert_eq!(rig.store.pages().get(), 103);
            assert_eq!(rig.status().counters.migrate_timeouts, 1);
            let stuck = rig.memory.isolate(sources[0], DriverId::BALLOON);
            assert_eq!(stuck.is_err(), silent_from == DEFLATE, "the device may have heard of it");
            if let Ok(block) = stuck {
                rig.memory.putback(block).unwrap();
            }
            rig.outlast();
            assert_eq!((rig.told_actual(), rig.host.len()), (100, 100));
            assert_eq!(rig.store.pages().get(), 100);
        });
    }
}

#[test]
fn a_balloon_that_shall_shrink_gives_pages_up_instead_of_moving_them() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(100);
        let sources = rig.heads(5);
        rig.memory.platform().faults().fail_randomly(FaultSite::QueueAdd, 1);
        rig.set_target(97);
        rig.poll();
        rig.memory.platform().faults().fail_randomly(FaultSite::QueueAdd, 0);
        let (ended, log) = rig.migrate(&sources, &mut answers_all);
        let released = Ok(Migrated::Released(SourceMemory::Discarded));
        assert_eq!(ended, [released, released, released, MOVED, MOVED]);
        assert_eq!(log.iter().filter(|&&(queue, _)| queue == INFLATE).count(), 2);
        assert_eq!((rig.told_actual(), rig.host.len()), (97, 97));
        assert_eq!(rig.status().counters.released_pages, 3);
    });
}

#[test]
fn without_room_in_the_store_nothing_is_tried() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(10);
        rig.store.is_full.store(true, Ordering::Relaxed);
        let (ended, log) = rig.migrate(&rig.heads(2), &mut answers_all);
        assert_eq!(ended, [Err(MigrateError::NoMemory); 2]);
        assert!(log.is_empty());
        rig.store.is_full.store(false, Ordering::Relaxed);
    });
}

#[test]
fn a_ring_that_refuses_a_buffer_costs_a_move_and_no_page() {
    for order in [0, 3, 10] {
        for nth in 1..8 {
            with_rig(PAGES, Options { max_order: order, ..Options::default() }, |rig| {
                rig.inflate_to(4096);
                rig.memory.platform().faults().fail_nth(FaultSite::QueueAdd, nth);
                let sources = rig.heads(3);
                let (ended, _) = rig.migrate(&sources, &mut answers_all);
                rig.memory.platform().faults().fail_nth(FaultSite::QueueAdd, 0);
                rig.check();
                let fine = |ended: &Ended| {
                    matches!(*ended, MOVED | Ok(Migrated::Kept) | Err(MigrateError::Again))
                };
                assert!(ended.iter().all(fine), "{ended:?}");
                rig.outlast();
                assert_eq!((rig.told_actual(), rig.host.len()), (4096, 4096), "{order} {nth}");
            });
        }
    }
}

#[test]
fn a_refusal_of_ordinary_work_does_not_touch_destinations() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(100);
        let sources = rig.heads(2);
        // A stage that ends at its bound leaves a buffer open.
        rig.set_target(12_000);
        assert_eq!(rig.driver.poll(), Wake::Now);
        rig.memory.platform().faults().fail_nth(FaultSite::QueueAdd, 1);
        let (ended, log) = rig.migrate(&sources, &mut answers_all);
        assert_eq!(ended, [MOVED; 2]);
        assert!(log.len() > 3000, "ordinary pages travelled with them");
        rig.memory.platform().faults().fail_nth(FaultSite::QueueAdd, 0);
        rig.outlast();
        assert_eq!(rig.told_actual(), 12_000);
    });
}

#[test]
fn a_device_that_breaks_the_rules_in_the_middle_costs_a_reset_and_no_page() {
    // Which queue, and whether by a forged used element or an overwritten buffer.
    for (queue, forges) in [(INFLATE, true), (INFLATE, false), (DEFLATE, true), (DEFLATE, false)] {
        with_rig(PAGES, order_zero(), |rig| {
            rig.inflate_to(100);
            let sources = rig.heads(4);
            let (ended, _) = rig.migrate(&sources, &mut |host, _| {
                if queue == DEFLATE {
                    host.answer(INFLATE);
                }
                let Some(chain) = host.fake.take(queue) else { return };
                if !forges {
                    host.fake.write_guest(chain.gpa, &[0xff; 16]);
                }
                let head = if forges { 999 } else { u32::from(chain.head) };
                host.fake.give_back(queue, head, 0);
            });
            assert!(ended.iter().all(|&ended| ended == Ok(Migrated::Kept)), "{ended:?}");
            assert_eq!(rig.status().phase, BalloonPhase::Resetting);
            rig.host.clear();
            rig.outlast();
            assert_eq!((rig.told_actual(), rig.host.len()), (100, 100));
        });
    }
}

#[test]
fn while_pages_go_back_after_a_reset_they_are_given_up() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(10);
        let old = rig.heads(1)[0];
        let isolated = rig.isolate(old);
        rig.driver.unbind();
        assert!(matches!(rig.poll(), Wake::At(_)), "one page is waited for");
        assert_eq!(rig.status().phase, BalloonPhase::Draining);
        let dst = rig.destination(Order::ZERO);
        let mut moves = [Some(Move::new(old, &dst))];
        rig.driver.migrate(&mut moves, &mut || panic!("nobody is to be waited for"));
        let ended = moves[0].as_ref().unwrap().ended;
        assert_eq!(ended, Ok(Migrated::Released(SourceMemory::Present)));
        rig.memory.free_frozen(rig.memory.retire(isolated).unwrap());
        rig.memory.free_frozen(rig.memory.take_out_of_transit(dst).unwrap());
        rig.host.clear();
        rig.advance(1_000_000_000);
        assert_eq!(rig.status().phase, BalloonPhase::Down);
        // Nothing of it is left to move.
        let frames = rig.memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
        let dst = rig.destination(Order::ZERO);
        let mut moves = [Some(Move::new(frames.head(), &dst))];
        rig.driver.migrate(&mut moves, &mut || panic!("nobody is to be waited for"));
        assert_eq!(moves[0].as_ref().unwrap().ended, Err(MigrateError::Busy));
        rig.memory.free_frozen(frames);
        rig.memory.free_frozen(rig.memory.take_out_of_transit(dst).unwrap());
    });
}

#[test]
fn frames_that_migration_has_not_isolated_are_refused() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(8);
        let movable = rig.heads(1)[0];
        let frames = rig.memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
        let isolated = rig.isolate(movable);
        let outside = Pfn::from_u32(u32::MAX);
        let tail = movable.checked_add(PageCount::new(1)).unwrap();
        let dst = [movable, frames.head(), outside, tail].map(|_| rig.destination(Order::ZERO));
        let mut moves =
            [(movable, &dst[0]), (frames.head(), &dst[1]), (outside, &dst[2]), (tail, &dst[3])]
                .map(|(src, dst)| Some(Move::new(src, dst)));
        rig.driver.migrate(&mut moves, &mut || true);
        // The first is isolated, but larger than its destination.
        let ended = moves.map(|step| step.unwrap().ended);
        assert_eq!(ended, [Err(MigrateError::Busy); 4]);
        rig.memory.putback(isolated).unwrap();
        rig.memory.free_frozen(frames);
        for dst in dst {
            rig.memory.free_frozen(rig.memory.take_out_of_transit(dst).unwrap());
        }
        assert_eq!(rig.told_actual(), 8);
    });
}

#[test]
fn a_target_that_changes_in_the_middle_is_reached_afterwards() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(300);
        let fake = rig.fake;
        let (ended, _) = rig.migrate(&rig.heads(20), &mut |host, look| {
            fake.set_config32(usize::try_from(CONFIG_NUM_PAGES).unwrap(), 120);
            if look > 3 {
                answers_all(host, look);
            }
        });
        assert!(ended.iter().all(|&ended| ended == MOVED));
        assert_eq!(rig.told_actual(), 300);
        rig.driver.interrupt();
        rig.outlast();
        assert_eq!((rig.told_actual(), rig.host.len()), (120, 120));
    });
}

#[test]
fn a_silent_device_is_not_asked_for_more() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(100);
        rig.set_target(101);
        while rig.status().phase != BalloonPhase::Degraded {
            let Wake::At(at) = rig.poll() else { panic!("nobody watches the device") };
            rig.advance(at - rig.memory.platform().now_ns());
        }
        let (ended, _) = rig.migrate(&rig.heads(1), &mut |_, _| panic!("waited for"));
        assert_eq!(ended, [Err(MigrateError::Again)]);
        rig.outlast();
        assert_eq!(rig.told_actual(), 101);
    });
}
