//! What the scenarios do.

mod balloon;
mod census;
mod cpus;
mod ends;
mod entropy;
mod hotplug;
mod memory_manager;
mod protection;
mod smp_stress;
mod touch;
mod trap_stress;
mod verify;

use guest_kernel::scenario::{Call, SUCCESS};
use guest_mm::store::PfnStore;

use super::kernel::Kernel;
use super::{power, time};

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs a scenario; returns its exit code.
    pub(super) fn execute(&mut self, call: Call) -> u8 {
        match call {
            Call::Touch(size) => self.touch(size),
            Call::Verify => self.verify(),
            Call::Mm(name, args) => self.memory_manager(name, args),
            Call::Census => self.census(),
            Call::Balloon => self.print_balloon(),
            Call::Hotplug => self.print_hotplug(),
            Call::Entropy { bytes } => self.entropy(bytes),
            Call::Cpus => self.cpus(),
            Call::SmpStress { seconds, seed } => self.smp_stress(seconds, seed),
            Call::TrapStress { seconds } => self.trap_stress(seconds),
            Call::Protection => self.protection(),
            Call::Spin { seconds } => spin(seconds),
            Call::PowerOff => power::off(),
            Call::Reset => power::reset(),
            Call::Panic => ends::panic(),
            Call::WildRead => ends::wild_read(),
            Call::Nmi => ends::nmi(),
            Call::DoubleFault => ends::double_fault(self.memory),
            Call::MachineCheck => ends::machine_check(self.memory),
            Call::TripleFault => power::triple_fault(),
        }
    }
}

/// Computes without serving anybody: what the host sees is a guest that does not answer.
fn spin(seconds: u32) -> u8 {
    let end = time::now_ns() + u64::from(seconds) * 1_000_000_000;
    while time::now_ns() < end {
        core::hint::spin_loop();
    }
    SUCCESS
}
