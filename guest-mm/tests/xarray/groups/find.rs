//! Searches, iteration and cursors.

use guest_mm::xarray::{Content, Found};

use super::{indices, with_array};
use crate::value;

#[test]
fn find_includes_the_entry_around_the_start() {
    with_array(|array, _| {
        assert_eq!(array.find(0..=u64::MAX), None);
        array.store_order(64, 4, value(1)).unwrap();
        for start in [0, 63, 64, 70, 79] {
            let found = array.find(start..=u64::MAX);
            assert_eq!(found, Some(Found { index: 64, order: 4, entry: value(1) }));
        }
        assert_eq!(array.find(80..=u64::MAX), None);
        assert_eq!(array.find(0..=63), None);
        assert_eq!(array.find_back(63), None);
        assert_eq!(array.find_back(64), array.find_back(u64::MAX));
    });
}

#[test]
fn find_entry_meets_every_distance() {
    with_array(|array, _| {
        for distance in [1u64, 2, 63, 64, 65, 4095, 4096, 4097, 1 << 40] {
            let wanted: Vec<u64> = (0..20).map(|n| n * distance).collect();
            for &index in &wanted {
                array.store(index, value(index)).unwrap();
            }
            assert_eq!(indices(array), wanted);
            let mut down = Vec::new();
            let mut from = Some(u64::MAX);
            while let Some(found) = from.and_then(|from| array.find_back(from)) {
                down.push(found.index);
                from = found.index.checked_sub(1);
            }
            down.reverse();
            assert_eq!(down, wanted);
            array.clear();
        }
    });
}

#[test]
fn pause_goes_on_behind_the_entry_in_another_read_section() {
    with_array(|array, _| {
        for order in 0..8 {
            array.store_order(1 << 10 << order, order, value(1)).unwrap();
        }
        let wanted = indices(array);
        let mut seen = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let guard = array.rcu().read(0);
            let mut cursor = array.cursor(&guard, from);
            let Some(found) = cursor.find(u64::MAX) else { break };
            seen.push(found.index);
            let paused = cursor.pause();
            drop(guard);
            // Whatever happens meanwhile: the entry just seen goes away.
            array.erase(found.index);
            next = paused.next();
        }
        assert_eq!(seen, wanted);
        assert!(array.is_empty());
    });
}

#[test]
fn pause_of_an_iteration_names_the_next_index() {
    with_array(|array, _| {
        for index in [3, 64, 65] {
            array.store(index, value(index)).unwrap();
        }
        let guard = array.rcu().read(0);
        let mut entries = array.entries(&guard, 0..=64);
        assert_eq!(entries.next().unwrap().index, 3);
        assert_eq!(entries.next().unwrap().index, 64);
        assert_eq!(entries.next(), None);
        assert_eq!(entries.pause().next(), None);
        let mut entries = array.entries(&guard, 0..=u64::MAX);
        entries.next();
        assert_eq!(entries.pause().next(), Some(4));
    });
}

#[test]
fn move_steps_over_every_index_both_ways() {
    with_array(|array, _| {
        for index in (0..300).step_by(3) {
            array.store(index, value(index)).unwrap();
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
        assert_eq!(cursor.retreat(), None);
        for index in 1..400 {
            assert_eq!(cursor.advance(), Some(wanted(index)), "{index}");
        }
        for index in (0..399).rev() {
            assert_eq!(cursor.retreat(), Some(wanted(index)), "{index}");
        }
        cursor.seek(1 << 40);
        assert_eq!(cursor.load(), Content::Empty);
        assert_eq!(cursor.index(), 1 << 40);
    });
}

#[test]
fn store_iter_sees_each_block_of_a_range_once() {
    with_array(|array, _| {
        for first in 0..70 {
            for len in [1, 2, 5, 64, 100] {
                array.store_range(first..=first + len - 1, value(1)).unwrap();
                let guard = array.rcu().read(0);
                let mut next = first;
                for found in array.entries(&guard, 0..=u64::MAX) {
                    assert_eq!(found.index, next);
                    next = found.last() + 1;
                }
                assert_eq!(next, first + len);
                drop(guard);
                array.clear();
            }
        }
    });
}
