//! The kernel itself: all of it runs in ring 3, behind the nucleus.

mod apic;
mod gate;
mod irq;
mod nucleus;
mod panic;
mod port;
mod power;
mod serial;
mod trap;

/// Called once by the landing, masked, with the GPA of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(_start_info_gpa: u64) -> ! {
    serial::init();
    serial::write(b"aerostat guest\n");
    apic::init();
    irq::unmask();
    loop {
        irq::wait_for_work();
        if irq::take_work() {
            // Drivers are polled here.
        }
    }
}
