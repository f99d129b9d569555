//! Every allocation of every call fails once: the call says so, and nothing is lost.

use super::*;
use crate::space::structure::MAX_MAP_COUNT;

/// What a space looks like to a program: VMAs with their rights, and what each page holds.
type View = (Vec<(u64, u64, VmFlags)>, Vec<u64>);

/// Pages that the tests play with.
const PAGES: u64 = 24;

fn view<'m>(mm: &TestMm<'m>, space: &Space<'m>) -> View {
    let flags = |vma: &Vma<'_, TestPlatform>| {
        let range = vma.range();
        (range.start().get(), range.pages().get(), vma.flags())
    };
    let vmas = space.read().iter().map(flags).collect();
    let mut words = Vec::new();
    for page in 0..PAGES {
        let mapped = space.read().lookup(va(at(page))).is_some();
        words.push(if mapped { load(mm, space, at(page)).unwrap() } else { u64::MAX });
    }
    (vmas, words)
}

/// Runs `call` on a fresh space with its `nth` step at `site` failing, for every
/// nth that there is. If the call fails, by ENOMEM or EAGAIN, the program sees no
/// difference. Returns how often it did.
fn fail_each(
    site: FaultSite,
    prepare: impl for<'m> Fn(&TestMm<'m>, &Space<'m>),
    call: impl for<'m> Fn(&TestMm<'m>, &Space<'m>) -> Result<(), Errno>,
) -> u64 {
    let mut failures = 0;
    for nth in 1.. {
        let mut struck = false;
        with_mm(|mm| {
            let space = mm.new_space().unwrap();
            prepare(mm, &space);
            let before = view(mm, &space);
            let faults = mm.platform().faults();
            let count = faults.struck(site);
            faults.fail_nth(site, nth);
            let result = call(mm, &space);
            struck = faults.struck(site) > count;
            faults.fail_nth(site, 0);
            check(mm);
            match result {
                Ok(()) => {}
                Err(Errno::ENOMEM | Errno::EAGAIN) => {
                    assert!(struck, "failed without a reason");
                    assert_eq!(view(mm, &space), before, "the {nth}th failure left traces");
                    failures += 1;
                }
                Err(other) => panic!("{other}"),
            }
            exit(mm, space);
        });
        if !struck {
            return failures;
        }
    }
    unreachable!("a call has an end")
}

const SITES: [FaultSite; 2] = [FaultSite::SlabAlloc, FaultSite::BuddyAlloc];

fn two_mappings<'m>(mm: &TestMm<'m>, space: &Space<'m>) {
    filled(mm, space, 0, 6);
    filled(mm, space, 8, 4);
}

#[test]
fn mmap_over_the_middle_of_a_mapping() {
    for site in SITES {
        let failed = fail_each(site, two_mappings, |mm, space| {
            mm.mmap(space, Args::anonymous(2 * PAGE).prot(PageProt::READ).fixed(at(2))).map(drop)
        });
        assert!(failed >= u64::from(site == FaultSite::SlabAlloc));
    }
}

#[test]
fn munmap_of_the_middle_of_a_mapping() {
    for site in SITES {
        fail_each(site, two_mappings, |mm, space| mm.munmap(space, at(2), PAGE));
    }
    let failed = fail_each(FaultSite::SlabAlloc, two_mappings, |mm, space| {
        mm.munmap(space, at(2), 7 * PAGE)
    });
    assert!(failed >= 3, "two VMAs, their links: {failed}");
}

#[test]
fn mprotect_of_the_middle_of_a_mapping() {
    for site in SITES {
        fail_each(site, two_mappings, |mm, space| mm.mprotect(space, at(2), PAGE, PageProt::READ));
    }
}

#[test]
fn madvise_of_the_middle_of_a_mapping() {
    for site in SITES {
        fail_each(site, two_mappings, |mm, space| {
            mm.madvise(space, at(2), PAGE, Advice::NoHugePage)
        });
    }
}

#[test]
fn mremap_to_an_empty_place() {
    let to = RemapArgs {
        old: at(1),
        old_bytes: 3 * PAGE,
        new_bytes: 3 * PAGE,
        flags: RemapFlags::MAYMOVE | RemapFlags::FIXED,
        new: HERE + (1 << 40),
    };
    for site in SITES {
        let failed = fail_each(site, two_mappings, |mm, space| mm.mremap(space, to).map(drop));
        assert!(failed >= 3, "{failed}");
        let dontunmap = RemapArgs { flags: RemapFlags::MAYMOVE | RemapFlags::DONTUNMAP, ..to };
        fail_each(site, two_mappings, |mm, space| mm.mremap(space, dontunmap).map(drop));
        let grow = RemapArgs { new_bytes: 9 * PAGE, flags: RemapFlags::MAYMOVE, ..to };
        fail_each(site, two_mappings, |mm, space| mm.mremap(space, grow).map(drop));
    }
}

#[test]
fn a_move_that_fails_after_some_tables_moves_back() {
    fn spread<'m>(mm: &TestMm<'m>, space: &Space<'m>) {
        mm.mmap(space, Args::anonymous(3 * PMD_SIZE).fixed(HERE)).unwrap();
        mm.madvise(space, HERE, 3 * PMD_SIZE, Advice::NoHugePage).unwrap();
        for page in [0, 5, 600, 1100, 1535] {
            store(mm, space, at(page), page + 1).unwrap();
        }
    }
    for offset in [0, PAGE] {
        let call = RemapArgs {
            old: HERE,
            old_bytes: 3 * PMD_SIZE,
            new_bytes: 3 * PMD_SIZE,
            flags: RemapFlags::MAYMOVE | RemapFlags::FIXED,
            new: HERE + (1 << 41) + offset,
        };
        let failed =
            fail_each(FaultSite::BuddyAlloc, spread, |mm, space| mm.mremap(space, call).map(drop));
        assert!(failed >= 2, "{failed}");
    }
}

/// A call whose failure leaves no traces.
type Call<'a> = dyn for<'m> Fn(&TestMm<'m>, &Space<'m>) -> Result<(), Errno> + 'a;

fn huge_page<'m>(mm: &TestMm<'m>, space: &Space<'m>) {
    mm.mmap(space, Args::anonymous(2 * PMD_SIZE).fixed(HERE)).unwrap();
    mm.madvise(space, HERE, 2 * PMD_SIZE, Advice::HugePage).unwrap();
    for page in [0, 3, 511, 512] {
        store(mm, space, at(page), page + 1).unwrap();
    }
}

#[test]
fn calls_on_a_part_of_a_huge_page() {
    for site in SITES {
        let mremap = |pages, flags, new| {
            let bytes = pages * PAGE;
            RemapArgs { old: at(0), old_bytes: bytes, new_bytes: bytes, flags, new }
        };
        let fixed = RemapFlags::MAYMOVE | RemapFlags::FIXED;
        let far = HERE + (1 << 40);
        let calls: [&Call<'_>; 7] = [
            &|mm, space| mm.munmap(space, at(3), PAGE),
            &|mm, space| mm.mprotect(space, at(3), PAGE, PageProt::READ),
            &|mm, space| mm.madvise(space, at(3), PAGE, Advice::DontNeed),
            &|mm, space| mm.madvise(space, at(3), PAGE, Advice::DontFork),
            &|mm, space| mm.mlock(space, at(3), PAGE),
            &|mm, space| mm.mremap(space, mremap(2, fixed, far)).map(drop),
            &|mm, space| mm.mremap(space, mremap(1024, fixed, far + PAGE)).map(drop),
        ];
        for call in calls {
            assert!(fail_each(site, huge_page, call) >= 1);
        }
    }
}

#[test]
fn fork_fails_without_a_child_and_leaves_the_parent_as_it_was() {
    for site in SITES {
        let failed = fail_each(site, two_mappings, |mm, space| {
            let child = mm.fork(space)?;
            assert_eq!(load(mm, &child, at(9)), Ok(10));
            exit(mm, child);
            Ok(())
        });
        assert!(failed >= 3, "{failed}");
    }
}

#[test]
fn a_space_that_cannot_be_made_leaves_nothing() {
    for site in SITES {
        for nth in 1.. {
            let mut struck = true;
            with_mm(|mm| {
                let faults = mm.platform().faults();
                faults.fail_nth(site, nth);
                match mm.new_space() {
                    Ok(space) => {
                        struck = faults.struck(site) > 0;
                        faults.fail_nth(site, 0);
                        mm.exit_space(space);
                    }
                    Err(error) => assert_eq!(error, Errno::ENOMEM),
                }
                faults.fail_nth(site, 0);
            });
            if !struck {
                break;
            }
        }
    }
}

#[test]
fn a_space_has_no_more_vmas_than_the_limit() {
    with_space(|mm, space| {
        // As though there were so many: making them would take a minute.
        filled(mm, space, 0, 9);
        space.map_count.store(MAX_MAP_COUNT, crate::sync::shim::Ordering::Relaxed);
        assert_eq!(mm.munmap(space, at(3), PAGE), Err(Errno::ENOMEM));
        assert_eq!(mm.mprotect(space, at(3), PAGE, PageProt::READ), Err(Errno::ENOMEM));
        assert_eq!(mm.madvise(space, at(3), PAGE, Advice::DontFork), Err(Errno::EAGAIN));
        let call = RemapArgs {
            old: at(0),
            old_bytes: 9 * PAGE,
            new_bytes: 9 * PAGE,
            flags: RemapFlags::MAYMOVE | RemapFlags::FIXED,
            new: at(50),
        };
        assert_eq!(mm.mremap(space, call), Err(Errno::ENOMEM));
        space.map_count.store(MAX_MAP_COUNT + 1, crate::sync::shim::Ordering::Relaxed);
        assert_eq!(mm.mmap(space, Args::anonymous(PAGE)), Err(Errno::ENOMEM));
        // Nothing was split, so whole VMAs can still go.
        space.map_count.store(1, crate::sync::shim::Ordering::Relaxed);
        assert_eq!(layout(space), [(0, 9)]);
        mm.munmap(space, at(0), 9 * PAGE).unwrap();
    });
}
