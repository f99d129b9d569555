//! The census finds what is wrong, and only that.

use abi::{PageCount, Pfn};

use super::*;
use crate::buddy::Gfp;
use crate::memdesc::{Block, BlockKind, Buddy, Link, Memdesc, Pcp, Word};
use crate::memory::Memory;
use crate::rcu::Rcu;
use crate::slab::{KmemCache, SlabOptions};
use crate::store::{self, PfnStore, Reservation, XArrayStore};
use crate::testing::{TestPlatform, memory};
use crate::xarray::SlabNodes;

fn set(memory: &Memory<TestPlatform>, pfn: Pfn, to: Memdesc) {
    let cell = memory.words().cell(pfn).unwrap();
    cell.transition(cell.load(), to.encode()).unwrap();
}

fn found(memory: &Memory<TestPlatform>) -> Vec<Discrepancy> {
    memory.census().discrepancies().iter().copied().collect()
}

fn frozen(order: u8) -> Memdesc {
    Memdesc::Block(Block::new(BlockKind::Frozen, Order::new(order).unwrap()))
}

/// The second frame of a free block, and the block's head.
fn free_block(memory: &Memory<TestPlatform>) -> (Pfn, Pfn) {
    let mut head = Pfn::ZERO;
    memory.for_each_free(&mut |pfn, order, _| {
        if order == Order::MAX {
            head = pfn;
        }
    });
    (head, head.checked_add(PageCount::ONE).unwrap())
}

#[test]
fn a_head_inside_a_free_block_is_a_broken_tail() {
    let memory = memory(4096);
    let (head, at) = free_block(&memory);
    set(&memory, at, frozen(0));
    assert_eq!(found(&memory), [Discrepancy::BrokenTail { head, at }]);
}

#[test]
fn a_free_block_taken_behind_the_lists_back_breaks_list_and_counts() {
    let memory = memory(4096);
    let (head, _) = free_block(&memory);
    set(&memory, head, frozen(10));
    let found = found(&memory);
    assert!(found.iter().any(|d| matches!(d, Discrepancy::ListLength { .. })), "{found:?}");
    assert!(found.iter().any(|d| matches!(d, Discrepancy::FreePages(..))), "{found:?}");
    assert!(found.iter().any(|d| matches!(d, Discrepancy::BrokenList(..))), "{found:?}");
}

#[test]
fn a_frame_that_calls_itself_listed_and_is_on_no_list_is_told() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    let listed = memory.census().pages(Kind::Pcp).get();
    let pcp = Pcp {
        order: Order::ZERO,
        migratetype: MigrateType::Movable,
        cpu: 0,
        reported: false,
        next: Link::NONE,
    };
    set(&memory, frames.head(), Memdesc::Pcp(pcp));
    assert_eq!(found(&memory), [Discrepancy::PcpPages { listed, counted: listed + 1 }]);
}

#[test]
fn a_shrunken_block_leaves_orphan_tails() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::new(2).unwrap(), Gfp::USER).unwrap();
    set(&memory, frames.head(), frozen(1));
    let census = memory.census();
    assert_eq!(census.discrepancies().total(), 2);
    let orphans = census.discrepancies().iter().all(|d| matches!(d, Discrepancy::OrphanTail(_)));
    assert!(orphans);
}

#[test]
fn a_block_of_the_wrong_alignment_is_misplaced() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    let second = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    let odd = [&frames, &second].into_iter().find(|f| !f.head().is_aligned(1)).unwrap().head();
    set(&memory, odd, frozen(1));
    assert_eq!(found(&memory), [Discrepancy::Misplaced(odd, Order::new(1).unwrap())]);
}

#[test]
fn a_free_block_on_a_list_of_another_type_is_told() {
    let memory = memory(4096);
    let (head, _) = free_block(&memory);
    let buddy = memory.words().load(head).unwrap().as_buddy().unwrap();
    set(&memory, head, Memdesc::Buddy(Buddy { migratetype: MigrateType::Cma, ..buddy }));
    let found = found(&memory);
    let wrong = Discrepancy::WrongType(head, MigrateType::Movable);
    assert!(found.contains(&wrong), "{found:?}");
}

#[test]
fn a_link_that_does_not_lead_back_breaks_the_list() {
    let memory = memory(8192);
    let (head, _) = free_block(&memory);
    let buddy = memory.words().load(head).unwrap().as_buddy().unwrap();
    set(&memory, head, Memdesc::Buddy(Buddy { prev: Link::NONE, ..buddy }));
    let broken = Discrepancy::BrokenList(Order::MAX, MigrateType::Movable, Some(head));
    assert_eq!(found(&memory), [broken]);
}

#[test]
fn a_malformed_word_is_counted_and_the_rest_still_adds_up() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    let (word, at) = (Word::from_bits(0xa), frames.head());
    corrupt(&memory, at, word);
    let census = memory.census();
    assert_eq!(census.unknown_words(), 1);
    assert_eq!(found(&memory), [Discrepancy::UnknownWord(at, word)]);
    assert!(memory.words().decode(at).is_err());
    assert_eq!(memory.words().unknown_words(), 1);
}

/// What a stray write does to a word, which no transition allows.
fn corrupt(memory: &Memory<TestPlatform>, pfn: Pfn, word: Word) {
    let cell: *const crate::memdesc::WordCell = memory.words().cell(pfn).unwrap();
    // SAFETY: a cell is a transparent atomic, which may be stored through a shared pointer.
    let atomic = unsafe { &*cell.cast::<core::sync::atomic::AtomicU64>() };
    atomic.store(word.bits(), core::sync::atomic::Ordering::Relaxed);
}

#[test]
fn a_stray_write_into_free_memory_is_refused_at_the_next_use() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    corrupt(&memory, frames.head(), Word::from_bits(0xd));
    let refused = memory.try_free(frames);
    assert!(matches!(refused, Err(crate::memory::FreeError::Unknown(_))));
}

struct Listed(Vec<(Pfn, Order)>);

impl CensusStore for Listed {
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order)) {
        self.0.iter().for_each(|&(pfn, order)| visit(pfn, order));
    }
}

fn balloon_discrepancies(
    memory: &Memory<TestPlatform>,
    store: &dyn CensusStore,
    actual: u64,
    in_flight: u64,
) -> Vec<Discrepancy> {
    let claim = BalloonClaim {
        driver: DriverId::BALLOON,
        store,
        actual: PageCount::new(actual),
        in_flight: PageCount::new(in_flight),
    };
    let scope = CensusScope { balloons: &[claim], caches: &[] };
    memory.census_of(&scope).discrepancies().iter().copied().collect()
}

#[test]
fn store_words_and_actual_must_agree() {
    let memory = memory(4096);
    let order = Order::new(3).unwrap();
    let mut blocks = Vec::new();
    for _ in 0..4 {
        let frames = memory.alloc_frozen(order, Gfp::BALLOON).unwrap();
        let block = memory.make_offline(frames, DriverId::BALLOON).unwrap();
        blocks.push((memory.park(block).unwrap(), order));
    }
    let whole = Listed(blocks.clone());
    let pages = |(pfn, _): &(Pfn, Order)| {
        let pfn = *pfn;
        (0..8).map(move |n| (pfn.checked_add(PageCount::new(n)).unwrap(), Order::ZERO))
    };
    let by_page = Listed(blocks.iter().flat_map(pages).collect());
    for store in [&whole, &by_page] {
        assert_eq!(balloon_discrepancies(&memory, store, 24, 8), []);
    }
    let driver = DriverId::BALLOON;
    let actual = Discrepancy::Actual { driver, claimed: 24, counted: 32 };
    assert_eq!(balloon_discrepancies(&memory, &whole, 24, 0), [actual]);
    let short = Listed(blocks[1..].to_vec());
    let missing = Discrepancy::StorePages { driver, stored: 24, counted: 32 };
    assert_eq!(balloon_discrepancies(&memory, &short, 32, 0), [missing]);
    let mut foreign = blocks.clone();
    foreign[0].0 = free_block(&memory).0;
    let found = balloon_discrepancies(&memory, &Listed(foreign), 32, 0);
    assert!(matches!(found[..], [Discrepancy::StoreEntry(..)]), "{found:?}");
}

/// Frees the balloon's block at `pfn` while somebody reads the store: its nodes wait.
fn deflate_below_a_reader<S: PfnStore>(
    memory: &Memory<TestPlatform>,
    rcu: &Rcu,
    store: &S,
    pfn: Pfn,
) {
    let reader = rcu.read(0);
    store.remove(pfn);
    let block = memory.claim_offline(pfn, DriverId::BALLOON).unwrap();
    memory.free_frozen(memory.online(block).unwrap());
    drop(reader);
}

/// So a census said that the cache of nodes and its slabs differ, whenever nodes had waited.
#[test]
fn nodes_that_a_look_into_the_store_frees_are_no_discrepancy() {
    let memory = memory(4096);
    let cache = SlabNodes::cache(&memory).unwrap();
    let (rcu, all) = (Rcu::new(), crate::testing::range(0, 4096));
    let store = XArrayStore::new(&rcu, SlabNodes::new(&memory, &cache, Gfp::KERNEL), all);
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::MOVABLE).unwrap();
    let head = frames.head();
    store.reserve().unwrap().commit(store::Block::new(head, 0).unwrap()).unwrap();
    let block = memory.make_offline(frames, DriverId::BALLOON).unwrap();
    memory.park(block).unwrap();
    let nodes = cache.stats(&memory).in_use;
    deflate_below_a_reader(&memory, &rcu, &store, head);
    assert_eq!(cache.stats(&memory).in_use, nodes, "they wait");
    let none = PageCount::ZERO;
    let driver = DriverId::BALLOON;
    let claim = BalloonClaim { driver, store: &store, actual: none, in_flight: none };
    let scope = CensusScope { balloons: &[claim], caches: &[&cache] };
    let census = memory.census_of(&scope);
    assert!(cache.stats(&memory).in_use < nodes, "the look has freed them");
    assert!(census.is_consistent(), "{:?}", census.discrepancies());
    drop(store);
    cache.shrink(&memory);
}

#[test]
fn slab_counts_come_from_the_words() {
    let memory = memory(4096);
    let cache = KmemCache::new(&memory, "nodes", 576, SlabOptions::default()).unwrap();
    let object = cache.alloc(&memory, Gfp::KERNEL).unwrap();
    let scope = CensusScope { balloons: &[], caches: &[&cache] };
    assert!(memory.census_of(&scope).is_consistent());
    // SAFETY: nobody uses the object.
    unsafe { cache.free(&memory, object) }.unwrap();
    assert!(memory.census_of(&scope).is_consistent());
    assert_eq!(memory.census_of(&scope).blocks(Kind::Slab), 1);
}

#[test]
fn more_discrepancies_than_are_kept_are_still_counted() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::new(8).unwrap(), Gfp::USER).unwrap();
    set(&memory, frames.head(), frozen(0));
    let census = memory.census();
    assert_eq!(census.discrepancies().total(), 255);
    assert_eq!(census.discrepancies().iter().count(), MAX_DISCREPANCIES);
}
