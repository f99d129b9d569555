//! What is asked for, what comes, and what is counted.

use abi::PAGE_SIZE;

use super::{Contents, GupFlags, PagePin};
use crate::addr::USER_END;
use crate::errno::Errno;
use crate::folio::FolioFlags;
use crate::memdesc::MigrateType;
use crate::mm::{Base, Mm};
use crate::pgtable::PageProt;
use crate::platform::FaultSite;
use crate::scenario::{Machine, Process};
use crate::space::MmapArgs;
use crate::testing::{self, TestPlatform};

type Pins<'m> = [Option<PagePin<'m>>; 4];

fn base() -> Base<TestPlatform> {
    Base::new(testing::memory(2048)).expect("a memory manager")
}

/// Runs `test` with a process that has four pages; nothing is left afterwards.
fn with_pages(test: impl FnOnce(&Process<'_, '_, TestPlatform>, u64)) {
    let base = base();
    let mm = Mm::new(&base);
    mm.settle();
    let before = mm.memory().free_pages();
    {
        let process = Process::new(&mm).expect("a process");
        let pages = process.mmap(MmapArgs::anonymous(4 * PAGE_SIZE)).expect("four pages");
        test(&process, pages);
    }
    mm.settle();
    assert_eq!(mm.memory().free_pages(), before);
    assert!(mm.memory().census().is_consistent());
}

fn none<'m>() -> Pins<'m> {
    [const { None }; 4]
}

const READ: GupFlags = GupFlags::empty();
const WRITE: GupFlags = GupFlags::WRITE;

#[test]
fn senseless_ranges_are_refused_as_linux_does() {
    with_pages(|process, pages| {
        let (mm, space) = (process.mm(), process.space());
        for (va, expected) in [
            (u64::MAX - 8191, Errno::EOVERFLOW),
            (u64::MAX, Errno::EOVERFLOW),
            (USER_END, Errno::EFAULT),
            (USER_END - PAGE_SIZE, Errno::EFAULT),
            (1 << 63, Errno::EFAULT),
            (0xffff_8880_0000_0000, Errno::EFAULT),
            (0, Errno::EFAULT),
        ] {
            let mut out = none();
            assert_eq!(mm.pin_user_pages(space, va, READ, &mut out), Err(expected), "{va:#x}");
            assert_eq!(mm.pin_user_pages_fast(space, va, WRITE, &mut out), Err(expected));
            let mut refs = [const { None }; 4];
            assert_eq!(mm.get_user_pages(space, va, READ, &mut refs), Err(expected));
            assert_eq!(mm.get_user_pages_fast(space, va, READ, &mut refs), Err(expected));
        }
        let mut refs = [None];
        let longterm = mm.get_user_pages(space, pages, GupFlags::LONGTERM, &mut refs);
        assert_eq!(longterm, Err(Errno::EINVAL), "a reference is not for ever");
        assert_eq!(mm.pin_user_pages(space, pages, READ, &mut []), Ok(0));
        assert_eq!(mm.pin_user_pages_fast_only(space, 0, READ, &mut none()), Ok(0));
    });
}

#[test]
fn as_many_pages_come_as_there_are_before_the_first_hole() {
    with_pages(|process, pages| {
        let (mm, space) = (process.mm(), process.space());
        process.munmap(pages + 2 * PAGE_SIZE, PAGE_SIZE).unwrap();
        for fast in [false, true] {
            let mut out = none();
            let got = if fast {
                mm.pin_user_pages_fast(space, pages + 17, WRITE, &mut out)
            } else {
                mm.pin_user_pages(space, pages + 17, WRITE, &mut out)
            };
            assert_eq!(got, Ok(2));
            assert!(out[0].is_some() && out[1].is_some() && out[2].is_none());
            mm.unpin_user_pages(&mut out, Contents::Unchanged);
            let hole = mm.pin_user_pages(space, pages + 2 * PAGE_SIZE, WRITE, &mut out);
            assert_eq!(hole, Err(Errno::EFAULT));
        }
    });
}

#[test]
fn rights_of_the_mapping_hold_for_pins() {
    with_pages(|process, pages| {
        let (mm, space) = (process.mm(), process.space());
        process.fill(pages, 4, 1).unwrap();
        process.mprotect(pages, PAGE_SIZE, PageProt::READ).unwrap();
        process.mprotect(pages + PAGE_SIZE, PAGE_SIZE, PageProt::empty()).unwrap();
        let mut out = [None];
        assert_eq!(mm.pin_user_pages_fast(space, pages, WRITE, &mut out), Err(Errno::EFAULT));
        assert_eq!(mm.pin_user_pages_fast(space, pages, READ, &mut out), Ok(1));
        mm.unpin_user_pages(&mut out, Contents::Unchanged);
        let none = mm.pin_user_pages_fast(space, pages + PAGE_SIZE, READ, &mut out);
        assert_eq!(none, Err(Errno::EFAULT));
    });
}

#[test]
fn without_faults_only_what_is_there_comes() {
    with_pages(|process, pages| {
        let (mm, space) = (process.mm(), process.space());
        let mut out = none();
        let flags = GupFlags::NOFAULT;
        assert_eq!(mm.pin_user_pages_fast(space, pages, flags, &mut out), Err(Errno::EFAULT));
        assert_eq!(mm.pin_user_pages_fast_only(space, pages, READ, &mut out), Ok(0));
        process.store(pages, 7).unwrap();
        assert_eq!(mm.pin_user_pages_fast(space, pages, flags, &mut out), Ok(1));
        mm.unpin_user_pages(&mut out, Contents::Unchanged);
        assert_eq!(mm.pin_user_pages_fast_only(space, pages, WRITE, &mut out), Ok(1));
        assert_eq!(mm.read_user_page(out[0].as_ref().unwrap(), 0), 7);
        mm.unpin_user_pages(&mut out, Contents::Unchanged);
    });
}

#[test]
fn the_zero_page_is_held_without_a_count_but_never_for_ever() {
    with_pages(|process, pages| {
        let (mm, space) = (process.mm(), process.space());
        assert_eq!(process.load(pages), Ok(0));
        let mut out = [None];
        assert_eq!(mm.pin_user_pages_fast(space, pages, READ, &mut out), Ok(1));
        let page = out[0].take().unwrap();
        assert_eq!((page.pfn(), page.hold().is_none()), (mm.base().zero_page, true));
        mm.unpin_user_page(page, Contents::Unchanged);
        assert_eq!(mm.pin_user_pages_fast(space, pages, GupFlags::LONGTERM, &mut out), Ok(1));
        let page = out[0].take().unwrap();
        assert!(page.pfn() != mm.base().zero_page);
        process.store(pages, 5).unwrap();
        assert_eq!(mm.read_user_page(&page, 0), 5, "the holder sees the process's first write");
        mm.unpin_user_page(page, Contents::Unchanged);
    });
}

#[test]
fn pins_are_counted_exactly_and_dirty_is_noted_when_they_go() {
    with_pages(|process, pages| {
        let (mm, space) = (process.mm(), process.space());
        process.store(pages, 1).unwrap();
        let mut held = Vec::new();
        for n in 1..=2000 {
            let mut out = [None];
            assert_eq!(mm.pin_user_pages_fast(space, pages, WRITE, &mut out), Ok(1));
            held.push(out[0].take().unwrap());
            let pin = held[0].hold().unwrap();
            assert_eq!((pin.pincount(), pin.refcount()), (n, n + 1), "and one for the mapping");
        }
        let folio = mm.get(held[0].hold().unwrap());
        folio.clear_flags(FolioFlags::DIRTY);
        let last = held.pop().unwrap();
        held.into_iter().for_each(|page| mm.unpin_user_page(page, Contents::Unchanged));
        assert_eq!(folio.pincount(), 1);
        assert!(!folio.has(FolioFlags::DIRTY));
        mm.unpin_user_page(last, Contents::Written);
        assert_eq!((folio.pincount(), folio.refcount()), (0, 2));
        assert!(folio.has(FolioFlags::DIRTY));
        mm.put(folio);
    });
}

#[test]
fn pins_for_ever_are_refused_where_memory_is_promised_to_others() {
    with_pages(|process, pages| {
        let (mm, space) = (process.mm(), process.space());
        process.store(pages, 1).unwrap();
        let mut out = [None];
        assert_eq!(mm.pin_user_pages_fast(space, pages, GupFlags::LONGTERM, &mut out), Ok(1));
        let page = out[0].take().unwrap();
        let pfn = page.pfn();
        mm.unpin_user_page(page, Contents::Unchanged);
        let before = mm.memory().map().pageblocks.get(pfn);
        let mut isolated = None;
        for refused in [MigrateType::Cma, MigrateType::Isolate] {
            if refused == MigrateType::Isolate {
                let page = abi::PfnRange::from_start(pfn, abi::PageCount::ONE).unwrap();
                isolated = Some(mm.memory().isolate_range(page).unwrap());
            } else {
                mm.memory().set_pageblock(pfn, refused).unwrap();
            }
            let longterm = GupFlags::LONGTERM | WRITE;
            let fast = mm.pin_user_pages_fast(space, pages, longterm, &mut out);
            assert_eq!(fast, Err(Errno::ENOMEM), "{refused:?}");
            let slow = mm.pin_user_pages(space, pages, longterm, &mut out);
            assert_eq!(slow, Err(Errno::ENOMEM), "{refused:?}");
            assert_eq!(mm.pin_user_pages_fast(space, pages, WRITE, &mut out), Ok(1));
            mm.unpin_user_pages(&mut out, Contents::Unchanged);
        }
        mm.memory().unisolate_range(isolated.unwrap());
        mm.memory().set_pageblock(pfn, before).unwrap();
    });
}

#[test]
fn a_process_that_is_being_killed_is_not_pinned() {
    with_pages(|process, pages| {
        let (mm, space) = (process.mm(), process.space());
        space.dead.store(true, core::sync::atomic::Ordering::Release);
        assert_eq!(mm.pin_user_pages(space, pages, READ, &mut none()), Err(Errno::EINTR));
        space.dead.store(false, core::sync::atomic::Ordering::Release);
    });
}

#[test]
fn pins_outlive_their_mapping_and_its_process() {
    let base = base();
    let mm = Mm::new(&base);
    let mut out = [None];
    {
        let process = Process::new(&mm).unwrap();
        let pages = process.mmap(MmapArgs::anonymous(PAGE_SIZE)).unwrap();
        process.store(pages, 9).unwrap();
        assert_eq!(mm.pin_user_pages_fast(process.space(), pages, WRITE, &mut out), Ok(1));
        process.munmap(pages, PAGE_SIZE).unwrap();
    }
    mm.settle();
    let page = out[0].take().unwrap();
    assert_eq!(mm.read_user_page(&page, 0), 9);
    let pin = page.hold().unwrap();
    assert_eq!((pin.refcount(), pin.mapcount(), pin.pincount()), (1, 0, 1));
    let free = mm.memory().free_pages().get();
    mm.unpin_user_page(page, Contents::Written);
    assert_eq!(mm.memory().free_pages().get(), free + 1);
}

#[test]
fn each_failing_allocation_gives_fewer_pages_and_books_that_balance() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        for nth in 1.. {
            let base = base();
            let mm = Mm::new(&base);
            let process = Process::new(&mm).unwrap();
            let pages = process.mmap(MmapArgs::anonymous(4 * PAGE_SIZE)).unwrap();
            let faults = mm.platform().faults();
            faults.fail_nth(site, nth);
            let mut out = none();
            let got = mm.pin_user_pages(process.space(), pages, WRITE, &mut out);
            let struck = faults.struck(site) > 0;
            faults.fail_nth(site, 0);
            let held = out.iter().flatten().count();
            assert!(got == Ok(held) || (got == Err(Errno::ENOMEM) && held == 0), "{got:?} {held}");
            mm.unpin_user_pages(&mut out, Contents::Unchanged);
            assert!(mm.memory().census().is_consistent(), "{site:?} {nth}");
            mm.platform().leave();
            if !struck {
                assert_eq!(got, Ok(4));
                break;
            }
        }
    }
}
