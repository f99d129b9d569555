//! Folio figures on the host: `cargo bench -p guest-mm --features testing --bench rmap`.
//!
//! Walks from a page that 1 to 1024 processes share, unmapping and mapping it again,
//! splitting, and page-cache lookup. One thread on the host's platform, whose TLB flushes
//! cost next to nothing. Minimum, median and maximum of nine rounds, in nanoseconds.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use abi::PAGE_SIZE;
use guest_mm::addr::{PMD_SIZE, VirtAddr};
use guest_mm::fault::FaultAccess;
use guest_mm::folio::FolioRef;
use guest_mm::memdesc::Order;
use guest_mm::mm::{Base, Mm};
use guest_mm::pgtable::{Found, LeafState, SizedLeaf};
use guest_mm::rmap::Unmap;
use guest_mm::space::{AddressSpace, Advice, MmapArgs};
use guest_mm::testing::{TestPlatform, memory};

const ROUNDS: usize = 9;
/// 512 MiB.
const FRAMES: u64 = 1 << 17;
const AT: u64 = 1 << 32;

type Machine<'m> = Mm<'m, TestPlatform>;

fn report(what: &str, per: u64, mut round: impl FnMut() -> Duration) {
    let mut times: Vec<f64> = (0..ROUNDS).map(|_| round().as_nanos() as f64 / per as f64).collect();
    times.sort_by(f64::total_cmp);
    let [min, median, max] = [times[0], times[ROUNDS / 2], times[ROUNDS - 1]];
    println!("{what:<52} {min:>10.1} {median:>10.1} {max:>10.1}");
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn fault<'m>(mm: &Machine<'m>, space: &AddressSpace<'m, TestPlatform>, at: u64) {
    let at = VirtAddr::new(at).expect("a user address");
    mm.handle_fault(space, at, FaultAccess::Write).expect("memory suffices");
}

/// The folio that is mapped at [`AT`].
fn folio<'m>(mm: &Machine<'m>, space: &AddressSpace<'m, TestPlatform>) -> FolioRef<'m> {
    let section = mm.base().rcu.read(0);
    let at = VirtAddr::new(AT).expect("a user address");
    let leaf = match space.tables().walk(&section, at) {
        Found::Pte { entry, .. } => SizedLeaf::of_pte(entry),
        Found::Pmd { entry, .. } => SizedLeaf::of_pmd(entry),
        Found::Hole | Found::Unknown(_) => Ok(None),
    };
    let pfn = match leaf {
        Ok(Some(SizedLeaf { state: LeafState::Present(pte), .. })) => Some(pte.pfn()),
        Ok(_) | Err(_) => None,
    };
    mm.folio_of(pfn.expect("it was faulted in")).expect("it is mapped")
}

/// One page, shared by more and more processes.
fn sharers(mm: &Machine<'_>) {
    let parent = mm.new_space().expect("memory suffices");
    mm.mmap(&parent, MmapArgs::anonymous(PAGE_SIZE).fixed(AT)).expect("memory suffices");
    fault(mm, &parent, AT);
    let page = folio(mm, &parent);
    let mut children = Vec::new();
    for count in [1u64, 4, 16, 64, 256, 1024] {
        while (children.len() as u64) < count - 1 {
            children.push(mm.fork(&parent).expect("memory suffices"));
        }
        report(&format!("rmap walk, VMAs only, {count} sharers, ns/sharer"), count * 64, || {
            timed(|| {
                for _ in 0..64 {
                    let walk = mm.rmap_walk::<()>(&page, &mut |vma, span| {
                        black_box((vma, span));
                        ControlFlow::Continue(())
                    });
                    assert!(walk.is_continue());
                }
            })
        });
        report(&format!("folio_referenced, {count} sharers, ns/sharer"), count * 16, || {
            timed(|| {
                for _ in 0..16 {
                    black_box(mm.folio_referenced(&page));
                }
            })
        });
        report(&format!("migration leaves and back, {count} sharers, ns/sharer"), count, || {
            let lock = page.lock(mm.platform());
            let time = timed(|| {
                let anchor = mm.rmap_anchor(&page).expect("it is mapped");
                assert!(mm.try_to_unmap(&page, Unmap::Migrate));
                mm.restore_leaves(&anchor, &page, page.pfn());
                mm.rmap_release(anchor);
            });
            drop(lock);
            time
        });
    }
    mm.put(page);
    children.into_iter().for_each(|child| mm.exit_space(child));
    mm.exit_space(parent);
}

/// Huge pages split to pages, as long as they come.
fn splits(mm: &Machine<'_>) {
    let space = mm.new_space().expect("memory suffices");
    for order in [8u8, 4, 0] {
        let to = Order::saturating(order);
        report(&format!("split 2 MiB to order {order}, us"), 1000, || {
            mm.munmap(&space, AT, PMD_SIZE).expect("a whole range");
            mm.mmap(&space, MmapArgs::anonymous(PMD_SIZE).fixed(AT)).expect("memory suffices");
            mm.madvise(&space, AT, PMD_SIZE, Advice::HugePage).expect("it is mapped");
            fault(mm, &space, AT);
            let huge = folio(mm, &space).into_locked(mm.platform());
            let time = timed(|| mm.split_folio(huge.reference(), to).expect("nobody else has it"));
            mm.put(huge.unlock());
            time
        });
    }
    mm.exit_space(space);
}

fn lookups(mm: &Machine<'_>) {
    const PAGES: u64 = 4096;
    for order in [0u8, 4] {
        let file = mm.shmem_file(0).expect("memory suffices");
        file.set_folio_order(Order::saturating(order));
        for page in 0..PAGES {
            mm.write_file(&file, page * PAGE_SIZE, b"x").expect("memory suffices");
        }
        report(&format!("find_get_folio and put, order {order}, ns"), PAGES, || {
            timed(|| {
                for page in 0..PAGES {
                    mm.put(mm.find_get_folio(&file, page).expect("it was written"));
                }
            })
        });
        mm.file_put(file);
    }
}

fn main() {
    let base = Base::new(memory(FRAMES)).expect("memory suffices");
    let mm = Mm::new(&base);
    println!("{:<52} {:>10} {:>10} {:>10}", "", "min", "median", "max");
    sharers(&mm);
    splits(&mm);
    lookups(&mm);
}
