//! Kernel files: ELF files and bzImages as hostile input.

use std::sync::Arc;

use abi::{PageCount, Pfn, PfnRange};
use aerostat::boot::{BootInfo, Entry, KERNEL_FLOOR, KernelImage};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::input::Input;

/// Guest RAM: little, so that much does not fit.
const RAM_BYTES: usize = 6 << 20;

/// Loads the file that all but the first byte are; afterwards a kernel that was accepted is entered in RAM,
/// and what was said before there was memory is what happened.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let file: Arc<[u8]> = Arc::from(input.bytes(data.len()));
    let pages = PageCount::new(RAM_BYTES as u64 / abi::PAGE_SIZE);
    let ram = [PfnRange::from_start(Pfn::ZERO, pages).expect("in range")];
    let cmdline = "x".repeat(usize::from(how) * 16);
    let info = || BootInfo { cmdline: &cmdline, ..BootInfo::default() };
    let checked = KernelImage::Bytes(file.clone()).check(&ram, &info());
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("6 MiB");
    let loaded = KernelImage::Bytes(file).load(&memory, &ram, info());
    assert_eq!(checked.is_ok(), loaded.is_ok(), "{checked:?} and then {loaded:?}");
    match loaded {
        Ok(Entry::Pvh { pc, .. } | Entry::Linux64 { pc, .. }) => {
            assert!((KERNEL_FLOOR..RAM_BYTES as u64).contains(&pc), "entry {pc:#x}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
