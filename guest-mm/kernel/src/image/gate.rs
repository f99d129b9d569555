//! The gate: the few privileged operations, each one INT3 away.

use core::arch::asm;

/// Operations of the gate, in the order of the nucleus' table.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Operation {
    LoadCr3 = 0,
    Halt = 1,
    TscDeadline = 2,
    KvmSystemTime = 3,
    Cpuid = 4,
}

/// Number of operations: the gate's bound on the index.
pub(super) const OPERATIONS: u64 = 5;

unsafe extern "C" {
    fn gate();
    fn gate_invlpg();
}

/// Registers of a gate call.
#[derive(Clone, Copy, Default)]
struct Registers {
    rdi: u64,
    eax: u32,
    ecx: u32,
    edx: u32,
}

/// Performs an operation; returns EAX, EBX, ECX, EDX.
///
/// # Safety
/// The operation with these operands must leave memory that Rust uses as it is.
unsafe fn call(operation: Operation, registers: Registers) -> [u32; 4] {
    let mut rax = u64::from(registers.eax);
    let mut rcx = u64::from(registers.ecx);
    let mut rdx = u64::from(registers.edx);
    let rbx: u64;
    // SAFETY: `gate` executes one INT3 that the nucleus serves, touching these registers only; the asm may push
    // (no `nostack`), so no red zone lies under the call.
    unsafe {
        asm!(
            "push rbx",
            "call {gate}",
            "mov {rbx}, rbx",
            "pop rbx",
            gate = sym gate,
            rbx = out(reg) rbx,
            inout("rax") rax,
            inout("rcx") rcx,
            inout("rdx") rdx,
            in("rdi") registers.rdi,
            in("r8") operation as u64,
        );
    }
    [rax, rbx, rcx, rdx].map(low_half)
}

/// The low 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the truncation is the function's purpose")]
const fn low_half(value: u64) -> u32 {
    value as u32
}

/// Loads CR3, which also drops every translation.
///
/// # Safety
/// `root` must be the GPA of a root table that maps everything the kernel uses just as the current one does.
pub(super) unsafe fn load_cr3(root: u64) {
    // SAFETY: by the caller's promise the same memory stays mapped.
    unsafe { call(Operation::LoadCr3, Registers { rdi: root, ..Registers::default() }) };
}

/// Drops this CPU's translation of `address`.
pub(super) fn invlpg(address: u64) {
    // SAFETY: the nucleus executes INVLPG and nothing else; any address will do.
    unsafe {
        asm!("call {gate}", gate = sym gate_invlpg, in("rdi") address);
    }
}

/// Halts until an interrupt is pending. Call it masked: the nucleus looks at the pending word itself before HLT, so no
/// interrupt that came before it is slept through.
///
/// # Panics
/// Unmasked: the interrupt that ends the halt would be reflected with a frame of ring 0.
pub(super) fn halt() {
    assert!(super::irq::is_masked(), "halting unmasked");
    // SAFETY: sleeping changes no memory.
    unsafe { call(Operation::Halt, Registers::default()) };
}

/// Writes the TSC-deadline MSR; 0 disarms.
pub(super) fn write_tsc_deadline(deadline: u64) {
    let registers = Registers {
        eax: low_half(deadline),
        edx: low_half(deadline >> 32),
        ..Registers::default()
    };
    // SAFETY: a timer interrupt is all that follows.
    unsafe { call(Operation::TscDeadline, registers) };
}

/// Writes KVM's system-time MSR.
///
/// # Safety
/// `value` must be 0, or 1 + the GPA of a clock page that the host may write for as long as the MSR holds it.
pub(super) unsafe fn write_kvm_system_time(value: u64) {
    let registers =
        Registers { eax: low_half(value), edx: low_half(value >> 32), ..Registers::default() };
    // SAFETY: by the caller's promise the page is the host's to write.
    unsafe { call(Operation::KvmSystemTime, registers) };
}

/// CPUID as ring 0 sees it (ring 3's may be the host's): EAX, EBX, ECX, EDX.
pub(super) fn cpuid(leaf: u32) -> [u32; 4] {
    // SAFETY: CPUID only writes registers.
    unsafe { call(Operation::Cpuid, Registers { eax: leaf, ..Registers::default() }) }
}
