//! The device with a good driver, a slow or failing source, a rate limit, and hostile drivers.
#![expect(clippy::cast_possible_truncation, reason = "test values are small")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::mmio;
use abi::virtio::status::DEVICE_NEEDS_RESET;
use abi::virtio::{VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::rate_limiter::TokenBucket;
use crate::ring::RawDesc;
use crate::testing::{CountingIrq, DriverQueue, DriverRegisters, TestRam, UsedElement};
use crate::transport::MmioTransport;

const RAM_BYTES: usize = 0x40_0000;
const BUFFERS: u64 = 0x10_0000;

/// Time that tests set.
#[derive(Default)]
struct ManualClock(Mutex<Duration>);

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

/// What a test knows of its source, which gives out 1, 2, 3 … 255, 1 …: never 0, never twice the same in a row.
#[derive(Default)]
struct Tap {
    given: AtomicU64,
    broken: AtomicBool,
}

struct Counting(Arc<Tap>);

impl EntropySource for Counting {
    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        if self.0.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for byte in out {
            let n = self.0.given.fetch_add(1, Ordering::Relaxed);
            *byte = (n % 255) as u8 + 1;
        }
        Ok(())
    }
}

struct Bench {
    transport: MmioTransport<Entropy>,
    ram: Arc<TestRam>,
    queue: DriverQueue,
    irq: Arc<CountingIrq>,
    clock: Arc<ManualClock>,
    tap: Arc<Tap>,
}

impl Bench {
    fn new() -> Self {
        Self::limited(RateLimiter::default())
    }

    fn limited(limiter: RateLimiter) -> Self {
        let ram = Arc::new(TestRam::new(&[(0, RAM_BYTES)]));
        let (irq, clock, tap) = (Arc::default(), Arc::<ManualClock>::default(), Arc::default());
        let device = Entropy::new(Box::new(Counting(Arc::clone(&tap))), clock.clone(), limiter);
        let transport = MmioTransport::new(device, ram.clone(), Arc::<CountingIrq>::clone(&irq));
        let queue = DriverQueue::new(ram.memory(), 0x1000, QUEUE_SIZE);
        let mut bench = Self { transport, ram, queue, irq, clock, tap };
        bench.start();
        bench
    }

    /// Resets and starts the device, as a driver that binds does.
    fn start(&mut self) {
        self.transport.negotiate(VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC);
        self.queue = DriverQueue::new(self.ram.memory(), 0x1000, QUEUE_SIZE);
        assert!(self.transport.enable_queue(REQUEST_QUEUE, self.queue.layout()));
        assert_eq!(self.transport.start(), 15);
    }

    fn ask(&mut self, head: u16, len: u32) {
        self.queue.offer_chain(head, &[(BUFFERS + 0x2000 * u64::from(head), len, true)]);
        self.kick();
    }

    fn kick(&mut self) {
        self.transport.store(mmio::QUEUE_NOTIFY, REQUEST_QUEUE.into());
        while self.transport.serve_pending() == QueueProgress::Pending {}
    }

    fn at(&mut self, now: Duration) {
        *self.clock.0.lock().unwrap() = now;
        assert_eq!(self.transport.resume_queue(REQUEST_QUEUE), QueueProgress::Idle);
    }

    fn contents(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.memory().read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    fn counters(&self) -> EntropyCounters {
        *self.transport.device().counters()
    }
}

fn used(head: u32, written: u32) -> UsedElement {
    UsedElement { head, written }
}

#[test]
fn a_request_is_filled_to_its_end_and_not_beyond() {
    let mut bench = Bench::new();
    bench.ask(0, 64);
    assert_eq!(bench.queue.take_all_used(), [used(0, 64)]);
    let expected: Vec<u8> = (1..=64).chain([0; 8]).collect();
    assert_eq!(bench.contents(BUFFERS, 72), expected);
    assert_eq!(bench.irq.edges(), 1);
    let counters = bench.counters();
    assert_eq!((counters.requests, counters.bytes), (1, 64));
}

#[test]
fn a_request_in_pieces_is_filled_in_order() {
    let mut bench = Bench::new();
    bench
        .queue
        .offer_chain(3, &[(BUFFERS, 3, true), (BUFFERS + 0x100, 1, true), (BUFFERS + 3, 2, true)]);
    bench.kick();
    assert_eq!(bench.queue.take_all_used(), [used(3, 6)]);
    assert_eq!(bench.contents(BUFFERS, 6), [1, 2, 3, 5, 6, 0]);
    assert_eq!(bench.contents(BUFFERS + 0x100, 2), [4, 0]);
}

#[test]
fn a_huge_request_gets_a_page_of_bytes_and_says_so() {
    let mut bench = Bench::new();
    let most = RAM_BYTES as u32 - BUFFERS as u32;
    bench.ask(0, most);
    assert_eq!(bench.queue.take_all_used(), [used(0, REQUEST_BYTES as u32)]);
    assert_eq!(bench.contents(BUFFERS + REQUEST_BYTES as u64, 8), [0; 8]);
    assert_eq!(bench.tap.given.load(Ordering::Relaxed), REQUEST_BYTES as u64);
}

#[test]
fn a_full_queue_is_served_in_more_than_one_turn() {
    let mut bench = Bench::new();
    for head in 0..QUEUE_SIZE {
        bench.queue.offer_chain(head, &[(BUFFERS, REQUEST_BYTES as u32, true)]);
    }
    assert_eq!(bench.transport.queue_notified(REQUEST_QUEUE), QueueProgress::Pending);
    assert_eq!(bench.counters().bytes, TURN_BYTES as u64);
    while bench.transport.serve_pending() == QueueProgress::Pending {}
    assert_eq!(bench.queue.take_all_used().len(), usize::from(QUEUE_SIZE));
}

#[test]
fn chains_that_break_the_rules_come_back_once_and_empty() {
    let mut bench = Bench::new();
    let bad = [
        RawDesc { addr: u64::MAX, len: 4, flags: 2, next: 0 },
        RawDesc { addr: BUFFERS, len: 0, flags: 2, next: 0 },
        RawDesc { addr: BUFFERS, len: 4, flags: 3, next: 0xffff },
        RawDesc { addr: BUFFERS, len: 24, flags: 4, next: 0 },
        RawDesc { addr: RAM_BYTES as u64 - 1, len: 2, flags: 2, next: 0 },
    ];
    for (head, desc) in (0..).zip(bad) {
        bench.queue.set_desc(head, desc);
        bench.queue.offer(head);
    }
    bench.queue.offer_chain(10, &[(BUFFERS, 4, false)]);
    bench.queue.offer_chain(12, &[(BUFFERS, 4, false), (BUFFERS + 8, 4, true)]);
    bench.kick();
    let heads = [0, 1, 2, 3, 4, 10, 12];
    assert_eq!(bench.queue.take_all_used(), heads.map(|head| used(head, 0)));
    let counters = bench.counters();
    assert_eq!((counters.chain_bad, counters.chain_wrong_direction), (5, 2));
    assert_eq!(bench.contents(BUFFERS, 16), [0; 16], "nothing was written");
    bench.ask(20, 8);
    assert_eq!(bench.queue.take_all_used(), [used(20, 8)], "the device goes on");
}

#[test]
fn a_source_that_fails_is_asked_again_and_no_buffer_comes_back_without_bytes() {
    let mut bench = Bench::new();
    bench.tap.broken.store(true, Ordering::Relaxed);
    bench.ask(0, 16);
    assert_eq!(bench.queue.take_used(), None);
    assert_eq!(bench.transport.device().retry_at(), Some(SOURCE_RETRY));
    bench.kick();
    assert_eq!(bench.counters().source_failed, 1, "kicks do not make it try faster");
    bench.at(SOURCE_RETRY);
    assert_eq!(bench.counters().source_failed, 2);
    bench.tap.broken.store(false, Ordering::Relaxed);
    bench.at(2 * SOURCE_RETRY);
    assert_eq!(bench.queue.take_all_used(), [used(0, 16)]);
    assert_eq!(bench.transport.device().retry_at(), None);
}

#[test]
fn a_rate_limit_makes_requests_wait_and_loses_none() {
    let second = Duration::from_secs(1);
    let bandwidth = TokenBucket::new(100, 0, second, Duration::ZERO);
    let mut bench = Bench::limited(RateLimiter { bandwidth, ops: None });
    for head in 0..4 {
        bench.ask(head, 50);
    }
    assert_eq!(bench.queue.take_all_used(), [used(0, 50), used(1, 50)]);
    assert_eq!(bench.transport.device().retry_at(), Some(second / 2));
    bench.at(second / 2 - Duration::from_nanos(1));
    assert_eq!(bench.queue.take_used(), None);
    bench.at(second / 2);
    assert_eq!(bench.queue.take_all_used(), [used(2, 50)]);
    bench.at(second);
    assert_eq!(bench.queue.take_all_used(), [used(3, 50)]);
    assert_eq!(bench.transport.device().retry_at(), None);
    assert_eq!(bench.counters().throttled, 2, "each of those that waited, once");
}

#[test]
fn a_reset_does_not_fill_the_bucket() {
    let bandwidth = TokenBucket::new(100, 0, Duration::from_secs(1), Duration::ZERO);
    let mut bench = Bench::limited(RateLimiter { bandwidth, ops: None });
    bench.ask(0, 100);
    bench.ask(1, 100);
    bench.start();
    assert_eq!(bench.transport.device().retry_at(), None, "the waiting request is gone");
    bench.ask(0, 100);
    assert_eq!(bench.queue.take_used(), None);
}

#[test]
fn a_vm_may_end_while_a_request_waits() {
    let mut bench = Bench::new();
    bench.tap.broken.store(true, Ordering::Relaxed);
    bench.ask(0, 16);
    drop(bench);
}

#[test]
fn a_broken_ring_needs_a_reset_and_a_reset_mends_it() {
    let mut bench = Bench::new();
    bench.queue.set_avail_index(1000);
    bench.kick();
    assert_eq!(bench.transport.status(), 15 | DEVICE_NEEDS_RESET);
    bench.start();
    bench.ask(0, 4);
    assert_eq!(bench.queue.take_all_used(), [used(0, 4)]);
}

#[test]
fn configuration_space_is_empty_and_no_feature_is_offered() {
    let mut bench = Bench::new();
    assert_eq!(bench.transport.load(mmio::CONFIG), 0);
    bench.transport.store(mmio::CONFIG, 1);
    assert_eq!(bench.transport.counters().config_refused, 1);
    assert_eq!(bench.transport.device().device_features(), 0);
    assert_eq!(bench.transport.load(mmio::DEVICE_ID), 4);
}

proptest! {
    /// Whatever is asked in whatever order: each request comes back once, in order, filled as far as it
    /// may be with bytes that no other request got.
    #[test]
    fn every_request_is_answered_once_with_bytes_of_its_own(
        steps in prop::collection::vec(
            prop_oneof![(1..6000u32).prop_map(Some), Just(None)], 1..80,
        ),
        rate in prop::option::of(1..20_000u64),
    ) {
        let refill = Duration::from_millis(100);
        let bandwidth = rate.and_then(|rate| TokenBucket::new(rate, 0, refill, Duration::ZERO));
        let mut bench = Bench::limited(RateLimiter { bandwidth, ops: None });
        let (mut asked, mut answered, mut sum) = (Vec::new(), 0, 0);
        for step in steps.into_iter().chain([None; 80]) {
            match step {
                Some(len) if asked.len() - answered < usize::from(QUEUE_SIZE) => {
                    let head = (asked.len() % usize::from(QUEUE_SIZE)) as u16;
                    asked.push(len);
                    bench.ask(head, len);
                }
                Some(_) | None => {
                    let retry = bench.transport.device().retry_at();
                    bench.at(retry.unwrap_or_else(|| bench.clock.now()));
                    while bench.transport.serve_pending() == QueueProgress::Pending {}
                }
            }
            for element in bench.queue.take_all_used() {
                let head = answered % usize::from(QUEUE_SIZE);
                let expected = asked[answered].min(REQUEST_BYTES as u32);
                prop_assert_eq!(element, used(head as u32, expected));
                let at = BUFFERS + 0x2000 * head as u64;
                let data = bench.contents(at, expected as usize);
                let wanted: Vec<u8> =
                    (sum..sum + expected).map(|n| (n % 255) as u8 + 1).collect();
                prop_assert_eq!(data, wanted);
                sum += expected;
                answered += 1;
            }
        }
        prop_assert_eq!(answered, asked.len());
    }
}
