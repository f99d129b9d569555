//! The driver as a whole: start, the poll loop, what it tells.

use core::fmt;

use abi::balloon::{CONFIG_ACTUAL, CONFIG_NUM_PAGES, feature};
use abi::virtio::VIRTIO_ID_BALLOON;
use abi::{PageCount, Pfn};

use super::buffers::PfnQueue;
use super::frames::Frames;
use super::mutant::Mutant;
use super::options::{BalloonCounters, BalloonPhase, BalloonStatus, Options, Wake};
use super::reset::{AfterReset, Phase};
use super::timers::{Backoff, Watchdog};
use crate::memdesc::Order;
use crate::memory::Memory;
use crate::platform::{FaultSite, Platform};
use crate::store::PfnStore;
use crate::virtio::{
    DmaPages, MAX_RING_ENTRIES, MmioBus, MmioDevice, PAGE_BYTES, ProbeError, QueueError,
    RingMemory, SetupError,
};

/// Queue numbers (virtio 1.2 §5.5.2).
///
/// No later queue is used, so no feature that adds one is acknowledged, and the
/// numbers of these two do not depend on any: specification, Linux and every
/// VMM agree. A driver that will use reporting (queue 4) has to acknowledge
/// STATS_VQ and FREE_PAGE_HINT too, because VMMs number queues by what they
/// offered and the specification by what it fixed; see `docs/balloon-driver.md`.
const INFLATE_QUEUE: u16 = 0;
const DEFLATE_QUEUE: u16 = 1;

/// Features that the driver understands. MUST_TELL_HOST is what it does anyway.
const SUPPORTED: u64 = feature::MUST_TELL_HOST | feature::DEFLATE_ON_OOM;

/// Blocks handled in one stage of a poll: bounds its time to about a millisecond.
pub(super) const BLOCKS_PER_POLL: u32 = 4096;

/// The balloon cannot be used (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalloonError {
    /// The window holds no balloon.
    Probe(ProbeError),
    /// The device could not be set up.
    Setup(SetupError),
    /// The store given to a new driver is not empty.
    StoreInUse,
    /// The device broke the rules of a queue too often.
    Queue(QueueError),
    /// The device overwrote PFN buffers that it may only read, too often.
    Scribbled,
    /// The device asked for a reset too often.
    NeedsReset,
}

impl fmt::Display for BalloonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe(_) => "No balloon device",
            Self::Setup(_) => "The balloon could not be set up",
            Self::StoreInUse => "The store of a new balloon is not empty",
            Self::Queue(_) => "The balloon broke the rules of a virtqueue",
            Self::Scribbled => "The balloon overwrote buffers that it may only read",
            Self::NeedsReset => "The balloon needed a reset too often",
        })
    }
}

impl core::error::Error for BalloonError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Probe(source) => Some(source),
            Self::Setup(source) => Some(source),
            Self::Queue(source) => Some(source),
            Self::StoreInUse | Self::Scribbled | Self::NeedsReset => None,
        }
    }
}

/// The driver of one balloon device; see the module's page.
#[derive(Debug)]
pub struct BalloonDriver<'m, P, B, S> {
    pub(super) frames: Frames<'m, P, S>,
    pub(super) device: MmioDevice<B>,
    pub(super) max_order: Order,
    pub(super) inflate: PfnQueue,
    pub(super) deflate: PfnQueue,
    rings: DmaPages<4>,
    pub(super) phase: Phase,
    /// Features that device and driver agreed on.
    pub(super) features: u64,
    /// Configuration is to be read: set by interrupts and at start.
    pub(super) config_changed: bool,
    requested: PageCount,
    pub(super) target: PageCount,
    /// `actual` as the device was last told.
    pub(super) told_actual: PageCount,
    /// Largest order worth trying; falls as allocations fail.
    pub(super) order_cap: Order,
    pub(super) inflate_backoff: Backoff,
    pub(super) deflate_backoff: Backoff,
    pub(super) watchdog: Watchdog,
    /// A PFN buffer came back with other contents.
    pub(super) is_scribbled: bool,
    /// Where deflation looks next.
    pub(super) claim_from: Pfn,
    pub(super) counters: BalloonCounters,
    #[cfg(any(test, feature = "testing"))]
    pub(super) mutant: Option<Mutant>,
}

/// Whether a stage has more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It stopped at its bound.
    More,
    /// It waits for the device, a timer or a new target, or is at its target.
    Done,
}

impl<'m, P: Platform, B: MmioBus, S: PfnStore> BalloonDriver<'m, P, B, S> {
    /// Starts the balloon behind `bus` over an empty `store`.
    ///
    /// # Errors
    /// [`BalloonError`]; no memory stays lent, except to a device that does not
    /// finish its reset.
    pub fn start(
        memory: &'m Memory<P>,
        store: &'m S,
        bus: B,
        options: Options,
    ) -> Result<Self, BalloonError> {
        let device = MmioDevice::probe(bus)
            .and_then(|device| device.expect_id(VIRTIO_ID_BALLOON))
            .map_err(BalloonError::Probe)?;
        if store.blocks() != 0 {
            return Err(BalloonError::StoreInUse);
        }
        device.reset().map_err(BalloonError::Setup)?;
        let Some((inflate, deflate, rings)) = lend(memory) else {
            return Err(BalloonError::Setup(SetupError::NoMemory));
        };
        let max_order = Order::try_from(options.max_order).unwrap_or(Order::MAX);
        let mut driver = Self {
            frames: Frames { memory, store },
            device,
            max_order,
            inflate,
            deflate,
            rings,
            phase: Phase::Running { restarts_left: super::reset::RESTARTS },
            features: 0,
            config_changed: true,
            requested: PageCount::ZERO,
            target: PageCount::ZERO,
            told_actual: PageCount::ZERO,
            order_cap: max_order,
            inflate_backoff: Backoff::new(),
            deflate_backoff: Backoff::new(),
            watchdog: Watchdog::new(options.ack_timeout_ns),
            is_scribbled: false,
            claim_from: Pfn::ZERO,
            counters: BalloonCounters::default(),
            #[cfg(any(test, feature = "testing"))]
            mutant: None,
        };
        if let Err(error) = driver.bring_up() {
            // A device that does not finish its reset may still use the pages: they stay lent.
            let _stuck = driver.give_memory_back();
            return Err(BalloonError::Setup(error));
        }
        Ok(driver)
    }

    /// Negotiates and starts the device after a completed reset.
    pub(super) fn bring_up(&mut self) -> Result<(), SetupError> {
        self.features = self.device.negotiate(SUPPORTED)?;
        let inflate = self.enable(INFLATE_QUEUE, 0)?;
        let deflate = self.enable(DEFLATE_QUEUE, 2)?;
        if !self.inflate.attach(inflate) {
            return Err(SetupError::QueueRefused { queue: INFLATE_QUEUE });
        }
        if !self.deflate.attach(deflate) {
            return Err(SetupError::QueueRefused { queue: DEFLATE_QUEUE });
        }
        self.config_changed = true;
        self.is_scribbled = false;
        self.told_actual = PageCount::ZERO;
        self.order_cap = self.max_order;
        self.inflate_backoff.reset();
        self.deflate_backoff.reset();
        self.watchdog.answered();
        self.device.start()
    }

    /// Lays out and enables a ring in the pages `page` and `page + 1`.
    fn enable(&self, queue: u16, page: usize) -> Result<RingMemory, SetupError> {
        let entries = self.device.queue_entries(queue, MAX_RING_ENTRIES)?;
        let descriptors = self.rings.slice(page, 0, PAGE_BYTES);
        let rings = self.rings.slice(page + 1, 0, PAGE_BYTES);
        let ring = descriptors.zip(rings).and_then(|(a, b)| RingMemory::new(entries, a, b));
        let ring = ring.ok_or(SetupError::QueueRefused { queue })?;
        self.device.enable_queue(queue, &ring)?;
        Ok(ring)
    }

    /// Resets the device and gives rings and buffers back.
    fn give_memory_back(self) -> Result<(), SetupError> {
        self.device.reset()?;
        let memory = self.frames.memory;
        // SAFETY: the reset is complete, so the device uses no queue and no buffer
        // any more; slices die with `self`.
        unsafe { self.inflate.take_back(memory) };
        // SAFETY: as above.
        unsafe { self.deflate.take_back(memory) };
        // SAFETY: as above.
        unsafe { self.rings.take_back(memory) };
        Ok(())
    }

    /// Ends a driver that is [`Down`](BalloonPhase::Down) or
    /// [`Failed`](BalloonPhase::Failed) and gives its memory back.
    ///
    /// # Errors
    /// The driver itself if pages are still in the balloon: unbind it first.
    #[expect(clippy::result_large_err, reason = "the driver goes back to its one caller")]
    pub fn finish(self) -> Result<(), Self> {
        if self.frames.store.blocks() != 0 || self.is_running() {
            return Err(self);
        }
        // A device stuck in reset keeps the pages: leaked, not risked.
        let _stuck = self.give_memory_back();
        Ok(())
    }

    /// Acknowledges an interrupt; to be called when the device's line fired, before [`Self::poll`].
    pub fn interrupt(&mut self) {
        let reasons = self.device.acknowledge_interrupt();
        if !reasons.used && !reasons.config {
            self.counters.spurious_interrupts += 1;
            return;
        }
        self.counters.interrupts += 1;
        self.config_changed |= reasons.config;
    }

    /// Does a bounded piece of work; says when to call again.
    pub fn poll(&mut self) -> Wake {
        let now = self.now();
        match self.phase {
            Phase::Running { .. } => self.run(now),
            Phase::Resetting { .. } => self.await_reset(now),
            Phase::Draining { .. } => self.drain(now),
            Phase::Down | Phase::Failed(_) => Wake::OnInterrupt,
        }
    }

    fn run(&mut self, now: u64) -> Wake {
        if self.config_changed && self.read_config().is_err() {
            return self.fault(BalloonError::NeedsReset);
        }
        let settled = match self.settle_used() {
            Ok(stage) => stage,
            Err(error) => return self.fault(BalloonError::Queue(error)),
        };
        let freed = match self.free_used() {
            Ok(stage) => stage,
            Err(error) => return self.fault(BalloonError::Queue(error)),
        };
        if self.is_scribbled {
            return self.fault(BalloonError::Scribbled);
        }
        let is_degraded = self.watchdog.has_expired();
        let mut more = settled == Stage::More || freed == Stage::More;
        if !is_degraded {
            more |= self.inflate_stage(now) == Stage::More;
            more |= self.deflate_stage(now) == Stage::More;
        }
        self.tell_actual();
        if self.watch_device(now) {
            return self.fault(BalloonError::NeedsReset);
        }
        if more {
            return Wake::Now;
        }
        self.watchdog
            .wake()
            .earlier(self.inflate_backoff.wake(now))
            .earlier(self.deflate_backoff.wake(now))
    }

    /// Reads the target; `Err` if the device asks for a reset.
    fn read_config(&mut self) -> Result<(), ()> {
        self.config_changed = false;
        if self.device.needs_reset() {
            return Err(());
        }
        // Whoever sets a target, even the same one again, wants an attempt now,
        // and with large blocks.
        self.inflate_backoff.reset();
        self.deflate_backoff.reset();
        self.order_cap = self.max_order;
        self.requested = PageCount::new(u64::from(self.device.read_config32(CONFIG_NUM_PAGES)));
        // The device may ask for anything; more than there is cannot be given.
        self.target = self.requested.min(self.frames.memory.managed_pages());
        Ok(())
    }

    /// Looks whether the device owes an answer for too long; returns whether it asks for a reset.
    fn watch_device(&mut self, now: u64) -> bool {
        if !self.inflate.is_outstanding() && !self.deflate.is_outstanding() {
            self.watchdog.answered();
            return false;
        }
        let had_expired = self.watchdog.has_expired();
        // The interrupt that would have said so may be what is missing: ask, once a tick.
        let needs_reset = self.watchdog.watch(now) && self.device.needs_reset();
        if self.watchdog.has_expired() && !had_expired {
            self.counters.ack_timeouts += 1;
        }
        needs_reset
    }

    /// Pages in the balloon or on their way there: what inflation and deflation compare with the target.
    pub(super) fn committed(&self) -> PageCount {
        let stored = self.frames.store.pages();
        if self.is_mutant(Mutant::FreedBeforeAnswer) {
            return stored;
        }
        stored.saturating_sub(self.deflate.in_flight())
    }

    /// Pages whose inflation was confirmed and whose deflation has not begun.
    pub(super) fn actual(&self) -> PageCount {
        self.committed().saturating_sub(self.inflate.in_flight())
    }

    pub(super) fn tell_actual(&mut self) {
        let actual = self.actual();
        if actual == self.told_actual {
            return;
        }
        self.told_actual = actual;
        // The target was 32 bits wide, and the balloon holds no more than that.
        self.device.write_config32(CONFIG_ACTUAL, u32::try_from(actual.get()).unwrap_or(u32::MAX));
    }

    pub(super) fn kick(&mut self, queue: Direction) {
        let (queue, wanted) = match queue {
            Direction::Inflate => (INFLATE_QUEUE, self.inflate.publish()),
            Direction::Deflate => (DEFLATE_QUEUE, self.deflate.publish()),
        };
        if wanted {
            self.counters.kicks += 1;
            self.device.notify(queue);
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.frames.memory.platform().now_ns()
    }

    /// Whether the next buffer shall be refused, as an injected fault.
    pub(super) fn refuse_buffer(&self) -> bool {
        self.frames.memory.platform().inject_fault(FaultSite::QueueAdd)
    }

    fn is_running(&self) -> bool {
        match self.phase {
            Phase::Running { .. } | Phase::Resetting { .. } | Phase::Draining { .. } => true,
            Phase::Down | Phase::Failed(_) => false,
        }
    }

    /// A snapshot of the driver.
    pub fn status(&self) -> BalloonStatus {
        let (phase, failure) = match self.phase {
            Phase::Running { .. } if self.watchdog.has_expired() => (BalloonPhase::Degraded, None),
            Phase::Running { .. } => (BalloonPhase::Running, None),
            Phase::Resetting { .. } => (BalloonPhase::Resetting, None),
            Phase::Draining { .. } => (BalloonPhase::Draining, None),
            Phase::Down => (BalloonPhase::Down, None),
            Phase::Failed(error) => (BalloonPhase::Failed, Some(error)),
        };
        BalloonStatus {
            phase,
            failure,
            requested: self.requested,
            target: self.target,
            actual: self.actual(),
            inflating: self.inflate.in_flight(),
            deflating: self.deflate.in_flight(),
            deflates_on_oom: self.may_deflate_on_oom(),
            counters: self.counters,
        }
    }

    /// Resets the device, takes every page back and starts it again: the
    /// target stays the device's, `actual` begins at zero.
    pub fn rebind(&mut self) {
        self.begin_reset(AfterReset::Restart);
    }

    /// Resets the device and takes every page back; ends [`BalloonPhase::Down`].
    pub fn unbind(&mut self) {
        self.begin_reset(AfterReset::Stop);
    }
}

/// The two ways of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the host.
    Inflate,
    /// Back.
    Deflate,
}

/// Pages managed for each inflate buffer: small guests get small pools.
const PAGES_PER_INFLATE_BUFFER: u64 = 256;
/// Deflation goes in more rounds and needs fewer.
const PAGES_PER_DEFLATE_BUFFER: u64 = 1024;

/// Lends buffers and rings, or nothing at all.
fn lend<P: Platform>(memory: &Memory<P>) -> Option<(PfnQueue, PfnQueue, DmaPages<4>)> {
    let buffers = |share: u64| {
        // Never fewer than a block of the largest order needs.
        u16::try_from(memory.managed_pages().get() / share).unwrap_or(u16::MAX).clamp(8, 256)
    };
    let inflate = PfnQueue::lend(memory, buffers(PAGES_PER_INFLATE_BUFFER))?;
    let Some(deflate) = PfnQueue::lend(memory, buffers(PAGES_PER_DEFLATE_BUFFER)) else {
        // SAFETY: no device has heard of these pages yet.
        unsafe { inflate.take_back(memory) };
        return None;
    };
    let Some(rings) = DmaPages::lend(memory, 4) else {
        // SAFETY: as above.
        unsafe { inflate.take_back(memory) };
        // SAFETY: as above.
        unsafe { deflate.take_back(memory) };
        return None;
    };
    Some((inflate, deflate, rings))
}
