//! Ranges of indices.

use guest_mm::xarray::{Content, RangeError};

use super::{indices, with_array};
use crate::value;

#[test]
fn create_range_makes_room_for_stores_that_cannot_fail() {
    with_array(|array, nodes| {
        for (first, last) in [(0, 0), (0, 1), (60, 70), (1, 300), (4000, 4200)] {
            array.store(first + (last - first) / 2, value(7)).unwrap();
            array.create_range(first..=last).unwrap();
            nodes.fail_after(0);
            for index in first..=last {
                let old = array.store(index, value(index)).unwrap();
                assert!(old.is_none() || old == Some(value(7)));
            }
            nodes.succeed();
            for index in first..=last {
                assert_eq!(array.erase(index), Some(value(index)));
            }
            assert!(array.is_empty());
        }
    });
}

#[test]
fn create_range_leaves_multi_index_entries_alone() {
    with_array(|array, _| {
        array.store_order(64, 5, value(1)).unwrap();
        array.create_range(60..=100).unwrap();
        assert_eq!(array.order_at(80), Some(5));
        assert_eq!(array.content(63), Content::Reserved);
        assert_eq!(array.content(96), Content::Reserved);
        array.erase_range(60..=100);
        assert!(array.is_empty());
    });
}

#[test]
fn store_range_covers_exactly_its_indices() {
    with_array(|array, _| {
        let ends = [0, 1, 2, 62, 63, 64, 65, 127, 128, 4095, 4096, 4097, 1 << 30];
        for first in ends {
            for last in ends.into_iter().filter(|&last| last >= first) {
                array.store_range(first..=last, value(1)).unwrap();
                assert_eq!(array.load(first), Some(value(1)));
                assert_eq!(array.load(last), Some(value(1)));
                assert_eq!(array.load(last + 1), None);
                if first > 0 {
                    assert_eq!(array.load(first - 1), None);
                }
                array.validate().unwrap();
                array.erase_range(first..=last);
                assert!(array.is_empty());
            }
        }
        array.store_range(1..=u64::MAX, value(1)).unwrap();
        assert_eq!((array.load(0), array.load(u64::MAX)), (None, Some(value(1))));
        array.store_range(0..=u64::MAX, value(2)).unwrap();
        assert_eq!(indices(array), [0, 1 << 63]);
    });
}

#[test]
fn store_range_refuses_to_cut_an_entry() {
    with_array(|array, _| {
        array.store_order(8, 3, value(1)).unwrap();
        for (first, last) in [(0, 8), (10, 12), (15, 20), (9, 15), (8, 14)] {
            let refused = array.store_range(first..=last, value(2));
            assert_eq!(refused, Err(RangeError::Straddles));
        }
        array.store_range(8..=15, value(2)).unwrap();
        array.store_range(0..=100, value(3)).unwrap();
        assert_eq!(array.load(12), Some(value(3)));
    });
}
