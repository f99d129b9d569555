//! Random operations against a model that knows only single pages.

use std::collections::{BTreeMap, BTreeSet};

use abi::{Pfn, PfnRange};
use proptest::prelude::*;

use super::assert_consistent;
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Kind, Order};
use crate::memory::{FrozenFrames, IsolatedRange, Memory};
use crate::platform::FaultSite;
use crate::testing::{TestPlatform, memory_of, range, set_cpu};

#[derive(Debug, Clone)]
enum Op {
    Alloc(u8, u8),
    Free(prop::sample::Index),
    FreeReported(prop::sample::Index),
    Split(prop::sample::Index),
    Inflate(prop::sample::Index),
    Deflate(prop::sample::Index),
    Isolate(u64),
    Unisolate,
    Drain,
    Cpu(usize),
    Fault(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0u8..=10, 0u8..6).prop_map(|(order, gfp)| Op::Alloc(order, gfp)),
        4 => index().prop_map(Op::Free),
        2 => index().prop_map(Op::FreeReported),
        1 => index().prop_map(Op::Split),
        2 => index().prop_map(Op::Inflate),
        2 => index().prop_map(Op::Deflate),
        1 => (0u64..8).prop_map(Op::Isolate),
        1 => Just(Op::Unisolate),
        1 => Just(Op::Drain),
        1 => (0usize..4).prop_map(Op::Cpu),
        1 => (0u64..3).prop_map(Op::Fault),
    ]
}

/// Pages, and nothing about blocks.
struct Model {
    memory: Memory<TestPlatform>,
    free: BTreeSet<u64>,
    /// Free pages that the host has no memory for, at most.
    reported: BTreeSet<u64>,
    held: Vec<FrozenFrames>,
    offline: BTreeMap<u64, u64>,
    isolated: Option<IsolatedRange>,
}

fn gfp(choice: u8) -> Gfp {
    match choice {
        0 => Gfp::USER | Gfp::MEMALLOC,
        1 => Gfp::KERNEL | Gfp::MEMALLOC,
        2 => Gfp::RECLAIMABLE | Gfp::MEMALLOC,
        3 => Gfp::USER,
        4 => Gfp::KERNEL,
        _ => Gfp::BALLOON,
    }
}

fn numbers(range: PfnRange) -> impl Iterator<Item = u64> {
    range.iter().map(Pfn::number)
}

impl Model {
    fn new() -> Self {
        set_cpu(0);
        // A gap, odd ends, and reserved pages inside.
        let ram = [range(3, 1500), range(2048, 2560)];
        let memory = memory_of(&ram, &[range(0, 10), range(700, 3), range(4000, 10_000)]);
        let mut free = BTreeSet::new();
        memory.for_each_free(&mut |pfn, order, _| {
            free.extend(pfn.number()..pfn.number() + order.pages().get());
        });
        assert_eq!(free.len() as u64, memory.managed_pages().get());
        Self {
            memory,
            free,
            reported: BTreeSet::new(),
            held: Vec::new(),
            offline: BTreeMap::new(),
            isolated: None,
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Alloc(order, flags) => self.alloc(Order::new(*order).unwrap(), gfp(*flags)),
            Op::Free(index) => {
                if let Some(frames) = self.pick(index) {
                    self.free.extend(numbers(frames.range()));
                    self.memory.free_frozen(frames);
                }
            }
            Op::FreeReported(index) => {
                if let Some(frames) = self.pick(index) {
                    self.free.extend(numbers(frames.range()));
                    self.reported.extend(numbers(frames.range()));
                    self.memory.free_reported(frames);
                }
            }
            Op::Split(index) => self.split(index),
            Op::Inflate(index) => self.inflate(index),
            Op::Deflate(index) => self.deflate(index),
            Op::Isolate(block) => {
                if self.isolated.is_none() {
                    // Outside RAM: refused.
                    self.isolated = self.memory.isolate_range(range(block * 512 + 100, 1)).ok();
                }
            }
            Op::Unisolate => {
                if let Some(isolated) = self.isolated.take() {
                    self.memory.unisolate_range(isolated);
                }
            }
            Op::Drain => self.memory.drain(),
            Op::Cpu(cpu) => set_cpu(*cpu),
            Op::Fault(nth) => self.memory.platform().faults().fail_nth(FaultSite::BuddyAlloc, *nth),
        }
    }

    fn alloc(&mut self, order: Order, gfp: Gfp) {
        let struck = self.memory.platform().faults().struck(FaultSite::BuddyAlloc);
        let result = self.memory.alloc_frozen(order, gfp);
        let faulted = self.memory.platform().faults().struck(FaultSite::BuddyAlloc) > struck;
        match result {
            Ok(frames) => {
                assert_eq!(frames.order(), order);
                assert!(frames.head().is_aligned(order.get()));
                for pfn in numbers(frames.range()) {
                    assert!(self.free.remove(&pfn), "{pfn} was not free");
                    assert!(!self.is_isolated(pfn), "{pfn} is isolated");
                    let reported = self.reported.remove(&pfn);
                    assert!(reported || !frames.was_reported(), "{pfn} was not reported");
                }
                self.held.push(frames);
            }
            Err(_) if faulted => {}
            Err(_) => {
                let reserve = gfp.reserve(self.memory.watermarks()) + order.pages().get();
                let usable = self.free.iter().filter(|&&pfn| !self.is_isolated(pfn)).count() as u64;
                assert!(
                    usable < reserve || !self.has_free_run(order),
                    "{order:?} exists, {usable} pages are free, but {gfp:?} failed"
                );
            }
        }
    }

    fn is_isolated(&self, pfn: u64) -> bool {
        let isolated = self.isolated.as_ref().map(IsolatedRange::pageblocks);
        isolated.is_some_and(|blocks| blocks.contains(Pfn::new(pfn).unwrap()))
    }

    /// Whether an aligned run of free pages of this order exists.
    fn has_free_run(&self, order: Order) -> bool {
        let pages = order.pages().get();
        self.free.iter().filter(|&&pfn| pfn % pages == 0).any(|&pfn| {
            (pfn..pfn + pages).all(|pfn| self.free.contains(&pfn) && !self.is_isolated(pfn))
        })
    }

    fn pick(&mut self, index: &prop::sample::Index) -> Option<FrozenFrames> {
        (!self.held.is_empty()).then(|| self.held.swap_remove(index.index(self.held.len())))
    }

    fn split(&mut self, index: &prop::sample::Index) {
        let Some(frames) = self.pick(index) else { return };
        match self.memory.split_frozen(frames) {
            Ok((lower, upper)) => self.held.extend([lower, upper]),
            Err(error) => {
                assert_eq!(error.block.order(), Order::ZERO);
                self.held.push(error.block);
            }
        }
    }

    fn inflate(&mut self, index: &prop::sample::Index) {
        let Some(frames) = self.pick(index) else { return };
        let pages = frames.pages().get();
        let block = self.memory.make_offline(frames, DriverId::BALLOON).unwrap();
        let pfn = self.memory.park(block).unwrap();
        if pages.is_multiple_of(4) {
            self.memory.set_movable(pfn, DriverId::BALLOON).unwrap();
        }
        self.offline.insert(pfn.number(), pages);
    }

    fn deflate(&mut self, index: &prop::sample::Index) {
        if self.offline.is_empty() {
            return;
        }
        let (&number, &pages) = self.offline.iter().nth(index.index(self.offline.len())).unwrap();
        self.offline.remove(&number);
        let pfn = Pfn::new(number).unwrap();
        let block = self.memory.claim_offline(pfn, DriverId::BALLOON).unwrap();
        assert_eq!(block.pages().get(), pages);
        let frames = self.memory.online(block).unwrap();
        self.free.extend(numbers(frames.range()));
        self.reported.extend(numbers(frames.range()));
        self.memory.free_reported(frames);
    }

    fn check(&self) {
        assert_consistent(&self.memory);
        let census = self.memory.census();
        assert_eq!(census.free_pages().get(), self.free.len() as u64);
        assert_eq!(self.memory.free_pages().get(), self.free.len() as u64);
        let held: u64 = self.held.iter().map(|frames| frames.pages().get()).sum();
        assert_eq!(census.pages(Kind::Frozen).get(), held);
        assert_eq!(
            census.offline_total(DriverId::BALLOON).get(),
            self.offline.values().sum::<u64>()
        );
        assert!(census.reported_pages().get() <= self.reported.len() as u64);
        assert_eq!(self.memory.counters().refused_frees, 0);
    }

    fn finish(mut self) {
        self.apply(&Op::Unisolate);
        while let Some(&number) = self.offline.keys().next() {
            let pfn = Pfn::new(number).unwrap();
            self.offline.remove(&number);
            let block = self.memory.claim_offline(pfn, DriverId::BALLOON).unwrap();
            let frames = self.memory.online(block).unwrap();
            self.memory.free_frozen(frames);
        }
        for frames in self.held.drain(..) {
            self.memory.free_frozen(frames);
        }
        assert_consistent(&self.memory);
        assert_eq!(self.memory.free_pages(), self.memory.managed_pages());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn blocks_never_overlap_and_books_agree_after_every_step(
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut model = Model::new();
        model.check();
        for op in &ops {
            model.apply(op);
            model.check();
        }
        model.finish();
    }
}
