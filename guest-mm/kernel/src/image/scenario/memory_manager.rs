//! The memory manager's own scenarios: `guest_mm::scenario`.

use core::fmt;

use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::balloon::BalloonStatus;
use guest_mm::scenario::{self, Args, Caller, Ctx, Name};
use guest_mm::store::PfnStore;

use crate::image::kernel::Kernel;

/// The kernel, as a scenario sees it.
struct Host<'k, 'm, S>(&'k mut Kernel<'m, S>);

impl<S: PfnStore> Caller for Host<'_, '_, S> {
    fn print(&mut self, line: fmt::Arguments<'_>) {
        self.0.print(line);
    }

    fn serve(&mut self) {
        // Whoever calls comes again soon.
        let _wake = self.0.serve();
    }

    fn balloon(&mut self) -> Option<BalloonStatus> {
        self.0.balloon.status()
    }
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn memory_manager(&mut self, name: Name, args: Args) -> u8 {
        let mm = self.mm;
        match scenario::run(name, &mut Ctx::new(mm, args, &mut Host(self))) {
            Ok(()) => SUCCESS,
            // It has said what went wrong.
            Err(_) => FAILURE,
        }
    }
}
