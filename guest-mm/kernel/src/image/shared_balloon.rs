//! The balloon's driver, for the main loop, for whoever is out of memory and for migration.

use guest_mm::balloon::{self, BalloonDriver, BalloonPhase, BalloonStatus, Wake};
use guest_mm::memdesc::Kind;
use guest_mm::mm::Mm;
use guest_mm::store::PfnStore;
use guest_mm::sync::{LockClass, SpinLock};

use super::devices::Served;
use super::log::error;
use super::platform::Machine;
use super::window::Window;

/// What others than the main loop reach the driver by.
pub(super) type Shared<'m, S> = balloon::SharedBalloon<'m, Machine, Window, S>;

/// The driver, if there is one, and its interrupts.
pub(super) struct SharedBalloon<'m, S> {
    machine: &'m Machine,
    shared: Shared<'m, S>,
    /// The line of the device, as long as the driver moves pages and is asked when memory is out.
    line: SpinLock<Option<Served<()>>>,
}

impl<'m, S: PfnStore> SharedBalloon<'m, S> {
    /// None yet.
    pub(super) fn new(machine: &'m Machine) -> Self {
        let shared = Shared::new(machine, balloon::Patience::default());
        Self { machine, shared, line: SpinLock::new(LockClass::Queue, None) }
    }

    /// Whether there is a driver.
    pub(super) fn exists(&self) -> bool {
        self.shared.status().is_some()
    }

    /// Keeps a driver that was started, which from now on moves its pages, and
    /// gives them to allocations that have nothing else if it may.
    pub(super) fn install(
        &'m self,
        mm: &Mm<'m, Machine>,
        driver: BalloonDriver<'m, Machine, Window, S>,
        vector: u8,
    ) {
        let may_deflate = driver.may_deflate_on_oom();
        self.shared.install(driver);
        *self.line.lock(self.machine) = Some(Served::new((), vector));
        if let Err(error) = mm.set_movable_ops(Kind::Offline, &self.shared) {
            error!("balloon: pages will not move: {error}");
        }
        if may_deflate {
            mm.set_oom_notifier(Some(&self.shared));
        }
    }

    /// Serves the device; returns when it wants to be served again.
    pub(super) fn serve(&self, mm: &Mm<'m, Machine>) -> Wake {
        let fired = self.line.lock(self.machine).as_mut().is_some_and(Served::fired);
        let wake = self.shared.serve(fired);
        if self.has_ended() {
            self.withdraw(mm);
        }
        wake
    }

    /// Whether the driver has given up, with what its pages are.
    fn has_ended(&self) -> bool {
        self.status().is_some_and(|status| match status.phase {
            BalloonPhase::Down | BalloonPhase::Failed => true,
            BalloonPhase::Running
            | BalloonPhase::Degraded
            | BalloonPhase::Resetting
            | BalloonPhase::Draining => false,
        })
    }

    /// Nobody is moved any more by a driver that has ended, and nobody asks it for memory.
    fn withdraw(&self, mm: &Mm<'m, Machine>) {
        let is_registered = self.line.lock(self.machine).is_some();
        // While pages are isolated it is too early: the next time.
        if is_registered && mm.clear_movable_ops(Kind::Offline).is_ok() {
            mm.set_oom_notifier(None);
            *self.line.lock(self.machine) = None;
        }
    }

    /// Where the driver stands.
    pub(super) fn status(&self) -> Option<BalloonStatus> {
        self.shared.status()
    }
}
