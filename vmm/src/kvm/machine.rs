//! The in-kernel half of a VM: memory slots, interrupt controllers, lines, doorbells, vCPUs.
//!
//! Rebuilt from nothing when the guest reboots: a new VM file has no state to
//! forget, where resetting vCPUs and interrupt controllers one ioctl at a time
//! would have to know all of it.

use std::sync::Arc;

use abi::mmio;
use abi::platform::IOAPIC_PINS;
use guest_ram::HostRam;
use kvm_bindings::{
    CpuId, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{KvmError, cpuid, regs};
use crate::boot::Entry;
use crate::line::KvmLevelLine;

/// Three pages for the real-mode task segment of older Intel CPUs, in the MMIO gap below the BIOS.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A VM in the kernel.
pub(crate) struct Machine {
    // Declared before `ram`: the VM goes first, then the memory it maps.
    vm: Arc<VmFd>,
    _ram: Arc<HostRam>,
}

impl Machine {
    /// Gives a VM its memory slots and interrupt controllers.
    ///
    /// Slots come before the interrupt controllers: the controllers register
    /// on the kernel's I/O bus, and a slot set after that waits milliseconds
    /// for a grace period.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub(crate) fn new(vm: VmFd, ram: Arc<HostRam>) -> Result<Self, KvmError> {
        for (slot, region) in (0..).zip(ram.regions()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.gpa(),
                memory_size: region.len_bytes(),
                userspace_addr: region.hva(),
            };
            // SAFETY: KVM needs `userspace_addr..+memory_size` to stay guest RAM while the VM
            // lives: `region` belongs to `ram`, which this value holds and drops after the VM.
            // No other slot covers it: regions are disjoint and each gets one slot.
            let set = unsafe { vm.set_user_memory_region(slot) };
            set.map_err(|source| KvmError::ioctl("KVM_SET_USER_MEMORY_REGION", source))?;
        }
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(|source| KvmError::ioctl("KVM_SET_TSS_ADDR", source))?;
        vm.create_irq_chip().map_err(|source| KvmError::ioctl("KVM_CREATE_IRQCHIP", source))?;
        route_to_ioapic(&vm)?;
        Ok(Self { vm: Arc::new(vm), _ram: ram })
    }

    /// The VM, for whoever gives it memory slots while it runs.
    pub(crate) const fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Makes a write to `line` an edge on `gsi`.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub(crate) fn connect_line(&self, line: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.vm.register_irqfd(line, gsi).map_err(|source| KvmError::ioctl("KVM_IRQFD", source))
    }

    /// Undoes [`Self::connect_line`].
    ///
    /// A machine that is dropped does as well, but only once its file is closed everywhere, and until
    /// then KVM refuses the line to another machine: a child that another thread has forked keeps
    /// every file open until it executes something.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub(crate) fn disconnect_line(&self, line: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.vm.unregister_irqfd(line, gsi).map_err(|source| KvmError::ioctl("KVM_IRQFD", source))
    }

    /// Makes `line` a level on its GSI.
    pub(crate) fn connect_level(&self, line: &KvmLevelLine) {
        line.connect(&self.vm);
    }

    /// Makes the guest's notification of `queue` in the window at `base` a write to `doorbell`.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub(crate) fn connect_doorbell(
        &self,
        doorbell: &EventFd,
        base: u64,
        queue: u16,
    ) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(base + mmio::QUEUE_NOTIFY);
        self.vm
            .register_ioevent(doorbell, &address, u32::from(queue))
            .map_err(|source| KvmError::ioctl("KVM_IOEVENTFD", source))
    }

    /// Creates all vCPUs; vCPU 0 stands at `entry`, the others wait for INIT and SIPI.
    ///
    /// All at once, because an INIT to a vCPU that does not exist yet is lost.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub(crate) fn create_vcpus(
        &self,
        cpuid: &CpuId,
        count: u8,
        entry: Entry,
    ) -> Result<Vec<VcpuFd>, KvmError> {
        let mut vcpus = Vec::with_capacity(count.into());
        for id in 0..count {
            let vcpu = self
                .vm
                .create_vcpu(id.into())
                .map_err(|source| KvmError::ioctl("KVM_CREATE_VCPU", source))?;
            let mut entries = cpuid::for_vcpu(cpuid.as_slice(), id, count);
            // Not every KVM tells; a guest then does without.
            if let Ok(khz) = vcpu.get_tsc_khz() {
                cpuid::tell_frequencies(&mut entries, khz);
            }
            let own = CpuId::from_entries(&entries)
                .map_err(|_| KvmError::TooManyEntries { what: "KVM_SET_CPUID2" })?;
            vcpu.set_cpuid2(&own).map_err(|source| KvmError::ioctl("KVM_SET_CPUID2", source))?;
            vcpus.push(vcpu);
        }
        if let Some(boot) = vcpus.first() {
            regs::enter(boot, entry)?;
        }
        Ok(vcpus)
    }
}

/// Connects every GSI to the I/O APIC pin of the same number, and to nothing else.
///
/// KVM's default routing also feeds the 8259 pair, which is unmasked and would
/// deliver the same edge a second time as vector 0 + line.
fn route_to_ioapic(vm: &VmFd) -> Result<(), KvmError> {
    let entries: Vec<_> = (0..IOAPIC_PINS)
        .map(|pin| kvm_irq_routing_entry {
            gsi: pin,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                irqchip: kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin },
            },
            ..Default::default()
        })
        .collect();
    let routing = KvmIrqRouting::from_entries(&entries)
        .map_err(|_| KvmError::TooManyEntries { what: "KVM_SET_GSI_ROUTING" })?;
    vm.set_gsi_routing(&routing).map_err(|source| KvmError::ioctl("KVM_SET_GSI_ROUTING", source))
}
