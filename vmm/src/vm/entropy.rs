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
        let transport = self.window.lock();
        // A driver that has given up, or that broke its ring, is not served before a reset,
        // however long its request has waited.
        let retry = transport.is_running().then(|| transport.device().retry_at()).flatten();
        // A wait beyond what a clock can say lasts for ever.
        self.retry = retry.and_then(|at| self.started.checked_add(at));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use abi::mmio;
    use abi::virtio::VIRTIO_F_VERSION_1;
    use abi::virtio::status::FAILED;
    use devices::ram::GuestRam;
    use devices::testing::{DriverQueue, DriverRegisters, TestRam};

    use super::*;

    /// The loop found the time of the retry past, could not serve the request, and found it past again.
    #[test]
    fn a_driver_that_gives_up_while_its_request_waits_does_not_keep_the_loop_awake() {
        let limit = RateLimit { size: 8, one_time_burst: 0, refill_time: Duration::from_millis(1) };
        let started = Instant::now();
        let config = EntropyConfig { bandwidth: Some(limit), ops: None };
        let ram = Arc::new(TestRam::new(&[(0, 0x10_0000)]));
        let window = Window::new(new_entropy(config, started), 0, ram.clone());
        let window = Arc::new(window.expect("eventfds"));
        let mut service = EntropyService::new(window.clone(), started);
        let mut queue = DriverQueue::new(ram.memory(), 0x1000, 16);
        {
            let mut transport = window.lock();
            transport.negotiate(VIRTIO_F_VERSION_1);
            assert!(transport.enable_queue(0, queue.layout()));
            transport.start();
        }
        for head in 0..8 {
            queue.offer_chain(head, &[(0x8000, 4096, true)]);
        }
        service.kicked();
        assert!(service.deadline().is_some(), "a request waits");
        {
            let mut transport = window.lock();
            let status = transport.load(mmio::STATUS);
            transport.store(mmio::STATUS, status | FAILED);
            assert!(!transport.is_running());
        }
        // Beyond every wait that the limit can bring.
        let deadline = Instant::now() + Duration::from_secs(20);
        while service.deadline().is_some() {
            assert!(Instant::now() < deadline, "the loop is still woken");
            std::thread::sleep(Duration::from_millis(1));
            service.turn();
        }
    }

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
