//! The machine as the memory manager's scenarios see it.

use abi::PfnRange;
use guest_mm::addr::VirtAddr;
use guest_mm::balloon::Wake;
use guest_mm::errno::Errno;
use guest_mm::mm::Mm;
use guest_mm::scenario::{self, Access, Signal};
use guest_mm::space::AddressSpace;

use super::platform::Machine;
use super::smp::{self, Preemption, RunError};
use super::time;
use super::user::{self, UserFault};

/// Devices are served at least so often while threads run.
const SERVE_NS: u64 = 1_000_000;

impl scenario::Machine for Machine {
    fn cpus(&self) -> usize {
        smp::online().iter().count()
    }

    fn run_on(
        &self,
        mm: &Mm<'_, Self>,
        threads: usize,
        seed: u64,
        work: &(dyn Fn(usize) + Sync),
        serve: &mut dyn FnMut(),
    ) -> Result<(), Errno> {
        let mut wake = || {
            serve();
            Wake::At(time::now_ns() + SERVE_NS)
        };
        let preemption = Preemption::Random(seed);
        smp::run_on(mm.memory(), threads, preemption, work, &mut wake).map_err(
            |error| match error {
                RunError::NoStack => Errno::ENOMEM,
                RunError::TooMany => Errno::EINVAL,
            },
        )
    }

    fn spare(&self) -> Option<PfnRange> {
        self.spare_ram()
    }

    fn yield_now(&self) {
        smp::yield_now();
    }

    fn enter(&self, space: &AddressSpace<'_, Self>) {
        // SAFETY: the space outlives the thread's stay: the caller's promise (`scenario::Machine::enter`).
        unsafe { smp::enter(space.root(), space.cpu_set()) };
    }

    fn leave(&self) {
        smp::leave();
    }

    fn access<'m>(
        &self,
        mm: &Mm<'m, Self>,
        space: &AddressSpace<'m, Self>,
        va: u64,
        access: Access,
    ) -> Result<u64, Signal> {
        self.enter(space);
        let handler = |fault: UserFault| {
            let address = VirtAddr::new(fault.address).ok_or(Signal::SegvMapErr)?;
            match mm.handle_fault(space, address, fault.access) {
                Ok(_) => Ok(()),
                Err(error) => Err(Signal::of_fault(error, space.is_dead())),
            }
        };
        user::with_faults(&handler, || user::access(va, access))
    }
}
