//! The assembly: nucleus, landings and gate, and the compiler's memory functions.
//!
//! One block, because the landings use the nucleus' macros. The numbers come
//! from [`guest_kernel::layout`], so that assembly and Rust cannot disagree.

use core::arch::global_asm;

use guest_kernel::layout;

use super::gate::OPERATIONS;
use super::trap::{VECTOR_INTERRUPT, VECTOR_REPLAY};

/// A deliberate fault, chosen when the image is built (`AEROSTAT_NUCLEUS_MUTANT`): the negative controls of the
/// stresses. Each must make a stress fail; see `docs/nucleus.md`.
pub(super) const MUTANT: u32 = match option_env!("AEROSTAT_NUCLEUS_MUTANT") {
    None => 0,
    Some(name) => match name.as_bytes() {
        b"no-fxrstor" => 1,
        b"no-replay" => 2,
        b"halt-unchecked" => 3,
        b"no-ist-toggle" => 4,
        b"no-remote-flush" => NO_REMOTE_FLUSH,
        b"interrupt-while-off-masked" => INTERRUPT_WHILE_OFF_MASKED,
        b"interrupt-while-off-unmasked" => INTERRUPT_WHILE_OFF_UNMASKED,
        _ => panic!("AEROSTAT_NUCLEUS_MUTANT names no mutant"),
    },
};

/// The mutant that answers other CPUs' flush requests without flushing.
pub(super) const NO_REMOTE_FLUSH: u32 = 5;

/// The mutants that take a second interrupt in the stub of a first, which came to masked or to unmasked code.
const INTERRUPT_WHILE_OFF_MASKED: u32 = 6;
const INTERRUPT_WHILE_OFF_UNMASKED: u32 = 7;

global_asm!(
    include_str!("nucleus.S"),
    include_str!("landing.S"),
    include_str!("startup.S"),
    include_str!("mem.S"),
    nucleus = const layout::NUCLEUS,
    kernel_base = const layout::KERNEL_BASE,
    direct_map = const layout::DIRECT_MAP,
    mutant = const MUTANT,
    alias = const layout::ALIAS_DISTANCE,
    cpus = const layout::CPUS,
    first_vector = const layout::FIRST_VECTOR,
    vectors = const layout::VECTORS,
    apic_eoi = const layout::DEVICE_WINDOWS + 0xb0,
    code_page = const layout::CODE_PAGE,
    idt_page = const layout::IDT_PAGE,
    data_page = const layout::DATA_PAGE,
    stack_page = const layout::STACK_PAGE,
    shared_page = const layout::SHARED_PAGE,
    shared_stride = const layout::SHARED_STRIDE,
    tables_page = const layout::TABLES_PAGE,
    main_stack = const layout::MAIN_STACK,
    main_stack_top = const layout::MAIN_STACK + layout::MAIN_STACK_BYTES,
    tables = const layout::BootTable::COUNT,
    image_limit = const layout::IMAGE_LIMIT_GPA,
    trap_stack = const layout::TRAP_STACK,
    trap_stack_bytes = const layout::TRAP_STACK_BYTES,
    trap_stack_stride = const layout::TRAP_STACK_STRIDE,
    stack_slots = const layout::STACK_SLOTS,
    stack_slot_bytes = const layout::STACK_SLOT_BYTES,
    interrupt_vector = const VECTOR_INTERRUPT,
    replay_vector = const VECTOR_REPLAY,
    operations = const OPERATIONS,
    interrupt_while_off_masked = const INTERRUPT_WHILE_OFF_MASKED,
    interrupt_while_off_unmasked = const INTERRUPT_WHILE_OFF_UNMASKED,
    options(att_syntax)
);
