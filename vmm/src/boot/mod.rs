//! Getting a kernel into guest RAM and a vCPU to its entry.
//!
//! A kernel comes as an ELF file or as a Linux bzImage and is entered by PVH or by Linux's 64-bit boot protocol;
//! which, is found out ([`Form`]). `docs/boot.md` has the order of trials and the layout of low memory.
//!
//! `plan` reads the file as hostile input and says with values what is wrong with it; only then something is
//! copied to guest RAM.

mod bzimage;
pub mod cmdline;
mod elf;
mod error;
mod form;
mod initrd;
pub(crate) mod layout;
pub(crate) mod long_mode;
pub mod memory_map;
mod notes;
mod payload;
mod plan;
mod start_info;
mod zero_page;

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use abi::PfnRange;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

pub use error::{Attempt, BootError, FormError};
pub use form::Form;
pub use initrd::{InitrdError, InitrdFile};
pub use layout::KERNEL_FLOOR;
pub use payload::Compression;

use crate::vm::config::Kernel;
use plan::{Plan, Protocol};

/// What a kernel is told besides its memory map.
#[derive(Debug, Default)]
pub struct BootInfo<'a> {
    /// Command line.
    pub cmdline: &'a str,
    /// Initial RAM disk.
    pub initrd: Option<&'a mut InitrdFile>,
    /// ACPI's root pointer, if there are tables.
    pub rsdp: Option<GuestAddress>,
    /// Whether a Linux kernel would only hang here for minutes and then fail: on a software KVM.
    pub refuse_linux: bool,
}

/// Where and how the boot vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In 32-bit protected mode without paging.
    Pvh {
        /// Guest-physical address of the entry.
        pc: u64,
        /// Guest-physical address of the start info, for EBX.
        start_info: u64,
    },
    /// In long mode, everything below 4 GiB mapped at its physical address.
    Linux64 {
        /// Guest-physical address of the entry.
        pc: u64,
        /// Guest-physical address of the zero page, for RSI.
        boot_params: u64,
    },
}

/// A kernel that can be loaded again when the guest reboots.
#[derive(Debug)]
pub enum KernelImage {
    /// Bytes of this program.
    Static(&'static [u8]),
    /// A file, opened once: its path may be gone at the reboot.
    File(File),
    /// Bytes in memory.
    Bytes(Arc<[u8]>),
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
            Kernel::Path(path) => open_regular(path)
                .map(Self::File)
                .map_err(|source| BootError::Open { path: path.display().to_string(), source }),
        }
    }

    /// Checks without memory that [`Self::load`] would do with guest RAM `ram`, and says which form it would be.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn check(&mut self, ram: &[PfnRange], info: &BootInfo<'_>) -> Result<Form, BootError> {
        let plan = match self {
            Self::Static(bytes) => Plan::new(&mut Cursor::new(*bytes), ram)?,
            Self::Bytes(bytes) => Plan::new(&mut Cursor::new(&**bytes), ram)?,
            Self::File(file) => Plan::new(file, ram)?,
        };
        place_data(&plan, ram, info)?;
        Ok(plan.form)
    }

    /// Copies the kernel into RAM, with its initrd, its command line and what it is told of the machine.
    ///
    /// RAM must read zero where the kernel's .bss will be.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn load(
        &mut self,
        memory: &GuestMemoryMmap,
        ram: &[PfnRange],
        info: BootInfo<'_>,
    ) -> Result<Entry, BootError> {
        match self {
            Self::Static(bytes) => load(&mut Cursor::new(*bytes), memory, ram, info),
            Self::Bytes(bytes) => load(&mut Cursor::new(&**bytes), memory, ram, info),
            Self::File(file) => load(file, memory, ram, info),
        }
    }
}

/// Opens a regular file; a FIFO or a terminal would hang or lie about its length.
fn open_regular(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// `bytes`: at most eight of them.
fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Refuses what cannot run here, checks the command line and finds a place for the initrd.
fn place_data(
    plan: &Plan,
    ram: &[PfnRange],
    info: &BootInfo<'_>,
) -> Result<Option<initrd::Place>, BootError> {
    if plan.is_linux && info.refuse_linux {
        return Err(BootError::SoftwareKvm { form: plan.form });
    }
    cmdline::check(info.cmdline, plan.cmdline_max)?;
    let place = |initrd: &&mut InitrdFile| initrd.place(ram, plan.initrd_end, &plan.occupied);
    Ok(info.initrd.as_ref().map(place).transpose()?)
}

fn load<F: Read + ReadVolatile + Seek>(
    image: &mut F,
    memory: &GuestMemoryMmap,
    ram: &[PfnRange],
    info: BootInfo<'_>,
) -> Result<Entry, BootError> {
    let plan = Plan::new(image, ram)?;
    let initrd = place_data(&plan, ram, &info)?;
    log::info!("kernel: {}, entry {:#x}", plan.form, plan.entry);
    plan.copy(image, memory)?;
    if let (Some(file), Some(place)) = (info.initrd, initrd) {
        file.load(memory, place)?;
    }
    memory.write_slice(info.cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(layout::CMDLINE + info.cmdline.len() as u64))?;
    let (map, pc) = (memory_map::memory_map(ram), plan.entry);
    match plan.protocol {
        Protocol::Pvh => {
            start_info::write(memory, &map, initrd, info.rsdp)?;
            Ok(Entry::Pvh { pc, start_info: layout::START_INFO })
        }
        Protocol::Linux64(header) => {
            zero_page::write(memory, *header, &map, initrd, info.rsdp)?;
            long_mode::write(memory)?;
            Ok(Entry::Linux64 { pc, boot_params: layout::ZERO_PAGE })
        }
    }
}

#[cfg(test)]
mod tests;
