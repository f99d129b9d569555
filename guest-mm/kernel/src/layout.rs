//! Where everything lies: the one place that the linker script, the nucleus and the kernel agree with.
//!
//! | virtual addresses | what |
//! |---|---|
//! | `0xffff_8880_0000_0000` + GPA | direct map of RAM, built at boot from 2 MiB leaves |
//! | `0xffff_ffff_8000_0000` | read-only view of the nucleus' entry stacks |
//! | `0xffff_ffff_8020_0000` | the image: nucleus, text, rodata, data |
//! | `0xffff_ffff_8051_0000` | stacks between holes |
//! | `0xffff_ffff_8060_0000` | stacks of the other CPUs and of threads, each below 128 KiB of nothing |
//! | `0xffff_ffff_c000_0000` | device windows, uncached, 2 MiB each |

use abi::platform::MAX_VCPUS;

/// Bytes of a small page.
pub const PAGE: u64 = 4096;
/// Bytes that one page-directory leaf maps.
pub const LARGE_PAGE: u64 = 2 << 20;
/// CPUs that the nucleus has stubs, tables and stacks for.
pub const CPUS: usize = MAX_VCPUS as usize;

/// Virtual address of GPA 0 in the direct map: one PML4 entry. Not the first of the upper half (slot 256): on a software
/// KVM whatever that maps is reported as not present.
pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// One past the largest GPA that the direct map can hold: one PML4 entry.
pub const DIRECT_MAP_LIMIT: u64 = 512 << 30;
/// Virtual minus physical address within the image.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// GPA at which the image is loaded.
pub const IMAGE_GPA: u64 = 0x20_0000;
/// First address of the image, which is the nucleus'.
pub const NUCLEUS: u64 = KERNEL_BASE + IMAGE_GPA;
/// The image lies below this GPA: in one 2 MiB region, with a page table of its own.
pub const IMAGE_LIMIT_GPA: u64 = IMAGE_GPA + LARGE_PAGE;
/// Early tables and the CPUs' first stacks lie in the next 2 MiB region, below this GPA.
pub const IMAGE_REGION_END: u64 = IMAGE_LIMIT_GPA + LARGE_PAGE;

/// Ring 3's read-only view of an entry stack is this far below it.
pub const ALIAS_DISTANCE: u64 = LARGE_PAGE;

/// Lowest address of the boot CPU's stack; unmapped below.
pub const MAIN_STACK: u64 = KERNEL_BASE + 0x51_0000;
/// Bytes of the boot CPU's stack.
pub const MAIN_STACK_BYTES: u64 = 0x7_0000;
/// Early page tables are made from here on,
pub const ARENA_GPA: u64 = IMAGE_LIMIT_GPA;
/// up to here.
pub const ARENA_END_GPA: u64 = 0x50_0000;

/// Lowest address of CPU 0's trap stack. Stacks are 64 KiB, so aligned that one 32-bit compare of an address' bits
/// 16..48 tells whether it lies in one, with 64 KiB of nothing below each.
pub const TRAP_STACK: u64 = KERNEL_BASE + 0x59_0000;
/// Bytes of a trap stack.
pub const TRAP_STACK_BYTES: u64 = 0x1_0000;
/// From one CPU's trap stack to the next.
pub const TRAP_STACK_STRIDE: u64 = 0x2_0000;

/// First stack slot: stacks of the other CPUs, then of threads. A slot's stack is its upper part; below it nothing.
pub const STACK_SLOTS: u64 = KERNEL_BASE + IMAGE_REGION_END;
/// From one stack slot to the next.
pub const STACK_SLOT_BYTES: u64 = 0x4_0000;
/// Most bytes of a stack in a slot.
pub const MAX_STACK_BYTES: u64 = STACK_SLOT_BYTES / 2;
/// Stack slots in all: what two page tables map.
pub const STACK_SLOT_COUNT: usize = 16;

/// The top of the stack in a slot; slot N is that of CPU N, 0 unused since the boot CPU has [`MAIN_STACK`].
pub const fn stack_top(slot: u64) -> u64 {
    STACK_SLOTS + (slot + 1) * STACK_SLOT_BYTES
}

/// First device window.
pub const DEVICE_WINDOWS: u64 = 0xffff_ffff_c000_0000;
/// Number of device windows of 2 MiB.
pub const DEVICE_WINDOW_COUNT: usize = 512;

// Offsets of 4 KiB pages within the nucleus.

/// Stub code, a page per CPU (page 0 holds entry and the fatal report).
pub const CODE_PAGE: u64 = 1;
/// Interrupt descriptor tables, a page per CPU.
pub const IDT_PAGE: u64 = CODE_PAGE + CPUS as u64;
/// Ready-made frames, GDT and TSS, a page per CPU.
pub const DATA_PAGE: u64 = IDT_PAGE + CPUS as u64;
/// Entry stacks, a page per CPU.
pub const STACK_PAGE: u64 = DATA_PAGE + CPUS as u64;
/// Words that nucleus and ring 3 share, [`SHARED_STRIDE`] bytes per CPU; ring 3 may write it.
pub const SHARED_PAGE: u64 = STACK_PAGE + CPUS as u64;
/// First of the link-time page tables; ring 3 may write them.
pub const TABLES_PAGE: u64 = SHARED_PAGE + 1;
/// Pages before [`SHARED_PAGE`] are the nucleus' own.
pub const PRIVATE_PAGES: u64 = SHARED_PAGE;
/// Bytes of a CPU's shared words.
pub const SHARED_STRIDE: u64 = 256;

/// The page tables made at link time, in the order in which they follow [`TABLES_PAGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum BootTable {
    /// Root.
    Pml4 = 0,
    /// Identity map of the boot code, supervisor only; unlinked once ring 3 runs.
    PdptIdentity = 1,
    /// Direct map.
    PdptDirect = 2,
    /// Top 512 GiB: image and device windows.
    PdptKernel = 3,
    /// Direct map of the first GiB.
    PdDirect = 4,
    /// Image and the view of the entry stacks.
    PdKernel = 5,
    /// Device windows.
    PdDevices = 6,
    /// The image.
    PtImage = 7,
    /// The image region as the direct map shows it.
    PtImageDirect = 8,
    /// The view of the entry stacks.
    PtAlias = 9,
    /// Main and trap stacks.
    PtStacks = 10,
}

impl BootTable {
    /// How many there are.
    pub const COUNT: u64 = Self::PtStacks as u64 + 1;

    /// GPA of the table.
    pub const fn gpa(self) -> u64 {
        IMAGE_GPA + (TABLES_PAGE + self as u64) * PAGE
    }
}

/// First vector of the sixteen that the nucleus records in a CPU's pending word.
pub const FIRST_VECTOR: u8 = 0x50;
/// Number of those vectors.
pub const VECTORS: u8 = 16;
/// Vector of the local APIC's spurious interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// An address or a length as the CPU has it.
pub const fn word(value: u64) -> usize {
    const { assert!(usize::BITS == u64::BITS) };
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let word = value as usize;
    word
}

const _: () = {
    assert!(KERNEL_BASE + ARENA_END_GPA < MAIN_STACK);
    assert!(TRAP_STACK.is_multiple_of(TRAP_STACK_BYTES));
    assert!(
        TRAP_STACK + (CPUS as u64 - 1) * TRAP_STACK_STRIDE + TRAP_STACK_BYTES
            <= KERNEL_BASE + IMAGE_REGION_END
    );
    assert!(STACK_SLOT_COUNT as u64 * STACK_SLOT_BYTES == 2 * LARGE_PAGE);
    assert!(STACK_SLOTS.is_multiple_of(LARGE_PAGE));
    assert!(SHARED_STRIDE * CPUS as u64 <= PAGE);
};
