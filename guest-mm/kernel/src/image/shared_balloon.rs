//! The balloon's driver, for the main loop and for whoever is out of memory.

use guest_mm::balloon::{BalloonDriver, BalloonStatus, Wake};
use guest_mm::platform::Platform;
use guest_mm::reclaim::OomNotifier;
use guest_mm::store::PfnStore;
use guest_mm::sync::{LockClass, SpinLock};

use super::devices::Served;
use super::platform::Machine;
use super::window::Window;

/// How long somebody who is out of memory waits for the device.
const OOM_PATIENCE_NS: u64 = 1_000_000_000;

type Driver<'m, S> = Served<BalloonDriver<'m, Machine, Window, S>>;

/// The driver, if there is one, behind a lock.
pub(super) struct SharedBalloon<'m, S> {
    machine: &'m Machine,
    served: SpinLock<Option<Driver<'m, S>>>,
}

// SAFETY: the driver is touched below the lock only. What it points to, device windows
// and pages lent to the device, every CPU reaches at the same addresses; the store is shared.
unsafe impl<S: PfnStore + Sync> Sync for SharedBalloon<'_, S> {}

impl<'m, S: PfnStore> SharedBalloon<'m, S> {
    /// None yet.
    pub(super) const fn new(machine: &'m Machine) -> Self {
        Self { machine, served: SpinLock::new(LockClass::Balloon, None) }
    }

    /// Whether there is a driver.
    pub(super) fn exists(&self) -> bool {
        self.served.lock(self.machine).is_some()
    }

    /// Keeps a driver that was started. Returns whether it may deflate for an allocation.
    pub(super) fn install(&self, served: Driver<'m, S>) -> bool {
        let may_deflate = served.driver.may_deflate_on_oom();
        *self.served.lock(self.machine) = Some(served);
        may_deflate
    }

    /// Serves the device; returns when it wants to be served again.
    pub(super) fn serve(&self) -> Wake {
        let mut served = self.served.lock(self.machine);
        let Some(balloon) = &mut *served else { return Wake::OnInterrupt };
        if balloon.fired() {
            balloon.driver.interrupt();
        }
        balloon.driver.poll()
    }

    /// Where the driver stands.
    pub(super) fn status(&self) -> Option<BalloonStatus> {
        self.served.lock(self.machine).as_ref().map(|balloon| balloon.driver.status())
    }
}

impl<S: PfnStore + Sync> OomNotifier for SharedBalloon<'_, S> {
    fn out_of_memory(&self) -> u64 {
        let mut served = self.served.lock(self.machine);
        let Some(balloon) = &mut *served else { return 0 };
        let deadline = self.machine.now_ns().saturating_add(OOM_PATIENCE_NS);
        let mut wait = || {
            self.machine.relax();
            self.machine.now_ns() < deadline
        };
        balloon.driver.deflate_on_oom(&mut wait).get()
    }
}
