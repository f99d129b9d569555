//! The entropy device, with a source that fails now and then, a rate limit, and time that the input moves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use devices::clock::Clock;
use devices::entropy::{Entropy, EntropySource, REQUEST_QUEUE};
use devices::rate_limiter::{RateLimiter, TokenBucket};
use devices::virtio::QueueProgress;

use super::input::Input;
use super::machine::Machine;

/// Longer than the longest wait that an input's limiter can ask for.
const AGES: u64 = 1 << 60;
/// Rounds of host events until every request is answered: one for each that the ring holds, and more.
const MAX_ROUNDS: usize = 256;

/// The world outside the device.
#[derive(Default)]
struct Outside {
    now_ns: AtomicU64,
    source_is_broken: AtomicBool,
}

impl Clock for Outside {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns.load(Ordering::Relaxed))
    }
}

struct Source(Arc<Outside>);

impl EntropySource for Source {
    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        out.fill(0x5a);
        if self.0.source_is_broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

/// Acts an input out; afterwards, given time and a source, every request is answered.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let outside = Arc::new(Outside::default());
    // Sizes and times of 0 make no bucket.
    let mut bucket = || {
        let refill = Duration::from_millis(input.u8().into());
        let (size, burst) = (u64::from(input.u16()), u64::from(input.u8()));
        TokenBucket::new(size, burst, refill, Duration::ZERO)
    };
    let limiter = RateLimiter { bandwidth: bucket(), ops: bucket() };
    let device = Entropy::new(Box::new(Source(outside.clone())), outside.clone(), limiter);
    let mut machine = Machine::new(device, |_| {}, &mut input);
    machine.act(&mut input, |machine, input| {
        let how = input.u8();
        outside.source_is_broken.store(how & 1 != 0, Ordering::Relaxed);
        outside.now_ns.fetch_add(u64::from(input.u32()), Ordering::Relaxed);
        resume(machine);
    });
    outside.source_is_broken.store(false, Ordering::Relaxed);
    for _ in 0..MAX_ROUNDS {
        if machine.transport.device().retry_at().is_none() {
            break;
        }
        outside.now_ns.fetch_add(AGES / 256, Ordering::Relaxed);
        resume(&mut machine);
    }
    assert_eq!(machine.transport.device().retry_at(), None, "a request waits for ever");
    let left = machine.outstanding(REQUEST_QUEUE.into());
    assert!(left.is_none_or(|heads| heads == 0), "the device kept {left:?}");
}

fn resume(machine: &mut Machine<Entropy>) {
    let mut progress = machine.transport.resume_queue(REQUEST_QUEUE);
    for _ in 0..MAX_ROUNDS {
        if progress == QueueProgress::Idle {
            return;
        }
        progress = machine.transport.serve_pending();
    }
    panic!("the device never comes to rest");
}
