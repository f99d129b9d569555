//! From the loader's word to a machine that is ready for the memory manager.

use core::cell::UnsafeCell;

use abi::{PageCount, Pfn, PfnRange};
use guest_kernel::cmdline::Options;
use guest_kernel::firmware::{self, ApicIds, LoaderMemory};
use guest_kernel::layout::{
    CPUS, IMAGE_GPA, IMAGE_REGION_END, KERNEL_BASE, MAIN_STACK, MAIN_STACK_BYTES, TRAP_STACK,
    TRAP_STACK_BYTES, TRAP_STACK_STRIDE,
};
use guest_kernel::memory_map::{MAX_ENTRIES, RamMap, outer_pages};
use guest_kernel::start_info::{self, MAP_ENTRY_BYTES, MODULE_ENTRY_BYTES, StartInfo};

use super::log::{debug, warning};
use super::paging;

/// Longest command line, as in Linux.
const MAX_CMDLINE: usize = 2048;
/// Modules whose memory is respected.
const MAX_MODULES: usize = 8;
/// Ranges of RAM that the memory manager does not get.
const MAX_RESERVED: usize = 6 + CPUS + MAX_MODULES;
/// Below 1 MiB: firmware's tables, and the place where other CPUs start.
const LOW_MEMORY_END: u64 = 1 << 20;

/// The command line, copied before its memory is used otherwise.
struct CmdlineBuffer(UnsafeCell<[u8; MAX_CMDLINE]>);

// SAFETY: written once by `read_cmdline`, before any reader exists.
unsafe impl Sync for CmdlineBuffer {}

static CMDLINE: CmdlineBuffer = CmdlineBuffer(UnsafeCell::new([0; MAX_CMDLINE]));

/// What booting found out.
pub(super) struct Boot {
    /// The command line.
    pub(super) cmdline: &'static str,
    /// What it says to this kernel.
    pub(super) options: Options<'static>,
    /// RAM.
    pub(super) ram: RamMap,
    /// RAM that is kept out of it, not mapped: `spare=`.
    pub(super) spare: Option<PfnRange>,
    /// CPUs, by the firmware's tables or the command line.
    pub(super) cpus: ApicIds,
    reserved: [PfnRange; MAX_RESERVED],
    reserved_len: usize,
}

impl Boot {
    /// Ranges that hold the kernel, its stacks and tables, and what the loader left.
    pub(super) fn reserved(&self) -> &[PfnRange] {
        self.reserved.get(..self.reserved_len).unwrap_or(&[])
    }

    /// Takes `pages` pages off the top of the highest range that has them to spare; `None` if none has.
    pub(super) fn carve(&mut self, pages: PageCount) -> Option<PfnRange> {
        let carved = self.ram.ranges().iter().rev().find_map(|range| {
            let start = range.end().number().checked_sub(pages.get()).and_then(Pfn::new)?;
            let carved = PfnRange::new(start, range.end())?;
            let is_free = self.reserved().iter().all(|taken| taken.intersection(carved).is_none());
            (range.contains_range(carved) && is_free).then_some(carved)
        })?;
        self.reserve(Some(carved));
        Some(carved)
    }

    fn reserve(&mut self, range: Option<PfnRange>) {
        let (Some(range), Some(slot)) = (range, self.reserved.get_mut(self.reserved_len)) else {
            return;
        };
        *slot = range;
        self.reserved_len += 1;
    }
}

/// Reads everything that the loader left, then builds the final page tables.
///
/// # Panics
/// Without usable start info, or when RAM does not hold the image.
pub(super) fn boot(start_info_gpa: u64) -> Boot {
    let info = paging::loader_bytes(start_info_gpa, start_info::BYTES as u64).unwrap_or(&[]);
    let info = StartInfo::parse(info).unwrap_or_else(|error| panic!("{error}"));
    let cmdline = read_cmdline(info.cmdline);
    let entries = u64::from(info.map_entries).min(MAX_ENTRIES as u64);
    let map = paging::loader_bytes(info.map, entries * MAP_ENTRY_BYTES as u64).unwrap_or(&[]);
    let mut ram = RamMap::new(EntryIter(map));
    let image = ram.containing(Pfn::containing(IMAGE_GPA));
    assert!(
        image.is_some_and(|range| range.end().gpa() >= IMAGE_REGION_END),
        "the memory map has no RAM from {IMAGE_GPA:#x} to {IMAGE_REGION_END:#x}"
    );
    let empty = Pfn::ZERO;
    let empty = PfnRange::new(empty, empty)
        .unwrap_or_else(|| unreachable!("an empty range is none inverted"));
    let options = Options::parse(cmdline);
    let spare = set_aside(&mut ram, &options);
    let cpus = firmware::find_cpus(&LinkTimeMap, info.rsdp, options.cpus);
    let mut boot = Boot {
        cmdline,
        options,
        ram,
        spare,
        cpus,
        reserved: [empty; MAX_RESERVED],
        reserved_len: 0,
    };
    super::log::set_level(boot.options.log_level);
    super::log::banner(boot.ram.pages());
    reserve_modules(&mut boot, &info);
    let (used, unmapped) = paging::init(&boot.ram);
    boot.reserve(outer_pages(0, LOW_MEMORY_END));
    used.into_iter().for_each(|range| boot.reserve(Some(range)));
    boot.reserve(outer_pages(MAIN_STACK - KERNEL_BASE, MAIN_STACK_BYTES));
    for cpu in 0..CPUS as u64 {
        boot.reserve(outer_pages(
            TRAP_STACK - KERNEL_BASE + cpu * TRAP_STACK_STRIDE,
            TRAP_STACK_BYTES,
        ));
    }
    if let Some(unmapped) = unmapped {
        warning!("no page tables for RAM from {} on: it stays unused", unmapped.unmapped);
        boot.reserve(PfnRange::new(unmapped.unmapped, boot.limit()));
    }
    if boot.ram.dropped_pages() > 0 {
        warning!(
            "the memory map is too fragmented: {} pages stay unused",
            boot.ram.dropped_pages()
        );
    }
    for word in boot.options.complaints() {
        warning!("not understood: {word}");
    }
    debug!("command line: {cmdline}");
    boot
}

impl Boot {
    /// One past the last frame of RAM.
    pub(super) fn limit(&self) -> Pfn {
        self.ram.ranges().last().map_or(Pfn::ZERO, |range| range.end())
    }
}

/// Takes what `spare=` asks for out of RAM. Modules must not lie there: who asks for it loads none.
fn set_aside(ram: &mut RamMap, options: &Options<'_>) -> Option<PfnRange> {
    if options.spare == 0 {
        return None;
    }
    let spare = ram.set_aside(PageCount::new(options.spare.div_ceil(abi::PAGE_SIZE)));
    if spare.is_none() {
        warning!("no range of RAM has {} bytes to spare", options.spare);
    }
    spare
}

/// What [`paging::loader_bytes`] reaches.
struct LinkTimeMap;

impl LoaderMemory for LinkTimeMap {
    fn bytes(&self, gpa: u64, len: u64) -> Option<&[u8]> {
        paging::loader_bytes(gpa, len)
    }
}

/// Entries of a memory map; `Clone`, to be walked twice.
#[derive(Clone)]
struct EntryIter<'a>(&'a [u8]);

impl Iterator for EntryIter<'_> {
    type Item = start_info::MapEntry;

    fn next(&mut self) -> Option<Self::Item> {
        let (entry, rest) = self.0.split_at_checked(MAP_ENTRY_BYTES)?;
        self.0 = rest;
        start_info::map_entries(entry).next()
    }
}

/// Copies the command line: up to its NUL, and what is UTF-8 of it.
fn read_cmdline(gpa: u64) -> &'static str {
    if gpa == 0 {
        return "";
    }
    let to_the_end = || (1u64 << 30).checked_sub(gpa).map(|room| room.min(MAX_CMDLINE as u64));
    let Some(bytes) = to_the_end().and_then(|len| paging::loader_bytes(gpa, len)) else {
        return "";
    };
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or(&[]);
    // SAFETY: called once, before anybody reads the buffer.
    let buffer = unsafe { &mut *CMDLINE.0.get() };
    let Some(copy) = buffer.get_mut(..text.len()) else { return "" };
    copy.copy_from_slice(text);
    match core::str::from_utf8(copy) {
        Ok(text) => text,
        Err(error) => {
            core::str::from_utf8(copy.get(..error.valid_up_to()).unwrap_or(&[])).unwrap_or("")
        }
    }
}

/// Keeps the memory of modules (an initrd) out of the allocator: a loader may put one there unasked.
fn reserve_modules(boot: &mut Boot, info: &StartInfo) {
    let count = u64::from(info.modules).min(MAX_MODULES as u64);
    let list =
        paging::loader_bytes(info.module_list, count * MODULE_ENTRY_BYTES as u64).unwrap_or(&[]);
    for (gpa, bytes) in start_info::module_entries(list) {
        boot.reserve(outer_pages(gpa, bytes));
    }
}
