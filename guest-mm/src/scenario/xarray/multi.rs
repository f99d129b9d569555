//! Entries of many indices: storing, orders, splitting.

use core::ptr::NonNull;

use crate::rcu::Rcu;
use crate::xarray::{Content, Entry, Found, MAX_ORDER, Mark, Value, XArray};

use super::super::failure::{OrFail, ensure, ensure_eq};
use super::{CountedNodes, Outcome, value, with_array};

pub(super) fn cmpxchg_order_replaces_a_multi_index_entry_as_a_whole<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        let entry = |n| Content::Entry(value(n));
        array.store_order(0, 9, value(1)).or_fail()?;
        ensure_eq!(array.compare_exchange(300, entry(1), entry(2)), Ok(entry(1)));
        ensure_eq!(array.find(0..=0), Some(Found { index: 0, order: 9, entry: value(2) }));
        ensure_eq!(array.compare_exchange(511, entry(2), Content::Empty), Ok(entry(2)));
        ensure!(array.is_empty());
        Ok(())
    })
}

pub(super) fn multi_store_covers_its_block_and_nothing_else<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for order in 0..=MAX_ORDER {
            let size = 1u64 << order;
            let base = size.wrapping_mul(2) & (u64::MAX << order);
            array.store_order(base, order, value(3)).or_fail()?;
            ensure_eq!(array.load(base), Some(value(3)));
            ensure_eq!(array.load(base + (size - 1)), Some(value(3)));
            ensure_eq!(array.load(base.wrapping_sub(1)), None);
            ensure_eq!(array.load(base.wrapping_add(size)), None);
            ensure_eq!(array.validate().or_fail()?.entries, 1);
            array.erase(base + size / 2);
            ensure!(array.is_empty());
        }
        Ok(())
    })
}

pub(super) fn multi_store_over_smaller_and_larger_entries_replaces_them_whole<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        for (low, high) in [(0, 1), (1, 6), (3, 9), (6, 10), (0, 12), (11, 13)] {
            // Larger over smaller ones.
            for n in 0..4u64 {
                array.store_order(n << low, low, value(n)).or_fail()?;
            }
            let old = array.store_order(1 << low, high.max(low + 2), value(9)).or_fail()?;
            ensure_eq!(old, Some(value(1)));
            ensure_eq!(array.validate().or_fail()?.entries, 1);
            // Smaller into larger: the entry keeps its order.
            let old = array.store_order(3 << low, low, value(10)).or_fail()?;
            ensure_eq!(old, Some(value(9)));
            ensure_eq!(array.order_at(0), Some(high.max(low + 2)));
            ensure_eq!(array.load(0), Some(value(10)));
            array.clear();
        }
        Ok(())
    })
}

pub(super) fn multi_store_counts_values_and_pointers_apart<N: CountedNodes>(nodes: N) -> Outcome {
    // `validate` compares each node's number of values with its slots.
    let object = 0u64;
    let rcu = Rcu::new();
    let array = XArray::<_, u64>::new(&rcu, nodes);
    let pointer = Entry::Pointer(NonNull::from(&object));
    for order in [0, 2, 5, 6, 8] {
        array.store_order(0, order, pointer).or_fail()?;
        array.validate().or_fail()?;
        array.store_order(0, order, Entry::Value(Value::MAX)).or_fail()?;
        array.validate().or_fail()?;
        array.store_order(0, order, pointer).or_fail()?;
        array.validate().or_fail()?;
        ensure_eq!(array.load(0).or_fail()?.as_pointer(), Some(NonNull::from(&object)));
        array.clear();
    }
    Ok(())
}

pub(super) fn multi_store_advanced_ranges_and_entries_mix_freely<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        for (first, last) in [(0, 0), (1, 1), (0, 63), (3, 200), (63, 4097), (4095, 4096)] {
            array.store_range(first..=last, value(1)).or_fail()?;
            array.validate().or_fail()?;
            array.store_order(last, 3, value(2)).or_fail()?;
            array.validate().or_fail()?;
            ensure_eq!(array.load(last), Some(value(2)));
            array.store_order(first, 12, value(3)).or_fail()?;
            array.validate().or_fail()?;
            array.erase(first);
            array.erase_range(0..=u64::MAX);
            ensure!(array.is_empty());
        }
        Ok(())
    })
}

pub(super) fn get_order_is_the_same_at_every_index_of_an_entry<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        ensure_eq!(array.order_at(0), None);
        for order in 0..20 {
            let base = 3u64 << order;
            array.store_order(base, order, value(1)).or_fail()?;
            for index in [base, base + (1 << order) / 2, base + (1 << order) - 1] {
                ensure_eq!(array.order_at(index), Some(order));
            }
            ensure_eq!(array.order_at(base - 1), None);
            ensure_eq!(array.order_at(base + (1 << order)), None);
            array.erase(base);
        }
        Ok(())
    })
}

pub(super) fn xas_get_order_comes_with_every_entry_found<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for order in 0..20u32 {
            array.store_order(1 << (order + 1), order, value(u64::from(order))).or_fail()?;
        }
        let guard = array.rcu().read(0);
        for (found, order) in array.entries(&guard, 0..=u64::MAX).zip(0..) {
            ensure_eq!((found.index, found.order), (1 << (order + 1), order));
            ensure_eq!(found.last(), found.index + (1 << order) - 1);
            ensure_eq!(found.entry, value(u64::from(order)));
        }
        Ok(())
    })
}

pub(super) fn xas_conflict_get_order_names_what_is_in_the_way<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        for order in 0..12 {
            array.store_order(0, order, value(1)).or_fail()?;
            for wanted in 0..14u32 {
                // The indices that an entry of order `wanted` around index 1 would take.
                let range = 1 & (u64::MAX << wanted)..=1 | ((1 << wanted) - 1);
                let conflict = array.find(range.clone());
                let overlaps = *range.start() < 1 << order;
                ensure_eq!(conflict.map(|found| found.order), overlaps.then_some(order));
            }
            array.clear();
        }
        Ok(())
    })
}

pub(super) fn align_iteration_gives_aligned_blocks_of_every_order<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        for order in 0..=12u32 {
            for n in 0..4u64 {
                array.store_order(n << order, order, value(n)).or_fail()?;
            }
            let guard = array.rcu().read(0);
            for (found, n) in array.entries(&guard, 0..=u64::MAX).zip(0u64..) {
                ensure_eq!((found.index, found.order), (n << order, order));
                ensure_eq!(found.entry, value(n));
            }
            // From inside a block too.
            let from = (1 << order) + (1 << order) / 2;
            let rest = array.entries(&guard, from..=u64::MAX).count();
            ensure_eq!(rest, 3);
            drop(guard);
            array.clear();
        }
        Ok(())
    })
}

pub(super) fn split_leaves_the_entry_and_its_marks_in_every_piece<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        for from in 1..=14u32 {
            for to in 0..from {
                array.store_order(1 << from, from, value(7)).or_fail()?;
                array.set_mark(1 << from, Mark::M1);
                array.split((1 << from) + 1, to).or_fail()?;
                let shape = array.validate().or_fail()?;
                ensure_eq!(shape.entries, 1 << (from - to));
                let guard = array.rcu().read(0);
                for found in array.marked_entries(&guard, 0..=u64::MAX, Mark::M1) {
                    ensure_eq!((found.order, found.entry), (to, value(7)));
                }
                drop(guard);
                // The pieces are entries of their own.
                array.store((2 << from) - 1, value(8)).or_fail()?;
                ensure_eq!(array.load(1 << from), Some(value(7)));
                ensure_eq!(array.validate().or_fail()?.entries, shape.entries);
                array.clear();
            }
        }
        Ok(())
    })
}

pub(super) fn split_to_the_same_or_a_higher_order_does_nothing<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, nodes| {
        array.store_order(0, 4, value(1)).or_fail()?;
        nodes.fail_after(0);
        for order in [4, 5, 63] {
            array.split(3, order).or_fail()?;
            array.isolate(3, order).or_fail()?;
        }
        array.split(99, 0).or_fail()?;
        ensure_eq!(array.order_at(3), Some(4));
        Ok(())
    })
}

pub(super) fn split_isolating_one_index_keeps_the_rest_large<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        array.store_order(1024, 10, value(1)).or_fail()?;
        array.isolate(1024 + 700, 0).or_fail()?;
        let guard = array.rcu().read(0);
        let orders = array.entries(&guard, 0..=u64::MAX).map(|f| f.order);
        ensure!(orders.eq([9, 7, 5, 4, 3, 2, 0, 0, 1, 6, 8]));
        ensure_eq!(array.order_at(1024 + 700), Some(0));
        // A leaf for the 64 indices around it, and the head.
        ensure_eq!(array.usage().nodes, 2);
        Ok(())
    })
}
