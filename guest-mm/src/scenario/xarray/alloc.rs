//! Allocation of indices.

use crate::xarray::AllocError;

use super::super::failure::{OrFail, ensure_eq};
use super::{CountedNodes, Outcome, value, with_array};

pub(super) fn xa_alloc_takes_the_lowest_free_index<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        for n in 0..300 {
            ensure_eq!(array.alloc(1..=u64::from(u32::MAX), value(n)), Ok(n + 1));
        }
        array.erase(7);
        array.erase(200);
        ensure_eq!(array.alloc(0..=1000, value(0)), Ok(0));
        ensure_eq!(array.alloc(0..=1000, value(0)), Ok(7));
        ensure_eq!(array.alloc(8..=1000, value(0)), Ok(200));
        ensure_eq!(array.alloc(0..=300, value(0)), Err(AllocError::Full));
        ensure_eq!(array.alloc(0..=301, value(0)), Ok(301));
        ensure_eq!(array.alloc(u64::MAX..=u64::MAX, value(0)), Ok(u64::MAX));
        ensure_eq!(array.alloc(u64::MAX..=u64::MAX, value(0)), Err(AllocError::Full));
        Ok(())
    })
}

pub(super) fn xa_alloc_skips_multi_index_entries<N: CountedNodes>(nodes: N) -> Outcome {
    with_array(nodes, |array, _| {
        array.store_order(0, 6, value(1)).or_fail()?;
        ensure_eq!(array.alloc(0..=u64::MAX, value(2)), Ok(64));
        array.store_order(128, 7, value(1)).or_fail()?;
        ensure_eq!(array.alloc(65..=65, value(2)), Ok(65));
        ensure_eq!(array.alloc(200..=u64::MAX, value(2)), Ok(256));
        Ok(())
    })
}

pub(super) fn xa_alloc_cyclic_goes_on_where_it_was_and_wraps_once<N: CountedNodes>(
    nodes: N,
) -> Outcome {
    with_array(nodes, |array, _| {
        let mut next = 0;
        for n in 1..=5 {
            ensure_eq!(array.alloc_cyclic(1..=5, &mut next, value(n)), Ok((n, false)));
        }
        ensure_eq!(array.alloc_cyclic(1..=5, &mut next, value(0)), Err(AllocError::Full));
        array.erase(3);
        array.erase(2);
        next = 3;
        ensure_eq!(array.alloc_cyclic(1..=5, &mut next, value(0)), Ok((3, false)));
        ensure_eq!(array.alloc_cyclic(1..=5, &mut next, value(0)), Ok((2, true)));
        // The end of the index space is an end like another.
        let mut next = u64::MAX;
        let all = 1..=u64::MAX;
        ensure_eq!(array.alloc_cyclic(all.clone(), &mut next, value(0)), Ok((u64::MAX, false)));
        ensure_eq!(next, 1);
        ensure_eq!(array.alloc_cyclic(all, &mut next, value(0)), Ok((6, false)));
        Ok(())
    })
}
