//! Ranges of indices.

use crate::xarray::{Content, RangeError};

use super::super::failure::{OrFail, ensure, ensure_eq};
use super::{CountedNodes, Outcome, holds_only, value, with_array};

pub(super) fn create_range_makes_room_for_stores_that_cannot_fail<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, nodes| {
        for (first, last) in [(0, 0), (0, 1), (60, 70), (1, 300), (4000, 4200)] {
            array.store(first + (last - first) / 2, value(7)).or_fail()?;
            array.create_range(first..=last).or_fail()?;
            nodes.fail_after(0);
            for index in first..=last {
                let old = array.store(index, value(index)).or_fail()?;
                ensure!(old.is_none() || old == Some(value(7)));
            }
            nodes.succeed();
            for index in first..=last {
                ensure_eq!(array.erase(index), Some(value(index)));
            }
            ensure!(array.is_empty());
        }
        Ok(())
    })
}

pub(super) fn create_range_leaves_multi_index_entries_alone<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        array.store_order(64, 5, value(1)).or_fail()?;
        array.create_range(60..=100).or_fail()?;
        ensure_eq!(array.order_at(80), Some(5));
        ensure_eq!(array.content(63), Content::Reserved);
        ensure_eq!(array.content(96), Content::Reserved);
        array.erase_range(60..=100);
        ensure!(array.is_empty());
        Ok(())
    })
}

pub(super) fn store_range_covers_exactly_its_indices<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        let ends = [0, 1, 2, 62, 63, 64, 65, 127, 128, 4095, 4096, 4097, 1 << 30];
        for first in ends {
            for last in ends.into_iter().filter(|&last| last >= first) {
                array.store_range(first..=last, value(1)).or_fail()?;
                ensure_eq!(array.load(first), Some(value(1)));
                ensure_eq!(array.load(last), Some(value(1)));
                ensure_eq!(array.load(last + 1), None);
                if first > 0 {
                    ensure_eq!(array.load(first - 1), None);
                }
                array.validate().or_fail()?;
                array.erase_range(first..=last);
                ensure!(array.is_empty());
            }
        }
        array.store_range(1..=u64::MAX, value(1)).or_fail()?;
        ensure_eq!((array.load(0), array.load(u64::MAX)), (None, Some(value(1))));
        array.store_range(0..=u64::MAX, value(2)).or_fail()?;
        ensure!(holds_only(array, &[0, 1 << 63]));
        Ok(())
    })
}

pub(super) fn store_range_refuses_to_cut_an_entry<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        array.store_order(8, 3, value(1)).or_fail()?;
        for (first, last) in [(0, 8), (10, 12), (15, 20), (9, 15), (8, 14)] {
            let refused = array.store_range(first..=last, value(2));
            ensure_eq!(refused, Err(RangeError::Straddles));
        }
        array.store_range(8..=15, value(2)).or_fail()?;
        array.store_range(0..=100, value(3)).or_fail()?;
        ensure_eq!(array.load(12), Some(value(3)));
        Ok(())
    })
}
