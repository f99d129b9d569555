//! The words of slots.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use abi::Pfn;
use core::sync::atomic::AtomicU64;
use proptest::prelude::*;

use crate::swap::{AttachError, MAX_COUNT, Put, SlotWord, SwapError, SwapTable};
use crate::testing::{TestPlatform, range, set_cpu};

const SLOTS: usize = 6;
/// A slot of the table, or one behind it.
const ANY_SLOT: core::ops::Range<u32> = 0..7;

fn platform() -> TestPlatform {
    TestPlatform::new(&[range(0, 1)], 0)
}

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    Alloc(u64),
    Dup(u32),
    Put(u32),
    Attach(u32, u64),
    Detach(u32),
}

fn any_op() -> impl Strategy<Value = Op> {
    let slot = ANY_SLOT;
    prop_oneof![
        3 => (1u64..9).prop_map(Op::Alloc),
        3 => slot.clone().prop_map(Op::Dup),
        3 => slot.clone().prop_map(Op::Put),
        1 => (slot.clone(), 1u64..9).prop_map(|(slot, pfn)| Op::Attach(slot, pfn)),
        2 => slot.prop_map(Op::Detach),
    ]
}

/// Used slots: leaves, and the frame of the cache.
type Model = BTreeMap<u32, (u32, Option<Pfn>)>;

fn apply(table: &SwapTable<'_>, platform: &TestPlatform, model: &mut Model, op: Op) {
    match op {
        Op::Alloc(at) => match table.alloc(platform, pfn(at)) {
            Ok(slot) => assert_eq!(model.insert(slot, (0, Some(pfn(at)))), None),
            Err(error) => assert_eq!((error, model.len()), (SwapError::Full, SLOTS)),
        },
        Op::Dup(slot) => match model.get_mut(&slot) {
            Some((count, _)) => {
                assert_eq!(table.dup(slot), Ok(()));
                *count += 1;
            }
            None => assert_eq!(table.dup(slot), Err(SwapError::NotUsed)),
        },
        Op::Put(slot) => match model.get_mut(&slot) {
            None | Some((0, _)) => assert_eq!(table.put(slot), Err(SwapError::NotUsed)),
            Some((count, cached)) => {
                *count -= 1;
                let expected = match (*count, *cached) {
                    (0, Some(at)) => Put::OnlyCached(at),
                    (0, None) => Put::Last,
                    (_, _) => Put::Shared,
                };
                assert_eq!(table.put(slot), Ok(expected));
                if expected == Put::Last {
                    assert_eq!(table.load(slot), Some(SlotWord::Used { count: 0 }));
                    assert_eq!(table.dup(slot), Err(SwapError::NotUsed), "it is being freed");
                    table.give_back(platform, slot);
                    model.remove(&slot);
                }
            }
        },
        Op::Attach(slot, at) => match model.get_mut(&slot) {
            None => assert_eq!(table.attach(slot, pfn(at)), Err(AttachError::NotUsed)),
            Some((_, Some(cached))) => {
                assert_eq!(table.attach(slot, pfn(at)), Err(AttachError::Cached(*cached)));
            }
            Some((_, cached @ None)) => {
                assert_eq!(table.attach(slot, pfn(at)), Ok(()));
                *cached = Some(pfn(at));
            }
        },
        Op::Detach(slot) => match model.get_mut(&slot) {
            Some((count, cached)) if cached.is_some() => {
                let at = cached.take().unwrap();
                assert_eq!(table.detach(slot, pfn(99)), Err(SwapError::NotUsed), "not that one");
                assert_eq!(table.detach(slot, at), Ok(*count == 0));
                if *count == 0 {
                    table.give_back(platform, slot);
                    model.remove(&slot);
                }
            }
            Some(_) | None => assert_eq!(table.detach(slot, pfn(1)), Err(SwapError::NotUsed)),
        },
    }
}

proptest! {
    #[test]
    fn the_table_does_what_its_model_does(ops in prop::collection::vec(any_op(), 1..120)) {
        let (words, platform) = (words(SLOTS), platform());
        let table = SwapTable::new(&words, &|_| false);
        let mut model = Model::new();
        for op in ops {
            apply(&table, &platform, &mut model, op);
            let free = u32::try_from(SLOTS - model.len()).unwrap();
            prop_assert_eq!(table.count_free(&platform), Some(free));
            for (slot, (count, cached)) in &model {
                let word = table.load(*slot).unwrap();
                prop_assert_eq!((word.count(), word.cached_at()), (*count, *cached));
            }
            prop_assert_eq!(table.close(&platform).is_ok() , model.is_empty());
            if model.is_empty() {
                break;
            }
        }
    }
}

#[test]
fn bad_slots_are_never_handed_out() {
    let (words, platform) = (words(4), platform());
    let table = SwapTable::new(&words, &|slot| slot == 1);
    assert_eq!((table.slots(), table.bad_slots(), table.free_slots(&platform)), (4, 1, 3));
    let got: Vec<_> = (0..3).map(|_| table.alloc(&platform, pfn(1)).unwrap()).collect();
    assert_eq!(got, [0, 2, 3]);
    assert_eq!(table.alloc(&platform, pfn(1)), Err(SwapError::Full));
    assert_eq!(table.dup(1), Err(SwapError::NotUsed));
    assert_eq!(table.close(&platform), Err(SwapError::Busy));
}

#[test]
fn a_slot_counts_up_to_its_limit_and_no_further() {
    let (words, platform) = (words(1), platform());
    let table = SwapTable::new(&words, &|_| false);
    let slot = table.alloc(&platform, pfn(5)).unwrap();
    let almost = SlotWord::Cached { count: MAX_COUNT - 1, pfn: pfn(5) };
    words[0].store(almost.encode(), core::sync::atomic::Ordering::Relaxed);
    assert_eq!(table.dup(slot), Ok(()));
    assert_eq!(table.dup(slot), Err(SwapError::TooMany));
    assert_eq!(table.put(slot), Ok(Put::Shared));
}

#[test]
fn slots_are_handed_out_once_whoever_asks() {
    let (words, platform) = (words(64), platform());
    let table = SwapTable::new(&words, &|_| false);
    let taken: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|cpu| {
                let (table, platform) = (&table, &platform);
                scope.spawn(move || {
                    set_cpu(cpu);
                    let mut kept = Vec::new();
                    for round in 0..400 {
                        let Ok(slot) = table.alloc(platform, pfn(cpu as u64 + 1)) else { continue };
                        if round % 20 == 0 {
                            kept.push(slot);
                        } else if table.detach(slot, pfn(cpu as u64 + 1)).unwrap() {
                            table.give_back(platform, slot);
                        }
                    }
                    kept
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let all: Vec<u32> = taken.into_iter().flatten().collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a slot was taken twice");
    let used = u32::try_from(all.len()).unwrap();
    assert_eq!(table.count_free(&platform), Some(64 - used));
}
