//! The driver against a reference device that the test plays by hand.

mod faults;
pub(crate) mod map_store;
mod migrate;
mod moves;
mod oom;
mod resets;
mod shared;

use std::collections::BTreeSet;
use std::vec::Vec;

use abi::balloon::{CONFIG_ACTUAL, CONFIG_NUM_PAGES, feature};
use abi::virtio::{VIRTIO_ID_BALLOON, status};
use abi::{PageCount, Pfn};

use super::{BalloonDriver, BalloonPhase, BalloonStatus, Options, Wake};
use crate::memdesc::{DriverId, Hold, Memdesc};
use crate::memory::Memory;
use crate::platform::Platform;
use crate::store::{BlockState, PfnStore, Select, StoredBlock};
use crate::testing::{TestPlatform, memory};
use crate::virtio::testing::{Chain, FakeDevice};
use map_store::MapStore;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// What a real device might offer: all of it.
const OFFERED: u64 = feature::MUST_TELL_HOST
    | feature::STATS_VQ
    | feature::DEFLATE_ON_OOM
    | feature::FREE_PAGE_HINT
    | feature::PAGE_POISON
    | feature::REPORTING;

type Driver<'m> = BalloonDriver<'m, TestPlatform, &'m FakeDevice<'m>, MapStore>;

/// A guest, its device, and what the host believes.
struct Rig<'m> {
    memory: &'m Memory<TestPlatform>,
    store: &'m MapStore,
    fake: &'m FakeDevice<'m>,
    driver: Driver<'m>,
    /// Pages that the host took and did not hear back of.
    host: BTreeSet<u32>,
}

fn with_rig(pages: u64, options: Options, test: impl FnOnce(&mut Rig<'_>)) {
    with_rings(pages, options, 256, test);
}

fn with_rings(pages: u64, options: Options, entries: u32, test: impl FnOnce(&mut Rig<'_>)) {
    let memory = memory(pages);
    let store = MapStore::default();
    let queues = [entries, entries, entries];
    let fake = FakeDevice::new(memory.platform(), VIRTIO_ID_BALLOON, OFFERED, &queues);
    let free_before = memory.free_pages();
    let driver = BalloonDriver::start(&memory, &store, &fake, options).unwrap();
    let mut rig =
        Rig { memory: &memory, store: &store, fake: &fake, driver, host: BTreeSet::new() };
    rig.check();
    test(&mut rig);
    rig.check();
    let Rig { mut driver, .. } = rig;
    driver.unbind();
    for _ in 0..700 {
        if let Wake::At(at) = driver.poll() {
            memory.platform().advance_ns(at.saturating_sub(memory.platform().now_ns()));
        }
    }
    assert!(driver.finish().is_ok(), "pages stayed in the balloon");
    assert_eq!(memory.free_pages(), free_before, "something was left behind");
}

fn order_zero() -> Options {
    Options { max_order: 0, ..Options::default() }
}

impl Rig<'_> {
    fn set_target(&mut self, pages: u32) {
        self.fake.set_config32(usize::try_from(CONFIG_NUM_PAGES).unwrap(), pages);
        self.driver.interrupt();
    }

    fn told_actual(&self) -> u32 {
        self.fake.config32(usize::try_from(CONFIG_ACTUAL).unwrap())
    }

    /// Polls until the driver has nothing to do at once.
    fn poll(&mut self) -> Wake {
        for _ in 0..1000 {
            let wake = self.driver.poll();
            if wake != Wake::Now {
                self.check();
                return wake;
            }
        }
        panic!("the driver spins");
    }

    fn advance(&mut self, ns: u64) -> Wake {
        self.memory.platform().advance_ns(ns);
        self.poll()
    }

    /// Buffers that wait for the device, in order.
    fn buffers(&self, queue: u16) -> Vec<Chain> {
        core::iter::from_fn(|| self.fake.take(queue)).collect()
    }

    fn pfns(&self, chain: Chain) -> Vec<u32> {
        assert!(chain.len > 0 && chain.len <= 1024 && chain.len.is_multiple_of(4));
        let bytes = self.fake.guest_bytes(chain.gpa, chain.len);
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    /// Acts on one buffer as the host would, and returns it.
    fn serve_one(&mut self, queue: u16, chain: Chain) {
        for pfn in self.pfns(chain) {
            if queue == INFLATE {
                assert!(self.host.insert(pfn), "page {pfn:#x} inflated twice");
                let page = self.memory.platform().frame_ptr(Pfn::from_u32(pfn));
                // SAFETY: a page of the test's RAM, which the driver has given away.
                unsafe { page.as_ptr().write_bytes(0, 4096) };
            } else {
                assert!(self.host.remove(&pfn), "page {pfn:#x} deflated but not held");
            }
        }
        self.fake.give_back(queue, u32::from(chain.head), 0);
        self.driver.interrupt();
    }

    fn serve(&mut self, queue: u16) -> usize {
        let chains = self.buffers(queue);
        for &chain in &chains {
            self.serve_one(queue, chain);
        }
        chains.len()
    }

    /// Driver and device in turn until neither has anything to do.
    fn quiesce(&mut self) -> Wake {
        loop {
            let wake = self.poll();
            if self.serve(INFLATE) + self.serve(DEFLATE) == 0 {
                return wake;
            }
        }
    }

    fn inflate_to(&mut self, pages: u32) {
        self.set_target(pages);
        self.quiesce();
        assert_eq!(self.status().actual.get(), u64::from(pages));
        assert_eq!(self.told_actual(), pages);
        assert_eq!(self.host.len() as u64, u64::from(pages));
    }

    fn status(&self) -> BalloonStatus {
        self.driver.status()
    }

    fn blocks(&self) -> Vec<StoredBlock> {
        let mut from = Some(Pfn::ZERO);
        core::iter::from_fn(|| {
            let found = self.store.next(from?, Select::Any)?;
            from = found.block.head().checked_add(found.block.pages());
            Some(found)
        })
        .collect()
    }

    fn kicks(&self) -> Vec<u16> {
        core::iter::from_fn(|| self.fake.kick()).collect()
    }

    /// Words, store and figures tell one story.
    fn check(&self) {
        let mut offline = 0;
        for range in self.memory.words().regions().map(|region| region.range()) {
            for pfn in range.iter() {
                let Ok(Memdesc::Offline(word)) = self.memory.words().decode(pfn) else { continue };
                offline += word.order.pages().get();
                let stored = self.store.block_at(pfn).expect("an offline block is stored");
                assert_eq!((stored.block.head(), stored.block.order()), (pfn, word.order.get()));
                match word.hold {
                    Hold::Parked => assert_eq!(stored.state, BlockState::InFlight),
                    Hold::Movable | Hold::Isolated => assert_eq!(stored.state, BlockState::Settled),
                    Hold::Held | Hold::Doomed => panic!("a block is held between two polls"),
                }
            }
        }
        assert_eq!(offline, self.store.pages().get(), "store and words");
        let status = self.status();
        let settled: u64 = self
            .blocks()
            .iter()
            .filter(|found| found.state == BlockState::Settled)
            .map(|found| found.block.pages().get())
            .sum();
        if status.phase == BalloonPhase::Running {
            let sum = status.actual.get() + status.inflating.get() + status.deflating.get();
            assert_eq!(sum, self.store.pages().get(), "actual and in flight");
            assert_eq!(settled, status.actual.get());
        }
        assert_eq!(status.counters.inconsistencies, 0);
    }

    fn isolate(&self, head: Pfn) -> crate::memory::IsolatedBlock {
        self.memory.isolate(head, DriverId::BALLOON).unwrap()
    }
}

#[test]
fn only_features_without_queues_are_acknowledged() {
    with_rig(4096, Options::default(), |rig| {
        let accepted = rig.fake.accepted();
        let without_queue = feature::MUST_TELL_HOST | feature::DEFLATE_ON_OOM;
        assert_eq!(accepted, abi::virtio::VIRTIO_F_VERSION_1 | without_queue);
        assert_ne!(rig.fake.status() & status::DRIVER_OK, 0);
    });
}

#[test]
fn a_driver_that_cannot_start_lends_no_memory() {
    let memory = memory(4096);
    let store = MapStore::default();
    let free = memory.free_pages();
    for queues in [&[256, 0][..], &[0, 256], &[]] {
        let fake = FakeDevice::new(memory.platform(), VIRTIO_ID_BALLOON, OFFERED, queues);
        let failed = BalloonDriver::start(&memory, &store, &fake, Options::default());
        assert!(matches!(failed, Err(super::BalloonError::Setup(_))));
        assert_eq!(memory.free_pages(), free);
    }
    let tiny = crate::testing::memory(8);
    let fake = FakeDevice::new(tiny.platform(), VIRTIO_ID_BALLOON, OFFERED, &[256, 256]);
    let free = tiny.free_pages();
    let failed = BalloonDriver::start(&tiny, &store, &fake, Options::default()).err();
    let no_memory = super::BalloonError::Setup(crate::virtio::SetupError::NoMemory);
    assert_eq!(failed, Some(no_memory));
    assert_eq!(tiny.free_pages(), free);
}

#[test]
fn the_smallest_rings_and_memory_still_work() {
    let memory = memory(512);
    let store = MapStore::default();
    let fake = FakeDevice::new(memory.platform(), VIRTIO_ID_BALLOON, OFFERED, &[1, 1]);
    let driver = BalloonDriver::start(&memory, &store, &fake, Options::default()).unwrap();
    let mut rig =
        Rig { memory: &memory, store: &store, fake: &fake, driver, host: BTreeSet::new() };
    rig.inflate_to(300);
    rig.inflate_to(7);
    rig.inflate_to(0);
}

#[test]
fn page_counts_agree() {
    assert_eq!(PageCount::of_order(10).get(), 4 * abi::balloon::PFNS_PER_BUFFER as u64);
}
