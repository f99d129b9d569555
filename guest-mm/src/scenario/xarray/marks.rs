//! Marks.

use crate::xarray::Mark;

use super::super::failure::{OrFail, ensure, ensure_eq};
use super::{CountedNodes, Outcome, value, with_array};

pub(super) fn xa_mark_stands_on_entries_only_and_sums_up_to_the_head<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        ensure!(!array.set_mark(7, Mark::M0));
        for index in [0, 3, 64, 4095, 1 << 30, u64::MAX] {
            array.store(index, value(index)).or_fail()?;
            ensure!(!array.any_marked(Mark::M1));
            ensure!(array.set_mark(index, Mark::M1));
            ensure!(array.is_marked(index, Mark::M1) && !array.is_marked(index, Mark::M0));
            ensure!(array.any_marked(Mark::M1));
            // A new entry keeps the mark, an erased one loses it.
            array.store(index, value(1)).or_fail()?;
            ensure!(array.is_marked(index, Mark::M1));
            array.erase(index);
            ensure!(!array.any_marked(Mark::M1));
            array.store(index, value(index)).or_fail()?;
            ensure!(!array.is_marked(index, Mark::M1));
        }
        array.set_mark(64, Mark::M2);
        array.clear_mark(64, Mark::M2);
        ensure!(!array.any_marked(Mark::M2));
        Ok(())
    })
}

pub(super) fn xa_mark_of_a_multi_index_entry_is_seen_at_every_index<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        array.store(5, value(5)).or_fail()?;
        array.set_mark(5, Mark::M0);
        array.store(9, value(9)).or_fail()?;
        array.set_mark(9, Mark::M2);
        // The marks of what is replaced add up.
        array.store_order(0, 4, value(1)).or_fail()?;
        for index in 0..16 {
            ensure!(array.is_marked(index, Mark::M0) && array.is_marked(index, Mark::M2));
            ensure!(!array.is_marked(index, Mark::M1));
        }
        array.clear_mark(15, Mark::M0);
        ensure!(!array.is_marked(0, Mark::M0));
        ensure!(!array.is_marked(16, Mark::M2));
        Ok(())
    })
}

pub(super) fn xa_mark_iteration_visits_the_marked_only<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for n in 0..500 {
            array.store(n * 7, value(n)).or_fail()?;
            if n % 50 == 3 {
                array.set_mark(n * 7, Mark::M0);
            }
        }
        let guard = array.rcu().read(0);
        let marked = array.marked_entries(&guard, 0..=u64::MAX, Mark::M0).map(|f| f.index / 7);
        ensure!(marked.eq([3, 53, 103, 153, 203, 253, 303, 353, 403, 453]));
        let found = array.find_marked(22..=u64::MAX, Mark::M0).or_fail()?;
        ensure_eq!((found.index, found.entry), (53 * 7, value(53)));
        ensure_eq!(array.find_marked(22..=370, Mark::M0), None);
        ensure_eq!(array.find_back_marked(370, Mark::M0).or_fail()?.index, 21);
        Ok(())
    })
}
