//! Registers of a vCPU at a kernel's entry.
//!
//! Sources: Xen's "x86/HVM direct boot ABI", which PVH is: 32-bit protected mode
//! without paging, flat segments, EBX at the start info, interrupts off. Linux
//! Documentation/arch/x86/boot.rst "64-bit Boot Protocol": long mode, `__BOOT_CS`
//! and `__BOOT_DS` loaded from a table, RSI at the zero page, interrupts off.

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::KvmError;
use crate::boot::{Entry, layout, long_mode};

/// CR0.PE, protected mode.
const CR0_PE: u64 = 1;
/// CR0.ET, always set on CPUs with a built-in FPU.
const CR0_ET: u64 = 1 << 4;
/// CR0.PG, paging.
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE, page tables with 64-bit entries.
const CR4_PAE: u64 = 1 << 5;
/// EFER.LME and EFER.LMA: long mode enabled and active.
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// RFLAGS bit 1 is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// IA32_MISC_ENABLE.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations, on after reset.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, default type write-back: all of RAM is cached.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const fn flat(segment_type: u8, selector: u16) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: segment_type,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Execute, read, accessed.
const CODE: kvm_segment = flat(0xb, 0x10);
/// Read, write, accessed.
const DATA: kvm_segment = flat(0x3, 0x18);
/// Busy 32-bit TSS of the least size.
const TASK: kvm_segment =
    kvm_segment { limit: 0x67, type_: 0xb, db: 0, s: 0, g: 0, ..flat(0xb, 0x20) };

/// 64-bit code.
const CODE_64: kvm_segment = kvm_segment { db: 0, l: 1, ..flat(0xb, long_mode::CODE_SELECTOR) };
/// Flat data beside it.
const DATA_64: kvm_segment = flat(0x3, long_mode::DATA_SELECTOR);

/// Points the boot vCPU at the kernel's entry.
pub(super) fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(|source| KvmError::ioctl("KVM_GET_SREGS", source))?;
    let flags = kvm_regs { rflags: RFLAGS_RESERVED, ..Default::default() };
    let regs = match entry {
        Entry::Pvh { pc, start_info } => {
            protected_mode(&mut sregs);
            kvm_regs { rip: pc, rbx: start_info, ..flags }
        }
        Entry::Linux64 { pc, boot_params } => {
            enter_long_mode(&mut sregs);
            kvm_regs { rip: pc, rsi: boot_params, ..flags }
        }
    };
    vcpu.set_sregs(&sregs).map_err(|source| KvmError::ioctl("KVM_SET_SREGS", source))?;
    vcpu.set_regs(&regs).map_err(|source| KvmError::ioctl("KVM_SET_REGS", source))?;
    set_msrs(vcpu)
}

fn protected_mode(sregs: &mut kvm_sregs) {
    sregs.cs = CODE;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (DATA, DATA, DATA, DATA, DATA);
    sregs.tr = TASK;
    sregs.gdt = Default::default();
    sregs.idt = Default::default();
    sregs.cr0 = CR0_PE | CR0_ET;
    (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
}

fn enter_long_mode(sregs: &mut kvm_sregs) {
    protected_mode(sregs);
    sregs.cs = CODE_64;
    (sregs.ds, sregs.es, sregs.ss) = (DATA_64, DATA_64, DATA_64);
    (sregs.fs, sregs.gs) = (DATA_64, DATA_64);
    sregs.gdt = kvm_dtable { base: layout::GDT, limit: long_mode::GDT_LIMIT, ..Default::default() };
    sregs.cr0 |= CR0_PG;
    (sregs.cr3, sregs.cr4, sregs.efer) = (layout::PAGE_TABLES, CR4_PAE, EFER_LONG_MODE);
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let wanted = [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let Ok(msrs) = Msrs::from_entries(&wanted) else { return Ok(()) };
    let set = vcpu.set_msrs(&msrs).map_err(|source| KvmError::ioctl("KVM_SET_MSRS", source))?;
    if let Some(refused) = wanted.get(set) {
        // Our guest needs neither; Linux would only grumble about its MTRRs.
        log::debug!("KVM refused MSR {:#x}", refused.index);
    }
    Ok(())
}
