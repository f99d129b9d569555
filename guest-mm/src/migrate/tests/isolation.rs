//! Which pages can be had, and why the others cannot.

use super::*;
use crate::errno::Errno;
use crate::memdesc::{BlockKind, Hold, Kind, LookupError, OutOfMap, Word};
use crate::memory::Memory;

fn refused(mm: &TestMm<'_>, pfn: Pfn) -> IsolateError {
    let mut batch = MigrateBatch::<_>::new(mm);
    let error = mm.isolate_for_migration(pfn, &mut batch).unwrap_err();
    assert!(batch.is_empty());
    assert!(!error.to_string().is_empty());
    error
}

#[test]
fn frames_that_do_not_move_are_refused_by_name() {
    with_mm(|mm| {
        let memory: &Memory<_> = mm.memory();
        let beyond = Pfn::new(1 << 40).unwrap();
        let out = IsolateError::Lookup(LookupError::OutOfMap(OutOfMap(beyond)));
        assert_eq!(refused(mm, beyond), out);
        assert_eq!(out.errno(), Errno::EINVAL);

        let mut frames = memory.alloc_frozen(Order::new(2).unwrap(), Gfp::KERNEL).unwrap();
        let head = frames.head();
        assert_eq!(refused(mm, head), IsolateError::Immovable(Kind::Frozen));
        assert_eq!(refused(mm, head).errno(), Errno::EBUSY);
        let inside = head.checked_add(abi::PageCount::new(3)).unwrap();
        assert_eq!(refused(mm, inside), IsolateError::Tail(head));
        memory.retype(&mut frames, BlockKind::Driver).unwrap();
        assert_eq!(refused(mm, head), IsolateError::Immovable(Kind::Driver));
        memory.free_frozen(frames);
        let free = refused(mm, head);
        assert!(matches!(free, IsolateError::Free(Kind::Pcp | Kind::Buddy)), "{free:?}");
        memory.drain();
        let (head, _) = memory.words().head_of(head).unwrap();
        assert_eq!(refused(mm, head), IsolateError::Free(Kind::Buddy));

        assert_eq!(refused(mm, mm.base().zero_page), IsolateError::Immovable(Kind::Zero));
        let frames = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
        let transit = memory.put_in_transit(frames).unwrap();
        assert_eq!(refused(mm, transit.head()), IsolateError::Immovable(Kind::Transit));
        memory.free_frozen(memory.take_out_of_transit(transit).unwrap());
    });
}

#[test]
fn reserved_frames_slabs_and_unknown_words_are_refused() {
    let ram = testing::range(0, 1024);
    let memory = testing::memory_of(&[ram], &[testing::range(0, 16)]);
    let base = Base::new(memory).unwrap();
    let mm = Mm::new(&base);
    assert_eq!(refused(&mm, Pfn::ZERO), IsolateError::Immovable(Kind::Reserved));
    let pinned = described::<MovableDesc>(&mm);
    let slab = ram
        .iter()
        .find(|&pfn| mm.memory().words().load(pfn).is_ok_and(|word| word.kind() == Ok(Kind::Slab)));
    assert_eq!(refused(&mm, slab.unwrap()), IsolateError::Immovable(Kind::Slab));
    let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
    let stray = Word::from_bits(6 | 1 << 30);
    let cell = core::ptr::from_ref(mm.memory().words().cell(frames.head()).unwrap());
    // SAFETY: a cell is an atomic number and nothing else.
    let cell = unsafe { &*cell.cast::<core::sync::atomic::AtomicU64>() };
    cell.store(stray.bits(), Ordering::Relaxed);
    let before = mm.memory().words().unknown_words();
    assert!(matches!(
        refused(&mm, frames.head()),
        IsolateError::Lookup(LookupError::Unknown(found)) if found.0 == stray
    ));
    assert_eq!(mm.memory().words().unknown_words(), before + 1, "it is counted");
    free(&mm, MovableKind::Movable, pinned);
}

#[test]
fn pages_that_somebody_holds_are_refused_with_who() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Movable, &[]);
        Script::register(mm, MovableKind::Offline, &[]);
        let pfn = described::<MovableDesc>(mm);
        let held = mm.claim_object::<MovableDesc>(pfn).unwrap();
        assert_eq!(refused(mm, pfn), IsolateError::Held(Kind::Movable, Hold::Held));
        mm.let_migrate(held).unwrap();
        let batch = batch_of(mm, &[pfn]);
        assert_eq!(refused(mm, pfn), IsolateError::Held(Kind::Movable, Hold::Isolated));
        drop(batch);
        free(mm, MovableKind::Movable, pfn);

        // A balloon's page whose buffer the host has not returned.
        let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::MOVABLE).unwrap();
        let block = mm.memory().make_offline(frames, DriverId::BALLOON).unwrap();
        assert_eq!(refused(mm, block.head()), IsolateError::Held(Kind::Offline, Hold::Held));
        let pfn = mm.memory().park(block).unwrap();
        assert_eq!(refused(mm, pfn), IsolateError::Held(Kind::Offline, Hold::Parked));
        free(mm, MovableKind::Offline, pfn);
    });
}

#[test]
fn a_kind_without_operations_stays_where_it_is() {
    for kind in MovableKind::ALL {
        with_mm(|mm| {
            let pfn = page(mm, kind);
            assert_eq!(refused(mm, pfn), IsolateError::NoOps(kind));
            free(mm, kind, pfn);
        });
    }
}

#[test]
fn an_owner_that_refuses_keeps_its_page_movable() {
    with_mm(|mm| {
        let script = Script::register(mm, MovableKind::ZpDesc, &[]);
        *script.refuses.lock().unwrap() = true;
        let pfn = described::<ZpDesc>(mm);
        assert_eq!(refused(mm, pfn), IsolateError::Refused(MovableKind::ZpDesc));
        assert_eq!(script.told(), [Told::Isolate(pfn)]);
        mm.clear_movable_ops(Kind::ZpDesc).expect("no guard is left");
        free(mm, MovableKind::ZpDesc, pfn);
    });
}

#[test]
fn other_drivers_tags_are_not_isolated_as_ones_own() {
    with_mm(|mm| {
        // Operations for one kind do not move another's pages.
        Script::register(mm, MovableKind::Movable, &[]);
        let pfn = described::<ZpDesc>(mm);
        assert_eq!(refused(mm, pfn), IsolateError::NoOps(MovableKind::ZpDesc));
        free(mm, MovableKind::ZpDesc, pfn);
    });
}
