//! What a Linux kernel is told by the 64-bit boot protocol: `boot_params`, the zero page.
//!
//! Sources: Linux Documentation/arch/x86/boot.rst and zero-page.rst.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::BootError;
use super::initrd::Place;
use super::layout;
use super::memory_map::MemoryMapEntry;

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// `header`: "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// The first protocol with a 64-bit entry, for kernels that bring no header.
const VERSION: u16 = 0x20c;
/// `loadflags`: the protected-mode part is at 1 MiB or above.
const LOADED_HIGH: u8 = 1;

/// The low and the high half.
#[expect(clippy::cast_possible_truncation, reason = "halves are what is wanted")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// The header of an ELF kernel, which has none in its file.
pub(super) fn header_for_elf() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: MAGIC,
        version: VERSION,
        loadflags: LOADED_HIGH,
        ..Default::default()
    }
}

/// Writes the zero page; the command line is there already.
///
/// `header`: the kernel's own, if it has one.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    header: setup_header,
    map: &[MemoryMapEntry],
    initrd: Option<Place>,
    rsdp: Option<GuestAddress>,
) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    (params.hdr.cmd_line_ptr, params.ext_cmd_line_ptr) = halves(layout::CMDLINE);
    if let Some(place) = initrd {
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(place.gpa);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(place.bytes);
    }
    params.acpi_rsdp_addr = rsdp.map_or(0, |rsdp| rsdp.0);
    let mut table = params.e820_table;
    for (to, from) in table.iter_mut().zip(map) {
        *to = boot_e820_entry { addr: from.start, size: from.len_bytes, r#type: from.kind as u32 };
    }
    params.e820_table = table;
    params.e820_entries = u8::try_from(map.len().min(table.len())).unwrap_or(u8::MAX);
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    Ok(LinuxBootConfigurator::write_bootparams(&params, memory)?)
}
