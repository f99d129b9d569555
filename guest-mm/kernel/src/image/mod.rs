//! The kernel itself: all of it runs in ring 3, behind the nucleus.

mod apic;
mod boot;
mod devices;
mod gate;
mod ioapic;
mod irq;
mod kernel;
mod log;
mod machine;
mod nucleus;
mod paging;
mod panic;
mod platform;
mod port;
mod power;
mod scenario;
mod sentinel;
mod serial;
mod shared_balloon;
mod smp;
mod time;
mod timer;
mod trap;
mod user;
mod window;

use core::mem::ManuallyDrop;

use abi::{PageCount, Pfn, PfnRange};
use guest_kernel::cmdline::StoreKind;
use guest_kernel::layout::{CPUS, DIRECT_MAP_LIMIT, PAGE};
use guest_mm::memory::Memory;
use guest_mm::mm::{Base, Mm};
use guest_mm::store::{BitmapStore, PfnStore, XArrayStore};

use boot::Boot;
use kernel::Kernel;
use log::{debug, warning};
use platform::Machine;
use shared_balloon::SharedBalloon;

/// Called once by the landing, masked, with the GPA of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(start_info_gpa: u64) -> ! {
    serial::init();
    let source = time::init();
    let mut boot = boot::boot(start_info_gpa);
    debug!("TSC {} Hz by {source:?}", time::rate().hz());
    let machine = Machine::new(boot.limit(), boot.spare);
    let range = PfnRange::new(Pfn::ZERO, boot.limit())
        .unwrap_or_else(|| unreachable!("0 is below any limit"));
    let bitmap = match boot.options.balloon_store {
        StoreKind::XArray => None,
        StoreKind::Bitmap => Some(bitmap(&mut boot, range)),
    };
    let memory = Memory::new(machine, boot.ram.ranges(), boot.reserved())
        .unwrap_or_else(|error| panic!("{error}"));
    let base = Base::new(memory).unwrap_or_else(|error| panic!("{error}"));
    // Never dropped: the kernel borrows it for as long as it borrows what it stands on.
    let mm = ManuallyDrop::new(Mm::new(&base));
    apic::init();
    timer::init();
    irq::unmask();
    smp::begin(&base.memory, &boot.ram, &boot.cpus, boot.options.cpus.unwrap_or(CPUS));
    if let Some((range, words)) = bitmap {
        let store = BitmapStore::new(&machine, range, words);
        let store = store.unwrap_or_else(|| unreachable!("counted for the same range"));
        let balloon = ManuallyDrop::new(SharedBalloon::new(base.platform()));
        serve(&boot, &mm, &store, &balloon);
    }
    // Memory that is plugged later goes into the balloon like any other.
    let all = PfnRange::new(Pfn::ZERO, Pfn::containing(DIRECT_MAP_LIMIT)).unwrap_or(range);
    let store = ManuallyDrop::new(XArrayStore::new(&base.rcu, base.xa_nodes(), all));
    let balloon = ManuallyDrop::new(SharedBalloon::new(base.platform()));
    serve(&boot, &mm, &*store, &balloon)
}

/// Memory for a bitmap store over `ram` and over what can be plugged, and the range; over `ram` alone if there is no room for more.
///
/// # Panics
/// Without room for that.
fn bitmap(boot: &mut Boot, ram: PfnRange) -> (PfnRange, &'static mut [u64]) {
    let region = devices::hotplug_region(boot.cmdline, &boot.ram);
    let end = region.map(|region| region.end().min(Pfn::containing(DIRECT_MAP_LIMIT)));
    let all = end.and_then(|end| PfnRange::new(ram.start(), end.max(ram.end())));
    if let Some(range) = all {
        if let Some(words) = bitmap_words(boot, range) {
            return (range, words);
        }
        warning!("no room for a bitmap of what can be plugged: it stays out of the balloon");
    }
    let words = bitmap_words(boot, ram);
    (ram, words.unwrap_or_else(|| panic!("no room for a bitmap of {} pages", ram.len().get())))
}

/// Memory for a bitmap store over `range`, if there is room.
fn bitmap_words(boot: &mut Boot, range: PfnRange) -> Option<&'static mut [u64]> {
    let words = BitmapStore::<Machine>::words_for(range)?;
    let carved = boot.carve(PageCount::new((words as u64).div_ceil(PAGE / 8)))?;
    let start = paging::direct(carved.start().gpa()).cast::<u64>();
    // SAFETY: the range was just taken out of RAM for good; the direct map shows it, page-aligned; any bits are u64s.
    Some(unsafe { core::slice::from_raw_parts_mut(start, words) })
}

/// Starts the devices, runs what the command line asks for, then serves for ever.
fn serve<'m, S: PfnStore + Sync>(
    boot: &Boot,
    mm: &'m Mm<'m, Machine>,
    store: &'m S,
    balloon: &'m SharedBalloon<'m, S>,
) -> ! {
    let mut kernel = Kernel::new(mm, store, balloon);
    kernel.find_devices(boot.cmdline, &boot.options, &boot.ram);
    debug!("serving after {} us", time::now_ns() / 1000);
    for words in boot.options.exec() {
        kernel.run_from_cmdline(words);
    }
    kernel.run()
}
