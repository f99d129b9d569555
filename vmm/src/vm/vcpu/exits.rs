//! Exits after which a vCPU cannot go on, and what they say.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::vm::exit::{ExitReason, InternalCause, InternalError};

/// Flag of `emulation_failure.flags`: `insn_size` and `insn_bytes` are valid.
const FLAG_INSTRUCTION_BYTES: u64 =
    kvm_bindings::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES as u64;

/// An exit that ends the machine, detached from the vCPU's mapping.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fatal {
    Shutdown,
    Internal,
    FailEntry(u64),
    SystemEvent(u32),
    Unexpected(String),
}

impl From<VcpuExit<'_>> for Fatal {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "an exit that this machine never asks KVM for is unexpected, whichever it is"
    )]
    fn from(exit: VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::Shutdown => Self::Shutdown,
            VcpuExit::InternalError => Self::Internal,
            VcpuExit::FailEntry(reason, _cpu) => Self::FailEntry(reason),
            VcpuExit::SystemEvent(kind, _data) => Self::SystemEvent(kind),
            other => Self::Unexpected(format!("{other:?}")),
        }
    }
}

impl Fatal {
    /// Turns it into the VM's end, asking KVM for the registers.
    pub(super) fn explain(self, vcpu: &mut VcpuFd, id: u8, software_kvm: bool) -> ExitReason {
        let rip = vcpu.get_regs().ok().map(|regs| regs.rip);
        let internal = |cause, instruction| {
            let error = InternalError { vcpu: id, rip, instruction, cause, software_kvm };
            ExitReason::InternalError(Box::new(error))
        };
        match self {
            Self::Shutdown => ExitReason::TripleFault { vcpu: id, rip },
            Self::Internal => {
                let (suberror, instruction) = internal_details(vcpu);
                internal(InternalCause::Suberror(suberror), instruction)
            }
            Self::FailEntry(reason) => internal(InternalCause::FailEntry(reason), Vec::new()),
            Self::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN) => ExitReason::PowerOff,
            Self::SystemEvent(KVM_SYSTEM_EVENT_RESET) => ExitReason::Reset,
            Self::SystemEvent(kind) => {
                ExitReason::HostError(format!("vCPU {id}: unknown system event {kind}"))
            }
            // HLT among them: with the local APIC in the kernel, KVM itself waits for interrupts.
            Self::Unexpected(exit) => {
                ExitReason::HostError(format!("vCPU {id}: unexpected exit {exit}"))
            }
        }
    }
}

/// Suberror and, if KVM gave them, bytes of the instruction of a KVM_EXIT_INTERNAL_ERROR.
fn internal_details(vcpu: &mut VcpuFd) -> (u32, Vec<u8>) {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM fills in this member; it is
    // made of integers, so that any bytes are valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    // `data` overlays flags, then size and bytes; `ndata` tells how many of its words are valid.
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION || internal.ndata < 3 {
        return (internal.suberror, Vec::new());
    }
    // SAFETY: as above; the suberror is KVM_INTERNAL_ERROR_EMULATION.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    if failure.flags & FLAG_INSTRUCTION_BYTES == 0 {
        return (internal.suberror, Vec::new());
    }
    // SAFETY: the flag says that KVM has filled in size and bytes; integers again.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let size = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
    (internal.suberror, instruction.insn_bytes[..size].to_vec())
}

/// KVM_RUN itself failed.
pub(super) fn run_failed(error: kvm_ioctls::Error, vcpu: &VcpuFd, id: u8) -> ExitReason {
    let at = vcpu.get_regs().map(|regs| format!(" at RIP {:#x}", regs.rip)).unwrap_or_default();
    ExitReason::HostError(if error.errno() == libc::EFAULT {
        format!(
            "vCPU {id}{at}: the host could not supply guest memory (its backing is exhausted or was taken away)"
        )
    } else {
        format!("vCPU {id}{at}: KVM_RUN failed: {error}")
    })
}
