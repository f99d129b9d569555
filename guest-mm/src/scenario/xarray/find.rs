//! Searches, iteration and cursors.

use crate::xarray::{Content, Found};

use super::super::failure::{OrFail, ensure, ensure_eq};
use super::{CountedNodes, Outcome, holds_only, value, with_array};

pub(super) fn find_includes_the_entry_around_the_start<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        ensure_eq!(array.find(0..=u64::MAX), None);
        array.store_order(64, 4, value(1)).or_fail()?;
        for start in [0, 63, 64, 70, 79] {
            let found = array.find(start..=u64::MAX);
            ensure_eq!(found, Some(Found { index: 64, order: 4, entry: value(1) }));
        }
        ensure_eq!(array.find(80..=u64::MAX), None);
        ensure_eq!(array.find(0..=63), None);
        ensure_eq!(array.find_back(63), None);
        ensure_eq!(array.find_back(64), array.find_back(u64::MAX));
        Ok(())
    })
}

pub(super) fn find_entry_meets_every_distance<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for distance in [1u64, 2, 63, 64, 65, 4095, 4096, 4097, 1 << 40] {
            let wanted: [u64; 20] = core::array::from_fn(|n| n as u64 * distance);
            for index in wanted {
                array.store(index, value(index)).or_fail()?;
            }
            ensure!(holds_only(array, &wanted));
            let mut from = Some(u64::MAX);
            for &index in wanted.iter().rev() {
                let found = from.and_then(|from| array.find_back(from)).or_fail()?;
                ensure_eq!(found.index, index);
                from = found.index.checked_sub(1);
            }
            ensure!(from.is_none());
            array.clear();
        }
        Ok(())
    })
}

pub(super) fn pause_goes_on_behind_the_entry_in_another_read_section<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        for order in 0..8 {
            array.store_order(1 << 10 << order, order, value(1)).or_fail()?;
        }
        let mut seen = 0;
        let mut next = Some(0);
        while let Some(from) = next {
            let guard = array.rcu().read(0);
            let mut cursor = array.cursor(&guard, from);
            let Some(found) = cursor.find(u64::MAX) else { break };
            ensure_eq!(found.index, 1 << 10 << seen);
            seen += 1;
            let paused = cursor.pause();
            drop(guard);
            // Whatever happens meanwhile: the entry just seen goes away.
            array.erase(found.index);
            next = paused.next();
        }
        ensure_eq!(seen, 8);
        ensure!(array.is_empty());
        Ok(())
    })
}

pub(super) fn pause_of_an_iteration_names_the_next_index<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for index in [3, 64, 65] {
            array.store(index, value(index)).or_fail()?;
        }
        let guard = array.rcu().read(0);
        let mut entries = array.entries(&guard, 0..=64);
        ensure_eq!(entries.next().or_fail()?.index, 3);
        ensure_eq!(entries.next().or_fail()?.index, 64);
        ensure_eq!(entries.next(), None);
        ensure_eq!(entries.pause().next(), None);
        let mut entries = array.entries(&guard, 0..=u64::MAX);
        entries.next();
        ensure_eq!(entries.pause().next(), Some(4));
        Ok(())
    })
}

pub(super) fn move_steps_over_every_index_both_ways<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for index in (0..300).step_by(3) {
            array.store(index, value(index)).or_fail()?;
        }
        let wanted = |index: u64| {
            if index.is_multiple_of(3) && index < 300 {
                Content::Entry(value(index))
            } else {
                Content::Empty
            }
        };
        let guard = array.rcu().read(0);
        let mut cursor = array.cursor(&guard, 0);
        ensure_eq!(cursor.retreat(), None);
        for index in 1..400 {
            ensure_eq!(cursor.advance(), Some(wanted(index)));
        }
        for index in (0..399).rev() {
            ensure_eq!(cursor.retreat(), Some(wanted(index)));
        }
        cursor.seek(1 << 40);
        ensure_eq!(cursor.load(), Content::Empty);
        ensure_eq!(cursor.index(), 1 << 40);
        Ok(())
    })
}

pub(super) fn store_iter_sees_each_block_of_a_range_once<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for first in 0..70 {
            for len in [1, 2, 5, 64, 100] {
                array.store_range(first..=first + len - 1, value(1)).or_fail()?;
                let guard = array.rcu().read(0);
                let mut next = first;
                for found in array.entries(&guard, 0..=u64::MAX) {
                    ensure_eq!(found.index, next);
                    next = found.last() + 1;
                }
                ensure_eq!(next, first + len);
                drop(guard);
                array.clear();
            }
        }
        Ok(())
    })
}
