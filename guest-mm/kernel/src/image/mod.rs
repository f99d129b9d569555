//! The kernel itself: all of it runs in ring 3, behind the nucleus.

mod apic;
mod boot;
mod gate;
mod ioapic;
mod irq;
mod log;
mod nucleus;
mod paging;
mod panic;
mod platform;
mod port;
mod power;
mod serial;
mod time;
mod timer;
mod trap;

use guest_kernel::size::Human;
use log::{debug, info};

/// Called once by the landing, masked, with the GPA of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(start_info_gpa: u64) -> ! {
    serial::init();
    let source = time::init();
    let boot = boot::boot(start_info_gpa);
    let _machine = platform::Machine::new(boot.limit());
    info!("aerostat guest, {}", Human(boot.ram.pages() << 12));
    debug!("TSC {} Hz by {source:?}", time::rate().hz());
    for r in boot.ram.ranges() {
        debug!("ram {r:?}");
    }
    for r in boot.reserved() {
        debug!("reserved {r:?}");
    }
    apic::init();
    timer::init();
    irq::unmask();
    timer::arm(1_000_000_000);
    loop {
        irq::wait_for_work();
        if irq::take_work() {
            debug!("work {}", irq::count(timer::VECTOR));
        }
    }
}
