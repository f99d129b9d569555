//! Getting a kernel into guest RAM and a vCPU to its entry, by the PVH protocol.
//!
//! A kernel is an ELF file with a PVH note; it gets a start info with a memory
//! map and a command line. Source: Xen's "x86/HVM direct boot ABI".
//!
//! `elf::check` reads the file as hostile input and says with values what is
//! wrong with it; only then linux-loader copies it.

pub mod cmdline;
mod elf;
pub mod memory_map;

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::Path;

use abi::PfnRange;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

use crate::vm::config::Kernel;

/// Start info.
const START_INFO: GuestAddress = GuestAddress(0x6000);
/// Memory map.
const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
/// Command line.
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// A kernel lies at or above 1 MiB; everything that boot writes lies below.
pub const KERNEL_FLOOR: u64 = 1 << 20;

/// `hvm_start_info.magic`.
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const START_INFO_VERSION: u32 = 1;

/// Where the boot vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Guest-physical address of the PVH entry.
    pub pc: u64,
    /// Guest-physical address of the start info, for EBX.
    pub start_info: u64,
}

/// A kernel that can be loaded again when the guest reboots.
#[derive(Debug)]
pub enum KernelImage {
    /// Bytes of this program.
    Static(&'static [u8]),
    /// A file, opened once: its path may be gone at the reboot.
    File(File),
    /// Bytes in memory.
    Bytes(std::sync::Arc<[u8]>),
}

impl KernelImage {
    /// Finds the kernel's bytes.
    ///
    /// # Errors
    /// [`BootError::Open`].
    pub fn open(kernel: &Kernel) -> Result<Self, BootError> {
        match kernel {
            Kernel::Embedded => Ok(Self::Static(crate::guest_image::GUEST_ELF)),
            Kernel::Image(bytes) => Ok(Self::Bytes(bytes.clone())),
            Kernel::Path(path) => open_file(path)
                .map(Self::File)
                .map_err(|source| BootError::Open { path: path.display().to_string(), source }),
        }
    }

    /// Checks what can be checked before there is memory: the file's headers against `ram`, and `cmdline`.
    ///
    /// # Errors
    /// [`BootError`]; [`Self::load`] can still find that there is no PVH note.
    pub fn check(&mut self, ram: &[PfnRange], cmdline: &str) -> Result<(), BootError> {
        match self {
            Self::Static(bytes) => elf::check(&mut Cursor::new(*bytes), ram)?,
            Self::Bytes(bytes) => elf::check(&mut Cursor::new(&**bytes), ram)?,
            Self::File(file) => elf::check(file, ram)?,
        };
        Ok(cmdline::check(cmdline)?)
    }

    /// Copies the kernel into RAM, with start info, memory map and `cmdline`; `rsdp` is where ACPI's tables begin.
    ///
    /// RAM must read zero where the kernel's .bss will be.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn load(
        &mut self,
        memory: &GuestMemoryMmap,
        ram: &[PfnRange],
        cmdline: &str,
        rsdp: GuestAddress,
    ) -> Result<Entry, BootError> {
        match self {
            Self::Static(bytes) => load(&mut Cursor::new(*bytes), memory, ram, cmdline, rsdp),
            Self::Bytes(bytes) => load(&mut Cursor::new(&**bytes), memory, ram, cmdline, rsdp),
            Self::File(file) => load(file, memory, ram, cmdline, rsdp),
        }
    }
}

/// Opens a regular file; a FIFO or a terminal would hang or lie about its length.
fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

fn load<F: Read + ReadVolatile + Seek>(
    image: &mut F,
    memory: &GuestMemoryMmap,
    ram: &[PfnRange],
    cmdline: &str,
    rsdp: GuestAddress,
) -> Result<Entry, BootError> {
    let kernel = elf::check(image, ram)?;
    let loaded = Elf::load(memory, None, image, Some(GuestAddress(KERNEL_FLOOR)))?;
    let pc = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => entry.0,
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            return Err(BootError::NoPvhNote);
        }
    };
    if !kernel.contains(pc) {
        return Err(BootError::EntryOutsideKernel { entry: pc });
    }
    write_start_info(memory, ram, cmdline, rsdp)?;
    Ok(Entry { pc, start_info: START_INFO.0 })
}

fn write_start_info(
    memory: &GuestMemoryMmap,
    ram: &[PfnRange],
    cmdline: &str,
    rsdp: GuestAddress,
) -> Result<(), BootError> {
    cmdline::check(cmdline)?;
    memory.write_slice(cmdline.as_bytes(), CMDLINE)?;
    memory.write_obj(0u8, GuestAddress(CMDLINE.0 + cmdline.len() as u64))?;
    let map: Vec<_> = memory_map::memory_map(ram)
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.len_bytes,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        cmdline_paddr: CMDLINE.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, START_INFO);
    params.set_sections(&map, MEMORY_MAP);
    Ok(PvhBootConfigurator::write_bootparams(&params, memory)?)
}

/// The kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be opened.
    #[error("Cannot open kernel {path}")]
    Open {
        /// Its path.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("Cannot read the kernel")]
    Read(#[from] io::Error),
    /// The file does not begin like an ELF file.
    #[error("The kernel is no ELF file: it begins with {found:02x?}")]
    NotElf {
        /// Its first bytes, at most 4.
        found: Vec<u8>,
    },
    /// An ELF file for another machine.
    #[error("The kernel is no executable 64-bit little-endian x86-64 ELF file: {what} is {found}")]
    WrongElf {
        /// Field of the ELF header.
        what: &'static str,
        /// Its value.
        found: u16,
    },
    /// The file ends before what its headers speak of.
    #[error("The kernel is truncated: {what} ends at byte {end}, the file has {len} B")]
    Truncated {
        /// What is cut.
        what: &'static str,
        /// Where it would end.
        end: u128,
        /// Bytes of the file.
        len: u64,
    },
    /// A loadable segment is larger in the file than in memory.
    #[error("A kernel segment has {file_bytes} B in the file but {memory_bytes} B in memory")]
    BadSegment {
        /// p_filesz.
        file_bytes: u64,
        /// p_memsz.
        memory_bytes: u64,
    },
    /// A loadable segment does not fit.
    #[error(
        "The kernel does not fit: a segment needs {start:#x}..{end:#x}, RAM for kernels is {ram}"
    )]
    DoesNotFit {
        /// Guest-physical start.
        start: u64,
        /// Guest-physical end.
        end: u128,
        /// The ranges that there are.
        ram: String,
    },
    /// No note says where a PVH loader enters.
    #[error(
        "The kernel has no PVH note (Xen ELF note 18, PHYS32_ENTRY); a Linux kernel has one with CONFIG_PVH"
    )]
    NoPvhNote,
    /// The PVH note points somewhere else.
    #[error("The kernel's PVH entry {entry:#x} lies outside its loaded segments")]
    EntryOutsideKernel {
        /// The note's value.
        entry: u64,
    },
    /// The command line cannot be passed.
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    /// linux-loader found something else.
    #[error("Loading the kernel failed")]
    Load(#[from] linux_loader::loader::Error),
    /// linux-loader could not write the boot structures.
    #[error("Writing the PVH start info failed")]
    StartInfo(#[from] linux_loader::configurator::Error),
    /// Guest memory could not be written.
    #[error("Writing boot data to guest RAM failed")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

#[cfg(test)]
mod tests;
