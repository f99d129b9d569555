//! The virtio-mem driver as a whole: start, the poll loop, what it tells.

use abi::mem::feature::VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;
use abi::virtio::VIRTIO_ID_MEM;
use abi::{PageCount, Pfn, PfnRange};

use super::plan::Seeded;
use super::reset::{Phase, RESTARTS};
use super::status::{DriverError, HotplugCounters, HotplugOptions, HotplugPhase, HotplugStatus};
use super::wire::{Config, Region, Request, Wire};
use super::{DyingBlock, HotplugError};
use crate::balloon::Wake;
use crate::balloon::timers::{Backoff, Watchdog};
use crate::memdesc::ZONE_MAX_PAGES;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::rcu::Stamp;
use crate::virtio::{MmioBus, MmioDevice, QueueError, SetupError};

/// Features that the driver understands. It touches nothing that is not plugged, asked or not.
const SUPPORTED: u64 = VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;
/// Steps of one poll: bounds its time.
const STEPS: u32 = 16;
/// Between looks whether readers are done with a block.
const GRACE_PAUSE_NS: u64 = 1_000_000;

/// The driver of one memory device; see docs/come-to-life.md.
#[derive(Debug)]
pub struct HotplugDriver<'a, 'm, P: Platform, B> {
    pub(super) mm: &'a Mm<'m, P>,
    pub(super) device: MmioDevice<B>,
    pub(super) wire: Wire,
    pub(super) region: Region,
    pub(super) phase: Phase,
    pub(super) job: Job<'m, P>,
    /// Configuration is to be read: set by interrupts and at start.
    pub(super) config_changed: bool,
    pub(super) config: Config,
    /// Pages that are plugged.
    pub(super) plugged: PageCount,
    /// The device has plugged these for a block that is not there.
    pub(super) orphan: Option<Seeded>,
    /// No block that begins here or above is tried: the machine cannot map it.
    pub(super) limit: Pfn,
    /// Unplugging looks below this next.
    pub(super) scan_below: Pfn,
    /// Above this, unplugging tries device blocks one by one.
    pub(super) one_by_one_from: Pfn,
    /// The device's `plugged_size` is to be compared with ours.
    pub(super) check_plugged: bool,
    /// A reset cut this request off: the device must say what became of it.
    pub(super) in_doubt: Option<Ask>,
    /// Something was plugged before this driver began.
    pub(super) must_clear: bool,
    /// The device called a request wrong.
    pub(super) is_refused: bool,
    pub(super) backoff: Backoff,
    pub(super) watchdog: Watchdog,
    pub(super) last_refusal: Option<HotplugError>,
    pub(super) counters: HotplugCounters,
}

/// What is under way.
#[derive(Debug)]
pub(super) enum Job<'m, P: Platform> {
    /// Nothing.
    Idle,
    /// The device was asked, for `ask` itself or what became of it.
    Asked { ask: Ask, is_question: bool },
    /// A block waits for its last readers.
    Dying { dying: DyingBlock<'m, P>, block: Seeded, stamp: Stamp },
}

/// What the device is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// To forget what somebody else has plugged.
    UnplugAll,
    /// Memory for the first frames of a new block.
    Seed(Seeded),
    /// Memory for more of a block.
    Plug(PfnRange),
    /// To take back what was laid to rest.
    Unplug(PfnRange),
    /// To take back what a removed block lay in.
    Unseed(Seeded),
}

impl Ask {
    fn request(self) -> Request {
        match self {
            Self::UnplugAll => Request::UnplugAll,
            Self::Seed(block) => Request::Plug(block.seed),
            Self::Plug(range) => Request::Plug(range),
            Self::Unplug(range) => Request::Unplug(range),
            Self::Unseed(block) => Request::Unplug(block.seed),
        }
    }

    /// The frames that it is about, if it can be asked what became of them.
    pub(super) fn range(self) -> Option<PfnRange> {
        match self {
            Self::UnplugAll => None,
            Self::Seed(block) | Self::Unseed(block) => Some(block.seed),
            Self::Plug(range) | Self::Unplug(range) => Some(range),
        }
    }
}

/// What a step found.
pub(super) enum Step {
    /// There is more to do.
    Again,
    /// Something must happen first.
    Wait(Wake),
}

impl<'a, 'm, P: Platform, B: MmioBus> HotplugDriver<'a, 'm, P, B> {
    /// Starts the memory device behind `bus`.
    ///
    /// # Errors
    /// [`DriverError`]; no memory stays lent, except to a device that does not finish its reset.
    pub fn start(mm: &'a Mm<'m, P>, bus: B, options: HotplugOptions) -> Result<Self, DriverError> {
        let device = MmioDevice::probe(bus)
            .and_then(|device| device.expect_id(VIRTIO_ID_MEM))
            .map_err(DriverError::Probe)?;
        device.reset().map_err(DriverError::Setup)?;
        let wire = Wire::lend(mm.memory());
        let mut wire = wire.ok_or(DriverError::Setup(SetupError::NoMemory))?;
        let (region, config) = match bring_up(&device, &mut wire) {
            Ok(found) => found,
            Err(error) => {
                device.fail();
                if device.reset().is_ok() {
                    // SAFETY: the reset is complete.
                    unsafe { wire.take_back(mm.memory()) };
                }
                return Err(error);
            }
        };
        Ok(Self {
            mm,
            device,
            wire,
            region,
            phase: Phase::Running { restarts_left: RESTARTS },
            job: Job::Idle,
            config_changed: false,
            config,
            plugged: PageCount::ZERO,
            orphan: None,
            // Nothing beyond the zone can be a block, however far the device says that it reaches.
            limit: zone_end(mm).min(region.range.end()),
            scan_below: region.range.end(),
            one_by_one_from: region.range.end(),
            check_plugged: false,
            in_doubt: None,
            // A guest before this one, or firmware: nobody knows what lies there.
            must_clear: !config.plugged.is_zero(),
            is_refused: false,
            backoff: Backoff::new(),
            watchdog: Watchdog::new(options.answer_timeout_ns),
            last_refusal: None,
            counters: HotplugCounters::default(),
        })
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
            Phase::Running { .. } => {}
            Phase::Resetting { .. } => return self.await_reset(now),
            Phase::Failed(_) => return Wake::OnInterrupt,
        }
        if self.config_changed && self.read_config().is_err() {
            return self.fault(DriverError::NeedsReset);
        }
        for _ in 0..STEPS {
            match self.step(now) {
                Ok(Step::Again) => {}
                Ok(Step::Wait(wake)) => return wake,
                Err(error) => return self.fault(error),
            }
        }
        Wake::Now
    }

    fn step(&mut self, now: u64) -> Result<Step, DriverError> {
        match &self.job {
            Job::Asked { .. } => self.await_answer(now),
            Job::Dying { stamp, .. } if !self.mm.base().rcu.is_over(*stamp) => {
                self.mm.base().poll_rcu();
                Ok(Step::Wait(Wake::At(now.saturating_add(GRACE_PAUSE_NS))))
            }
            Job::Dying { .. } => self.bury().map_err(DriverError::Queue),
            Job::Idle if self.is_refused => Ok(Step::Wait(Wake::OnInterrupt)),
            Job::Idle if !self.backoff.is_over(now) => Ok(Step::Wait(self.backoff.wake(now))),
            Job::Idle => self.next(now),
        }
    }

    /// Decides what to do next.
    fn next(&mut self, now: u64) -> Result<Step, DriverError> {
        if let Some(ask) = self.in_doubt {
            return self.question(ask).map_err(DriverError::Queue);
        }
        if core::mem::take(&mut self.check_plugged) && !self.must_clear {
            self.compare_plugged()?;
        }
        let asked = if self.must_clear {
            self.ask(Ask::UnplugAll)
        } else if let Some(orphan) = self.orphan {
            self.adopt_or_return(orphan)
        } else if self.plugged < self.config.requested {
            self.grow()
        } else if self.plugged > self.config.requested {
            self.shrink(now)
        } else {
            Ok(Step::Wait(Wake::OnInterrupt))
        };
        asked.map_err(DriverError::Queue)
    }

    /// Asks for more memory: in blocks that are there, else for a new one.
    fn grow(&mut self) -> Result<Step, QueueError> {
        let most = self.config.requested.saturating_sub(self.plugged);
        let usable = self.region.range.start().checked_add(self.config.usable);
        let usable = usable.unwrap_or(self.region.range.end()).min(self.region.range.end());
        let (memory, region) = (self.mm.memory(), self.region);
        let more = memory.added_in(region).find_map(|block| {
            let bits = memory.offline_bits(block.layout.header())?;
            region.unplugged_in(block, bits, usable, most)
        });
        if let Some(range) = more {
            return self.ask(Ask::Plug(range));
        }
        let fits = |block: &Seeded| {
            let is_new = memory.words().load(block.layout.header()).is_err();
            is_new && block.seed.len() <= most && block.seed.end() <= usable
        };
        let below = region.blocks_of_region().take_while(|b| b.layout.header() < self.limit);
        for block in below.filter(fits) {
            match memory.check_block(self.new_block(block)) {
                Ok(_) => return self.ask(Ask::Seed(block)),
                Err(refused) => self.last_refusal = Some(refused),
            }
        }
        // Less is wanted than a block's tables need, or there is no room: only the device can change that.
        Ok(Step::Wait(Wake::OnInterrupt))
    }

    /// Sends a request.
    pub(super) fn ask(&mut self, ask: Ask) -> Result<Step, QueueError> {
        if let Err(error) = self.send(ask.request()) {
            self.refused(ask);
            return Err(error);
        }
        self.job = Job::Asked { ask, is_question: false };
        Ok(Step::Again)
    }

    pub(super) fn send(&mut self, request: Request) -> Result<(), QueueError> {
        if self.wire.send(request, self.region)? {
            self.device.notify(abi::mem::GUEST_REQUEST_QUEUE);
        }
        self.counters.requests += 1;
        Ok(())
    }

    /// Reads what the device wants; `Err` if it asks for a reset, or cannot be read.
    fn read_config(&mut self) -> Result<(), ()> {
        self.config_changed = false;
        if self.device.needs_reset() {
            return Err(());
        }
        self.config = Config::read(&self.device, self.region).map_err(|_| ())?;
        // Whoever wishes for something wants an attempt now.
        self.backoff.reset();
        self.scan_from_the_top();
        Ok(())
    }

    pub(super) fn scan_from_the_top(&mut self) {
        self.scan_below = self.region.range.end();
        self.one_by_one_from = self.region.range.end();
    }

    pub(super) fn now(&self) -> u64 {
        self.mm.platform().now_ns()
    }

    /// A snapshot of the driver.
    pub fn status(&self) -> HotplugStatus {
        let (phase, failure) = match self.phase {
            Phase::Running { .. } if self.is_refused => (HotplugPhase::Refused, None),
            Phase::Running { .. } if self.watchdog.has_expired() => (HotplugPhase::Degraded, None),
            Phase::Running { .. } => (HotplugPhase::Running, None),
            Phase::Resetting { .. } => (HotplugPhase::Resetting, None),
            Phase::Failed(error) => (HotplugPhase::Failed, Some(error)),
        };
        let memory = self.mm.memory();
        let (mut blocks, mut alive) = (0, PageCount::ZERO);
        for block in memory.added_in(self.region) {
            let Some(bits) = memory.offline_bits(block.layout.header()) else { continue };
            blocks += 1;
            let payload = block.layout.payload().len();
            alive = alive.saturating_add(payload.saturating_sub(bits.pages()));
        }
        HotplugStatus {
            phase,
            failure,
            last_refusal: self.last_refusal,
            region: self.region.range,
            unit: self.region.unit,
            requested: self.config.requested,
            plugged: self.plugged,
            alive,
            blocks,
            counters: self.counters,
        }
    }

    /// Ends a driver of which nothing is plugged, or that has failed with nothing alive, and gives its page back.
    ///
    /// # Errors
    /// The driver itself if memory is plugged.
    #[expect(clippy::result_large_err, reason = "the driver goes back to its one caller")]
    pub fn finish(self) -> Result<(), Self> {
        if !self.plugged.is_zero() || !matches!(self.job, Job::Idle) || self.in_doubt.is_some() {
            return Err(self);
        }
        // A device stuck in reset keeps the page: leaked, not risked.
        if self.device.reset().is_ok() {
            // SAFETY: the reset is complete, so the device uses nothing any more.
            unsafe { self.wire.take_back(self.mm.memory()) };
        }
        Ok(())
    }
}

/// Where the frames end that a block may have.
fn zone_end<P: Platform>(mm: &Mm<'_, P>) -> Pfn {
    let base = mm.memory().words().base();
    base.checked_add(PageCount::new(ZONE_MAX_PAGES)).unwrap_or(base)
}

/// Negotiates and starts the device after a completed reset.
pub(super) fn bring_up<B: MmioBus>(
    device: &MmioDevice<B>,
    wire: &mut Wire,
) -> Result<(Region, Config), DriverError> {
    let setup = |error| {
        if error == SetupError::NeedsReset {
            DriverError::NeedsReset
        } else {
            DriverError::Setup(error)
        }
    };
    device.negotiate(SUPPORTED).map_err(setup)?;
    let region = Region::read(device).map_err(DriverError::Region)?;
    let config = Config::read(device, region).map_err(DriverError::Region)?;
    wire.attach(device).map_err(setup)?;
    device.start().map_err(setup)?;
    Ok((region, config))
}
