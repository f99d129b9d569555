//! What a PVH kernel is told.
//!
//! Source: Xen's "x86/HVM direct boot ABI" and public/arch-x86/hvm/start_info.h.

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::BootError;
use super::initrd::Place;
use super::layout;
use super::memory_map::MemoryMapEntry;

/// Version 1 has the memory map.
const VERSION: u32 = 1;

/// Writes start info, memory map and module list; the command line is there already.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    map: &[MemoryMapEntry],
    initrd: Option<Place>,
    rsdp: Option<GuestAddress>,
) -> Result<(), BootError> {
    let map: Vec<_> = map
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.len_bytes,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .iter()
        .map(|place| hvm_modlist_entry {
            paddr: place.gpa,
            size: place.bytes,
            ..Default::default()
        })
        .collect();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: initrd.map_or(0, |_| layout::MODULE_LIST),
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp.map_or(0, |rsdp| rsdp.0),
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::START_INFO));
    params.set_sections(&map, GuestAddress(layout::MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(layout::MODULE_LIST));
    Ok(PvhBootConfigurator::write_bootparams(&params, memory)?)
}
