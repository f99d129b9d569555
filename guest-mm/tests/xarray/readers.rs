//! Threads: readers without locks against writers, over the real allocator.

use std::sync::atomic::{AtomicBool, Ordering};

use guest_mm::rcu::Rcu;

use super::support::HeapNodes;
use super::{Array, value};

#[test]
fn readers_see_only_what_was_stored_while_writers_change_everything() {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let array = Array::new(&rcu, &nodes);
    let done = AtomicBool::new(false);
    // Every third index stays; the others come and go, alone and in blocks. What
    // is stored at an index names the block it belongs to.
    for index in (0..3000).step_by(3) {
        array.store(index << 6, value(index)).unwrap();
    }
    std::thread::scope(|scope| {
        let (array, done) = (&array, &done);
        for _ in 0..2 {
            scope.spawn(move || {
                let mut at = 1u64;
                while !done.load(Ordering::Relaxed) {
                    at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) % 3000;
                    let loaded = array.load((at << 6) + 5);
                    if at.is_multiple_of(3) {
                        assert_eq!(array.load(at << 6), Some(value(at)));
                        assert_eq!(loaded, None);
                    } else {
                        assert!(loaded.is_none_or(|entry| entry == value(at)), "{loaded:?}");
                    }
                    let found = array.find(at << 6..=(at << 6) + 63);
                    assert!(found.is_none_or(|found| found.entry == value(at)));
                }
            });
        }
        scope.spawn(move || {
            for round in 0..40_000u64 {
                let at = round * 7 % 3000;
                if at.is_multiple_of(3) {
                    continue;
                }
                let base = at << 6;
                match round % 5 {
                    0 => {
                        array.store_order(base, 6, value(at)).unwrap();
                    }
                    1 => array.split(base, 2).unwrap(),
                    2 => {
                        array.store(base + 9, value(at)).unwrap();
                    }
                    3 => {
                        array.erase(base);
                    }
                    _ => array.erase_range(base..=base + 63),
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    });
    array.validate().unwrap();
    assert_eq!(array.reclaim(), 0);
    assert_eq!(nodes.live(), array.usage().nodes);
}
