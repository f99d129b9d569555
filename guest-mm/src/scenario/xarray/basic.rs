//! Loads, stores, erasure, insertion, exchange, reservation, the life of nodes.

use crate::rcu::Rcu;
use crate::xarray::{AllocError, Content, InsertError, MAX_ORDER, Mark, RangeError};

use super::super::failure::{OrFail, ensure, ensure_eq};
use super::{Array, CountedNodes, Outcome, holds_only, value, with_array};

pub(super) fn xa_err_failures_are_errors_and_never_entries<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, nodes| {
        nodes.fail_after(0);
        // Index 0 needs no node, everything else does.
        ensure_eq!(array.store(0, value(0)), Ok(None));
        ensure!(array.store(1, value(1)).is_err());
        ensure_eq!(array.insert(1, value(1)), Err(InsertError::NoMemory));
        ensure_eq!(array.insert(0, value(1)), Err(InsertError::Occupied));
        ensure_eq!(array.alloc(1..=9, value(1)), Err(AllocError::NoMemory));
        ensure_eq!(array.alloc(0..=0, value(1)), Err(AllocError::Full));
        ensure_eq!(array.store_range(1..=9, value(1)), Err(RangeError::NoMemory));
        ensure_eq!((array.load(0), array.load(1)), (Some(value(0)), None));
        nodes.succeed();
        ensure_eq!(array.store(1, value(1)), Ok(None));
        ensure_eq!(array.store(1, value(2)), Ok(Some(value(1))));
        Ok(())
    })
}

pub(super) fn xas_retry_a_cursor_in_a_node_that_died_starts_again<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        array.store(0, value(0)).or_fail()?;
        array.store(1, value(1)).or_fail()?;
        let guard = array.rcu().read(0);
        let mut cursor = array.cursor(&guard, 0);
        ensure_eq!(cursor.load(), Content::Entry(value(0)));
        // The leaf becomes the head entry, then a part of another tree.
        array.erase(1);
        array.store(1 << 20, value(2)).or_fail()?;
        ensure_eq!(cursor.load(), Content::Entry(value(0)));
        ensure_eq!(cursor.advance(), Some(Content::Empty));
        array.store(2, value(3)).or_fail()?;
        ensure_eq!(cursor.advance(), Some(Content::Entry(value(3))));
        drop(guard);
        ensure_eq!(array.reclaim(), 0);
        Ok(())
    })
}

pub(super) fn xas_retry_nodes_wait_for_the_readers_that_may_see_them<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, nodes| {
        array.store(77, value(1)).or_fail()?;
        let live = nodes.live();
        let guard = array.rcu().read(0);
        array.erase(77);
        ensure_eq!((nodes.live(), array.usage().nodes), (live, 0));
        ensure_eq!(array.reclaim(), live);
        drop(guard);
        ensure_eq!((array.reclaim(), nodes.live()), (0, 0));
        Ok(())
    })
}

pub(super) fn xa_load_finds_exactly_what_was_stored<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for n in 0..1024 {
            for index in 0..1024 {
                if n % 64 == 0 {
                    ensure_eq!(array.load(index), (index < n).then(|| value(index)));
                }
            }
            ensure_eq!(array.store(n, value(n)), Ok(None));
        }
        for n in (0..1024).rev() {
            ensure_eq!(array.erase(n), Some(value(n)));
            ensure_eq!(array.load(n), None);
        }
        ensure!(array.is_empty());
        Ok(())
    })
}

pub(super) fn xa_load_works_at_the_last_index<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        array.store(u64::MAX, value(1)).or_fail()?;
        array.store(u64::MAX - 1, value(2)).or_fail()?;
        ensure_eq!(array.load(u64::MAX), Some(value(1)));
        ensure_eq!(array.find(u64::MAX..=u64::MAX).or_fail()?.index, u64::MAX);
        ensure!(holds_only(array, &[u64::MAX - 1, u64::MAX]));
        ensure_eq!(array.find_back(u64::MAX).or_fail()?.index, u64::MAX);
        ensure_eq!(array.find(0..=u64::MAX - 2), None);
        let guard = array.rcu().read(0);
        let mut cursor = array.cursor(&guard, u64::MAX);
        ensure_eq!(cursor.advance(), None);
        ensure_eq!(cursor.pause().next(), None);
        Ok(())
    })
}

pub(super) fn xa_shrink_lowers_the_tree_as_far_as_the_entries_allow<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        array.store(0, value(0)).or_fail()?;
        ensure_eq!(array.usage().nodes, 0);
        for (index, nodes) in [(1, 1), (64, 3), (1 << 12, 5), (1 << 18, 7)] {
            array.store(index, value(1)).or_fail()?;
            ensure_eq!(array.usage().nodes, nodes);
            array.erase(index);
            ensure_eq!(array.usage().nodes, 0);
            ensure_eq!(array.load(0), Some(value(0)));
        }
        // An entry that covers a whole node stays in the node above.
        array.store_order(0, 6, value(6)).or_fail()?;
        ensure_eq!(array.usage().nodes, 1);
        ensure_eq!(array.load(63), Some(value(6)));
        Ok(())
    })
}

pub(super) fn xas_erase_takes_the_whole_entry_wherever_it_is_hit<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        for order in [0, 1, 5, 6, 7, 12, 20, 40, MAX_ORDER] {
            for offset in [0, 1, u64::MAX] {
                let base = 1u64 << order;
                let index = base + (offset & (base - 1));
                array.store_order(base, order, value(1)).or_fail()?;
                ensure_eq!(array.erase(index), Some(value(1)));
                ensure!(array.is_empty());
                ensure_eq!(array.erase(index), None);
            }
        }
        Ok(())
    })
}

pub(super) fn insert_refuses_any_overlap<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        array.insert_order(8, 2, value(1)).or_fail()?;
        for index in 8..12 {
            ensure_eq!(array.insert(index, value(2)), Err(InsertError::Occupied));
        }
        ensure_eq!(array.insert_order(0, 4, value(2)), Err(InsertError::Occupied));
        ensure_eq!(array.insert_order(9, 1, value(2)), Err(InsertError::Occupied));
        array.insert_order(0, 3, value(3)).or_fail()?;
        array.insert(12, value(4)).or_fail()?;
        ensure!(holds_only(array, &[0, 8, 12]));
        Ok(())
    })
}

pub(super) fn cmpxchg_stores_on_a_match_only<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        let entry = |n| Content::Entry(value(n));
        let exchange = |index, old, new| array.compare_exchange(index, old, new).or_fail();
        ensure_eq!(exchange(12345, entry(1), entry(2))?, Content::Empty);
        ensure!(array.is_empty());
        ensure_eq!(exchange(12345, Content::Empty, entry(1))?, Content::Empty);
        ensure_eq!(exchange(12345, Content::Empty, entry(2))?, entry(1));
        ensure_eq!(exchange(12345, entry(1), entry(2))?, entry(1));
        ensure_eq!(array.load(12345), Some(value(2)));
        ensure_eq!(exchange(12345, entry(2), Content::Empty)?, entry(2));
        ensure!(array.is_empty());
        Ok(())
    })
}

pub(super) fn reserve_holds_a_place_that_reads_as_empty<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, nodes| {
        for index in [0, 12_345_678, u64::MAX] {
            array.reserve(index).or_fail()?;
            ensure!(!array.is_empty());
            ensure_eq!((array.load(index), array.content(index)), (None, Content::Reserved));
            ensure_eq!(array.insert(index, value(1)), Err(InsertError::Occupied));
            ensure_eq!(array.reserve(index), Err(InsertError::Occupied));
            ensure!(!array.set_mark(index, Mark::M0));
            ensure_eq!(array.find(0..=u64::MAX), None);
            // Empty and reserved are not the same to an exchange.
            let there = array.compare_exchange(index, Content::Empty, Content::Entry(value(1)));
            ensure_eq!(there, Ok(Content::Reserved));
            array.release(index);
            ensure!(array.is_empty());

            // A store to the place needs no memory, and release then leaves it alone.
            array.reserve(index).or_fail()?;
            nodes.fail_after(0);
            ensure_eq!(array.store(index, value(2)), Ok(None));
            nodes.succeed();
            array.release(index);
            ensure_eq!(array.load(index), Some(value(2)));
            ensure_eq!(array.erase(index), Some(value(2)));
        }
        Ok(())
    })
}

pub(super) fn reserve_is_passed_over_by_allocation<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        array.reserve(0).or_fail()?;
        array.reserve(2).or_fail()?;
        ensure_eq!(array.alloc(0..=9, value(1)), Ok(1));
        ensure_eq!(array.alloc(0..=9, value(1)), Ok(3));
        // Removal of the last entry leaves the reservations.
        array.erase(1);
        array.erase(3);
        ensure_eq!(array.content(2), Content::Reserved);
        array.release(0);
        array.release(2);
        ensure!(array.is_empty());
        Ok(())
    })
}

pub(super) fn destroy_frees_every_node_of_any_tree<N: CountedNodes>(nodes: N) -> Outcome {
    for indices in [&[0][..], &[0, 1], &[1 << 40], &[5, 1 << 30, u64::MAX]] {
        let rcu = Rcu::new();
        let array = Array::new(&rcu, nodes);
        for &index in indices {
            array.store(index, value(index)).or_fail()?;
        }
        array.store_order(1 << 50, 12, value(1)).or_fail()?;
        // A reader of something else in the domain does not hold the drop up.
        let _guard = rcu.read(0);
        drop(array);
        ensure_eq!(nodes.live(), 0);
    }
    Ok(())
}
