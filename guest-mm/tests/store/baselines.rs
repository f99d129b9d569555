//! The stores that are there to be measured: what they need memory for, and what is left when there is none.

use guest_mm::rcu::Rcu;
use guest_mm::store::{
    BlockState, CommitError, IdaStore, Leaf, ListStore, NoMemory, PfnStore, Record, Reservation,
    SplitError, SplitReservation, SplitShape,
};
use guest_mm::xarray::Node;

use super::failure::{GIB, hammer, refuses_a_stale_split};
use super::support::{HeapNodes, NoRam};
use super::{block, pfn, put, range};

#[test]
fn an_ida_reservation_fails_at_each_allocation_and_nothing_changes() {
    for n in 0.. {
        let heap = HeapNodes::new();
        let rcu = Rcu::new();
        let store = IdaStore::new(&rcu, &heap, &heap, range(0, GIB));
        heap.fail_after(n);
        match store.reserve() {
            Err(NoMemory) => {
                assert_eq!((heap.live(), store.blocks(), store.bytes_used()), (0, 0, 0));
            }
            Ok(reservation) => {
                // Enough for the worst place: the far end of the range.
                heap.fail_after(0);
                reservation.commit(block(GIB - 1, 0)).unwrap();
                // The leaf, and nodes.
                assert!(n >= 2, "{n}");
                return;
            }
        }
    }
}

#[test]
fn an_ida_commit_needs_no_memory_whatever_happened_since_the_reservation() {
    let heap = HeapNodes::new();
    let rcu = Rcu::new();
    let store = IdaStore::new(&rcu, &heap, &heap, range(0, GIB));
    for head in [0, 70_000, GIB - 1] {
        put(&store, block(head, 0));
    }
    let reservation = store.reserve().unwrap();
    store.trim();
    heap.fail_after(0);
    for head in [70_000, GIB - 1] {
        store.remove(pfn(head)).unwrap();
    }
    store.trim();
    reservation.commit(block(GIB - 2, 1)).unwrap();
    assert_eq!(store.pages().get(), 3);
    store.array().validate().unwrap();
}

#[test]
fn deflation_of_an_ida_store_needs_no_memory() {
    let heap = HeapNodes::new();
    let rcu = Rcu::new();
    let store = IdaStore::new(&rcu, &heap, &heap, range(0, GIB));
    for head in (0..GIB).step_by(1 << 13) {
        put(&store, block(head, 10));
        store.set_state(pfn(head), BlockState::Settled).unwrap();
    }
    heap.fail_after(0);
    let allocated = heap.allocated();
    for (head, shape) in [(0, SplitShape::Isolate), (1 << 13, SplitShape::Uniform)] {
        store.reserve_split(pfn(head), 0, shape).unwrap().commit().unwrap();
        assert_eq!(store.block_at(pfn(head)).unwrap().block, block(head, 0));
    }
    while let Some(claimed) = store.claim(pfn(0)) {
        assert_eq!(store.remove(claimed.head()).unwrap().block, claimed);
    }
    assert_eq!((store.blocks(), store.pages().get()), (0, 0));
    assert_eq!(heap.allocated(), allocated);
}

#[test]
fn a_list_reservation_needs_a_record_and_leaves_nothing_without() {
    let heap = HeapNodes::new();
    let platform = NoRam;
    let store = ListStore::new(&platform, &heap, range(0, GIB));
    put(&store, block(0, 10));
    heap.fail_after(0);
    assert_eq!(store.reserve().err(), Some(NoMemory));
    assert_eq!((heap.live(), store.blocks()), (1, 1));
    heap.fail_after(1);
    let reservation = store.reserve().unwrap();
    reservation.commit(block(GIB - 1, 0)).unwrap();
    heap.fail_after(0);
    store.remove(pfn(0)).unwrap();
    store.remove(pfn(GIB - 1)).unwrap();
    assert_eq!((heap.live(), store.blocks(), store.bytes_used()), (0, 0, 0));
}

#[test]
fn a_list_split_fails_at_each_allocation_and_the_block_stays_whole() {
    for shape in [SplitShape::Isolate, SplitShape::Uniform] {
        let heap = HeapNodes::new();
        let platform = NoRam;
        let store = ListStore::new(&platform, &heap, range(0, GIB));
        put(&store, block(1024, 10));
        let mut needed = 0;
        for n in 0.. {
            heap.fail_after(n);
            match store.reserve_split(pfn(1024 + 5), 7, shape) {
                Err(error) => {
                    assert_eq!(error, SplitError::NoMemory);
                    assert_eq!(store.block_at(pfn(2047)).unwrap().block, block(1024, 10));
                    assert_eq!(heap.live(), 1, "what it had taken is given back");
                }
                Ok(split) => {
                    heap.fail_after(0);
                    split.commit().unwrap();
                    needed = n;
                    break;
                }
            }
        }
        let pieces = store.blocks();
        assert_eq!((pieces, store.pages().get()), (needed as u64 + 1, 1024));
        assert_eq!(pieces, if shape == SplitShape::Isolate { 4 } else { 8 });
    }
}

#[test]
fn a_cancelled_or_refused_reservation_leaves_nothing_behind() {
    fn check(store: &impl PfnStore, trim: impl Fn(), heap: &HeapNodes) {
        put(store, block(8, 2));
        trim();
        let (live, bytes) = (heap.live(), store.bytes_used());
        drop(store.reserve().unwrap());
        for (wrong, error) in [
            (block(10, 0), CommitError::Occupied),
            (block(8, 3), CommitError::Occupied),
            (block(0, 3), CommitError::OutOfRange),
            (block(64, 0), CommitError::OutOfRange),
            (block((1 << 52) - 1, 0), CommitError::OutOfRange),
        ] {
            assert_eq!(store.reserve().unwrap().commit(wrong), Err(error));
        }
        trim();
        assert_eq!((heap.live(), store.bytes_used(), store.blocks()), (live, bytes, 1));
    }
    let heap = HeapNodes::new();
    let (platform, rcu) = (NoRam, Rcu::new());
    let ida = IdaStore::new(&rcu, &heap, &heap, range(8, 64));
    check(&ida, || ida.trim(), &heap);
    drop(ida);
    let list = ListStore::new(&platform, &heap, range(8, 64));
    check(&list, || (), &heap);
}

#[test]
fn a_split_of_a_block_that_changed_is_refused() {
    let heap = HeapNodes::new();
    let (platform, rcu) = (NoRam, Rcu::new());
    refuses_a_stale_split(&ListStore::new(&platform, &heap, range(0, 4096)));
    refuses_a_stale_split(&IdaStore::new(&rcu, &heap, &heap, range(0, 4096)));
}

#[test]
fn a_store_that_is_dropped_full_gives_its_memory_back() {
    // Heaps fail a test in which something is left over.
    let heap = HeapNodes::new();
    let (platform, rcu) = (NoRam, Rcu::new());
    let list = ListStore::new(&platform, &heap, range(0, GIB));
    let ida = IdaStore::new(&rcu, &heap, &heap, range(0, GIB));
    for head in (0..GIB).step_by(3000) {
        put(&list, block(head, 0));
        put(&ida, block(head, 0));
    }
    assert!(heap.live() > 100);
}

#[test]
fn bytes_per_inflated_page_are_what_the_design_says() {
    let heap = HeapNodes::new();
    let (platform, rcu) = (NoRam, Rcu::new());
    let list = ListStore::new(&platform, &heap, range(0, GIB));
    let ida = IdaStore::new(&rcu, &heap, &heap, range(0, GIB));
    for head in 0..GIB {
        put(&list, block(head, 0));
        put(&ida, block(head, 0));
    }
    let per_page = |bytes: usize| bytes as f64 / GIB as f64;
    assert_eq!(size_of::<Record>(), 32);
    assert!((per_page(list.bytes_used()) - 32.0).abs() < 1e-9);
    // Two bits a frame, five nodes for 256 leaves, and what waits for the next reservation.
    let nodes = per_page(10 * size_of::<Node>() + size_of::<Leaf>());
    assert!((0.25..=0.25 + nodes).contains(&per_page(ida.bytes_used())));
}

#[test]
fn threads_that_inflate_and_deflate_at_once_leave_an_empty_store() {
    let heap = HeapNodes::new();
    let (platform, rcu) = (NoRam, Rcu::new());
    let ida = IdaStore::new(&rcu, &heap, &heap, range(0, 3 << 14));
    hammer(&ida);
    ida.array().validate().unwrap();
    hammer(&ListStore::new(&platform, &heap, range(0, 3 << 14)));
}
