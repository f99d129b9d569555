//! Memory that an entry in long mode needs: segment descriptors and page tables.
//!
//! Linux's 64-bit boot protocol asks for the kernel, the zero page and the command line mapped
//! at their physical addresses; here everything below 4 GiB is. Sources: Linux
//! Documentation/arch/x86/boot.rst "64-bit Boot Protocol", Intel SDM vol. 3A.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{DIRECTORIES, GDT, PAGE_TABLES};

/// Code: present, ring 0, execute and read, accessed; 64-bit.
pub(crate) const CODE_SELECTOR: u16 = 0x10;
/// Data: present, ring 0, read and write, accessed; flat.
pub(crate) const DATA_SELECTOR: u16 = 0x18;
/// A null descriptor, an unused one, code and data at Linux's `__BOOT_CS` and `__BOOT_DS`.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Limit of the descriptor table.
pub(crate) const GDT_LIMIT: u16 = 4 * 8 - 1;

const PAGE: u64 = 0x1000;
/// Present, writable.
const TABLE: u64 = 3;
/// Present, writable, 2 MiB.
const LARGE: u64 = 0x83;
const LARGE_BYTES: u64 = 2 << 20;
const ENTRIES: u64 = 512;

/// Writes both.
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&bytes(DESCRIPTORS), GuestAddress(GDT))?;
    let (pml4, pdpt, directories) = (PAGE_TABLES, PAGE_TABLES + PAGE, PAGE_TABLES + 2 * PAGE);
    memory.write_slice(&bytes([pdpt | TABLE]), GuestAddress(pml4))?;
    let tables = (0..DIRECTORIES).map(|gib| (directories + gib * PAGE) | TABLE);
    memory.write_slice(&bytes(tables), GuestAddress(pdpt))?;
    let pages = (0..DIRECTORIES * ENTRIES).map(|page| (page * LARGE_BYTES) | LARGE);
    memory.write_slice(&bytes(pages), GuestAddress(directories))
}

fn bytes(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}
