//! Page tables at boot: exact permissions for the image, the direct map, device windows.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{Pfn, PfnRange};
use guest_kernel::direct_map::{self, DirectMap, ENTRIES, OutOfTables, TableMemory, entry};
use guest_kernel::layout::{
    ARENA_END_GPA, ARENA_GPA, BootTable, DEVICE_WINDOW_COUNT, DEVICE_WINDOWS, DIRECT_MAP,
    DIRECT_MAP_LIMIT, IDT_PAGE, IMAGE_GPA, IMAGE_REGION_END, KERNEL_BASE, LARGE_PAGE, NUCLEUS,
    PAGE, PRIVATE_PAGES, word,
};
use guest_kernel::memory_map::RamMap;
use guest_mm::platform::MapError;

use super::{gate, irq};

unsafe extern "C" {
    static image_text_start: u8;
    static image_rodata_start: u8;
    static image_data_start: u8;
    static image_end: u8;
}

/// Where the next early table goes: from [`ARENA_GPA`] to [`ARENA_END_GPA`].
static ARENA: AtomicU64 = AtomicU64::new(ARENA_GPA);

/// Slot of the direct map in the root table.
const DIRECT_MAP_SLOT: usize = (word(DIRECT_MAP) >> 39) % ENTRIES;

/// GPA of a linker symbol.
fn symbol_gpa(symbol: *const u8) -> u64 {
    symbol.addr() as u64 - KERNEL_BASE
}

/// GPA of the image's end.
fn image_end_gpa() -> u64 {
    symbol_gpa(&raw const image_end)
}

/// Where the direct map shows `gpa`. Valid for what is RAM.
pub(super) fn direct(gpa: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(word(DIRECT_MAP + gpa))
}

/// Bytes that the loader left below 1 GiB and outside the image; `None` elsewhere, where nothing is mapped yet.
///
/// Only before [`init`]: the slice lies in RAM that is given to the allocator later.
pub(super) fn loader_bytes(gpa: u64, len: u64) -> Option<&'static [u8]> {
    let end = gpa.checked_add(len)?;
    let in_image = gpa < IMAGE_REGION_END && IMAGE_GPA < end;
    if end > 1 << 30 || in_image {
        return None;
    }
    // SAFETY: the link-time direct map covers the first GiB except the image; nobody writes there before the allocator
    // exists. Addresses without RAM behind them read as all ones, from the VMM.
    Some(unsafe { core::slice::from_raw_parts(direct(gpa), word(len)) })
}

/// Tables in the arena and in the nucleus' table pages, reached through the direct map.
struct Tables;

impl Tables {
    fn slot(table: u64, index: usize) -> *mut u64 {
        direct(table + (index % ENTRIES) as u64 * 8).cast()
    }
}

impl TableMemory for Tables {
    fn allocate(&mut self) -> Option<u64> {
        let gpa = ARENA.load(Ordering::Relaxed);
        if gpa + PAGE > ARENA_END_GPA {
            return None;
        }
        ARENA.store(gpa + PAGE, Ordering::Relaxed);
        // SAFETY: the page lies before the stacks, mapped from link time on, and was never handed out.
        unsafe { direct(gpa).write_bytes(0, word(PAGE)) };
        Some(gpa)
    }

    fn read(&self, table: u64, index: usize) -> u64 {
        // SAFETY: tables are pages of the arena or the nucleus, both mapped from link time on.
        unsafe { Self::slot(table, index).read_volatile() }
    }

    fn write(&mut self, table: u64, index: usize, value: u64) {
        // SAFETY: as in `read`; the MMU is the only other reader.
        unsafe { Self::slot(table, index).write_volatile(value) };
    }

    fn fill(&mut self, table: u64, entries: &dyn Fn(usize) -> u64) {
        let directory = BootTable::PdDevices.gpa();
        let window = DEVICE_WINDOWS + TABLE_WINDOW as u64 * LARGE_PAGE;
        let first = table & !(LARGE_PAGE - 1);
        // Masked: the translation is dropped on the CPU that used it.
        let was_masked = irq::mask();
        self.write(directory, TABLE_WINDOW, first | entry::DATA | entry::LARGE);
        let page: *mut u64 = core::ptr::with_exposed_provenance_mut(word(window + (table - first)));
        for index in 0..ENTRIES {
            // SAFETY: one of the 512 entries of a page that the window shows.
            let slot = unsafe { page.add(index) };
            // SAFETY: as above; it is the caller's, and nobody walks it yet.
            unsafe { slot.write_volatile(entries(index)) };
        }
        self.write(directory, TABLE_WINDOW, 0);
        gate::invlpg(window);
        irq::restore(was_masked);
    }
}

/// The window through which a page that is not mapped yet becomes a table.
const TABLE_WINDOW: usize = DEVICE_WINDOW_COUNT - 1;

/// The directory pointer table of the direct map.
fn direct_pdpt() -> u64 {
    Tables.read(BootTable::Pml4.gpa(), DIRECT_MAP_SLOT) & entry::ADDRESS
}

/// Makes a block that came after the start part of the direct map; one caller at a time.
pub(super) fn map_block(block: PfnRange, table: Pfn) -> Result<(), MapError> {
    direct_map::map_block(&mut Tables, direct_pdpt(), block, table)
}

/// Undoes [`map_block`]; the caller has every CPU drop its translations.
pub(super) fn unmap_block(block: PfnRange, table: Pfn, heir: Option<Pfn>) {
    direct_map::unmap_block(&mut Tables, direct_pdpt(), block, table, heir);
}

/// Sets up the final tables. Returns the RAM that the image and they use, and what part of RAM could not be mapped.
pub(super) fn init(ram: &RamMap) -> ([PfnRange; 2], Option<OutOfTables>) {
    protect_image();
    let map = DirectMap::new(Tables, BootTable::PtImageDirect.gpa());
    let mut map = map.unwrap_or_else(|| panic!("no room for page tables"));
    let unmapped = ram.ranges().iter().find_map(|range| map.map(*range).err());
    // The identity map has served; null is nobody's address from here on.
    Tables.write(BootTable::Pml4.gpa(), 0, 0);
    Tables.write(BootTable::Pml4.gpa(), DIRECT_MAP_SLOT, map.pdpt | entry::TABLE);
    // SAFETY: the same root: only what is not RAM, and what nobody uses any more, has lost its mapping.
    unsafe { gate::load_cr3(BootTable::Pml4.gpa()) };
    let used = [(IMAGE_GPA, image_end_gpa()), (ARENA_GPA, ARENA.load(Ordering::Relaxed))];
    let used = used.map(|(start, end)| {
        PfnRange::new(Pfn::containing(start), Pfn::containing(end))
            .unwrap_or_else(|| unreachable!("both end behind their start"))
    });
    (used, unmapped)
}

/// Text is read-only, everything else not executable, what lies behind the image not in its mapping, the nucleus' own pages not
/// in the direct map.
fn protect_image() {
    let (text, rodata) =
        (symbol_gpa(&raw const image_text_start), symbol_gpa(&raw const image_rodata_start));
    let (data, end) = (symbol_gpa(&raw const image_data_start), image_end_gpa());
    let mut gpa = IMAGE_GPA;
    for index in 0..ENTRIES {
        if gpa >= text {
            let image = match gpa {
                _ if gpa < rodata => gpa | entry::CODE,
                _ if gpa < data => gpa | entry::READ_ONLY,
                _ if gpa < end => gpa | entry::DATA,
                _ => 0,
            };
            Tables.write(BootTable::PtImage.gpa(), index, image);
            if gpa < data {
                Tables.write(BootTable::PtImageDirect.gpa(), index, gpa | entry::READ_ONLY);
            }
        } else if gpa < NUCLEUS - KERNEL_BASE + PRIVATE_PAGES * PAGE {
            Tables.write(BootTable::PtImageDirect.gpa(), index, 0);
        }
        gpa += PAGE;
    }
}

/// Copies the upper half of the kernel's root table into `table`. Its entries never change after [`init`], so copies stay right.
pub(super) fn copy_kernel_half(table: *mut u64) {
    for index in ENTRIES / 2..ENTRIES {
        let value = Tables.read(BootTable::Pml4.gpa(), index);
        // SAFETY: `table` is a page of 512 entries, by the caller's word.
        let slot = unsafe { table.add(index) };
        // SAFETY: as above; nobody walks it yet.
        unsafe { slot.write_volatile(value) };
    }
}

/// Maps a page of a stack in a slot ([`guest_kernel::layout::STACK_SLOTS`]) to `gpa`; `false` if it lies elsewhere or
/// there was no memory for a table, which `table` gives.
pub(super) fn map_stack_page(address: u64, gpa: u64, table: impl FnOnce() -> Option<u64>) -> bool {
    let Some(offset) = address.checked_sub(KERNEL_BASE) else { return false };
    let (directory, index) = (BootTable::PdKernel.gpa(), word(offset / LARGE_PAGE));
    if offset < IMAGE_REGION_END || index >= ENTRIES {
        return false;
    }
    let mut found = Tables.read(directory, index);
    if found == 0 {
        let Some(table) = table() else { return false };
        found = table | entry::TABLE;
        Tables.write(directory, index, found);
    }
    let page = word(offset % LARGE_PAGE / PAGE);
    Tables.write(found & entry::ADDRESS, page, gpa | entry::DATA);
    true
}

/// Puts a changed copy of this CPU's interrupt descriptor table in the table's place: `edit` gets its 256 descriptors, two
/// quads each, in `frame`. For deliberate ends only: nothing of the nucleus can be trusted afterwards.
pub(super) fn replace_idt(
    cpu: usize,
    frame: &mut [u64; ENTRIES],
    frame_gpa: u64,
    edit: impl FnOnce(&mut [u64; ENTRIES]),
) {
    let page = word(IDT_PAGE) + cpu;
    let gpa = IMAGE_GPA + page as u64 * PAGE;
    Tables.write(BootTable::PtImageDirect.gpa(), page, gpa | entry::READ_ONLY);
    gate::invlpg(DIRECT_MAP + gpa);
    // SAFETY: the table, which was just mapped for reading, and which is no Rust object.
    let table = unsafe { direct(gpa).cast::<[u64; ENTRIES]>().read_volatile() };
    frame.clone_from(&table);
    edit(frame);
    const SUPERVISOR: u64 = entry::PRESENT | entry::ACCESSED | entry::NO_EXECUTE;
    Tables.write(BootTable::PtImage.gpa(), page, frame_gpa | SUPERVISOR);
    gate::invlpg(KERNEL_BASE + gpa);
}

/// Maps device registers, uncached; returns the virtual address, or `None` when `gpa..gpa + bytes` is out of reach or
/// no window is left. A window maps 2 MiB, so neighbours share it.
pub(super) fn map_device(gpa: u64, bytes: u64) -> Option<u64> {
    let first = gpa & !(LARGE_PAGE - 1);
    let end = gpa.checked_add(bytes)?;
    if end > DIRECT_MAP_LIMIT || end > first + LARGE_PAGE {
        return None;
    }
    let directory = BootTable::PdDevices.gpa();
    for index in 0..TABLE_WINDOW {
        let found = Tables.read(directory, index);
        if found == 0 {
            Tables.write(directory, index, first | entry::DEVICE);
        }
        if found == 0 || found & entry::ADDRESS == first {
            return Some(DEVICE_WINDOWS + index as u64 * LARGE_PAGE + (gpa - first));
        }
    }
    None
}
