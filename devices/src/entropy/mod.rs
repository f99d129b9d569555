//! virtio-rng: random bytes from the host.
//!
//! One queue of device-writable buffers. A request gets at most
//! [`REQUEST_BYTES`], which the specification allows, so that a buffer of
//! gigabytes costs the host no more than one of a page; a turn serves at most
//! [`TURN_BYTES`]. Requests beyond the rate limit, and those that the source
//! fails, keep their chain until [`Entropy::retry_at`]: a driver is never
//! given a buffer without a random byte in it.
//!
//! Deliberately absent: entropy of our own (the source is the host's), leak
//! detection queues.
//!
//! Spec: VirtIO 1.2 §5.4. Design: docs/virtio.md.

mod counters;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use abi::virtio::VIRTIO_ID_RNG;

pub use counters::EntropyCounters;

use crate::clock::Clock;
use crate::counters::count;
use crate::ram::GuestRam;
use crate::rate_limiter::RateLimiter;
use crate::ring::{PoppedChain, Virtqueue};
use crate::virtio::{
    ActivateError, Activation, GuestFault, Interrupt, QueueProgress, VirtioDevice,
    read_config_bytes,
};

/// The request queue, the only one.
pub const REQUEST_QUEUE: u16 = 0;
/// Most bytes that one request gets.
pub const REQUEST_BYTES: usize = 4 << 10;
/// Bytes after which the rest of the queue waits for another turn.
pub const TURN_BYTES: usize = 64 << 10;

/// Entries of the queue: drivers keep one request under way, or a few.
const QUEUE_SIZE: u16 = 64;
/// How long a request waits after the source has failed.
const SOURCE_RETRY: Duration = Duration::from_millis(100);

/// Where random bytes come from.
pub trait EntropySource: Send {
    /// Fills `out` with bytes that nobody can predict, without waiting for any.
    ///
    /// # Errors
    /// The host's reason; what is in `out` then is not used.
    fn fill(&mut self, out: &mut [u8]) -> io::Result<()>;
}

/// What the device has while a driver runs it.
struct Active {
    ram: Arc<dyn GuestRam>,
    queue: Virtqueue,
    interrupt: Arc<dyn Interrupt>,
}

/// The device.
pub struct Entropy {
    source: Box<dyn EntropySource>,
    clock: Arc<dyn Clock>,
    limiter: RateLimiter,
    active: Option<Active>,
    /// A request that must wait, and until when.
    waiting: Option<(PoppedChain, Duration)>,
    counters: EntropyCounters,
}

/// What became of a request.
enum Served {
    /// It is answered with so many bytes, which is none for a chain that breaks the rules.
    Done(u32),
    /// It waits until then.
    NotBefore(Duration),
}

impl Entropy {
    /// A device that gives out bytes of `source` as `limiter` allows by `clock`.
    pub fn new(
        source: Box<dyn EntropySource>,
        clock: Arc<dyn Clock>,
        limiter: RateLimiter,
    ) -> Self {
        let counters = EntropyCounters::default();
        Self { source, clock, limiter, active: None, waiting: None, counters }
    }

    /// When the device's owner has to have [`REQUEST_QUEUE`] served again without a kick, on the device's clock.
    pub fn retry_at(&self) -> Option<Duration> {
        self.waiting.as_ref().map(|(_, at)| *at)
    }

    /// What happened so far.
    pub fn counters(&self) -> &EntropyCounters {
        &self.counters
    }

    fn answer(&mut self, chain: &PoppedChain, ram: &dyn GuestRam) -> Served {
        let buffers = match chain.buffers() {
            Ok(buffers) => buffers,
            Err(fault) => {
                if count(&mut self.counters.chain_bad) {
                    log::warn!("device=entropy {fault}");
                }
                return Served::Done(0);
            }
        };
        if !buffers.readable().is_empty() || buffers.writable().is_empty() {
            if count(&mut self.counters.chain_wrong_direction) {
                log::warn!("device=entropy A request has a buffer that the device may not write");
            }
            return Served::Done(0);
        }
        let mut bytes = [0; REQUEST_BYTES];
        let room = usize::try_from(buffers.writable_bytes()).unwrap_or(REQUEST_BYTES);
        let bytes = bytes.get_mut(..room.min(REQUEST_BYTES)).unwrap_or_default();
        let now = self.clock.now();
        if let Err(at) = self.limiter.take(count_of(bytes.len()), now) {
            self.counters.throttled += 1;
            return Served::NotBefore(at);
        }
        if let Err(error) = self.source.fill(bytes) {
            if count(&mut self.counters.source_failed) {
                log::warn!("device=entropy The host's source of random bytes failed: {error}");
            }
            return Served::NotBefore(now.saturating_add(SOURCE_RETRY));
        }
        match buffers.write(&ram.present(), 0, bytes) {
            Ok(written) => {
                self.counters.requests += 1;
                self.counters.bytes += count_of(written);
                Served::Done(u32::try_from(written).unwrap_or(0))
            }
            // Does not happen to a checked chain.
            Err(_) => {
                self.counters.chain_bad += 1;
                Served::Done(0)
            }
        }
    }

    fn serve(&mut self, active: &mut Active) -> Result<QueueProgress, GuestFault> {
        let Active { ram, queue, interrupt } = active;
        let (mut progress, mut returned, mut given) = (QueueProgress::Pending, false, 0);
        for _ in 0..queue.size() {
            if given >= TURN_BYTES {
                break;
            }
            if self.waiting.as_ref().is_some_and(|(_, at)| *at > self.clock.now()) {
                progress = QueueProgress::Idle;
                break;
            }
            let next = match self.waiting.take() {
                Some((chain, _)) => Some(chain),
                None => queue.pop(&ram.present())?,
            };
            let Some(chain) = next else {
                progress = QueueProgress::Idle;
                break;
            };
            match self.answer(&chain, ram.as_ref()) {
                Served::Done(written) => {
                    queue.complete(&ram.present(), chain, written)?;
                    given += usize::try_from(written).unwrap_or(TURN_BYTES);
                    returned = true;
                }
                Served::NotBefore(at) => self.waiting = Some((chain, at)),
            }
        }
        if returned {
            queue.signal_used(&ram.present(), interrupt.as_ref())?;
        }
        Ok(progress)
    }
}

impl VirtioDevice for Entropy {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// There is no configuration space.
    fn read_config(&self, offset: u64, out: &mut [u8]) {
        read_config_bytes(&[], offset, out);
    }

    /// # Errors
    /// Always.
    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        Err(GuestFault::ReadOnlyConfig { offset, len: data.len() })
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, queues, interrupt, .. } = activation;
        let queue = queues.into_iter().next().flatten();
        let queue = queue.ok_or(ActivateError::MissingQueue { queue: REQUEST_QUEUE })?;
        self.active = Some(Active { ram, queue, interrupt });
        Ok(())
    }

    fn queue_notified(&mut self, index: u16) -> Result<QueueProgress, GuestFault> {
        if index != REQUEST_QUEUE {
            return Ok(QueueProgress::Idle);
        }
        // Taken out, so that both it and the rest of the device can be borrowed.
        let Some(mut active) = self.active.take() else { return Ok(QueueProgress::Idle) };
        let progress = self.serve(&mut active);
        self.active = Some(active);
        progress
    }

    fn reset(&mut self) {
        self.active = None;
        if let Some((chain, _)) = self.waiting.take() {
            chain.abandon_at_reset();
        }
    }
}

/// A length as a counter's increment.
fn count_of(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
