//! How a VM ends.

use std::fmt;

use crate::exit_code;

/// Why [`Vm::run`](super::Vm::run) returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered the machine off.
    PowerOff,
    /// The guest reset the machine, which ends the VM unless it is told to reboot.
    Reset,
    /// The guest wrote to the pvpanic port.
    GuestPanic,
    /// A vCPU shut down: an exception while delivering a double fault.
    TripleFault {
        /// The vCPU.
        vcpu: u8,
        /// Its instruction pointer, if KVM still gave it.
        rip: Option<u64>,
    },
    /// KVM met an instruction or state that it cannot run.
    InternalError(Box<InternalError>),
    /// The operator stopped it: `stop`, SIGINT, SIGTERM, or the terminal's quit key.
    Stopped {
        /// The guest powered off by itself when asked.
        by_guest: bool,
    },
    /// The host failed while the guest ran.
    HostError(String),
}

impl ExitReason {
    /// The process's exit code for this end; see [`exit_code`].
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Stopped { .. } => exit_code::SUCCESS,
            Self::Reset => exit_code::GUEST_RESET,
            Self::GuestPanic => exit_code::GUEST_PANIC,
            Self::TripleFault { .. } => exit_code::TRIPLE_FAULT,
            Self::InternalError(_) => exit_code::KVM_CANNOT_RUN_GUEST,
            Self::HostError(_) => exit_code::HOST_ERROR,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("The guest powered off"),
            Self::Reset => f.write_str("The guest reset itself"),
            Self::GuestPanic => f.write_str("The guest panicked"),
            Self::TripleFault { vcpu, rip: Some(rip) } => {
                write!(f, "Triple fault: vCPU {vcpu} shut down at RIP {rip:#x}")
            }
            Self::TripleFault { vcpu, rip: None } => {
                write!(f, "Triple fault: vCPU {vcpu} shut down")
            }
            Self::InternalError(error) => error.fmt(f),
            Self::Stopped { by_guest: true } => f.write_str("Stopped: the guest powered off"),
            Self::Stopped { by_guest: false } => f.write_str("Stopped"),
            Self::HostError(message) => write!(f, "Host error: {message}"),
        }
    }
}

/// What KVM says when it cannot go on (KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalError {
    /// The vCPU.
    pub vcpu: u8,
    /// Instruction pointer, if KVM gave it.
    pub rip: Option<u64>,
    /// Bytes of the instruction, if KVM gave them.
    pub instruction: Vec<u8>,
    /// The suberror of KVM_EXIT_INTERNAL_ERROR, or the reason of KVM_EXIT_FAIL_ENTRY.
    pub cause: InternalCause,
    /// Whether the host's KVM interprets ring 0, see [`crate::kvm::KvmKind`].
    pub software_kvm: bool,
}

/// Which of KVM's two refusals it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InternalCause {
    /// KVM_EXIT_INTERNAL_ERROR with this suberror; 1 is KVM_INTERNAL_ERROR_EMULATION.
    Suberror(u32),
    /// KVM_EXIT_FAIL_ENTRY with this hardware reason.
    FailEntry(u64),
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "This host's KVM cannot run the kernel: vCPU {}", self.vcpu)?;
        match self.cause {
            InternalCause::Suberror(code) => {
                write!(f, " met KVM_EXIT_INTERNAL_ERROR (suberror {code})")?;
            }
            InternalCause::FailEntry(reason) => {
                write!(f, " met KVM_EXIT_FAIL_ENTRY (hardware reason {reason:#x})")?;
            }
        }
        if let Some(rip) = self.rip {
            write!(f, " at RIP {rip:#x}")?;
        }
        if !self.instruction.is_empty() {
            f.write_str(", instruction bytes")?;
            for byte in &self.instruction {
                write!(f, " {byte:02x}")?;
            }
        }
        if self.software_kvm {
            f.write_str(
                "; it is a software KVM, which interprets ring 0 and knows only a part of the instruction set",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn internal(software_kvm: bool) -> InternalError {
        InternalError {
            vcpu: 1,
            rip: Some(0x20_0010),
            instruction: vec![0xf3, 0x0f, 0xb8, 0xc0],
            cause: InternalCause::Suberror(1),
            software_kvm,
        }
    }

    #[test]
    fn every_kind_of_end_has_its_own_exit_code() {
        let ends = [
            (ExitReason::PowerOff, 0),
            (ExitReason::Stopped { by_guest: false }, 0),
            (ExitReason::HostError("x".into()), 1),
            (ExitReason::Reset, 3),
            (ExitReason::GuestPanic, 4),
            (ExitReason::TripleFault { vcpu: 0, rip: None }, 5),
            (ExitReason::InternalError(Box::new(internal(true))), 6),
        ];
        for (end, code) in ends {
            assert_eq!(end.exit_code(), code, "{end}");
        }
    }

    #[test]
    fn an_internal_error_names_rip_bytes_and_the_kind_of_kvm() {
        let text = internal(true).to_string();
        for part in ["cannot run the kernel", "vCPU 1", "0x200010", "f3 0f b8 c0", "software KVM"] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        assert!(!internal(false).to_string().contains("software KVM"));
    }
}
