//! The driver behind its lock: for whoever serves the device, is out of memory,
//! or migrates pages.

use core::fmt;

use abi::Pfn;

use super::driver::BalloonDriver;
use super::migrate::MIGRATE_BATCH;
use super::options::{BalloonStatus, Wake};
use crate::memory::TransitFrames;
use crate::migrate::{MigrateError, MigrateMode, Migrated, MovableOps, Move};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::reclaim::OomNotifier;
use crate::store::PfnStore;
use crate::sync::{LockClass, SpinLock};
use crate::virtio::MmioBus;

/// How long others than the main loop wait for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Whoever is out of memory, for the device and for pages that others are moving, nanoseconds.
    pub oom_ns: u64,
    /// Whoever migrates, nanoseconds.
    pub migrate_ns: u64,
}

impl Default for Patience {
    fn default() -> Self {
        // Somebody is killed for it if the device comes too late: it has as long as it may be silent at all
        // (`Options::ack_timeout_ns`). A page that does not move costs nobody anything.
        Self { oom_ns: 10_000_000_000, migrate_ns: 1_000_000_000 }
    }
}

/// A balloon's driver, if there is one, behind the balloon's lock.
///
/// Migration only tries the lock. It may come from an allocation of the driver's
/// own, below the lock, and whoever serves the device may hold it for as long as
/// a poll takes.
pub struct SharedBalloon<'m, P: Platform, B, S> {
    platform: &'m P,
    driver: SpinLock<Option<BalloonDriver<'m, P, B, S>>>,
    patience: Patience,
}

// SAFETY: the driver is touched below the lock only. The pages that it has lent to
// the device are reached at the same addresses from every CPU (`Platform::frame_ptr`).
unsafe impl<P: Platform, B: Send, S: Sync> Sync for SharedBalloon<'_, P, B, S> {}

impl<'m, P: Platform, B: MmioBus, S: PfnStore> SharedBalloon<'m, P, B, S> {
    /// None yet.
    pub const fn new(platform: &'m P, patience: Patience) -> Self {
        Self { platform, driver: SpinLock::new(LockClass::Balloon, None), patience }
    }

    /// Does something with the driver, if there is one; waits for the lock.
    pub fn with<R>(&self, act: impl FnOnce(&mut BalloonDriver<'m, P, B, S>) -> R) -> Option<R> {
        self.driver.lock(self.platform).as_mut().map(act)
    }

    /// Keeps a driver that was started; there must be none.
    pub fn install(&self, driver: BalloonDriver<'m, P, B, S>) {
        let mut place = self.driver.lock(self.platform);
        debug_assert!(place.is_none(), "a second driver of one balloon");
        *place = Some(driver);
    }

    /// Takes the driver away: to end it.
    pub fn take(&self) -> Option<BalloonDriver<'m, P, B, S>> {
        self.driver.lock(self.platform).take()
    }

    /// Serves the device, whose line has fired or not; says when to come again.
    pub fn serve(&self, fired: bool) -> Wake {
        let served = self.with(|driver| {
            if fired {
                driver.interrupt();
            }
            driver.poll()
        });
        served.unwrap_or(Wake::OnInterrupt)
    }

    /// Where the driver stands.
    pub fn status(&self) -> Option<BalloonStatus> {
        self.with(|driver| driver.status())
    }

    /// Waits between looks at the device, for `ns` from now.
    fn waiting(&self, ns: u64) -> impl FnMut() -> bool {
        let deadline = self.platform.now_ns().saturating_add(ns);
        move || {
            self.platform.relax();
            self.platform.now_ns() < deadline
        }
    }

    /// Does something with the driver, unless somebody else is at it.
    fn try_with<R>(
        &self,
        act: impl FnOnce(&mut BalloonDriver<'m, P, B, S>) -> R,
    ) -> Result<R, MigrateError> {
        let mut driver = self.driver.try_lock(self.platform).ok_or(MigrateError::Again)?;
        // Words of a driver that has gone: nobody could tell the host.
        driver.as_mut().map(act).ok_or(MigrateError::Busy)
    }
}

impl<P: Platform, B: MmioBus + Send, S: PfnStore> OomNotifier for SharedBalloon<'_, P, B, S> {
    fn out_of_memory(&self) -> u64 {
        let mut wait = self.waiting(self.patience.oom_ns);
        loop {
            let given = self.with(|driver| {
                let pages = driver.deflate_on_oom(&mut wait).get();
                (pages, driver.may_give_later())
            });
            let (pages, may_give_later) = given.unwrap_or((0, false));
            // Without the lock: who has isolated all that is left cannot move it without.
            if pages > 0 || !may_give_later || !wait() {
                return pages;
            }
        }
    }
}

/// In every mode the device is waited for, as Linux's driver does: it is no
/// storage, and without it nothing can be moved at all.
impl<P: Platform, B: MmioBus + Send, S: PfnStore> MovableOps<P> for SharedBalloon<'_, P, B, S> {
    fn migrate(
        &self,
        mm: &Mm<'_, P>,
        dst: &TransitFrames,
        src: Pfn,
        mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        let mut moves = [Some(Move::new(src, dst))];
        self.migrate_batch(mm, &mut moves, mode);
        let [step] = moves;
        step.map_or(Err(MigrateError::Again), |step| step.ended)
    }

    fn migrate_batch(&self, _mm: &Mm<'_, P>, moves: &mut [Option<Move<'_>>], _mode: MigrateMode) {
        let mut wait = self.waiting(self.patience.migrate_ns);
        let done = self.try_with(|driver| driver.migrate(moves, &mut wait));
        if let Err(error) = done {
            moves.iter_mut().flatten().for_each(|step| step.ended = Err(error));
        }
    }

    fn batch(&self) -> usize {
        MIGRATE_BATCH
    }

    fn split(&self, _mm: &Mm<'_, P>, src: Pfn) -> Result<(), MigrateError> {
        self.try_with(|driver| driver.split_isolated(src))?
    }
}

impl<P: Platform, B, S> fmt::Debug for SharedBalloon<'_, P, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBalloon").field("patience", &self.patience).finish_non_exhaustive()
    }
}
