//! Brings the other CPUs up: INIT and SIPI to each, a page of real-mode code per CPU, tables of their own to start on.
//!
//! All are started at once and not waited for: the boot CPU goes on with its devices. [`online`] waits, for a bounded
//! time, when somebody wants to know.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use abi::Pfn;
use guest_kernel::direct_map::entry;
use guest_kernel::firmware::ApicIds;
use guest_kernel::layout::{BootTable, CPUS, PAGE, word};
use guest_kernel::memory_map::RamMap;
use guest_mm::memdesc::Order;
use guest_mm::memory::Memory;
use guest_mm::platform::CpuSet;

use super::{stack, thread};
use crate::image::log::{debug, warning};
use crate::image::paging::{self, direct};
use crate::image::platform::Machine;
use crate::image::{apic, gate, irq, time, timer};

unsafe extern "C" {
    static startup_begin: u8;
    static startup_root: u8;
    static startup_long_address: u8;
    static startup_long: u8;
    static startup_gdt: u8;
    static startup_gdt_address: u8;
    static startup_entry: u8;
    static startup_end: u8;
    fn nucleus_cpu_entry_1();
    fn nucleus_cpu_entry_2();
    fn nucleus_cpu_entry_3();
}

/// Pages below 1 MiB: a start page for each other CPU, then root, PDPT and page directory.
const PAGES: u64 = OTHERS as u64 + 3;
/// CPUs besides the boot CPU.
const OTHERS: usize = CPUS - 1;
/// Conventional memory ends here; firmware's own is above. The first page keeps what a BIOS keeps there.
const LOW: (u64, u64) = (PAGE, 0xa_0000);
/// Idle stacks: 32 KiB, for the idle loop and the interrupts that land on it.
const IDLE_STACK: Order = match Order::new(3) {
    Some(order) => order,
    None => unreachable!(),
};
/// A CPU that needs longer does not come: it takes 0.3 ms where a core is free, scheduler slices where none is.
const PATIENCE_NS: u64 = 2_000_000_000;
/// INIT and SIPI without delay are enough for virtual CPUs; hardware's manual asks for a second SIPI. One that is up ignores it.
const SECOND_SIPI_NS: u64 = 20_000_000;

/// CPUs that run.
static ONLINE: AtomicU32 = AtomicU32::new(1);
/// CPUs that were sent for, the boot CPU included; 0 once [`online`] has settled.
static SENT_FOR: AtomicUsize = AtomicUsize::new(0);
/// When they were sent for.
static SENT_AT_NS: AtomicU64 = AtomicU64::new(0);
/// CPUs that take part: those that were up when somebody first asked.
static SETTLED: AtomicU32 = AtomicU32::new(1);
/// The first start page.
static START_PAGE: AtomicU64 = AtomicU64::new(0);

/// Sends for the CPUs of `found`, at most `limit` with this one. Whatever is missing costs the other CPUs only, and is said.
pub(in crate::image) fn begin(
    memory: &Memory<Machine>,
    ram: &RamMap,
    found: &ApicIds,
    limit: usize,
) {
    if found.left_out > 0 {
        warning!("{} more CPUs than this kernel uses", found.left_out);
    }
    let boot_id = apic::id();
    apic::note_id(0, boot_id);
    if found.others(boot_id, limit).next().is_none() {
        return;
    }
    let Some(page) = start_pages(ram) else {
        warning!("no RAM below 1 MiB to start other CPUs in");
        return;
    };
    write_tables(page);
    START_PAGE.store(page, Ordering::Relaxed);
    let mut cpus = 1;
    for (cpu, id) in (1..).zip(found.others(boot_id, limit)) {
        if stack::place(memory, cpu, IDLE_STACK).is_err() {
            warning!("no memory for the stack of CPU {cpu}");
            break;
        }
        apic::note_id(cpu, u32::from(id));
        write_start_page(page, cpu);
        cpus = cpu + 1;
    }
    debug!("{} CPUs by {:?}", found.ids().len(), found.source);
    SENT_AT_NS.store(time::now_ns(), Ordering::Relaxed);
    SENT_FOR.store(cpus, Ordering::Relaxed);
    for cpu in 1..cpus {
        apic::send_init(cpu);
        send_sipi(cpu);
    }
}

fn send_sipi(cpu: usize) {
    let page = START_PAGE.load(Ordering::Relaxed) / PAGE + cpu as u64 - 1;
    apic::send_startup(cpu, u8::try_from(page).unwrap_or(0));
}

/// The CPUs that take part from now on, the boot CPU first, numbers without gaps unless one in the middle did not come.
/// The first call waits for those that were sent for.
pub(in crate::image) fn online() -> CpuSet {
    let wanted = SENT_FOR.load(Ordering::Relaxed);
    if wanted != 0 && irq::cpu() == 0 {
        settle(wanted);
    }
    set_of(SETTLED.load(Ordering::Relaxed))
}

/// Waits until all have come or time is up; says who has not.
fn settle(wanted: usize) {
    let all = (1u32 << wanted) - 1;
    let deadline = SENT_AT_NS.load(Ordering::Relaxed) + PATIENCE_NS;
    let mut second = SENT_AT_NS.load(Ordering::Relaxed) + SECOND_SIPI_NS;
    loop {
        let online = ONLINE.load(Ordering::Acquire);
        let now = time::now_ns();
        if online == all || now > deadline {
            break;
        }
        if now > second {
            second = u64::MAX;
            (1..wanted).filter(|cpu| online >> cpu & 1 == 0).for_each(send_sipi);
        }
        // Not a spin: where cores are fewer than CPUs, it would be this CPU that keeps the others from coming.
        timer::nap(50_000);
    }
    let online = ONLINE.load(Ordering::Acquire);
    for cpu in (1..wanted).filter(|cpu| online >> cpu & 1 == 0) {
        warning!("CPU {cpu} (APIC id {}) does not come up: left out", apic::id_of(cpu));
    }
    SETTLED.store(online, Ordering::Relaxed);
    SENT_FOR.store(0, Ordering::Relaxed);
}

fn set_of(bits: u32) -> CpuSet {
    let mut set = CpuSet::EMPTY;
    for cpu in (0..CPUS).filter(|cpu| bits >> cpu & 1 == 1) {
        set = set.with(cpu);
    }
    set
}

/// The first place below 1 MiB that is RAM and has room.
fn start_pages(ram: &RamMap) -> Option<u64> {
    (LOW.0..LOW.1 - PAGES * PAGE).step_by(word(PAGE)).find(|start| {
        let all_ram = |gpa: &u64| ram.containing(Pfn::containing(*gpa)).is_some();
        (0..PAGES).map(|page| start + page * PAGE).all(|gpa| all_ram(&gpa))
    })
}

/// The tables on which a CPU switches paging on: its start page where it is, and the kernel's half.
fn write_tables(page: u64) {
    let root = page + OTHERS as u64 * PAGE;
    let (pdpt, directory) = (root + PAGE, root + 2 * PAGE);
    // Supervisor, executable: the first 2 MiB and nothing else.
    const TABLE: u64 = entry::PRESENT | entry::WRITABLE | entry::ACCESSED;
    for table in [root, pdpt, directory] {
        // SAFETY: three pages of RAM below 1 MiB, which nothing else uses (`start_pages`, `boot::LOW_MEMORY_END`).
        unsafe { direct(table).write_bytes(0, word(PAGE)) };
    }
    let write = |table: u64, value: u64| {
        // SAFETY: as above; no CPU walks the tables yet.
        unsafe { direct(table).cast::<u64>().write_volatile(value) };
    };
    paging::copy_kernel_half(direct(root).cast());
    write(root, pdpt | TABLE);
    write(pdpt, directory | TABLE);
    write(directory, TABLE | entry::DIRTY | entry::LARGE);
}

/// Copies the start code and fills its fields in for `cpu`.
fn write_start_page(first_page: u64, cpu: usize) {
    let page = first_page + (cpu as u64 - 1) * PAGE;
    let begin = &raw const startup_begin;
    let offset = |symbol: *const u8| symbol.addr() - begin.addr();
    let len = offset(&raw const startup_end);
    assert!(len <= word(PAGE));
    // SAFETY: `len` bytes of rodata to a page of RAM below 1 MiB that nothing else uses.
    unsafe { direct(page).copy_from_nonoverlapping(begin, len) };
    let put = |symbol: *const u8, bytes: &[u8]| {
        // SAFETY: the fields lie within the code that was just copied.
        let field = unsafe { direct(page).add(offset(symbol)) };
        // SAFETY: as above.
        unsafe { field.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    };
    let low = |gpa: u64| u32::try_from(gpa).unwrap_or(0).to_le_bytes();
    let in_page = |symbol: *const u8| low(page + offset(symbol) as u64);
    let entry = match cpu {
        1 => nucleus_cpu_entry_1 as *const (),
        2 => nucleus_cpu_entry_2 as *const (),
        _ => nucleus_cpu_entry_3 as *const (),
    };
    put(&raw const startup_root, &low(first_page + OTHERS as u64 * PAGE));
    put(&raw const startup_long_address, &in_page(&raw const startup_long));
    put(&raw const startup_gdt_address, &in_page(&raw const startup_gdt));
    put(&raw const startup_entry, &entry.addr().to_le_bytes());
}

/// Ring 3 of another CPU begins here, masked, on its own stack.
#[unsafe(no_mangle)]
extern "C" fn cpu_main() -> ! {
    // SAFETY: the kernel's own root: what the startup tables have beyond it is used no more.
    unsafe { gate::load_cr3(BootTable::Pml4.gpa()) };
    apic::init();
    timer::init_cpu();
    ONLINE.fetch_or(1 << irq::cpu(), Ordering::Release);
    thread::idle_loop()
}

const _: () = assert!(CPUS == 4, "nucleus_cpu_entry_N");
