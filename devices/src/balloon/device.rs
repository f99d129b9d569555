//! [`Balloon`]: the device behind the transport.

use std::sync::Arc;

use abi::PageCount;
use abi::balloon::feature;
use abi::virtio::VIRTIO_ID_BALLOON;

use super::config::BalloonConfig;
use super::counters::BalloonCounters;
use super::deflate::DeflateWindow;
use super::inflate::{Gathered, InflateWindow};
use super::page_set::{PageSet, RamIndex};
use super::queues::{self, BalloonQueue, BalloonQueues, DEFLATE, INFLATE};
use super::release::{ReleaseDone, ReleaseJob};
use crate::clock::Clock;
use crate::life::LifeGate;
use crate::ram::{GuestRam, ReleaseUnit};
use crate::ring::Virtqueue;
use crate::virtio::{
    ActivateError, Activation, GuestFault, Interrupt, QueueProgress, VirtioDevice,
};

/// What a balloon offers, and how it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonOptions {
    /// Offers MUST_TELL_HOST: the guest uses a deflated page only after our answer, so that what
    /// the device believes is in the balloon is never out of date.
    pub must_tell_host: bool,
    /// Offers DEFLATE_ON_OOM: the guest may take pages back by itself rather than run out of memory.
    pub deflate_on_oom: bool,
    /// Who runs releases.
    pub release: ReleaseMode,
}

impl Default for BalloonOptions {
    fn default() -> Self {
        Self { must_tell_host: true, deflate_on_oom: false, release: ReleaseMode::Inline }
    }
}

/// Who runs releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReleaseMode {
    /// `queue_notified` itself, before it returns.
    #[default]
    Inline,
    /// The caller. While `queue_notified` says Pending it takes [`Balloon::take_release`], runs
    /// the job without the device's lock, gives it to [`Balloon::release_done`] and serves
    /// pending queues again. Until then both queues say Pending.
    Deferred,
}

/// A balloon target that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "Balloon target of {} B is above guest RAM; allowed: 0 to {} B",
    .requested.bytes(), .max.bytes()
)]
pub struct TargetError {
    /// What was asked.
    pub requested: PageCount,
    /// The largest possible: all guest RAM.
    pub max: PageCount,
}

/// The traditional memory balloon.
pub struct Balloon {
    max_target: PageCount,
    options: BalloonOptions,
    clock: Arc<dyn Clock>,
    config: BalloonConfig,
    counters: BalloonCounters,
    gate: Arc<LifeGate>,
    active: Option<Active>,
}

/// What lives from DRIVER_OK to reset.
struct Active {
    ram: Arc<dyn GuestRam>,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Option<Virtqueue>>,
    numbering: BalloonQueues,
    must_tell_host: bool,
    index: Arc<RamIndex>,
    /// Frames that the guest has given and not taken back.
    ballooned: PageSet,
    inflate: InflateWindow,
    deflate: DeflateWindow,
    release: Release,
}

/// Where the release of the gathered window stands.
enum Release {
    /// Nothing is gathered.
    None,
    /// Gathered; nobody has taken the job.
    Ready(ReleaseJob),
    /// Someone runs it.
    Running,
    /// Released; the chains can be returned.
    Done,
}

impl Balloon {
    /// A balloon over `ram_pages` of guest RAM, target 0.
    pub fn new(ram_pages: PageCount, options: BalloonOptions, clock: Arc<dyn Clock>) -> Self {
        Self {
            // `num_pages` has 32 bits: 16 TiB, far above the platform's limit.
            max_target: ram_pages.min(PageCount::new(u32::MAX.into())),
            options,
            clock,
            config: BalloonConfig::default(),
            counters: BalloonCounters::default(),
            gate: Arc::default(),
            active: None,
        }
    }

    /// Sets the size that the guest is asked to bring the balloon to.
    ///
    /// Returns whether it is another than before; then the caller announces
    /// the new configuration through the transport. Kept over resets.
    ///
    /// # Errors
    /// [`TargetError`] above guest RAM; the target stays.
    pub fn set_target(&mut self, target: PageCount) -> Result<bool, TargetError> {
        let refused = TargetError { requested: target, max: self.max_target };
        let pages = u32::try_from(target.get()).map_err(|_| refused)?;
        if target > self.max_target {
            return Err(refused);
        }
        let changed = self.config.num_pages != pages;
        self.config.num_pages = pages;
        Ok(changed)
    }

    /// The size that the guest is asked to bring the balloon to.
    pub fn target(&self) -> PageCount {
        PageCount::new(self.config.num_pages.into())
    }

    /// What the driver says the balloon holds, never above guest RAM whatever it says.
    pub fn actual(&self) -> PageCount {
        PageCount::new(self.config.actual.into()).min(self.max_target)
    }

    /// What the device has seen to be in the balloon: distinct frames inflated and not deflated.
    pub fn ballooned(&self) -> PageCount {
        PageCount::new(self.active.as_ref().map_or(0, |active| active.ballooned.count()))
    }

    /// All counters.
    pub fn counters(&self) -> &BalloonCounters {
        &self.counters
    }

    /// The gathered window, if one waits for its release ([`ReleaseMode::Deferred`]).
    pub fn take_release(&mut self) -> Option<ReleaseJob> {
        let active = self.active.as_mut()?;
        match std::mem::replace(&mut active.release, Release::Running) {
            Release::Ready(job) => Some(job),
            other @ (Release::None | Release::Running | Release::Done) => {
                active.release = other;
                None
            }
        }
    }

    /// Takes a finished release back.
    ///
    /// Then the caller serves pending queues, which answers the driver and
    /// gathers the next window. A release from before a reset changes nothing.
    pub fn release_done(&mut self, done: ReleaseDone) {
        let Some(active) = self.active.as_mut().filter(|_| done.life == self.gate.life()) else {
            return;
        };
        let ReleaseDone { mut pages, outcome, .. } = done;
        let counters = &mut self.counters;
        counters.released_pages += outcome.released_pages;
        counters.discard_calls += outcome.calls;
        if outcome.calls > 0 {
            let ns = u64::try_from(outcome.time.as_nanos()).unwrap_or(u64::MAX);
            counters.release_ns.record(ns);
            counters.run_pages.merge(&outcome.run_pages);
        }
        if let Some(error) = outcome.refused {
            // The buffer is returned all the same: the guest has given the pages and the queue
            // has no way to refuse them. That nothing was freed shows in the accounts.
            counters.failed_windows += 1;
            counters.refused_pages += pages.count().saturating_sub(outcome.released_pages);
            if counters.failed_windows.is_power_of_two() {
                log::error!(
                    "device=balloon refused_pages={} failed_windows={}: {error}: {}",
                    counters.refused_pages,
                    counters.failed_windows,
                    error.source
                );
            }
        }
        pages.clear();
        active.inflate.pages = Some(pages);
        active.release = Release::Done;
    }

    /// Answers the driver for a released window, and gathers the next.
    fn serve_inflate(&mut self) -> Result<QueueProgress, GuestFault> {
        let deferred = self.options.release == ReleaseMode::Deferred;
        let Some(active) = self.active.as_mut() else { return Ok(QueueProgress::Idle) };
        match active.release {
            Release::Ready(_) | Release::Running => return Ok(QueueProgress::Pending),
            Release::Done => active.publish(&mut self.counters)?,
            Release::None => {}
        }
        let gathered = active.gather(&self.gate, &self.clock, &mut self.counters)?;
        if active.inflate.is_empty() {
            return Ok(QueueProgress::Idle);
        }
        if deferred && matches!(active.release, Release::Ready(_)) {
            return Ok(QueueProgress::Pending);
        }
        if let Some(job) = self.take_release() {
            self.release_done(job.run());
        }
        if let Some(active) = self.active.as_mut() {
            active.publish(&mut self.counters)?;
        }
        Ok(match gathered {
            Gathered::All => QueueProgress::Idle,
            Gathered::Full => QueueProgress::Pending,
        })
    }

    /// Takes pages out of the balloon, unless a release runs, which must not overtake it.
    fn serve_deflate(&mut self) -> Result<QueueProgress, GuestFault> {
        let Some(active) = self.active.as_mut() else { return Ok(QueueProgress::Idle) };
        if matches!(active.release, Release::Ready(_) | Release::Running) {
            return Ok(QueueProgress::Pending);
        }
        let Active { ram, interrupt, queues, index, ballooned, deflate, .. } = active;
        let queue = queue_mut(queues, DEFLATE)?;
        deflate.serve(queue, (&ram.present(), index, &**interrupt), ballooned, &mut self.counters)
    }
}

impl Active {
    fn new(offered: u64, activation: Activation) -> Result<Self, ActivateError> {
        let Activation { ram, queues, interrupt, features } = activation;
        let enabled = |queue: u16| queues.get(usize::from(queue)).is_some_and(Option::is_some);
        let numbering = BalloonQueues::resolve(offered, features, enabled)?;
        let index = Arc::new(RamIndex::new(ram.ram_ranges(), ram.hotplug_range()));
        Ok(Self {
            ballooned: PageSet::new(&index),
            inflate: InflateWindow::new(&index),
            deflate: DeflateWindow::default(),
            release: Release::None,
            must_tell_host: features & feature::MUST_TELL_HOST != 0,
            ram,
            interrupt,
            queues,
            numbering,
            index,
        })
    }

    /// Gathers a window; leaves a job behind if there is something to release.
    fn gather(
        &mut self,
        gate: &Arc<LifeGate>,
        clock: &Arc<dyn Clock>,
        counters: &mut BalloonCounters,
    ) -> Result<Gathered, GuestFault> {
        let queue = queue_mut(&mut self.queues, INFLATE)?;
        let gathered = self.inflate.gather(queue, &self.ram.present(), &self.index, counters);
        if self.inflate.pages.as_ref().is_some_and(|pages| pages.count() == 0) {
            return Ok(gathered);
        }
        let Some(mut pages) = self.inflate.pages.take() else { return Ok(gathered) };
        counters.already_inflated_pages += self.ballooned.merge(&pages);
        self.widen(&mut pages);
        self.release = Release::Ready(ReleaseJob {
            ram: Arc::clone(&self.ram),
            index: Arc::clone(&self.index),
            pages,
            gate: Arc::clone(gate),
            life: gate.life(),
            clock: Arc::clone(clock),
        });
        Ok(gathered)
    }

    /// Turns the window into pieces that the backing can release.
    ///
    /// A huge page is released when the last of its 512 frames comes in, after
    /// the others have been acknowledged. That is allowed only if the guest
    /// may not use those before we have seen them deflated (§5.5.6.2).
    fn widen(&self, pages: &mut PageSet) {
        match self.ram.release_unit() {
            ReleaseUnit::Page => {}
            ReleaseUnit::Block2M if self.must_tell_host => {
                pages.keep_complete_blocks(&self.ballooned)
            }
            ReleaseUnit::Block2M => {
                let window = pages.clone();
                pages.keep_complete_blocks(&window);
            }
        }
    }

    fn publish(&mut self, counters: &mut BalloonCounters) -> Result<(), GuestFault> {
        self.release = Release::None;
        let queue = queue_mut(&mut self.queues, INFLATE)?;
        self.inflate.publish(queue, &self.ram.present(), &*self.interrupt, counters)
    }
}

/// The queue `index`, which `resolve` found to be enabled.
fn queue_mut(queues: &mut [Option<Virtqueue>], index: u16) -> Result<&mut Virtqueue, GuestFault> {
    let queue = queues.get_mut(usize::from(index)).and_then(Option::as_mut);
    queue.ok_or(GuestFault::QueueNotReady { queue: index })
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn device_features(&self) -> u64 {
        let BalloonOptions { must_tell_host, deflate_on_oom, release: _ } = self.options;
        let offered =
            [(must_tell_host, feature::MUST_TELL_HOST), (deflate_on_oom, feature::DEFLATE_ON_OOM)];
        offered.iter().filter(|(is_offered, _)| *is_offered).map(|(_, bit)| bit).sum()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        queues::max_sizes(self.device_features())
    }

    fn read_config(&self, offset: u64, out: &mut [u8]) {
        self.config.read(offset, out);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        let result = self.config.write(offset, data);
        self.counters.refused_config_writes += u64::from(result.is_err());
        let is_plausible = u64::from(self.config.actual) <= self.max_target.get();
        self.counters.implausible_actual += u64::from(result.is_ok() && !is_plausible);
        result
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(Active::new(self.device_features(), activation)?);
        Ok(())
    }

    fn queue_notified(&mut self, index: u16) -> Result<QueueProgress, GuestFault> {
        let refused = GuestFault::QueueNotReady { queue: index };
        let numbering = self.active.as_ref().ok_or(refused)?.numbering;
        match numbering.queue(index) {
            Some(BalloonQueue::Inflate) => {
                self.counters.inflate.notifications += 1;
                self.serve_inflate()
            }
            Some(BalloonQueue::Deflate) => {
                self.counters.deflate.notifications += 1;
                self.serve_deflate()
            }
            // Their features are not offered, so no numbering has them.
            Some(BalloonQueue::Stats | BalloonQueue::Hinting | BalloonQueue::Reporting) | None => {
                Err(refused)
            }
        }
    }

    fn reset(&mut self) {
        // First: a release under way ends, and none that was gathered starts any more.
        self.gate.end_life();
        self.active = None;
        self.config.actual = 0;
        self.counters.resets += 1;
    }
}
