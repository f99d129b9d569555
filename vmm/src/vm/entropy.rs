//! The entropy device in the VMM: the host's random bytes, and its turns in the event loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use devices::clock::Clock;
use devices::entropy::{Entropy, EntropySource, REQUEST_QUEUE};
use devices::rate_limiter::{RateLimiter, TokenBucket};
use devices::virtio::QueueProgress;

use super::balloon_worker::HostClock;
use super::config::{EntropyConfig, RateLimit};
use super::event_loop::Token;
use super::poll::Poller;
use super::window::Window;

/// The device that `config` describes, by a clock that begins at `started`.
pub(super) fn new_entropy(config: EntropyConfig, started: Instant) -> Entropy {
    let clock = HostClock(started);
    let now = clock.now();
    let bucket = |limit: RateLimit| {
        TokenBucket::new(limit.size, limit.one_time_burst, limit.refill_time, now)
    };
    let limiter = RateLimiter {
        bandwidth: config.bandwidth.and_then(bucket),
        ops: config.ops.and_then(bucket),
    };
    Entropy::new(Box::new(HostRandom), Arc::new(clock), limiter)
}

/// The kernel's random number generator.
struct HostRandom;

impl EntropySource for HostRandom {
    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        let mut rest = out;
        while !rest.is_empty() {
            // SAFETY: `rest` is valid for writes of its length during the call. Without GRND_RANDOM it waits
            // for nothing but the kernel's first seeding, and with GRND_NONBLOCK not even for that.
            let got = unsafe {
                libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), libc::GRND_NONBLOCK)
            };
            match usize::try_from(got) {
                Ok(got) => rest = rest.get_mut(got..).unwrap_or_default(),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

/// Registers what an [`EntropyService`] waits for.
pub(super) fn watch(window: &Window<Entropy>, poller: &mut Poller<Token>) -> io::Result<()> {
    poller.watch(window.touched().as_raw_fd(), Token::EntropyTouched)?;
    for doorbell in window.doorbells() {
        poller.watch(doorbell.as_raw_fd(), Token::EntropyQueue)?;
    }
    Ok(())
}

/// The event loop's side of the device.
pub(super) struct EntropyService {
    window: Arc<Window<Entropy>>,
    started: Instant,
    /// Requests are left to be served without another kick.
    pending: bool,
    /// When the device has to be asked again.
    retry: Option<Instant>,
}

impl EntropyService {
    /// Serves the device in `window`, whose clock begins at `started`.
    pub(super) fn new(window: Arc<Window<Entropy>>, started: Instant) -> Self {
        Self { window, started, pending: false, retry: None }
    }

    /// The guest has notified the queue.
    pub(super) fn kicked(&mut self) {
        for doorbell in self.window.doorbells() {
            // Only a wake-up; the ring says what there is to do.
            doorbell.read().ok();
        }
        let progress = self.window.serve(REQUEST_QUEUE);
        self.served(progress);
    }

    /// A vCPU has written a register, and may have served the queue as it did.
    pub(super) fn touched(&mut self) {
        self.window.touched().read().ok();
        let progress = self.window.lock().progress();
        self.served(progress);
    }

    /// Goes on where an earlier turn ended, if it is time.
    pub(super) fn turn(&mut self) {
        if std::mem::take(&mut self.pending) {
            let progress = self.window.lock().serve_pending();
            self.served(progress);
        }
        if self.retry.take_if(|at| *at <= Instant::now()).is_some() {
            let progress = self.window.lock().resume_queue(REQUEST_QUEUE);
            self.served(progress);
        }
    }

    /// When [`Self::turn`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.pending { Some(Instant::now()) } else { self.retry }
    }

    fn served(&mut self, progress: QueueProgress) {
        self.pending = progress == QueueProgress::Pending;
        // A wait beyond what a clock can say lasts for ever.
        let retry = self.window.lock().device().retry_at();
        self.retry = retry.and_then(|at| self.started.checked_add(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 KiB of zeros, or of anything that repeats, have a probability that nobody will see.
    #[test]
    fn the_host_fills_whole_buffers_with_bytes_that_differ() {
        let (mut one, mut two) = ([0; 4096], [0; 4096]);
        HostRandom.fill(&mut one).expect("random bytes");
        HostRandom.fill(&mut two).expect("random bytes");
        assert_ne!(one, two);
        for half in [&one[..2048], &one[2048..]] {
            let kinds = (0..=u8::MAX).filter(|byte| half.contains(byte)).count();
            assert!(kinds > 200, "{kinds} kinds of bytes in 2048");
        }
        HostRandom.fill(&mut []).expect("nothing to do");
    }
}
