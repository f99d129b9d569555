//! What was tried, and whether the VMA allows it.

use super::FaultError;
use crate::pgtable::PageProt;
use crate::space::VmFlags;

/// What a fault was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultAccess {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
    /// Nobody's access: GUP wants a page that a read-only pin may hold, so one
    /// that is mapped here alone, or shared for good (`FAULT_FLAG_UNSHARE`).
    Unshare,
}

impl FaultAccess {
    /// The access that the error code of an x86 page fault tells of: bit 1 is a
    /// store, bit 4 an instruction fetch (Intel SDM volume 3, 4.7).
    pub const fn from_error_code(code: u64) -> Self {
        if code & 1 << 1 != 0 {
            Self::Write
        } else if code & 1 << 4 != 0 {
            Self::Exec
        } else {
            Self::Read
        }
    }

    /// Whether the page will be written.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write)
    }

    /// Whether the page must not stay shared with another process.
    pub const fn wants_own_page(self) -> bool {
        matches!(self, Self::Write | Self::Unshare)
    }

    /// The right of a leaf that the MMU asks for.
    pub const fn needed(self) -> PageProt {
        match self {
            Self::Read | Self::Unshare => PageProt::READ,
            Self::Write => PageProt::WRITE,
            Self::Exec => PageProt::EXEC,
        }
    }

    /// Checks the access against the VMA's rights. Any right allows loads: x86
    /// has no page that can be written or executed but not read.
    ///
    /// # Errors
    /// [`FaultError::SegvAccErr`].
    pub const fn check(self, flags: VmFlags) -> Result<(), FaultError> {
        let any = VmFlags::READ.union(VmFlags::WRITE).union(VmFlags::EXEC);
        let allowed = match self {
            Self::Read | Self::Unshare => flags.intersects(any),
            Self::Write => flags.contains(VmFlags::WRITE),
            Self::Exec => flags.contains(VmFlags::EXEC),
        };
        if allowed { Ok(()) } else { Err(FaultError::SegvAccErr) }
    }
}

/// The rights of a leaf that nobody has written through yet: those of the VMA,
/// but WRITE, which a leaf gets when its page may be written in place.
pub fn read_only_prot(flags: VmFlags) -> PageProt {
    let mut prot = PageProt::empty();
    prot.set(PageProt::READ, flags.intersects(VmFlags::READ | VmFlags::WRITE | VmFlags::EXEC));
    prot.set(PageProt::EXEC, flags.contains(VmFlags::EXEC));
    prot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_tell_the_access() {
        // Bits: 0 present, 1 write, 2 user, 3 reserved bit, 4 fetch.
        let codes = [(0x04, FaultAccess::Read), (0x05, FaultAccess::Read)];
        let stores = [(0x06, FaultAccess::Write), (0x07, FaultAccess::Write)];
        let fetches = [(0x14, FaultAccess::Exec), (0x15, FaultAccess::Exec)];
        for (code, access) in codes.into_iter().chain(stores).chain(fetches) {
            assert_eq!(FaultAccess::from_error_code(code), access, "{code:#x}");
        }
    }

    #[test]
    fn rights_of_the_vma_decide() {
        use FaultAccess::{Exec, Read, Unshare, Write};
        let none = VmFlags::empty();
        for (flags, allowed) in [
            (none, [false, false, false, false]),
            (VmFlags::READ, [true, false, false, true]),
            (VmFlags::WRITE, [true, true, false, true]),
            (VmFlags::EXEC, [true, false, true, true]),
            (VmFlags::READ | VmFlags::MAYWRITE | VmFlags::SHARED, [true, false, false, true]),
        ] {
            for (access, allowed) in [Read, Write, Exec, Unshare].into_iter().zip(allowed) {
                let expected = if allowed { Ok(()) } else { Err(FaultError::SegvAccErr) };
                assert_eq!(access.check(flags), expected, "{access:?} {flags:?}");
            }
        }
    }

    #[test]
    fn a_fresh_leaf_is_never_writable() {
        for bits in 0..8 {
            let flags = VmFlags::from_bits_truncate(bits);
            let prot = read_only_prot(flags);
            assert!(!prot.contains(PageProt::WRITE));
            assert_eq!(prot.is_empty(), flags.is_empty());
            assert_eq!(prot.contains(PageProt::EXEC), flags.contains(VmFlags::EXEC));
        }
    }
}
