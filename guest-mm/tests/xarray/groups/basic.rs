//! Loads, stores, erasure, insertion, exchange, reservation, the life of nodes.

use guest_mm::rcu::Rcu;
use guest_mm::xarray::{AllocError, Content, InsertError, MAX_ORDER, Mark, RangeError};

use super::{indices, with_array};
use crate::support::HeapNodes;
use crate::{Array, value};

#[test]
fn xa_err_failures_are_errors_and_never_entries() {
    with_array(|array, nodes| {
        nodes.fail_after(0);
        // Index 0 needs no node, everything else does.
        assert_eq!(array.store(0, value(0)), Ok(None));
        assert!(array.store(1, value(1)).is_err());
        assert_eq!(array.insert(1, value(1)), Err(InsertError::NoMemory));
        assert_eq!(array.insert(0, value(1)), Err(InsertError::Occupied));
        assert_eq!(array.alloc(1..=9, value(1)), Err(AllocError::NoMemory));
        assert_eq!(array.alloc(0..=0, value(1)), Err(AllocError::Full));
        assert_eq!(array.store_range(1..=9, value(1)), Err(RangeError::NoMemory));
        assert_eq!((array.load(0), array.load(1)), (Some(value(0)), None));
        nodes.succeed();
        assert_eq!(array.store(1, value(1)), Ok(None));
        assert_eq!(array.store(1, value(2)), Ok(Some(value(1))));
    });
}

#[test]
fn xas_retry_a_cursor_in_a_node_that_died_starts_again() {
    with_array(|array, _| {
        array.store(0, value(0)).unwrap();
        array.store(1, value(1)).unwrap();
        let guard = array.rcu().read(0);
        let mut cursor = array.cursor(&guard, 0);
        assert_eq!(cursor.load(), Content::Entry(value(0)));
        // The leaf becomes the head entry, then a part of another tree.
        array.erase(1);
        array.store(1 << 20, value(2)).unwrap();
        assert_eq!(cursor.load(), Content::Entry(value(0)));
        assert_eq!(cursor.advance(), Some(Content::Empty));
        array.store(2, value(3)).unwrap();
        assert_eq!(cursor.advance(), Some(Content::Entry(value(3))));
        drop(guard);
        assert_eq!(array.reclaim(), 0);
    });
}

#[test]
fn xas_retry_nodes_wait_for_the_readers_that_may_see_them() {
    with_array(|array, nodes| {
        array.store(77, value(1)).unwrap();
        let live = nodes.live();
        let guard = array.rcu().read(0);
        array.erase(77);
        assert_eq!((nodes.live(), array.usage().nodes), (live, 0));
        assert_eq!(array.reclaim(), live);
        drop(guard);
        assert_eq!((array.reclaim(), nodes.live()), (0, 0));
    });
}

#[test]
fn xa_load_finds_exactly_what_was_stored() {
    with_array(|array, _| {
        for n in 0..1024 {
            for index in 0..1024 {
                if n % 64 == 0 {
                    assert_eq!(array.load(index), (index < n).then(|| value(index)));
                }
            }
            assert_eq!(array.store(n, value(n)), Ok(None));
        }
        for n in (0..1024).rev() {
            assert_eq!(array.erase(n), Some(value(n)));
            assert_eq!(array.load(n), None);
        }
        assert!(array.is_empty());
    });
}

#[test]
fn xa_load_works_at_the_last_index() {
    with_array(|array, _| {
        array.store(u64::MAX, value(1)).unwrap();
        array.store(u64::MAX - 1, value(2)).unwrap();
        assert_eq!(array.load(u64::MAX), Some(value(1)));
        assert_eq!(array.find(u64::MAX..=u64::MAX).unwrap().index, u64::MAX);
        assert_eq!(indices(array), [u64::MAX - 1, u64::MAX]);
        assert_eq!(array.find_back(u64::MAX).unwrap().index, u64::MAX);
        assert_eq!(array.find(0..=u64::MAX - 2), None);
        let guard = array.rcu().read(0);
        let mut cursor = array.cursor(&guard, u64::MAX);
        assert_eq!(cursor.advance(), None);
        assert_eq!(cursor.pause().next(), None);
    });
}

#[test]
fn xa_shrink_lowers_the_tree_as_far_as_the_entries_allow() {
    with_array(|array, _| {
        array.store(0, value(0)).unwrap();
        assert_eq!(array.usage().nodes, 0);
        for (index, nodes) in [(1, 1), (64, 3), (1 << 12, 5), (1 << 18, 7)] {
            array.store(index, value(1)).unwrap();
            assert_eq!(array.usage().nodes, nodes, "{index}");
            array.erase(index);
            assert_eq!(array.usage().nodes, 0, "{index}");
            assert_eq!(array.load(0), Some(value(0)));
        }
        // An entry that covers a whole node stays in the node above.
        array.store_order(0, 6, value(6)).unwrap();
        assert_eq!(array.usage().nodes, 1);
        assert_eq!(array.load(63), Some(value(6)));
    });
}

#[test]
fn xas_erase_takes_the_whole_entry_wherever_it_is_hit() {
    with_array(|array, _| {
        for order in [0, 1, 5, 6, 7, 12, 20, 40, MAX_ORDER] {
            for offset in [0, 1, u64::MAX] {
                let base = 1u64 << order;
                let index = base + (offset & (base - 1));
                array.store_order(base, order, value(1)).unwrap();
                assert_eq!(array.erase(index), Some(value(1)));
                assert!(array.is_empty());
                assert_eq!(array.erase(index), None);
            }
        }
    });
}

#[test]
fn insert_refuses_any_overlap() {
    with_array(|array, _| {
        array.insert_order(8, 2, value(1)).unwrap();
        for index in 8..12 {
            assert_eq!(array.insert(index, value(2)), Err(InsertError::Occupied));
        }
        assert_eq!(array.insert_order(0, 4, value(2)), Err(InsertError::Occupied));
        assert_eq!(array.insert_order(9, 1, value(2)), Err(InsertError::Occupied));
        array.insert_order(0, 3, value(3)).unwrap();
        array.insert(12, value(4)).unwrap();
        assert_eq!(indices(array), [0, 8, 12]);
    });
}

#[test]
fn cmpxchg_stores_on_a_match_only() {
    with_array(|array, _| {
        let entry = |n| Content::Entry(value(n));
        let exchange = |index, old, new| array.compare_exchange(index, old, new).unwrap();
        assert_eq!(exchange(12345, entry(1), entry(2)), Content::Empty);
        assert!(array.is_empty());
        assert_eq!(exchange(12345, Content::Empty, entry(1)), Content::Empty);
        assert_eq!(exchange(12345, Content::Empty, entry(2)), entry(1));
        assert_eq!(exchange(12345, entry(1), entry(2)), entry(1));
        assert_eq!(array.load(12345), Some(value(2)));
        assert_eq!(exchange(12345, entry(2), Content::Empty), entry(2));
        assert!(array.is_empty());
    });
}

#[test]
fn reserve_holds_a_place_that_reads_as_empty() {
    with_array(|array, nodes| {
        for index in [0, 12_345_678, u64::MAX] {
            array.reserve(index).unwrap();
            assert!(!array.is_empty());
            assert_eq!((array.load(index), array.content(index)), (None, Content::Reserved));
            assert_eq!(array.insert(index, value(1)), Err(InsertError::Occupied));
            assert_eq!(array.reserve(index), Err(InsertError::Occupied));
            assert!(!array.set_mark(index, Mark::M0));
            assert_eq!(array.find(0..=u64::MAX), None);
            // Empty and reserved are not the same to an exchange.
            let there = array.compare_exchange(index, Content::Empty, Content::Entry(value(1)));
            assert_eq!(there, Ok(Content::Reserved));
            array.release(index);
            assert!(array.is_empty());

            // A store to the place needs no memory, and release then leaves it alone.
            array.reserve(index).unwrap();
            nodes.fail_after(0);
            assert_eq!(array.store(index, value(2)), Ok(None));
            nodes.succeed();
            array.release(index);
            assert_eq!(array.load(index), Some(value(2)));
            assert_eq!(array.erase(index), Some(value(2)));
        }
    });
}

#[test]
fn reserve_is_passed_over_by_allocation() {
    with_array(|array, _| {
        array.reserve(0).unwrap();
        array.reserve(2).unwrap();
        assert_eq!(array.alloc(0..=9, value(1)), Ok(1));
        assert_eq!(array.alloc(0..=9, value(1)), Ok(3));
        // Removal of the last entry leaves the reservations.
        array.erase(1);
        array.erase(3);
        assert_eq!(array.content(2), Content::Reserved);
        array.release(0);
        array.release(2);
        assert!(array.is_empty());
    });
}

#[test]
fn destroy_frees_every_node_of_any_tree() {
    for indices in [vec![0], vec![0, 1], vec![1 << 40], vec![5, 1 << 30, u64::MAX]] {
        let nodes = HeapNodes::new();
        let rcu = Rcu::new();
        let array = Array::new(&rcu, &nodes);
        for &index in &indices {
            array.store(index, value(index)).unwrap();
        }
        array.store_order(1 << 50, 12, value(1)).unwrap();
        // A reader of something else in the domain does not hold the drop up.
        let _guard = rcu.read(0);
        drop(array);
        assert_eq!(nodes.live(), 0);
    }
}
