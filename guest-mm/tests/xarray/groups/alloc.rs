//! Allocation of indices.

use guest_mm::xarray::AllocError;

use super::with_array;
use crate::value;

#[test]
fn xa_alloc_takes_the_lowest_free_index() {
    with_array(|array, _| {
        for n in 0..300 {
            assert_eq!(array.alloc(1..=u64::from(u32::MAX), value(n)), Ok(n + 1));
        }
        array.erase(7);
        array.erase(200);
        assert_eq!(array.alloc(0..=1000, value(0)), Ok(0));
        assert_eq!(array.alloc(0..=1000, value(0)), Ok(7));
        assert_eq!(array.alloc(8..=1000, value(0)), Ok(200));
        assert_eq!(array.alloc(0..=300, value(0)), Err(AllocError::Full));
        assert_eq!(array.alloc(0..=301, value(0)), Ok(301));
        assert_eq!(array.alloc(u64::MAX..=u64::MAX, value(0)), Ok(u64::MAX));
        assert_eq!(array.alloc(u64::MAX..=u64::MAX, value(0)), Err(AllocError::Full));
    });
}

#[test]
fn xa_alloc_skips_multi_index_entries() {
    with_array(|array, _| {
        array.store_order(0, 6, value(1)).unwrap();
        assert_eq!(array.alloc(0..=u64::MAX, value(2)), Ok(64));
        array.store_order(128, 7, value(1)).unwrap();
        assert_eq!(array.alloc(65..=65, value(2)), Ok(65));
        assert_eq!(array.alloc(200..=u64::MAX, value(2)), Ok(256));
    });
}

#[test]
fn xa_alloc_cyclic_goes_on_where_it_was_and_wraps_once() {
    with_array(|array, _| {
        let mut next = 0;
        for n in 1..=5 {
            assert_eq!(array.alloc_cyclic(1..=5, &mut next, value(n)), Ok((n, false)));
        }
        assert_eq!(array.alloc_cyclic(1..=5, &mut next, value(0)), Err(AllocError::Full));
        array.erase(3);
        array.erase(2);
        next = 3;
        assert_eq!(array.alloc_cyclic(1..=5, &mut next, value(0)), Ok((3, false)));
        assert_eq!(array.alloc_cyclic(1..=5, &mut next, value(0)), Ok((2, true)));
        // The end of the index space is an end like another.
        let mut next = u64::MAX;
        let all = 1..=u64::MAX;
        assert_eq!(array.alloc_cyclic(all.clone(), &mut next, value(0)), Ok((u64::MAX, false)));
        assert_eq!(next, 1);
        assert_eq!(array.alloc_cyclic(all, &mut next, value(0)), Ok((6, false)));
    });
}
