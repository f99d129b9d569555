//! The groups of behaviour that Linux's XArray test names, tested anew.
//!
//! A test's name begins with its group. Absent: `workingset` and `account`, which
//! are about users of the array.

mod alloc;
mod basic;
mod find;
mod marks;
mod multi;
mod range;

use guest_mm::rcu::Rcu;

use super::Array;
use super::support::HeapNodes;

/// Runs `test` on an empty array; checks the invariants and the nodes afterwards.
fn with_array(test: impl FnOnce(&Array<'_>, &HeapNodes)) {
    let nodes = HeapNodes::new();
    let rcu = Rcu::new();
    let array = Array::new(&rcu, &nodes);
    test(&array, &nodes);
    array.validate().unwrap();
    array.clear();
    array.reclaim();
    assert!(array.is_empty());
    assert_eq!(nodes.live(), 0);
}

fn indices(array: &Array<'_>) -> Vec<u64> {
    let guard = array.rcu().read(0);
    array.entries(&guard, 0..=u64::MAX).map(|found| found.index).collect()
}
