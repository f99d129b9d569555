//! The real entropy driver against the real entropy device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use devices::entropy::{Entropy, EntropySource, REQUEST_QUEUE};
use devices::ram::GuestRam;
use devices::rate_limiter::{RateLimiter, TokenBucket};
use devices::virtio::QueueProgress;
use guest_mm::entropy::EntropyDriver;
use guest_mm::memory::Memory;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use system_tests::sim::{DirectBus, SimMachine, SimPlatform, seeds};

type Bus = DirectBus<Entropy>;

/// A source that counts, without 0, so that a byte that nobody wrote is seen; and that fails when told.
#[derive(Default)]
struct Tap {
    given: AtomicU64,
    is_dry: AtomicBool,
}

struct Counting(Arc<Tap>);

impl EntropySource for Counting {
    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        if self.0.is_dry.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for byte in out {
            *byte = nth(self.0.given.fetch_add(1, Ordering::Relaxed));
        }
        Ok(())
    }
}

/// Byte number `n` of a [`Counting`] source.
fn nth(n: u64) -> u8 {
    u8::try_from(n % 251).expect("below 251") + 1
}

struct Sim {
    machine: Arc<SimMachine>,
    memory: Memory<SimPlatform>,
    bus: Bus,
    tap: Arc<Tap>,
}

fn sim(limiter: RateLimiter) -> Sim {
    let machine = SimMachine::new(2048, 0);
    let ranges = machine.ram().ram_ranges().to_vec();
    let tap = Arc::new(Tap::default());
    let device = Entropy::new(Box::new(Counting(tap.clone())), machine.clone(), limiter);
    let bus = Bus::new(device, machine.ram());
    let memory =
        Memory::new(SimPlatform(machine.clone()), &ranges, &[]).expect("a machine with memory");
    Sim { machine, memory, bus, tap }
}

/// Lets the host's timer look whether a request that had to wait is due.
fn retry(sim: &Sim) {
    sim.bus.transport(|transport| {
        if transport.device().retry_at().is_some() {
            while transport.resume_queue(REQUEST_QUEUE) == QueueProgress::Pending {}
        }
    });
}

#[test]
fn bytes_arrive_in_order_none_twice_and_all_memory_comes_back() {
    for seed in seeds(20) {
        let sim = sim(RateLimiter::default());
        let mut rng = StdRng::seed_from_u64(seed);
        let free = sim.memory.free_pages();
        let mut driver = EntropyDriver::start(sim.bus.clone(), &sim.memory).expect("a device");
        let mut arrived = 0;
        while arrived < 100_000 {
            match rng.random_range(0..4) {
                0 => sim.bus.serve(),
                1 => driver.interrupt(),
                _ => {
                    let mut out = vec![0; rng.random_range(0..9000)];
                    let read = driver.read(&mut out).expect("an honest device");
                    for (n, byte) in (arrived..).zip(out.iter().take(read)) {
                        assert_eq!(*byte, nth(n), "seed {seed}: byte {n}");
                    }
                    arrived += read as u64;
                }
            }
        }
        assert!(sim.bus.edges() > 0, "seed {seed}: no interrupt came");
        assert_eq!(driver.counters().empty_answers, 0);
        driver.shut_down(&sim.memory).expect("a reset");
        assert_eq!(sim.memory.free_pages(), free, "seed {seed}");
    }
}

#[test]
fn a_rate_limit_and_a_dry_source_delay_bytes_and_lose_none() {
    for seed in seeds(10) {
        let second = Duration::from_secs(1);
        let bandwidth = TokenBucket::new(1024, 0, second, Duration::ZERO);
        let sim = sim(RateLimiter { bandwidth, ops: None });
        let mut rng = StdRng::seed_from_u64(seed);
        let mut driver = EntropyDriver::start(sim.bus.clone(), &sim.memory).expect("a device");
        let (mut arrived, mut steps) = (0u64, 0);
        while arrived < 20_000 {
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: stands still after {arrived} bytes");
            match rng.random_range(0..6) {
                0 => sim.bus.serve(),
                1 => driver.interrupt(),
                2 => sim.machine.advance(rng.random_range(0..100_000_000)),
                3 => sim.tap.is_dry.store(rng.random_range(0..3) == 0, Ordering::Relaxed),
                4 => retry(&sim),
                _ => {
                    let mut out = vec![0; rng.random_range(0..2000)];
                    let read = driver.read(&mut out).expect("an honest device");
                    for (n, byte) in (arrived..).zip(out.iter().take(read)) {
                        assert_eq!(*byte, nth(n), "seed {seed}: byte {n}");
                    }
                    arrived += read as u64;
                }
            }
        }
        let counters = sim.bus.host(|device| *device.counters());
        assert!(counters.throttled > 0 && counters.source_failed > 0, "seed {seed}: {counters:?}");
        assert_eq!(driver.counters().empty_answers, 0, "seed {seed}");
    }
}

#[test]
fn a_driver_that_is_shut_down_while_it_waits_leaves_nothing_behind() {
    let sim = sim(RateLimiter::default());
    let free = sim.memory.free_pages();
    for _ in 0..50 {
        let mut driver = EntropyDriver::start(sim.bus.clone(), &sim.memory).expect("a device");
        sim.tap.is_dry.store(true, Ordering::Relaxed);
        assert_eq!(driver.read(&mut [0; 4096]), Ok(0));
        sim.bus.serve();
        driver.shut_down(&sim.memory).expect("a reset");
        assert_eq!(sim.memory.free_pages(), free);
        // What the dead driver asked for is not answered into memory that is somebody else's now.
        sim.tap.is_dry.store(false, Ordering::Relaxed);
        sim.machine.advance(1_000_000_000);
        retry(&sim);
        assert_eq!(sim.tap.given.load(Ordering::Relaxed), 0);
    }
}
