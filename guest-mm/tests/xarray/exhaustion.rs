//! Each allocation of each operation fails once: the tree must not change.

use guest_mm::rcu::Rcu;
use guest_mm::xarray::{AllocError, Content, InsertError, Mark, NoMemory, RangeError};

use super::support::HeapNodes;
use super::{Array, value};

/// What an array holds: index, order, value, marks.
fn picture(array: &Array<'_>) -> Vec<(u64, u32, Option<usize>, [bool; 3])> {
    let guard = array.rcu().read(0);
    array
        .entries(&guard, 0..=u64::MAX)
        .map(|found| {
            let marks = Mark::ALL.map(|mark| array.is_marked(found.index, mark));
            (found.index, found.order, found.entry.as_value(), marks)
        })
        .collect()
}

/// Runs `op` with the first, the second, … allocation failing until it succeeds;
/// returns how many there are.
fn exhaust(fill: fn(&Array<'_>), op: fn(&Array<'_>) -> bool) -> usize {
    for n in 0.. {
        let nodes = HeapNodes::new();
        let rcu = Rcu::new();
        let array = Array::new(&rcu, &nodes);
        fill(&array);
        let (before, shape, live) = (picture(&array), array.validate(), nodes.live());
        nodes.fail_after(n);
        if op(&array) {
            array.validate().unwrap();
            return n;
        }
        assert_eq!(picture(&array), before);
        assert_eq!(array.validate(), shape);
        assert_eq!(nodes.live(), live);
    }
    0
}

fn sparse(array: &Array<'_>) {
    array.store(0, value(1)).unwrap();
    array.set_mark(0, Mark::M0);
    array.store(70, value(2)).unwrap();
    array.store_order(1 << 12, 12, value(3)).unwrap();
    array.set_mark(1 << 12, Mark::M2);
}

#[test]
fn a_store_that_grows_the_tree() {
    let store = |array: &Array<'_>| array.store(u64::MAX, value(9)).is_ok();
    assert_eq!(exhaust(|_| {}, store), 11);
    let zero = |array: &Array<'_>| assert_eq!(array.store(0, value(1)), Ok(None));
    assert_eq!(exhaust(zero, store), 21);
    assert!(exhaust(sparse, store) >= 18);
}

#[test]
fn a_store_of_many_indices() {
    let needed = exhaust(sparse, |array| array.store_order(1 << 20, 13, value(9)).is_ok());
    assert!(needed >= 2);
}

#[test]
fn an_insertion() {
    let needed = exhaust(sparse, |array| match array.insert(1 << 30, value(9)) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error, InsertError::NoMemory);
            false
        }
    });
    assert!(needed >= 5);
}

#[test]
fn an_exchange() {
    let needed = exhaust(sparse, |array| {
        array.compare_exchange(1 << 30, Content::Empty, Content::Entry(value(9))).is_ok()
    });
    assert!(needed >= 5);
}

#[test]
fn a_range() {
    let needed = exhaust(sparse, |array| match array.store_range(100..=300_000, value(9)) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error, RangeError::NoMemory);
            false
        }
    });
    assert!(needed >= 4);
    assert!(exhaust(sparse, |array| array.create_range(50..=500).is_ok()) >= 6);
    assert!(exhaust(|_| {}, |array| array.create_range(0..=500).is_ok()) >= 9);
}

#[test]
fn an_allocation_of_an_index() {
    let needed = exhaust(sparse, |array| match array.alloc(500..=9000, value(9)) {
        Ok(index) => index == 500,
        Err(error) => {
            assert_eq!(error, AllocError::NoMemory);
            false
        }
    });
    assert_eq!(needed, 1);
}

#[test]
fn a_cyclic_allocation_keeps_its_place() {
    let needed = exhaust(sparse, |array| {
        let mut next = 9000;
        let got = array.alloc_cyclic(500..=9000, &mut next, value(9));
        assert_eq!(next, if got.is_ok() { 500 } else { 9000 });
        got.is_ok()
    });
    assert!(needed >= 1);
}

#[test]
fn a_reservation() {
    assert!(exhaust(sparse, |array| array.reserve(1 << 40).is_ok()) >= 7);
}

#[test]
fn a_split() {
    let split = |array: &Array<'_>| match array.split((1 << 12) + 5, 3) {
        Ok(()) => true,
        Err(NoMemory) => false,
    };
    // One node for the entry's slot, 64 below it.
    assert_eq!(exhaust(sparse, split), 65);
    assert_eq!(exhaust(sparse, |array| array.isolate((1 << 12) + 5, 0).is_ok()), 2);
}
