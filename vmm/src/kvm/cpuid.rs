//! The CPU that the guest sees: what KVM supports, less what it cannot run, plus topology.
//!
//! KVM_GET_SUPPORTED_CPUID describes the host; a software KVM advertises some
//! features that its interpreter of ring 0 does not have. [`UNRUNNABLE`] lists
//! them with reasons. Masking is advice to the guest, not a barrier: a software
//! KVM executes ring-3 CPUID natively.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// A register of a CPUID leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

/// Feature bits that a software KVM advertises, or may advertise, and cannot run.
struct Unrunnable {
    function: u32,
    index: u32,
    register: Register,
    bits: u32,
    /// Why; for the reader and for the log.
    reason: &'static str,
}

const fn bits<const N: usize>(positions: [u32; N]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < N {
        mask |= 1 << positions[i];
        i += 1;
    }
    mask
}

/// All found by running the instruction in ring 0, where a software KVM interprets.
/// SSE and SSE2 stay although most of their arithmetic fails there too: they
/// are part of the x86-64 baseline, so that no guest would heed their absence.
const UNRUNNABLE: [Unrunnable; 8] = [
    Unrunnable {
        function: 1,
        index: 0,
        register: Register::Ecx,
        bits: bits([0, 1, 9, 19, 20, 25]),
        reason: "SSE3, PCLMULQDQ, SSSE3, SSE4 and AES instructions are not interpreted",
    },
    Unrunnable {
        function: 1,
        index: 0,
        register: Register::Ecx,
        bits: bits([12, 26, 27, 28, 29]),
        reason: "FMA, XSAVE, OSXSAVE, AVX and F16C: XSAVE, XRSTOR and VEX encodings are not interpreted",
    },
    Unrunnable {
        function: 1,
        index: 0,
        register: Register::Ecx,
        bits: bits([13, 23]),
        reason: "CMPXCHG16B on memory and POPCNT are not interpreted",
    },
    Unrunnable {
        function: 7,
        index: 0,
        register: Register::Ebx,
        // AVX2, then AVX512 F, DQ, IFMA, CD, BW and VL, SHA.
        bits: bits([5, 16, 17, 21, 28, 29, 30, 31]),
        reason: "vector extensions that build on VEX, EVEX or SSE arithmetic",
    },
    Unrunnable {
        function: 7,
        index: 0,
        register: Register::Ebx,
        bits: bits([20]),
        reason: "SMAP: CLAC and STAC are not interpreted",
    },
    Unrunnable {
        function: 7,
        index: 0,
        register: Register::Ecx,
        // AVX512_VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ.
        bits: bits([1, 6, 8, 9, 10, 11, 12, 14]),
        reason: "vector extensions that build on VEX, EVEX or SSE arithmetic",
    },
    Unrunnable {
        function: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        bits: bits([11]),
        reason: "SYSCALL from ring 3 jumps to LSTAR but stays in ring 3",
    },
    Unrunnable {
        function: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        bits: bits([6, 11, 16]),
        reason: "SSE4A, XOP and FMA4 are not interpreted",
    },
];

/// Leaf of the XSAVE areas, meaningless without XSAVE.
const XSAVE_LEAF: u32 = 0xd;
/// Extended topology (x2APIC) leaves: Intel's first and second version; AMD has the first.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];

/// First leaf of the hypervisor: its name and its largest leaf.
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// EAX: TSC, EBX: local APIC's timer, both in kHz.
const FREQUENCY_LEAF: u32 = 0x4000_0010;
/// KVM's local APIC counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Removes what a software KVM cannot run.
pub(crate) fn withhold_unrunnable(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries {
        if entry.function == XSAVE_LEAF {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        for item in &UNRUNNABLE {
            if (entry.function, entry.index) != (item.function, item.index) {
                continue;
            }
            let register = match item.register {
                Register::Ebx => &mut entry.ebx,
                Register::Ecx => &mut entry.ecx,
                Register::Edx => &mut entry.edx,
            };
            if *register & item.bits != 0 {
                log::debug!(
                    "CPUID leaf={:#x} {:?} bits {:#010x} withheld: {}",
                    item.function,
                    item.register,
                    *register & item.bits,
                    item.reason
                );
                *register &= !item.bits;
            }
        }
    }
}

/// Sets CPUID.1:ECX[24]: KVM's local APIC has the TSC-deadline mode, which KVM_GET_SUPPORTED_CPUID
/// of some kernels leaves to the VMM to say.
pub(crate) fn offer_tsc_deadline(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= 1 << 24;
    }
}

/// Sets CPUID.1:ECX[31], without which no guest looks for KVM's leaves: clock, asynchronous page faults
/// and others. KVM leaves that bit, too, for the VMM to say.
pub(crate) fn announce_hypervisor(entries: &mut [kvm_cpuid_entry2]) {
    if entries.iter().any(|entry| entry.function == HYPERVISOR_LEAF) {
        for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= 1 << 31;
        }
    }
}

/// Adds the leaf with the frequencies of the TSC and of the local APIC's timer, so that a guest need not
/// measure them against a timer that this machine does not have.
///
/// Source: "CPUID leaf 0x40000010", which VMware defined and QEMU offers under KVM as well.
pub(crate) fn tell_frequencies(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    let Some(base) = entries.iter_mut().find(|entry| entry.function == HYPERVISOR_LEAF) else {
        return;
    };
    // EAX: the largest leaf.
    base.eax = base.eax.max(FREQUENCY_LEAF);
    entries.retain(|entry| entry.function != FREQUENCY_LEAF);
    entries.push(kvm_cpuid_entry2 {
        function: FREQUENCY_LEAF,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
}

/// CPUID of vCPU `id` of `vcpus`: one package, a core each, no threads; the APIC id is `id`.
///
/// Sources: Intel SDM vol. 2A CPUID, AMD APM vol. 3 appendix E.
pub(crate) fn for_vcpu(base: &[kvm_cpuid_entry2], id: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
    let mut entries = base.to_vec();
    let (id, vcpus) = (u32::from(id), u32::from(vcpus));
    // Bits of the APIC id that number cores.
    let core_bits = vcpus.next_power_of_two().trailing_zeros();
    let mut max_leaf = 0;
    for entry in &mut entries {
        match entry.function {
            0 => max_leaf = entry.eax,
            1 => {
                // EBX: initial APIC id, logical processors in the package; EDX[28] HTT: that number is valid.
                entry.ebx = (entry.ebx & 0x0000_ffff) | (id << 24) | (vcpus << 16);
                entry.edx = if vcpus > 1 { entry.edx | 1 << 28 } else { entry.edx & !(1 << 28) };
            }
            // Caches: one thread shares each, the package has as many core ids as its APIC ids have room for.
            4 if entry.eax & 0x1f != 0 => {
                entry.eax = (entry.eax & 0x0000_3fff) | (((1 << core_bits) - 1) << 26);
            }
            // ECX: cores less one, and bits of the APIC id that number them.
            0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (core_bits << 12) | (vcpus - 1),
            // Cache topology on AMD: EAX[25:14] sharing threads less one.
            0x8000_001d => entry.eax &= !(0xfff << 14),
            // EAX: extended APIC id; EBX: threads per core less one, core id; ECX: one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    entries.retain(|entry| !TOPOLOGY_LEAVES.contains(&entry.function));
    for leaf in TOPOLOGY_LEAVES.into_iter().filter(|&leaf| leaf <= max_leaf) {
        entries.extend(topology_leaf(leaf, id, vcpus, core_bits));
    }
    entries
}

/// Levels of a topology leaf: a thread of one, a core level of all, the end.
fn topology_leaf(function: u32, id: u32, vcpus: u32, core_bits: u32) -> [kvm_cpuid_entry2; 3] {
    const SMT: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let level = |index, eax, ebx, level_type| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: level_type | index,
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, SMT), level(1, core_bits, vcpus, CORE), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .expect("the leaf is there")
    }

    #[test]
    fn avx_xsave_smap_and_cmpxchg16b_are_withheld_and_the_rest_stays() {
        let mut entries = [leaf(1, 0), leaf(7, 0), leaf(7, 1), leaf(0xd, 0), leaf(0xd, 1)];
        withhold_unrunnable(&mut entries);
        let one = find(&entries, 1, 0);
        for bit in [12, 13, 23, 26, 28] {
            assert_eq!(one.ecx & 1 << bit, 0, "ECX bit {bit}");
        }
        // x2APIC, TSC deadline, hypervisor; and all of EDX with SSE2.
        assert_eq!(one.ecx & bits([21, 24, 31]), bits([21, 24, 31]));
        assert_eq!(one.edx, u32::MAX);
        let seven = find(&entries, 7, 0);
        assert_eq!(seven.ebx & bits([5, 16, 20]), 0);
        assert_eq!(seven.ebx & bits([0, 7]), bits([0, 7]), "FSGSBASE and SMEP run");
        assert_eq!(find(&entries, 7, 1).ebx, u32::MAX, "only subleaf 0 is meant");
        assert_eq!(find(&entries, 0xd, 1).eax, 0);
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_in_every_leaf_that_carries_one() {
        let base = [
            kvm_cpuid_entry2 { eax: 0x1f, ..leaf(0, 0) },
            leaf(1, 0),
            leaf(0xb, 0),
            leaf(0x8000_001e, 0),
        ];
        for id in 0..4 {
            let entries = for_vcpu(&base, id, 4);
            let id = u32::from(id);
            assert_eq!(find(&entries, 1, 0).ebx >> 24, id);
            assert_eq!(find(&entries, 0x8000_001e, 0).eax, id);
            for function in TOPOLOGY_LEAVES {
                for index in 0..3 {
                    let level = find(&entries, function, index);
                    assert_eq!((level.edx, level.ecx & 0xff), (id, index));
                }
                assert_eq!(find(&entries, function, 1).eax, 2, "two bits number four cores");
            }
        }
    }

    #[test]
    fn a_single_vcpu_has_no_ht_flag_and_several_have_it() {
        let base = [leaf(1, 0)];
        assert_eq!(find(&for_vcpu(&base, 0, 1), 1, 0).edx & 1 << 28, 0);
        let two = find(&for_vcpu(&base, 1, 2), 1, 0);
        assert_ne!(two.edx & 1 << 28, 0);
        assert_eq!(two.ebx >> 16 & 0xff, 2);
    }

    #[test]
    fn topology_leaves_beyond_the_largest_leaf_are_not_added() {
        let base = [kvm_cpuid_entry2 { eax: 0xd, ..leaf(0, 0) }];
        let entries = for_vcpu(&base, 0, 1);
        assert!(entries.iter().any(|entry| entry.function == 0xb));
        assert!(!entries.iter().any(|entry| entry.function == 0x1f));
    }
}
