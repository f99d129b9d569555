//! Parents and children, neighbours, and threads that take pages away.

use core::sync::atomic::AtomicBool;

use super::*;
use crate::platform::FaultSite;
use crate::space::{MapFlags, MapSource};

fn child_of(world: &World) -> SpaceRef<'static, TestPlatform> {
    world.mm.fork(world.space()).unwrap()
}

fn load_in(world: &World, space: &AddressSpace<'static, TestPlatform>, at: u64) -> u64 {
    access(&world.mm, space, at, None).unwrap()
}

#[test]
fn the_first_to_write_copies_and_the_last_reuses() {
    let world = World::new();
    let at = world.map(1);
    world.store(at, 3).unwrap();
    let before = world.pte(at).pfn();
    let child = child_of(&world);
    assert!(!world.pte(at).is_anon_exclusive() && !world.pte(at).is_writable());
    assert_eq!(world.fault(at, FaultAccess::Write), Ok(FaultOutcome::Copied));
    assert_ne!(world.pte(at).pfn(), before);
    world.store(at, 4).unwrap();
    assert_eq!(load_in(&world, &child, at), 3);
    let outcome = world.mm.handle_fault(&child, va(at), FaultAccess::Write);
    assert_eq!(outcome, Ok(FaultOutcome::Reused), "the parent is gone from the page");
    assert_eq!(present(entry_in(&world.mm, &child, va(at))).pfn(), before);
    world.check();
    world.mm.exit_space(child);
    world.end();
}

#[test]
fn unsharing_copies_while_somebody_else_maps_the_page_and_not_after() {
    let world = World::new();
    let at = world.map(1);
    world.store(at, 3).unwrap();
    let child = child_of(&world);
    assert_eq!(world.fault(at, FaultAccess::Unshare), Ok(FaultOutcome::Copied));
    assert!(world.pte(at).is_anon_exclusive() && !world.pte(at).is_writable());
    assert_eq!(world.load(at), Ok(3));
    let outcome = world.mm.handle_fault(&child, va(at), FaultAccess::Unshare);
    assert_eq!(outcome, Ok(FaultOutcome::Reused));
    world.mm.exit_space(child);
    world.end();
}

#[test]
fn a_neighbour_shares_its_anon_vma_unless_it_was_inherited() {
    let world = World::new();
    let first = 0x2_0000_0000;
    let map = |space: &AddressSpace<'static, TestPlatform>, at: u64, prot| {
        let args = MmapArgs::anonymous(PAGE_SIZE).fixed(at).prot(prot);
        world.mm.mmap(space, args).unwrap();
    };
    let anon_vma = |space: &AddressSpace<'static, TestPlatform>, at: u64| {
        space.read().lookup(va(at)).unwrap().anon_vma()
    };
    let (write, all) = (PageProt::READ | PageProt::WRITE, PageProt::all());
    map(world.space(), first, write);
    map(world.space(), first + PAGE_SIZE, all);
    world.store(first, 1).unwrap();
    world.store(first + PAGE_SIZE, 1).unwrap();
    let own = anon_vma(world.space(), first);
    assert!(own.is_some() && own == anon_vma(world.space(), first + PAGE_SIZE));
    let child = child_of(&world);
    map(&child, first + 2 * PAGE_SIZE, write);
    access(&world.mm, &child, first + 2 * PAGE_SIZE, Some(1)).unwrap();
    assert_ne!(anon_vma(&child, first + PAGE_SIZE), anon_vma(&child, first + 2 * PAGE_SIZE));
    world.check();
    world.mm.exit_space(child);
    world.end();
}

#[test]
fn each_failing_allocation_of_a_copy_is_undone_and_tried_again() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        for nth in 1.. {
            let world = World::new();
            let at = world.map(1);
            world.store(at, 3).unwrap();
            let child = child_of(&world);
            world.platform().faults().fail_nth(site, nth);
            assert_eq!(world.store(at, 4), Ok(()), "{site:?} {nth}");
            let struck = world.platform().faults().struck(site);
            world.platform().faults().fail_nth(site, 0);
            assert_eq!(load_in(&world, &child, at), 3);
            world.mm.exit_space(child);
            world.end();
            if struck == 0 {
                break;
            }
        }
    }
}

/// Runs `touch` on three CPUs until `disturb`, on the first, has been called `times` times.
fn against(world: &World, times: u64, disturb: impl Fn(u64), touch: impl Fn(u64) + Sync) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for cpu in 1..4 {
            let (is_over, touch) = (&is_over, &touch);
            scope.spawn(move || {
                testing::set_cpu(usize::try_from(cpu).unwrap());
                while !is_over.load(Ordering::Relaxed) {
                    touch(cpu);
                }
            });
        }
        for round in 0..times {
            disturb(round);
            std::thread::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    world.check();
}

#[test]
fn faults_against_unmapping_end_in_the_page_or_in_a_signal() {
    let world = World::new();
    let at = world.map(4);
    let map_again = |round: u64| {
        world.mm.munmap(world.space(), at, 4 * PAGE_SIZE).unwrap();
        if round.is_multiple_of(2) {
            std::thread::yield_now();
        }
        world.mm.mmap(world.space(), MmapArgs::anonymous(4 * PAGE_SIZE).fixed(at)).unwrap();
    };
    against(&world, 60, map_again, |cpu| {
        for page in 0..4 {
            let word = at + page * PAGE_SIZE + 8 * cpu;
            match world.store(word, cpu).and_then(|()| world.load(word)) {
                Ok(found) => assert!(found == cpu || found == 0, "{found}"),
                Err(error) => assert_eq!(error, FaultError::SegvMapErr),
            }
        }
    });
    world.end();
}

#[test]
fn faults_against_truncation_end_in_the_page_or_in_a_bus_error() {
    let world = World::new();
    let file = world.mm.shmem_file(4 * PAGE_SIZE).unwrap();
    let source = MapSource { file: &file, offset: 0, readable: true, writable: true };
    let map = |flags| {
        let args = MmapArgs::anonymous(4 * PAGE_SIZE);
        let args = MmapArgs { flags, source: Some(source), ..args };
        world.mm.mmap(world.space(), args).unwrap().get()
    };
    let (shared, private) = (map(MapFlags::SHARED), map(MapFlags::PRIVATE));
    let cut = |round: u64| {
        world.mm.truncate_file(&file, round % 4 * PAGE_SIZE).unwrap();
        world.mm.truncate_file(&file, 4 * PAGE_SIZE).unwrap();
    };
    against(&world, 60, cut, |cpu| {
        for page in 0..4 {
            for base in [shared, private] {
                let word = base + page * PAGE_SIZE + 8 * cpu;
                match world.store(word, cpu).and_then(|()| world.load(word)) {
                    Ok(found) => assert!(found == cpu || found == 0, "{found}"),
                    Err(error) => assert_eq!(error, FaultError::Bus),
                }
            }
        }
    });
    world.end_with(|mm| mm.file_put(file));
}
