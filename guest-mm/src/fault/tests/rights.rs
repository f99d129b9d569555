//! Where nothing may be mapped, and leaves that stand in the way.

use abi::Pfn;

use super::*;
use crate::fault::DeviceFaults;
use crate::pgtable::{DevOffset, Leaf, Marker, Softleaf};
use crate::platform::{Platform, WaitKey};
use crate::space::Vma;

fn put(world: &World, at: u64, entry: Entry) {
    let tables = world.space().tables();
    tables.alloc_lock_pte(va(at)).unwrap().unwrap().swap(va(at), entry);
}

#[test]
fn holes_and_forbidden_accesses_end_in_their_signals() {
    let world = World::new();
    let read = world.map_as(1, PageProt::READ);
    let none = world.map_as(1, PageProt::empty());
    let end = world.map(1);
    assert_eq!(world.store(read, 1), Err(FaultError::SegvAccErr));
    assert_eq!(world.fault(read, FaultAccess::Exec), Err(FaultError::SegvAccErr));
    assert_eq!(world.load(read), Ok(0));
    assert_eq!(world.store(read, 1), Err(FaultError::SegvAccErr), "nor afterwards");
    assert_eq!(world.load(none), Err(FaultError::SegvAccErr));
    assert_eq!(world.fault(none, FaultAccess::Unshare), Err(FaultError::SegvAccErr));
    for hole in [0, 0x1000, 1 << 40, crate::addr::USER_END] {
        assert_eq!(world.fault(hole, FaultAccess::Read), Err(FaultError::SegvMapErr), "{hole:#x}");
    }
    assert_eq!(world.load(end), Ok(0));
    assert_eq!(world.event(FaultEvent::Failed), 9);
    world.end();
}

#[test]
fn markers_poison_and_devices_end_in_their_signals() {
    let world = World::new();
    let at = world.map(1);
    let (pfn, offset) = (Pfn::new(5).unwrap(), DevOffset::new(5).unwrap());
    for (kind, expected) in [
        (Softleaf::HwPoison(pfn), FaultError::HwPoison),
        (Softleaf::Marker(Marker::POISON), FaultError::HwPoison),
        (Softleaf::Marker(Marker::GUARD), FaultError::SegvMapErr),
        (Softleaf::DevicePrivateRead(offset), FaultError::Bus),
        (Softleaf::DevicePrivateWrite(offset), FaultError::Bus),
        (Softleaf::DeviceExclusive(pfn), FaultError::Bus),
    ] {
        put(&world, at, Leaf::from(kind).entry());
        for access in [FaultAccess::Read, FaultAccess::Write, FaultAccess::Unshare] {
            assert_eq!(world.fault(at, access), Err(expected), "{kind:?}");
            assert_eq!(world.entry(at), Leaf::from(kind).entry(), "the leaf stays");
        }
    }
    assert_eq!(world.event(FaultEvent::NoDevice), 9);
    put(&world, at, Entry::NONE);
    world.end();
}

#[test]
fn a_note_of_userfaultfd_keeps_reads_read_only_and_ends_with_a_write() {
    let world = World::new();
    let at = world.map(2);
    let note = Leaf::from(Softleaf::Marker(Marker::UFFD_WP)).entry();
    put(&world, at, note);
    put(&world, at + PAGE_SIZE, note);
    assert_eq!(world.load(at), Ok(0));
    assert!(world.pte(at).is_uffd_wp() && !world.pte(at).is_writable());
    for page in [at, at + PAGE_SIZE] {
        world.store(page, 4).unwrap();
        assert!(!world.pte(page).is_uffd_wp());
        assert_eq!(world.load(page), Ok(4));
    }
    world.end();
}

#[test]
fn unknown_leaves_are_bus_errors_and_counted() {
    let world = World::new();
    let at = world.map(1);
    world.load(at).unwrap();
    let sound = world.entry(at);
    world.poke(at, Entry::from_bits(sound.bits() | 1 << 60));
    assert_eq!(world.load(at), Err(FaultError::Bus));
    assert_eq!(world.event(FaultEvent::UnknownLeaf), 1);
    world.poke(at, sound);
    assert_eq!(world.load(at), Ok(0));
    world.end();
}

#[test]
fn a_migrating_page_is_waited_for() {
    let world = World::new();
    let at = world.map(1);
    world.store(at, 6).unwrap();
    let present = world.entry(at);
    let pfn = world.pte(at).pfn();
    let moving = Leaf::from(Softleaf::MigrationWrite(pfn)).entry();
    put(&world, at, moving);
    std::thread::scope(|scope| {
        let faulter = scope.spawn(|| {
            testing::set_cpu(1);
            world.load(at)
        });
        while world.event(FaultEvent::Retry) == 0 {
            std::thread::yield_now();
        }
        // Nothing that a writer needs is held while it waits.
        drop(world.space().write());
        assert!(!faulter.is_finished());
        put(&world, at, present);
        world.platform().wake(WaitKey::frame(pfn), 1);
        assert_eq!(faulter.join().unwrap(), Ok(6));
    });
    assert_eq!(world.event(FaultEvent::Retry), 1, "one wait, no spinning");
    world.end();
}

/// A device whose memory comes back as the page that was there before.
struct Device(AtomicU64);

impl DeviceFaults<TestPlatform> for Device {
    fn bring_back<'m>(
        &self,
        _mm: &Mm<'m, TestPlatform>,
        space: &AddressSpace<'m, TestPlatform>,
        _vma: &Vma<'m, TestPlatform>,
        page: VirtAddr,
        leaf: Leaf,
    ) -> Result<(), FaultError> {
        let mut guard = space.tables().lock_pte(page).map_err(|_| FaultError::Bus)?;
        let before = self.0.swap(0, Ordering::Relaxed);
        if before == 0 {
            return Err(FaultError::Bus);
        }
        if guard.load(page) == leaf.entry() {
            guard.set(page, Entry::from_bits(before));
        }
        Ok(())
    }
}

#[test]
fn a_registered_device_gives_its_pages_back_once_and_fails_by_bus_error() {
    let world = World::new();
    let at = world.map(1);
    world.store(at, 6).unwrap();
    let sound = world.entry(at);
    let device = Box::leak(Box::new(Device(AtomicU64::new(sound.bits()))));
    assert!(world.mm.register_device_faults(device));
    assert!(!world.mm.register_device_faults(device), "there is one for all");
    let away = Leaf::from(Softleaf::DevicePrivateWrite(DevOffset::new(9).unwrap())).entry();
    world.poke(at, away);
    assert_eq!(world.load(at), Ok(6));
    assert_eq!((world.count(FaultOutcome::Device), world.stats().major()), (1, 1));
    world.poke(at, away);
    assert_eq!(world.load(at), Err(FaultError::Bus), "the device has nothing to give");
    assert_eq!(world.entry(at), away);
    world.poke(at, sound);
    world.end();
}

#[test]
fn a_leaf_without_the_rights_of_its_vma_gets_them_back() {
    let world = World::new();
    let at = world.map(1);
    world.store(at, 6).unwrap();
    world.change(at, |pte| pte.with_prot(PageProt::empty()));
    assert_eq!(world.load(at), Ok(6));
    assert_eq!(world.count(FaultOutcome::RightsRestored), 1);
    assert!(!world.pte(at).is_writable(), "a write is looked at when it comes");
    assert_eq!(world.fault(at, FaultAccess::Write), Ok(FaultOutcome::Reused));
    world.end();
}
