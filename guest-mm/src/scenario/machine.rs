//! What a scenario needs of a machine beyond [`Platform`]: user memory, and CPUs to run on.

use core::fmt;

use abi::PfnRange;

use crate::errno::Errno;
use crate::fault::FaultError;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::space::AddressSpace;

/// A machine on which scenarios run: the guest, or the simulated machine of the tests.
///
/// A *thread* is a flow of control that one of its CPUs runs: whoever called
/// the scenario, or one of those that [`Self::run_on`] starts.
pub trait Machine: Platform + Sized {
    /// CPUs that are up, at least one.
    fn cpus(&self) -> usize;

    /// Runs `work` with 0 to `threads` - 1 at once, each as a thread of its own;
    /// returns when all have ended, and calls `serve` now and then meanwhile.
    /// Thread *n* runs on CPU *n*, modulo the CPUs that are up; `seed` decides
    /// where threads that share a CPU take turns, and where a CPU stands still
    /// for a while. Each thread leaves its address space when it ends.
    ///
    /// Called by the first thread of a scenario, which holds no lock, is in no
    /// read section and has left its address space.
    ///
    /// # Errors
    /// ENOMEM: there is no memory for so many threads. EINVAL: more than
    /// [`MAX_CPUS`](crate::platform::MAX_CPUS). Nothing has run then.
    fn run_on(
        &self,
        mm: &Mm<'_, Self>,
        threads: usize,
        seed: u64,
        work: &(dyn Fn(usize) + Sync),
        serve: &mut dyn FnMut(),
    ) -> Result<(), Errno>;

    /// RAM that is not in use and of which no map knows, to be [added](crate::memory::Memory::add_block).
    fn spare(&self) -> Option<PfnRange> {
        None
    }

    /// Lets other threads of this CPU run, if there are any.
    fn yield_now(&self);

    /// Makes `space` the one that the calling thread's user addresses mean,
    /// instead of the one before. Nothing if it is already.
    ///
    /// The space must be left by every thread before it is destroyed.
    fn enter(&self, space: &AddressSpace<'_, Self>);

    /// Makes the calling thread's user addresses mean nothing.
    fn leave(&self);

    /// One access of the calling thread to user memory in `space`, which it
    /// enters, by the MMU and its cached translations: page faults go to
    /// [`Mm::handle_fault`] and the access starts over, until it succeeds or
    /// the fault ends in a signal.
    ///
    /// Returns what was there; for stores nothing that means anything. An
    /// access of 8 bytes is atomic if `va` is a multiple of 8, and must be.
    ///
    /// The caller holds no lock, is in no read section and is not masked.
    ///
    /// # Errors
    /// The signal that a process would get.
    fn access<'m>(
        &self,
        mm: &Mm<'m, Self>,
        space: &AddressSpace<'m, Self>,
        va: u64,
        access: Access,
    ) -> Result<u64, Signal>;
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads a byte.
    LoadU8,
    /// Writes a byte.
    StoreU8(u8),
    /// Reads eight bytes.
    LoadU64,
    /// Writes eight bytes.
    StoreU64(u64),
    /// Writes `new` if the eight bytes are `current`; returns what they were.
    CompareExchangeU64 {
        /// What must be there.
        current: u64,
        /// What to write.
        new: u64,
    },
}

impl Access {
    /// Whether it needs permission to write: a compare-exchange does, whatever it finds.
    pub const fn is_write(self) -> bool {
        match self {
            Self::LoadU8 | Self::LoadU64 => false,
            Self::StoreU8(_) | Self::StoreU64(_) | Self::CompareExchangeU64 { .. } => true,
        }
    }

    /// Bytes that it touches.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::LoadU8 | Self::StoreU8(_) => 1,
            Self::LoadU64 | Self::StoreU64(_) | Self::CompareExchangeU64 { .. } => 8,
        }
    }
}

/// How an access ends that cannot be done: the signal of Linux and its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGSEGV, SEGV_MAPERR: nothing is mapped there.
    SegvMapErr,
    /// SIGSEGV, SEGV_ACCERR: the mapping does not allow it.
    SegvAccErr,
    /// SIGBUS: mapped, but beyond the end of the file, or the page is poisoned.
    Bus,
    /// No memory, and nobody to kill for it.
    Oom,
    /// SIGKILL: the OOM killer chose this process.
    Killed,
}

impl Signal {
    /// The signal for a page fault that failed, in a process that may be being killed.
    pub const fn of_fault(error: FaultError, is_dead: bool) -> Self {
        match error {
            FaultError::SegvMapErr => Self::SegvMapErr,
            FaultError::SegvAccErr => Self::SegvAccErr,
            FaultError::Bus | FaultError::HwPoison => Self::Bus,
            FaultError::Oom if is_dead => Self::Killed,
            FaultError::Oom => Self::Oom,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SegvMapErr => "SEGV_MAPERR",
            Self::SegvAccErr => "SEGV_ACCERR",
            Self::Bus => "SIGBUS",
            Self::Oom => "out of memory",
            Self::Killed => "SIGKILL",
        })
    }
}

impl core::error::Error for Signal {}
