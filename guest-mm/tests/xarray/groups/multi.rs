//! Entries of many indices: storing, orders, splitting.

use std::ptr::NonNull;

use guest_mm::rcu::Rcu;
use guest_mm::xarray::{Content, Entry, Found, MAX_ORDER, Mark, Value, XArray};

use super::with_array;
use crate::support::HeapNodes;
use crate::value;

#[test]
fn cmpxchg_order_replaces_a_multi_index_entry_as_a_whole() {
    with_array(|array, _| {
        let entry = |n| Content::Entry(value(n));
        array.store_order(0, 9, value(1)).unwrap();
        assert_eq!(array.compare_exchange(300, entry(1), entry(2)), Ok(entry(1)));
        assert_eq!(array.find(0..=0), Some(Found { index: 0, order: 9, entry: value(2) }));
        assert_eq!(array.compare_exchange(511, entry(2), Content::Empty), Ok(entry(2)));
        assert!(array.is_empty());
    });
}

#[test]
fn multi_store_covers_its_block_and_nothing_else() {
    with_array(|array, _| {
        for order in 0..=MAX_ORDER {
            let size = 1u64 << order;
            let base = size.wrapping_mul(2) & (u64::MAX << order);
            array.store_order(base, order, value(3)).unwrap();
            assert_eq!(array.load(base), Some(value(3)));
            assert_eq!(array.load(base + (size - 1)), Some(value(3)));
            assert_eq!(array.load(base.wrapping_sub(1)), None);
            assert_eq!(array.load(base.wrapping_add(size)), None);
            assert_eq!(array.validate().unwrap().entries, 1);
            array.erase(base + size / 2);
            assert!(array.is_empty(), "order {order}");
        }
    });
}

#[test]
fn multi_store_over_smaller_and_larger_entries_replaces_them_whole() {
    with_array(|array, _| {
        for (low, high) in [(0, 1), (1, 6), (3, 9), (6, 10), (0, 12), (11, 13)] {
            // Larger over smaller ones.
            for n in 0..4u64 {
                array.store_order(n << low, low, value(n)).unwrap();
            }
            let old = array.store_order(1 << low, high.max(low + 2), value(9)).unwrap();
            assert_eq!(old, Some(value(1)));
            assert_eq!(array.validate().unwrap().entries, 1);
            // Smaller into larger: the entry keeps its order.
            let old = array.store_order(3 << low, low, value(10)).unwrap();
            assert_eq!(old, Some(value(9)));
            assert_eq!(array.order_at(0), Some(high.max(low + 2)));
            assert_eq!(array.load(0), Some(value(10)));
            array.clear();
        }
    });
}

#[test]
fn multi_store_counts_values_and_pointers_apart() {
    // `validate` compares each node's number of values with its slots.
    let object = 0u64;
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let array = XArray::<_, u64>::new(&rcu, &nodes);
    let pointer = Entry::Pointer(NonNull::from(&object));
    for order in [0, 2, 5, 6, 8] {
        array.store_order(0, order, pointer).unwrap();
        array.validate().unwrap();
        array.store_order(0, order, Entry::Value(Value::MAX)).unwrap();
        array.validate().unwrap();
        array.store_order(0, order, pointer).unwrap();
        array.validate().unwrap();
        assert_eq!(array.load(0).unwrap().as_pointer(), Some(NonNull::from(&object)));
        array.clear();
    }
}

#[test]
fn multi_store_advanced_ranges_and_entries_mix_freely() {
    with_array(|array, _| {
        for (first, last) in [(0, 0), (1, 1), (0, 63), (3, 200), (63, 4097), (4095, 4096)] {
            array.store_range(first..=last, value(1)).unwrap();
            array.validate().unwrap();
            array.store_order(last, 3, value(2)).unwrap();
            array.validate().unwrap();
            assert_eq!(array.load(last), Some(value(2)));
            array.store_order(first, 12, value(3)).unwrap();
            array.validate().unwrap();
            array.erase(first);
            array.erase_range(0..=u64::MAX);
            assert!(array.is_empty());
        }
    });
}

#[test]
fn get_order_is_the_same_at_every_index_of_an_entry() {
    with_array(|array, _| {
        assert_eq!(array.order_at(0), None);
        for order in 0..20 {
            let base = 3u64 << order;
            array.store_order(base, order, value(1)).unwrap();
            for index in [base, base + (1 << order) / 2, base + (1 << order) - 1] {
                assert_eq!(array.order_at(index), Some(order));
            }
            assert_eq!(array.order_at(base - 1), None);
            assert_eq!(array.order_at(base + (1 << order)), None);
            array.erase(base);
        }
    });
}

#[test]
fn xas_get_order_comes_with_every_entry_found() {
    with_array(|array, _| {
        for order in 0..20u32 {
            array.store_order(1 << (order + 1), order, value(u64::from(order))).unwrap();
        }
        let guard = array.rcu().read(0);
        for (found, order) in array.entries(&guard, 0..=u64::MAX).zip(0..) {
            assert_eq!((found.index, found.order), (1 << (order + 1), order));
            assert_eq!(found.last(), found.index + (1 << order) - 1);
            assert_eq!(found.entry, value(u64::from(order)));
        }
    });
}

#[test]
fn xas_conflict_get_order_names_what_is_in_the_way() {
    with_array(|array, _| {
        for order in 0..12 {
            array.store_order(0, order, value(1)).unwrap();
            for wanted in 0..14u32 {
                // The indices that an entry of order `wanted` around index 1 would take.
                let range = 1 & (u64::MAX << wanted)..=1 | ((1 << wanted) - 1);
                let conflict = array.find(range.clone());
                let overlaps = *range.start() < 1 << order;
                assert_eq!(conflict.map(|found| found.order), overlaps.then_some(order));
            }
            array.clear();
        }
    });
}

#[test]
fn align_iteration_gives_aligned_blocks_of_every_order() {
    with_array(|array, _| {
        for order in 0..=12u32 {
            for n in 0..4u64 {
                array.store_order(n << order, order, value(n)).unwrap();
            }
            let guard = array.rcu().read(0);
            for (found, n) in array.entries(&guard, 0..=u64::MAX).zip(0u64..) {
                assert_eq!((found.index, found.order), (n << order, order));
                assert_eq!(found.entry, value(n));
            }
            // From inside a block too.
            let from = (1 << order) + (1 << order) / 2;
            let rest = array.entries(&guard, from..=u64::MAX).count();
            assert_eq!(rest, 3);
            drop(guard);
            array.clear();
        }
    });
}

#[test]
fn split_leaves_the_entry_and_its_marks_in_every_piece() {
    with_array(|array, _| {
        for from in 1..=14u32 {
            for to in 0..from {
                array.store_order(1 << from, from, value(7)).unwrap();
                array.set_mark(1 << from, Mark::M1);
                array.split((1 << from) + 1, to).unwrap();
                let shape = array.validate().unwrap();
                assert_eq!(shape.entries, 1 << (from - to));
                let guard = array.rcu().read(0);
                for found in array.marked_entries(&guard, 0..=u64::MAX, Mark::M1) {
                    assert_eq!((found.order, found.entry), (to, value(7)));
                }
                drop(guard);
                // The pieces are entries of their own.
                array.store((2 << from) - 1, value(8)).unwrap();
                assert_eq!(array.load(1 << from), Some(value(7)));
                assert_eq!(array.validate().unwrap().entries, shape.entries);
                array.clear();
            }
        }
    });
}

#[test]
fn split_to_the_same_or_a_higher_order_does_nothing() {
    with_array(|array, nodes| {
        array.store_order(0, 4, value(1)).unwrap();
        nodes.fail_after(0);
        for order in [4, 5, 63] {
            array.split(3, order).unwrap();
            array.isolate(3, order).unwrap();
        }
        array.split(99, 0).unwrap();
        assert_eq!(array.order_at(3), Some(4));
    });
}

#[test]
fn split_isolating_one_index_keeps_the_rest_large() {
    with_array(|array, _| {
        array.store_order(1024, 10, value(1)).unwrap();
        array.isolate(1024 + 700, 0).unwrap();
        let guard = array.rcu().read(0);
        let orders: Vec<u32> = array.entries(&guard, 0..=u64::MAX).map(|f| f.order).collect();
        assert_eq!(orders, [9, 7, 5, 4, 3, 2, 0, 0, 1, 6, 8]);
        assert_eq!(array.order_at(1024 + 700), Some(0));
        // A leaf for the 64 indices around it, and the head.
        assert_eq!(array.usage().nodes, 2);
    });
}
