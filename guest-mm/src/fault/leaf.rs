//! What a leaf asks of a fault: the decision, without its locks and allocations.

use super::{FaultAccess, FaultError, FaultEvent};
use crate::pgtable::{
    HwLeaf, Leaf, LeafSize, Marker, PageProt, Pmd, PmdLeaf, PmdSoftleaf, PmdState, Pte, PteState,
    Sharing, Softleaf, SwapSlot,
};

/// What is to be done about an entry of a PTE table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PteStep {
    /// There is no page: make one, or find the file's.
    Absent {
        /// userfaultfd waits for the first write here.
        uffd_wp: bool,
    },
    /// The leaf allows the access already.
    Sufficient(Pte),
    /// The leaf has fewer rights than its VMA, apart from WRITE.
    RestoreRights(Pte),
    /// A write to a leaf without WRITE, or a page to be unshared.
    WriteProtect(Pte),
    /// The page is in swap.
    SwapIn {
        /// The leaf, whose state the page gets back.
        leaf: Leaf,
        /// Where.
        slot: SwapSlot,
        /// Whether the page comes back exclusive.
        exclusive: bool,
    },
    /// Somebody moves the page: wait until the leaf changes.
    AwaitChange,
    /// A device has the page.
    Device(Leaf),
    /// Nothing can be done.
    Fail(FaultError, Option<FaultEvent>),
}

/// What is to be done about an entry of a page directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PmdStep {
    /// Neither table nor page.
    Absent,
    /// The PTE decides.
    Table,
    /// The leaf allows the access already.
    Sufficient(Pmd),
    /// The leaf has fewer rights than its VMA, apart from WRITE.
    RestoreRights(Pmd),
    /// A write to a leaf without WRITE, or pages to be unshared.
    WriteProtect(Pmd),
    /// Somebody moves the pages: wait until the leaf changes.
    AwaitChange,
    /// A device has the pages.
    Device(PmdLeaf),
    /// Nothing can be done.
    Fail(FaultError, Option<FaultEvent>),
}

/// What a present leaf asks for, of either size.
enum Present {
    Sufficient,
    RestoreRights,
    WriteProtect,
}

/// What `access` to a present leaf with these rights asks for.
fn present(access: FaultAccess, sharing: Sharing, leaf: Rights) -> Present {
    match access {
        FaultAccess::Read if leaf.readable => Present::Sufficient,
        FaultAccess::Exec if leaf.executable => Present::Sufficient,
        FaultAccess::Read | FaultAccess::Exec => Present::RestoreRights,
        FaultAccess::Write if leaf.writable => Present::Sufficient,
        FaultAccess::Write => Present::WriteProtect,
        FaultAccess::Unshare if !leaf.readable => Present::RestoreRights,
        FaultAccess::Unshare if leaf.exclusive || sharing == Sharing::Shared => Present::Sufficient,
        FaultAccess::Unshare => Present::WriteProtect,
    }
}

/// What a present leaf allows.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "four bits of one leaf")]
struct Rights {
    readable: bool,
    executable: bool,
    writable: bool,
    exclusive: bool,
}

impl<S: LeafSize> From<HwLeaf<S>> for Rights {
    fn from(leaf: HwLeaf<S>) -> Self {
        Self {
            readable: leaf.is_readable(),
            executable: leaf.prot().contains(PageProt::EXEC),
            writable: leaf.is_writable(),
            exclusive: leaf.is_anon_exclusive(),
        }
    }
}

/// Decides about an entry of a PTE table. The VMA's rights were checked before.
pub(super) fn pte_step(state: PteState, access: FaultAccess, sharing: Sharing) -> PteStep {
    match state {
        PteState::None => PteStep::Absent { uffd_wp: false },
        PteState::Present(pte) => match present(access, sharing, pte.into()) {
            Present::Sufficient => PteStep::Sufficient(pte),
            Present::RestoreRights => PteStep::RestoreRights(pte),
            Present::WriteProtect => PteStep::WriteProtect(pte),
        },
        PteState::Soft(leaf) => soft_step(leaf),
        PteState::Unknown(_) => PteStep::Fail(FaultError::Bus, Some(FaultEvent::UnknownLeaf)),
    }
}

fn soft_step(leaf: Leaf) -> PteStep {
    match leaf.kind() {
        Softleaf::None => PteStep::Absent { uffd_wp: false },
        Softleaf::Swap { slot, exclusive } => PteStep::SwapIn { leaf, slot, exclusive },
        Softleaf::MigrationRead(_)
        | Softleaf::MigrationReadExclusive(_)
        | Softleaf::MigrationWrite(_)
        | Softleaf::MigrationDevicePrivateRead(_)
        | Softleaf::MigrationDevicePrivateReadExclusive(_)
        | Softleaf::MigrationDevicePrivateWrite(_) => PteStep::AwaitChange,
        Softleaf::DevicePrivateRead(_)
        | Softleaf::DevicePrivateWrite(_)
        | Softleaf::DeviceExclusive(_) => PteStep::Device(leaf),
        Softleaf::HwPoison(_) => PteStep::Fail(FaultError::HwPoison, None),
        Softleaf::Marker(marker) => marker_step(marker),
    }
}

/// A lost page counts more than a guard, a guard more than a note of userfaultfd.
const fn marker_step(marker: Marker) -> PteStep {
    if marker.is_poison() {
        PteStep::Fail(FaultError::HwPoison, None)
    } else if marker.is_guard() {
        PteStep::Fail(FaultError::SegvMapErr, None)
    } else {
        PteStep::Absent { uffd_wp: marker.is_uffd_wp() }
    }
}

/// Decides about an entry of a page directory. The VMA's rights were checked before.
pub(super) fn pmd_step(state: PmdState, access: FaultAccess, sharing: Sharing) -> PmdStep {
    match state {
        PmdState::None => PmdStep::Absent,
        PmdState::Table(_) => PmdStep::Table,
        PmdState::Present(pmd) => match present(access, sharing, pmd.into()) {
            Present::Sufficient => PmdStep::Sufficient(pmd),
            Present::RestoreRights => PmdStep::RestoreRights(pmd),
            Present::WriteProtect => PmdStep::WriteProtect(pmd),
        },
        PmdState::Soft(leaf) => match leaf.kind() {
            PmdSoftleaf::MigrationRead(_)
            | PmdSoftleaf::MigrationReadExclusive(_)
            | PmdSoftleaf::MigrationWrite(_)
            | PmdSoftleaf::MigrationDevicePrivateRead(_)
            | PmdSoftleaf::MigrationDevicePrivateReadExclusive(_)
            | PmdSoftleaf::MigrationDevicePrivateWrite(_) => PmdStep::AwaitChange,
            PmdSoftleaf::DevicePrivateRead(_) | PmdSoftleaf::DevicePrivateWrite(_) => {
                PmdStep::Device(leaf)
            }
        },
        PmdState::Unknown(_) => PmdStep::Fail(FaultError::Bus, Some(FaultEvent::UnknownLeaf)),
    }
}

#[cfg(test)]
mod tests {
    use abi::Pfn;

    use super::*;
    use crate::pgtable::{DevOffset, Entry, LeafFlags};

    const ACCESSES: [FaultAccess; 4] =
        [FaultAccess::Read, FaultAccess::Write, FaultAccess::Exec, FaultAccess::Unshare];

    fn pte(prot: PageProt) -> Pte {
        Pte::new(Pfn::new(512).unwrap(), prot).unwrap()
    }

    fn step(pte: Pte, access: FaultAccess, sharing: Sharing) -> PteStep {
        pte_step(pte.entry().pte(), access, sharing)
    }

    fn soft(kind: Softleaf, access: FaultAccess) -> PteStep {
        pte_step(Leaf::new(kind, LeafFlags::DIRTY).entry().pte(), access, Sharing::Private)
    }

    #[test]
    fn present_leaves_ask_for_what_the_access_lacks() {
        use FaultAccess::{Exec, Read, Unshare, Write};
        use Sharing::{Private, Shared};
        let none = pte(PageProt::empty());
        let read = pte(PageProt::READ);
        let exec = pte(PageProt::READ | PageProt::EXEC);
        let write = pte(PageProt::READ | PageProt::WRITE);
        let own = read.mk_anon_exclusive();
        for (leaf, access, sharing, expected) in [
            (none, Read, Private, PteStep::RestoreRights(none)),
            (none, Unshare, Private, PteStep::RestoreRights(none)),
            (none, Write, Private, PteStep::WriteProtect(none)),
            (read, Read, Private, PteStep::Sufficient(read)),
            (read, Exec, Private, PteStep::RestoreRights(read)),
            (exec, Exec, Private, PteStep::Sufficient(exec)),
            (read, Write, Private, PteStep::WriteProtect(read)),
            (read, Write, Shared, PteStep::WriteProtect(read)),
            (own, Write, Private, PteStep::WriteProtect(own)),
            (write, Write, Private, PteStep::Sufficient(write)),
            (read, Unshare, Private, PteStep::WriteProtect(read)),
            (own, Unshare, Private, PteStep::Sufficient(own)),
            (read, Unshare, Shared, PteStep::Sufficient(read)),
        ] {
            assert_eq!(step(leaf, access, sharing), expected, "{leaf:?} {access:?} {sharing:?}");
            let pmd = leaf.collapse().unwrap();
            let same = match pmd_step(pmd.entry().pmd(), access, sharing) {
                PmdStep::Sufficient(found) => PteStep::Sufficient(found.split(0).unwrap()),
                PmdStep::RestoreRights(found) => PteStep::RestoreRights(found.split(0).unwrap()),
                PmdStep::WriteProtect(found) => PteStep::WriteProtect(found.split(0).unwrap()),
                PmdStep::Absent
                | PmdStep::Table
                | PmdStep::AwaitChange
                | PmdStep::Device(_)
                | PmdStep::Fail(..) => panic!("{pmd:?} is present"),
            };
            assert_eq!(same, expected, "{pmd:?}");
        }
    }

    #[test]
    fn pages_on_the_move_are_waited_for() {
        let (pfn, at) = (Pfn::new(512).unwrap(), DevOffset::new(512).unwrap());
        for kind in [
            Softleaf::MigrationRead(pfn),
            Softleaf::MigrationReadExclusive(pfn),
            Softleaf::MigrationWrite(pfn),
            Softleaf::MigrationDevicePrivateRead(at),
            Softleaf::MigrationDevicePrivateReadExclusive(at),
            Softleaf::MigrationDevicePrivateWrite(at),
        ] {
            for access in ACCESSES {
                assert_eq!(soft(kind, access), PteStep::AwaitChange, "{kind:?}");
                let pmd = PmdLeaf::from_leaf(kind.into()).unwrap().entry().pmd();
                assert_eq!(pmd_step(pmd, access, Sharing::Private), PmdStep::AwaitChange);
            }
        }
    }

    #[test]
    fn devices_keep_their_pages_until_asked() {
        let (pfn, at) = (Pfn::new(512).unwrap(), DevOffset::new(512).unwrap());
        for kind in [
            Softleaf::DevicePrivateRead(at),
            Softleaf::DevicePrivateWrite(at),
            Softleaf::DeviceExclusive(pfn),
        ] {
            let leaf = Leaf::new(kind, LeafFlags::DIRTY);
            for access in ACCESSES {
                assert_eq!(soft(kind, access), PteStep::Device(leaf));
            }
        }
    }

    #[test]
    fn lost_pages_and_guards_fail_in_their_own_way() {
        let poison = PteStep::Fail(FaultError::HwPoison, None);
        let guard = PteStep::Fail(FaultError::SegvMapErr, None);
        let frame = Softleaf::HwPoison(Pfn::new(9).unwrap());
        let note = Marker::UFFD_WP;
        for access in ACCESSES {
            assert_eq!(soft(frame, access), poison);
            for (marker, expected) in [
                (Marker::POISON, poison),
                (Marker::POISON.with(Marker::GUARD), poison),
                (Marker::GUARD, guard),
                (Marker::GUARD.with(note), guard),
                (note, PteStep::Absent { uffd_wp: true }),
            ] {
                assert_eq!(soft(Softleaf::Marker(marker), access), expected, "{marker:?}");
            }
        }
    }

    #[test]
    fn swapped_pages_keep_their_state_and_exclusiveness() {
        let slot = SwapSlot::new(77).unwrap();
        for exclusive in [false, true] {
            let leaf = Leaf::new(Softleaf::Swap { slot, exclusive }, LeafFlags::DIRTY);
            let expected = PteStep::SwapIn { leaf, slot, exclusive };
            assert_eq!(pte_step(leaf.entry().pte(), FaultAccess::Read, Sharing::Private), expected);
        }
    }

    #[test]
    fn entries_without_meaning_are_bus_errors_and_counted() {
        let strange = Entry::from_bits(1 | 1 << 62);
        let fail = (FaultError::Bus, Some(FaultEvent::UnknownLeaf));
        for access in ACCESSES {
            let pte = pte_step(strange.pte(), access, Sharing::Private);
            assert_eq!(pte, PteStep::Fail(fail.0, fail.1));
            let pmd = pmd_step(strange.pmd(), access, Sharing::Private);
            assert_eq!(pmd, PmdStep::Fail(fail.0, fail.1));
        }
    }
}
