//! Random operations against a map of entries, invariants checked after each.

use std::collections::BTreeMap;

use guest_mm::rcu::Rcu;
use guest_mm::xarray::{AllocError, Content, Entry, InsertError, Mark, NoMemory, RangeError};
use proptest::prelude::*;

use super::support::HeapNodes;
use super::{Array, value};

#[derive(Debug, Clone)]
enum Op {
    Store { index: u64, order: u32, value: u64 },
    Insert { index: u64, order: u32, value: u64 },
    Exchange { index: u64, matches: bool, new: Option<u64> },
    Erase(u64),
    StoreRange { first: u64, len: u64, value: u64 },
    EraseRange { first: u64, len: u64 },
    Reserve(u64),
    Release(u64),
    CreateRange { first: u64, len: u64 },
    Mark { index: u64, mark: Mark, set: bool },
    Split { index: u64, order: u32 },
    Isolate { index: u64, order: u32 },
    Alloc { min: u64, len: u64, value: u64 },
}

fn index() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..130,
        2 => 0u64..10_000,
        1 => (0u32..64, 0u64..4).prop_map(|(bit, low)| (1u64 << bit).wrapping_sub(2).wrapping_add(low)),
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

fn order() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0u32), 4 => 0u32..12, 1 => 0u32..64]
}

fn mark() -> impl Strategy<Value = Mark> {
    prop_oneof![Just(Mark::M0), Just(Mark::M1), Just(Mark::M2)]
}

fn op() -> impl Strategy<Value = Op> {
    let value = 0u64..1000;
    prop_oneof![
        6 => (index(), order(), value.clone()).prop_map(|(index, order, value)| Op::Store { index, order, value }),
        3 => (index(), order(), value.clone()).prop_map(|(index, order, value)| Op::Insert { index, order, value }),
        2 => (index(), any::<bool>(), proptest::option::of(value.clone()))
            .prop_map(|(index, matches, new)| Op::Exchange { index, matches, new }),
        6 => index().prop_map(Op::Erase),
        2 => (index(), 0u64..5000, value.clone()).prop_map(|(first, len, value)| Op::StoreRange { first, len, value }),
        2 => (index(), 0u64..5000).prop_map(|(first, len)| Op::EraseRange { first, len }),
        1 => index().prop_map(Op::Reserve),
        1 => index().prop_map(Op::Release),
        1 => (index(), 0u64..200).prop_map(|(first, len)| Op::CreateRange { first, len }),
        4 => (index(), mark(), any::<bool>()).prop_map(|(index, mark, set)| Op::Mark { index, mark, set }),
        2 => (index(), 0u32..8).prop_map(|(index, order)| Op::Split { index, order }),
        2 => (index(), order()).prop_map(|(index, order)| Op::Isolate { index, order }),
        2 => (index(), 0u64..500, value).prop_map(|(min, len, value)| Op::Alloc { min, len, value }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    order: u32,
    /// `None` for a reserved place.
    value: Option<u64>,
    marks: [bool; 3],
}

#[derive(Debug, Default, Clone)]
struct Model(BTreeMap<u64, Item>);

fn mask(order: u32) -> u64 {
    (1u64 << order) - 1
}

impl Model {
    fn covering(&self, index: u64) -> Option<(u64, Item)> {
        let (&base, &item) = self.0.range(..=index).next_back()?;
        (index <= base | mask(item.order)).then_some((base, item))
    }

    fn used(&self, first: u64, last: u64) -> Vec<u64> {
        let covering = self.covering(first).map(|(base, _)| base);
        let inside = self.0.range(first..=last).map(|(&base, _)| base);
        covering.into_iter().filter(|&base| base < first).chain(inside).collect()
    }

    fn store(&mut self, index: u64, order: u32, value: Option<u64>) {
        let base = index & !mask(order);
        let mut item = Item { order, value, marks: [false; 3] };
        let mut at = base;
        if let Some((larger, old)) = self.covering(base).filter(|(_, old)| old.order >= order) {
            (at, item.order, item.marks) = (larger, old.order, old.marks);
        } else {
            for inner in self.used(base, base | mask(order)) {
                let old = self.0.remove(&inner).unwrap();
                for (mark, was) in item.marks.iter_mut().zip(old.marks) {
                    *mark |= was;
                }
            }
        }
        self.0.insert(at, item);
    }

    fn store_range(&mut self, first: u64, last: u64, value: u64) {
        let mut index = first;
        loop {
            let mut order = index.trailing_zeros().min(63);
            while index | mask(order) > last {
                order -= 1;
            }
            self.store(index, order, Some(value));
            match (index | mask(order)).checked_add(1) {
                Some(next) if next <= last => index = next,
                Some(_) | None => return,
            }
        }
    }

    fn straddles(&self, first: u64, last: u64) -> bool {
        [first, last]
            .into_iter()
            .filter_map(|index| self.covering(index))
            .any(|(base, item)| base < first || base | mask(item.order) > last)
    }

    fn first_free(&self, min: u64, max: u64) -> Option<u64> {
        let mut index = min;
        while index <= max {
            match self.covering(index) {
                None => return Some(index),
                Some((base, item)) => index = (base | mask(item.order)).checked_add(1)?,
            }
        }
        None
    }

    fn split(&mut self, index: u64, order: u32) {
        let Some((base, item)) = self.covering(index).filter(|(_, item)| item.order > order) else {
            return;
        };
        for piece in 0..1u64 << (item.order - order) {
            self.0.insert(base + (piece << order), Item { order, ..item });
        }
    }
}

fn entry_of(item: Option<(u64, Item)>) -> Option<Entry<usize>> {
    item.and_then(|(_, item)| item.value).map(value)
}

fn content_of(item: Option<(u64, Item)>) -> Content<usize> {
    match item {
        None => Content::Empty,
        Some((_, Item { value: None, .. })) => Content::Reserved,
        Some((_, Item { value: Some(n), .. })) => Content::Entry(value(n)),
    }
}

/// Runs `op` on both; `false` if it ran out of memory, which must change nothing.
fn apply(array: &Array<'_>, model: &mut Model, op: &Op) -> bool {
    match *op {
        Op::Store { index, order, value: n } => {
            let old = entry_of(model.covering(index));
            match array.store_order(index, order, value(n)) {
                Ok(got) => {
                    assert_eq!(got, old);
                    model.store(index, order, Some(n));
                }
                Err(NoMemory) => return false,
            }
        }
        Op::Insert { index, order, value: n } => {
            let base = index & !mask(order);
            let free = model.used(base, base | mask(order)).is_empty();
            match array.insert_order(index, order, value(n)) {
                Ok(()) => {
                    assert!(free);
                    model.store(index, order, Some(n));
                }
                Err(InsertError::Occupied) => assert!(!free),
                Err(InsertError::NoMemory) => return false,
            }
        }
        Op::Exchange { index, matches, new } => {
            let there = content_of(model.covering(index));
            let current = if matches { there } else { Content::Entry(value(5000)) };
            let content = new.map_or(Content::Empty, |n| Content::Entry(value(n)));
            match array.compare_exchange(index, current, content) {
                Ok(got) => assert_eq!(got, there),
                Err(NoMemory) => return false,
            }
            if matches {
                match new {
                    Some(n) => model.store(index, 0, Some(n)),
                    None => erase(model, index),
                }
            }
        }
        Op::Erase(index) => {
            assert_eq!(array.erase(index), entry_of(model.covering(index)));
            erase(model, index);
        }
        Op::StoreRange { first, len, value: n } => {
            let last = first.saturating_add(len);
            match array.store_range(first..=last, value(n)) {
                Ok(()) => {
                    assert!(!model.straddles(first, last));
                    model.store_range(first, last, n);
                }
                Err(RangeError::Straddles) => assert!(model.straddles(first, last)),
                Err(RangeError::NoMemory) => return false,
            }
        }
        Op::EraseRange { first, len } => {
            let last = first.saturating_add(len);
            array.erase_range(first..=last);
            for base in model.used(first, last) {
                model.0.remove(&base);
            }
        }
        Op::Reserve(index) => match array.reserve(index) {
            Ok(()) => model.store(index, 0, None),
            Err(InsertError::Occupied) => assert!(model.covering(index).is_some()),
            Err(InsertError::NoMemory) => return false,
        },
        Op::Release(index) => {
            array.release(index);
            if content_of(model.covering(index)) == Content::Reserved {
                erase(model, index);
            }
        }
        Op::CreateRange { first, len } => {
            let last = first.saturating_add(len);
            if array.create_range(first..=last) == Err(NoMemory) {
                return false;
            }
            for index in first..=last {
                if model.covering(index).is_none() {
                    model.store(index, 0, None);
                }
            }
        }
        Op::Mark { index, mark, set } => {
            let item = model.covering(index).filter(|(_, item)| item.value.is_some());
            let found =
                if set { array.set_mark(index, mark) } else { array.clear_mark(index, mark) };
            assert_eq!(found, item.is_some());
            if let Some((base, _)) = item {
                model.0.get_mut(&base).unwrap().marks[mark_number(mark)] = set;
            }
        }
        Op::Split { index, order } => {
            // Keep the pieces few enough to compare.
            let from = model.covering(index).map_or(0, |(_, item)| item.order);
            let order = order.max(from.saturating_sub(10));
            match array.split(index, order) {
                Ok(()) => model.split(index, order),
                Err(NoMemory) => return false,
            }
        }
        Op::Isolate { index, order } => match array.isolate(index, order) {
            Ok(()) => {
                let from = model.covering(index).map_or(0, |(_, item)| item.order);
                for half in (order..from).rev() {
                    model.split(index, half);
                }
            }
            Err(NoMemory) => return false,
        },
        Op::Alloc { min, len, value: n } => {
            let max = min.saturating_add(len);
            let free = model.first_free(min, max);
            match array.alloc(min..=max, value(n)) {
                Ok(index) => {
                    assert_eq!(Some(index), free);
                    model.store(index, 0, Some(n));
                }
                Err(AllocError::Full) => assert_eq!(free, None),
                Err(AllocError::NoMemory) => return false,
            }
        }
    }
    true
}

fn erase(model: &mut Model, index: u64) {
    if let Some((base, _)) = model.covering(index) {
        model.0.remove(&base);
    }
}

fn mark_number(mark: Mark) -> usize {
    Mark::ALL.iter().position(|&m| m == mark).unwrap()
}

fn compare(array: &Array<'_>, rcu: &Rcu, model: &Model) {
    let shape = array.validate().unwrap();
    let entries: Vec<_> =
        model.0.iter().filter_map(|(&base, item)| Some((base, item.order, item.value?))).collect();
    assert_eq!(shape.entries, entries.len() as u64);
    assert_eq!(shape.reserved, (model.0.len() - entries.len()) as u64);
    let expected: Vec<_> =
        entries.iter().map(|&(base, order, n)| (base, order, value(n))).collect();
    let guard = rcu.read(0);
    let up: Vec<_> =
        array.entries(&guard, 0..=u64::MAX).map(|f| (f.index, f.order, f.entry)).collect();
    assert_eq!(up, expected);

    let mut down = Vec::new();
    let mut from = Some(u64::MAX);
    while let Some(found) = from.and_then(|from| array.find_back(from)) {
        down.push((found.index, found.order, found.entry));
        from = found.index.checked_sub(1);
    }
    down.reverse();
    assert_eq!(down, expected);

    for (number, mark) in Mark::ALL.into_iter().enumerate() {
        let marked: Vec<_> =
            array.marked_entries(&guard, 0..=u64::MAX, mark).map(|found| found.index).collect();
        let wanted: Vec<_> =
            model.0.iter().filter(|(_, item)| item.marks[number]).map(|(&base, _)| base).collect();
        assert_eq!(marked, wanted);
        assert_eq!(array.any_marked(mark), !wanted.is_empty());
    }
}

fn probe(array: &Array<'_>, model: &Model, index: u64) {
    let item = model.covering(index);
    assert_eq!(array.content(index), content_of(item));
    let entry = item.filter(|(_, item)| item.value.is_some());
    assert_eq!(array.order_at(index), entry.map(|(_, item)| item.order));
    for mark in Mark::ALL {
        let marked = entry.is_some_and(|(_, item)| item.marks[mark_number(mark)]);
        assert_eq!(array.is_marked(index, mark), marked);
    }
    let next = array.find(index..=u64::MAX).map(|found| found.index);
    let wanted = model.used(index, u64::MAX);
    assert_eq!(next, wanted.into_iter().find(|base| model.0[base].value.is_some()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_agrees_with_the_model_and_failure_changes_nothing(
        ops in proptest::collection::vec((op(), 0usize..6, index()), 1..60)
    ) {
        let nodes = HeapNodes::new();
        let rcu = Rcu::new();
        let array = Array::new(&rcu, &nodes);
        let mut model = Model::default();
        for (op, budget, other) in ops {
            nodes.fail_after(budget);
            let done = apply(&array, &mut model, &op);
            compare(&array, &rcu, &model);
            if !done {
                nodes.succeed();
                prop_assert!(apply(&array, &mut model, &op));
                compare(&array, &rcu, &model);
            }
            probe(&array, &model, other);
            // Neither the reserve of the operation nor dead nodes stay behind.
            prop_assert_eq!(array.reclaim(), 0);
            prop_assert_eq!(nodes.live(), array.usage().nodes);
        }
        array.clear();
        prop_assert!(array.is_empty());
        array.reclaim();
        prop_assert_eq!(nodes.live(), 0);
    }
}
