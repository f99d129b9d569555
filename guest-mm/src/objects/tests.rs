use super::*;
use crate::memdesc::{Kind, PutBack};
use crate::mm::Base;
use crate::platform::FaultSite;
use crate::sync::shim::Ordering;
use crate::testing::{self, TestPlatform};

fn base() -> Base<TestPlatform> {
    Base::new(testing::memory(1024)).unwrap()
}

fn page<'m>(mm: &Mm<'m, TestPlatform>) -> Described<'m, MovableDesc> {
    let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::MOVABLE).unwrap();
    mm.describe_frames(frames, |desc: &MovableDesc| desc.owner.store(7, Ordering::Relaxed)).unwrap()
}

#[test]
fn pages_go_through_their_life_and_come_back_as_frames() {
    let base = base();
    let mm = Mm::new(&base);
    let object = page(&mm);
    assert_eq!(base.memory.census().pages(Kind::Movable).get(), 1);
    let frame = mm.let_migrate(object).unwrap();
    let isolated = mm.isolate_object::<MovableDesc>(frame).unwrap();
    assert_eq!(isolated.descriptor().owner.load(Ordering::Relaxed), 7);
    let taken = mm.claim_object::<MovableDesc>(frame).map(drop);
    assert_eq!(taken, Err(TakeError::Taken(Hold::Isolated)));
    assert_eq!(mm.putback_object(isolated), Ok(PutBack::Returned));
    let object = mm.claim_object::<MovableDesc>(frame).unwrap();
    let taken = mm.isolate_object::<MovableDesc>(frame).map(drop);
    assert_eq!(taken, Err(TakeError::Taken(Hold::Held)));
    mm.let_migrate(object).unwrap();
    let frames = mm.retire_object(mm.isolate_object::<MovableDesc>(frame).unwrap()).unwrap();
    mm.memory().free_frozen(frames);
    assert_eq!(base.caches.movable.stats(&base.memory).in_use, 0);
    assert!(base.memory.census().is_consistent());
}

#[test]
fn other_kinds_frames_beyond_ram_and_larger_blocks_are_refused() {
    let base = base();
    let mm = Mm::new(&base);
    let frame = mm.let_migrate(page(&mm)).unwrap();
    assert!(matches!(mm.claim_object::<ZpDesc>(frame), Err(TakeError::OtherKind(_))));
    assert!(matches!(mm.isolate_object::<ZpDesc>(Pfn::ZERO), Err(TakeError::OtherKind(_))));
    let beyond = Pfn::new(1 << 40).unwrap();
    assert!(matches!(mm.isolate_object::<ZpDesc>(beyond), Err(TakeError::Lookup(_))));
    let block = mm.memory().alloc_frozen(Order::new(1).unwrap(), Gfp::MOVABLE).unwrap();
    let refused = mm.describe_frames::<ZpDesc>(block, |_| ()).map(drop).unwrap_err();
    assert_eq!(refused.cause, None);
    mm.memory().free_frozen(refused.frames);
    let object = mm.claim_object::<MovableDesc>(frame).unwrap();
    mm.memory().free_frozen(mm.undescribe_frames(object).unwrap());
    assert!(base.memory.census().is_consistent());
}

#[test]
fn without_memory_for_a_descriptor_the_frame_comes_back() {
    let base = base();
    let mm = Mm::new(&base);
    let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
    base.platform().faults().fail_nth(FaultSite::SlabAlloc, 1);
    let failed = mm.describe_frames::<ZpDesc>(frames, |_| ()).map(drop).unwrap_err();
    assert!(failed.cause.is_some());
    mm.memory().free_frozen(failed.frames);
    assert!(base.memory.census().is_consistent());
}

/// Owner and migration race for one page: it is with one at a time.
#[test]
fn of_a_claim_and_an_isolation_one_succeeds() {
    let base = base();
    let mm = Mm::new(&base);
    let frame = mm.let_migrate(page(&mm)).unwrap();
    let inside = std::sync::atomic::AtomicU32::new(0);
    let alone = || {
        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::Relaxed), 0, "two owners");
        inside.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            testing::set_cpu(1);
            for _ in 0..2000 {
                if let Ok(object) = mm.isolate_object::<MovableDesc>(frame) {
                    alone();
                    assert_eq!(mm.putback_object(object), Ok(PutBack::Returned));
                }
            }
        });
        for _ in 0..2000 {
            if let Ok(object) = mm.claim_object::<MovableDesc>(frame) {
                alone();
                mm.let_migrate(object).unwrap();
            }
        }
    });
    let object = mm.claim_object::<MovableDesc>(frame).unwrap();
    mm.memory().free_frozen(mm.undescribe_frames(object).unwrap());
    assert!(base.memory.census().is_consistent());
}
