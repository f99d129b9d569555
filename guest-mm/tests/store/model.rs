//! Random operations on each store and on a map, compared after each.

use std::collections::{BTreeMap, BTreeSet};

use guest_mm::rcu::Rcu;
use guest_mm::store::{
    BitmapStore, Block, BlockState, CommitError, IdaStore, Leaf, ListStore, PfnStore, Record,
    Reservation, Select, SplitError, SplitReservation, SplitShape, StoredBlock, XArrayStore,
};
use proptest::prelude::*;

use super::support::{HeapNodes, NoRam};
use super::{pfn, range};

/// The stores cover these frames: neither end is aligned to a large block.
const START: u64 = 0x1_0013;
const END: u64 = 0x1_4fed;

#[derive(Debug, Clone)]
enum Op {
    Commit { head: u64, order: u32 },
    Cancel,
    Remove(u64),
    State { at: u64, state: BlockState },
    Claim(u64),
    Split { at: u64, order: u32, shape: SplitShape },
}

fn frame() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => START..START + 3000,
        2 => START..END,
        1 => 0u64..0x2_0000,
        1 => Just(END - 1),
        1 => Just((1u64 << 52) - 1),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let order = prop_oneof![2 => Just(0u32), 3 => 0u32..=10];
    let state = prop_oneof![Just(BlockState::InFlight), Just(BlockState::Settled)];
    let shape = prop_oneof![Just(SplitShape::Uniform), Just(SplitShape::Isolate)];
    prop_oneof![
        6 => (frame(), order.clone()).prop_map(|(head, order)| Op::Commit { head, order }),
        1 => Just(Op::Cancel),
        4 => frame().prop_map(Op::Remove),
        3 => (frame(), state).prop_map(|(at, state)| Op::State { at, state }),
        2 => frame().prop_map(Op::Claim),
        3 => (frame(), order, shape).prop_map(|(at, order, shape)| Op::Split { at, order, shape }),
    ]
}

/// Blocks by head: order and state.
#[derive(Debug, Default)]
struct Model(BTreeMap<u64, (u32, BlockState)>);

impl Model {
    fn stored(&self, head: u64) -> Option<StoredBlock> {
        let &(order, state) = self.0.get(&head)?;
        Some(StoredBlock { block: Block::new(pfn(head), order).unwrap(), state })
    }

    fn at(&self, frame: u64) -> Option<StoredBlock> {
        let (&head, _) = self.0.range(..=frame).next_back()?;
        self.stored(head).filter(|found| found.block.contains(pfn(frame)))
    }

    fn heads(&self, select: Select) -> Vec<u64> {
        let admits = |state| select == Select::Any || state == BlockState::Settled;
        self.0.iter().filter(|(_, (_, state))| admits(*state)).map(|(&head, _)| head).collect()
    }

    fn frames(&self) -> BTreeSet<u64> {
        self.0.iter().flat_map(|(&head, (order, _))| head..head + (1 << order)).collect()
    }
}

fn apply(store: &impl PfnStore, model: &mut Model, op: &Op) {
    match *op {
        Op::Commit { head, order } => {
            let block = Block::containing(pfn(head), order).unwrap();
            let first = block.head().number();
            let last = first + (1 << order) - 1;
            let expected = if first < START || last >= END {
                Err(CommitError::OutOfRange)
            } else if (first..=last).any(|frame| model.at(frame).is_some()) {
                Err(CommitError::Occupied)
            } else {
                model.0.insert(first, (order, BlockState::InFlight));
                Ok(())
            };
            assert_eq!(store.reserve().unwrap().commit(block), expected);
        }
        Op::Cancel => drop(store.reserve().unwrap()),
        Op::Remove(at) => {
            // Half of the time at a head.
            let head = model.at(at).map_or(at, |found| found.block.head().number());
            assert_eq!(store.remove(pfn(head)), model.stored(head));
            model.0.remove(&head);
            if at != head {
                assert_eq!(store.remove(pfn(at)), None);
            }
        }
        Op::State { at, state } => {
            let head = model.at(at).map_or(at, |found| found.block.head().number());
            let before = model.stored(head).map(|found| found.state);
            assert_eq!(store.set_state(pfn(head), state), before);
            if let Some(entry) = model.0.get_mut(&head) {
                entry.1 = state;
            }
        }
        Op::Claim(from) => {
            let settled = model.heads(Select::Settled);
            let head = settled.iter().find(|&&head| head >= from).or(settled.first()).copied();
            let expected = head.map(|head| model.stored(head).unwrap().block);
            assert_eq!(store.claim(pfn(from)), expected);
            if let Some(head) = head {
                model.0.get_mut(&head).unwrap().1 = BlockState::InFlight;
            }
        }
        Op::Split { at, order, shape } => split(store, model, at, order, shape),
    }
}

fn split(store: &impl PfnStore, model: &mut Model, at: u64, order: u32, shape: SplitShape) {
    let reserved = store.reserve_split(pfn(at), order, shape);
    let Some(found) = model.at(at) else {
        assert_eq!(reserved.err(), Some(SplitError::NotStored));
        return;
    };
    let (head, from) = (found.block.head().number(), found.block.order());
    if order >= from {
        assert_eq!(reserved.err(), Some(SplitError::OrderNotBelow));
        return;
    }
    reserved.map_err(|error| panic!("{error}")).unwrap().commit().unwrap();
    model.0.remove(&head);
    match shape {
        SplitShape::Uniform => {
            for piece in (head..head + (1 << from)).step_by(1 << order) {
                model.0.insert(piece, (order, found.state));
            }
        }
        SplitShape::Isolate => {
            let own = at & !((1 << order) - 1);
            model.0.insert(own, (order, found.state));
            for buddy in order..from {
                let around = at & !((1 << buddy) - 1);
                model.0.insert(around ^ (1 << buddy), (buddy, found.state));
            }
        }
    }
}

fn compare(store: &impl PfnStore, model: &Model, probe: u64) {
    assert_eq!(store.pages().get(), model.frames().len() as u64);
    assert_eq!(store.blocks(), model.0.len() as u64);
    for select in [Select::Any, Select::Settled] {
        let heads = model.heads(select);
        let mut up = Vec::new();
        let mut from = Some(0);
        while let Some(found) = from.and_then(|from| store.next(pfn(from), select)) {
            let head = found.block.head().number();
            assert_eq!(Some(found), model.stored(head));
            up.push(head);
            from = Some(head + 1);
        }
        assert_eq!(up, heads);
        let mut down = Vec::new();
        let mut from = Some(END + 5);
        while let Some(found) = from.and_then(|from| store.prev(pfn(from), select)) {
            let head = found.block.head().number();
            assert_eq!(Some(found), model.stored(head));
            down.push(head);
            from = head.checked_sub(1);
        }
        down.reverse();
        assert_eq!(down, heads);
        let next = store.next(pfn(probe), select).map(|found| found.block.head().number());
        assert_eq!(next, heads.iter().copied().find(|&head| head >= probe));
        let prev = store.prev(pfn(probe), select).map(|found| found.block.head().number());
        assert_eq!(prev, heads.iter().copied().rfind(|&head| head <= probe));
    }
    assert_eq!(store.block_at(pfn(probe)), model.at(probe));
    assert_eq!(store.contains(pfn(probe)), model.frames().contains(&probe));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn the_xarray_store_agrees_with_the_map(
        ops in proptest::collection::vec((op(), frame()), 1..60)
    ) {
        let nodes = HeapNodes::new();
        let rcu = Rcu::new();
        let store = XArrayStore::new(&rcu, &nodes, range(START, END));
        let mut model = Model::default();
        for (op, probe) in ops {
            apply(&store, &mut model, &op);
            compare(&store, &model, probe);
            let shape = store.array().validate().unwrap();
            prop_assert_eq!(shape.entries, model.0.len() as u64);
            store.array().reclaim();
            prop_assert_eq!(store.bytes_used(), nodes.live() * size_of::<guest_mm::xarray::Node>());
        }
    }

    #[test]
    fn the_bitmap_store_agrees_with_the_map(
        ops in proptest::collection::vec((op(), frame()), 1..60)
    ) {
        let platform = NoRam;
        let range = range(START, END);
        let mut words = vec![u64::MAX; BitmapStore::<NoRam>::words_for(range).unwrap()];
        let store = BitmapStore::new(&platform, range, &mut words).unwrap();
        let mut model = Model::default();
        for (op, probe) in ops {
            apply(&store, &mut model, &op);
            compare(&store, &model, probe);
        }
    }

    #[test]
    fn the_ida_store_agrees_with_the_map(
        ops in proptest::collection::vec((op(), frame()), 1..60)
    ) {
        let (nodes, leaves) = (HeapNodes::new(), HeapNodes::new());
        let rcu = Rcu::new();
        let store = IdaStore::new(&rcu, &nodes, &leaves, range(START, END));
        let mut model = Model::default();
        for (op, probe) in ops {
            apply(&store, &mut model, &op);
            compare(&store, &model, probe);
            let shape = store.array().validate().unwrap();
            let used: BTreeSet<u64> = model.0.keys().map(|head| head >> 10).collect();
            prop_assert_eq!(shape.entries, used.len() as u64);
            store.array().reclaim();
            let bytes = nodes.live() * size_of::<guest_mm::xarray::Node>();
            prop_assert_eq!(store.bytes_used(), bytes + leaves.live() * size_of::<Leaf>());
        }
    }

    #[test]
    fn the_list_store_agrees_with_the_map(
        ops in proptest::collection::vec((op(), frame()), 1..60)
    ) {
        let records = HeapNodes::new();
        let platform = NoRam;
        let store = ListStore::new(&platform, &records, range(START, END));
        let mut model = Model::default();
        for (op, probe) in ops {
            apply(&store, &mut model, &op);
            compare(&store, &model, probe);
            prop_assert_eq!(store.bytes_used(), records.live() * size_of::<Record>());
        }
    }
}
