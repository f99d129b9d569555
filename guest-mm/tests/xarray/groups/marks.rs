//! Marks.

use guest_mm::xarray::Mark;

use super::with_array;
use crate::value;

#[test]
fn xa_mark_stands_on_entries_only_and_sums_up_to_the_head() {
    with_array(|array, _| {
        assert!(!array.set_mark(7, Mark::M0));
        for index in [0, 3, 64, 4095, 1 << 30, u64::MAX] {
            array.store(index, value(index)).unwrap();
            assert!(!array.any_marked(Mark::M1));
            assert!(array.set_mark(index, Mark::M1));
            assert!(array.is_marked(index, Mark::M1) && !array.is_marked(index, Mark::M0));
            assert!(array.any_marked(Mark::M1));
            // A new entry keeps the mark, an erased one loses it.
            array.store(index, value(1)).unwrap();
            assert!(array.is_marked(index, Mark::M1));
            array.erase(index);
            assert!(!array.any_marked(Mark::M1));
            array.store(index, value(index)).unwrap();
            assert!(!array.is_marked(index, Mark::M1));
        }
        array.set_mark(64, Mark::M2);
        array.clear_mark(64, Mark::M2);
        assert!(!array.any_marked(Mark::M2));
    });
}

#[test]
fn xa_mark_of_a_multi_index_entry_is_seen_at_every_index() {
    with_array(|array, _| {
        array.store(5, value(5)).unwrap();
        array.set_mark(5, Mark::M0);
        array.store(9, value(9)).unwrap();
        array.set_mark(9, Mark::M2);
        // The marks of what is replaced add up.
        array.store_order(0, 4, value(1)).unwrap();
        for index in 0..16 {
            assert!(array.is_marked(index, Mark::M0) && array.is_marked(index, Mark::M2));
            assert!(!array.is_marked(index, Mark::M1));
        }
        array.clear_mark(15, Mark::M0);
        assert!(!array.is_marked(0, Mark::M0));
        assert!(!array.is_marked(16, Mark::M2));
    });
}

#[test]
fn xa_mark_iteration_visits_the_marked_only() {
    with_array(|array, _| {
        for n in 0..500 {
            array.store(n * 7, value(n)).unwrap();
            if n % 50 == 3 {
                array.set_mark(n * 7, Mark::M0);
            }
        }
        let guard = array.rcu().read(0);
        let marked: Vec<u64> =
            array.marked_entries(&guard, 0..=u64::MAX, Mark::M0).map(|f| f.index / 7).collect();
        assert_eq!(marked, [3, 53, 103, 153, 203, 253, 303, 353, 403, 453]);
        let found = array.find_marked(22..=u64::MAX, Mark::M0).unwrap();
        assert_eq!((found.index, found.entry), (53 * 7, value(53)));
        assert_eq!(array.find_marked(22..=370, Mark::M0), None);
        assert_eq!(array.find_back_marked(370, Mark::M0).unwrap().index, 21);
    });
}
