//! What the stores need memory for, and what is left when there is none.

use guest_mm::rcu::Rcu;
use guest_mm::store::{
    BitmapStore, BlockState, CommitError, NoMemory, PfnStore, Reservation, Select, SplitError,
    SplitReservation, SplitShape, XArrayStore,
};
use guest_mm::xarray::Node;

use super::support::{HeapNodes, NoRam};
use super::{block, pfn, put, range};

/// Frames of a 1 GiB guest.
pub(super) const GIB: u64 = 1 << 18;

#[test]
fn a_cancelled_reservation_leaves_nothing_behind() {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let store = XArrayStore::new(&rcu, &nodes, range(0, GIB));
    put(&store, block(0, 10));
    drop(store.reserve().unwrap());
    store.trim();
    let (live, bytes) = (nodes.live(), store.bytes_used());
    drop(store.reserve().unwrap());
    store.trim();
    assert_eq!((nodes.live(), store.bytes_used()), (live, bytes));
    assert_eq!((store.blocks(), store.pages().get()), (1, 1024));
}

#[test]
fn a_refused_commit_leaves_nothing_behind() {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let store = XArrayStore::new(&rcu, &nodes, range(8, 64));
    put(&store, block(8, 2));
    store.trim();
    let live = nodes.live();
    for (wrong, error) in [
        (block(10, 0), CommitError::Occupied),
        (block(8, 3), CommitError::Occupied),
        (block(0, 3), CommitError::OutOfRange),
        (block(64, 0), CommitError::OutOfRange),
        (block((1 << 52) - 1, 0), CommitError::OutOfRange),
    ] {
        assert_eq!(store.reserve().unwrap().commit(wrong), Err(error));
    }
    store.trim();
    assert_eq!((nodes.live(), store.blocks()), (live, 1));
}

#[test]
fn reserve_fails_at_each_allocation_and_nothing_changes() {
    for n in 0.. {
        let nodes = HeapNodes::new();
        let rcu = Rcu::new();
        let store = XArrayStore::new(&rcu, &nodes, range(0, GIB));
        nodes.fail_after(n);
        match store.reserve() {
            Err(NoMemory) => {
                assert_eq!((nodes.live(), store.blocks(), store.bytes_used()), (0, 0, 0));
            }
            Ok(reservation) => {
                // Enough for the worst place: the far end of the range.
                nodes.fail_after(0);
                reservation.commit(block(GIB - 1, 0)).unwrap();
                assert!(n >= 3);
                return;
            }
        }
    }
}

#[test]
fn a_commit_needs_no_memory_whatever_happened_since_the_reservation() {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let store = XArrayStore::new(&rcu, &nodes, range(0, GIB));
    for head in [0, 70, 5000, GIB - 1] {
        put(&store, block(head, 0));
    }
    let reservation = store.reserve().unwrap();
    store.trim();
    nodes.fail_after(0);
    // The tree shrinks to its head, from where the way is longest.
    for head in [70, 5000, GIB - 1] {
        store.remove(pfn(head)).unwrap();
    }
    reservation.commit(block(GIB - 2, 1)).unwrap();
    assert_eq!(store.pages().get(), 3);
    store.array().validate().unwrap();
}

#[test]
fn deflation_needs_no_memory() {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let store = XArrayStore::new(&rcu, &nodes, range(0, GIB));
    for head in (0..GIB).step_by(1 << 13) {
        put(&store, block(head, 10));
        store.set_state(pfn(head), BlockState::Settled).unwrap();
    }
    nodes.fail_after(0);
    // One page out of the first block, by the node held back for it.
    let allocated = nodes.allocated();
    store.reserve_split(pfn(0), 0, SplitShape::Isolate).unwrap().commit().unwrap();
    assert_eq!(store.block_at(pfn(0)).unwrap().block, block(0, 0));
    while let Some(claimed) = store.claim(pfn(0)) {
        assert_eq!(store.remove(claimed.head()).unwrap().block, claimed);
    }
    assert_eq!((store.blocks(), store.pages().get()), (0, 0));
    assert_eq!(nodes.allocated(), allocated);
}

#[test]
fn a_split_without_memory_is_refused_and_the_block_stays_whole() {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let store = XArrayStore::new(&rcu, &nodes, range(0, GIB));
    put(&store, block(0, 10));
    store.trim();
    nodes.fail_after(0);
    for shape in [SplitShape::Uniform, SplitShape::Isolate] {
        let refused = store.reserve_split(pfn(5), 3, shape).err();
        assert_eq!(refused, Some(SplitError::NoMemory));
        // Within one level of the tree nothing is needed.
        assert!(store.reserve_split(pfn(5), 6, shape).is_ok());
    }
    assert_eq!(store.block_at(pfn(1023)).unwrap().block, block(0, 10));
    nodes.succeed();
    let split = store.reserve_split(pfn(5), 3, SplitShape::Uniform).unwrap();
    nodes.fail_after(0);
    split.commit().unwrap();
    assert_eq!(store.blocks(), 128);
}

#[test]
fn a_split_of_a_block_that_changed_is_refused() {
    let platform = NoRam;
    let mut words = vec![0; BitmapStore::<NoRam>::words_for(range(0, 4096)).unwrap()];
    let bitmap = BitmapStore::new(&platform, range(0, 4096), &mut words).unwrap();
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let xarray = XArrayStore::new(&rcu, &nodes, range(0, 4096));
    refuses_a_stale_split(&bitmap);
    refuses_a_stale_split(&xarray);
}

pub(super) fn refuses_a_stale_split(store: &impl PfnStore) {
    put(store, block(1024, 10));
    let split = store.reserve_split(pfn(1024), 9, SplitShape::Uniform).unwrap();
    store.remove(pfn(1024)).unwrap();
    put(store, block(1024, 9));
    assert!(split.commit().is_err());
    assert_eq!((store.blocks(), store.pages().get()), (1, 512));
    store.remove(pfn(1024)).unwrap();
}

#[test]
fn bytes_per_inflated_page_are_what_the_design_says() {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let per_page = |order: u32| {
        let store = XArrayStore::new(&rcu, &nodes, range(0, GIB));
        for head in (0..GIB).step_by(1 << order) {
            put(&store, block(head, order));
        }
        assert_eq!(store.pages().get(), GIB);
        store.bytes_used() as f64 / GIB as f64
    };
    assert!((9.0..9.4).contains(&per_page(0)));
    assert!((0.14..0.17).contains(&per_page(9)));
    assert!((0.14..0.17).contains(&per_page(10)));

    let platform = NoRam;
    let mut words = vec![0; BitmapStore::<NoRam>::words_for(range(0, GIB)).unwrap()];
    let bitmap = BitmapStore::new(&platform, range(0, GIB), &mut words).unwrap();
    assert_eq!(bitmap.bytes_used() as u64 * 4, GIB);
    assert_eq!(size_of::<Node>(), 576);
}

#[test]
fn a_bitmap_store_refuses_too_few_words() {
    let platform = NoRam;
    let wanted = BitmapStore::<NoRam>::words_for(range(7, 4096)).unwrap();
    assert_eq!(wanted, 128);
    let mut words = vec![0; wanted - 1];
    assert!(BitmapStore::new(&platform, range(7, 4096), &mut words).is_none());
}

#[test]
fn threads_that_inflate_and_deflate_at_once_leave_an_empty_store() {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let xarray = XArrayStore::new(&rcu, &nodes, range(0, 3 << 14));
    hammer(&xarray);
    xarray.array().validate().unwrap();
    let platform = NoRam;
    let mut words = vec![0; BitmapStore::<NoRam>::words_for(range(0, 3 << 14)).unwrap()];
    hammer(&BitmapStore::new(&platform, range(0, 3 << 14), &mut words).unwrap());
}

pub(super) fn hammer(store: &impl PfnStore) {
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            scope.spawn(move || {
                for round in 0..300u64 {
                    // Each thread has its own frames, all share the upper nodes.
                    let head = (((round * 7) % (1 << 14)) & !15) * 3 + thread * 16;
                    let own = block(head, u32::try_from(round % 5).unwrap());
                    put(store, own);
                    store.set_state(pfn(head), BlockState::Settled).unwrap();
                    assert_eq!(store.block_at(pfn(head)).unwrap().block, own);
                    if own.order() > 0 {
                        let split = store.reserve_split(pfn(head), 0, SplitShape::Uniform);
                        split.unwrap().commit().unwrap();
                    }
                    for frame in 0..own.pages().get() {
                        assert!(store.remove(pfn(head + frame)).is_some());
                    }
                }
            });
        }
    });
    assert_eq!((store.blocks(), store.pages().get()), (0, 0));
    assert_eq!(store.next(pfn(0), Select::Any), None);
}
