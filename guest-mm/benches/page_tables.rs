//! Page-table figures on the host: `cargo bench -p guest-mm --features testing --bench page_tables`.
//!
//! One thread on the host's simulated platform, whose TLB flushes cost next to
//! nothing: tables and locks alone. Minimum, median and maximum of nine rounds,
//! in nanoseconds per page.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use abi::Pfn;
use guest_mm::addr::{VaRange, VirtAddr};
use guest_mm::memory::AllocError;
use guest_mm::mm::Base;
use guest_mm::pgtable::{
    Duplicate, Entry, ForkRules, LeafOwner, PageProt, Pmd, Protection, Pte, Sharing, SizedLeaf,
    Tables, TlbGather, Unmapped, ZapRules, free_root, new_root,
};
use guest_mm::platform::AtomicCpuSet;
use guest_mm::testing::{TestPlatform, memory};

const ROUNDS: usize = 9;
/// 64 MiB: 32 tables.
const PAGES: u64 = 16_384;
const FIRST: u64 = 0x7f00_0000_0000;

type Machine = Base<TestPlatform>;

struct Space<'m> {
    base: &'m Machine,
    root: Pfn,
    cpus: AtomicCpuSet,
    pages: AtomicU64,
}

impl<'m> Space<'m> {
    fn new(base: &'m Machine) -> Self {
        let root = new_root(base).expect("a root");
        Self { base, root, cpus: AtomicCpuSet::new(), pages: AtomicU64::new(0) }
    }

    fn tables(&self) -> Tables<'_, TestPlatform> {
        Tables::new(self.base, self.root, &self.cpus, &self.pages)
    }

    fn zap(&self) {
        let mut gather = TlbGather::new(self.tables());
        let zapped = self.tables().zap_range(range(), ZapRules::UNMAP, &mut gather, &mut Nobody);
        zapped.expect("nothing to split");
        gather.flush(&mut Nobody);
    }

    fn free(&self) {
        let mut gather = TlbGather::new(self.tables());
        self.tables().free_tables(range(), &mut gather, &mut Nobody);
        gather.flush(&mut Nobody);
        while self.base.reap_tables(64) > 0 {}
    }

    fn end(self) {
        self.zap();
        self.free();
        // SAFETY: no CPU has it loaded, and its tables are not used any more.
        unsafe { free_root(self.base, self.root) }.expect("an empty root");
        while self.base.reap_tables(64) > 0 {}
    }
}

/// Leaves with nothing behind them.
struct Nobody;

impl LeafOwner for Nobody {
    type Put = ();
    fn unmapped(&mut self, _: VirtAddr, _: SizedLeaf) -> Unmapped<()> {
        Unmapped { put: Some(()), flush_now: false }
    }
    fn put(&mut self, (): ()) {}
    fn split(&mut self, _: VirtAddr, _: SizedLeaf) {}
    fn duplicate(&mut self, _: VirtAddr, _: SizedLeaf) -> Duplicate {
        Duplicate::Shared
    }
    fn prepare_copy(&mut self, _: VirtAddr) -> Result<(), AllocError> {
        Ok(())
    }
}

fn range() -> VaRange {
    VaRange::from_call(FIRST, PAGES << 12).expect("a range")
}

fn leaf(n: u64) -> Entry {
    let pfn = Pfn::new(n % 4096).expect("a frame");
    let pte = Pte::new(pfn, PageProt::READ | PageProt::WRITE).expect("fits");
    pte.mk_anon_exclusive().mk_dirty().entry()
}

fn map(space: &Space<'_>) {
    for (n, va) in (0..).zip(range().iter_pages()) {
        let guard = space.tables().alloc_lock_pte(va).expect("tables");
        guard.expect("no large leaf").set(va, leaf(n));
    }
}

fn protect(space: &Space<'_>, prot: PageProt) {
    let to = Protection { prot, sharing: Sharing::Private, tracks_soft_dirty: false };
    let mut gather = TlbGather::new(space.tables());
    let changed =
        space.tables().change_protection(range(), to, &mut gather, &mut Nobody).expect("no split");
    assert_eq!(changed, PAGES);
    gather.flush(&mut Nobody);
}

/// Prints nanoseconds per page: minimum, median and maximum of the rounds.
fn report(name: &str, mut round: impl FnMut() -> Duration) {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| round()).collect();
    times.sort();
    let per_page = |time: Duration| time.as_nanos() as f64 / PAGES as f64;
    let [min, median, max] = [0, ROUNDS / 2, ROUNDS - 1].map(|n| per_page(times[n]));
    println!("{name:<44} {min:>9.2} {median:>9.2} {max:>9.2}");
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn walks(space: &Space<'_>) {
    report("walk without locks, one read section each", || {
        timed(|| {
            for va in range().iter_pages() {
                let section = space.base.rcu.read(0);
                black_box(space.tables().walk(&section, va));
            }
        })
    });
    report("walk without locks, one read section in all", || {
        timed(|| {
            let section = space.base.rcu.read(0);
            for va in range().iter_pages() {
                black_box(space.tables().walk(&section, va));
            }
        })
    });
    report("lock the PTE table and load", || {
        timed(|| {
            for va in range().iter_pages() {
                black_box(space.tables().lock_pte(va).expect("a table").load(va));
            }
        })
    });
}

fn main() {
    let base = Base::new(memory(16_384)).expect("a machine");
    println!("{:<44} {:>9} {:>9} {:>9}  ns per page", "", "min", "median", "max");
    let space = Space::new(&base);
    report("map, tables made", || {
        space.zap();
        space.free();
        timed(|| map(&space))
    });
    report("map, tables there", || {
        space.zap();
        timed(|| map(&space))
    });
    walks(&space);
    report("mprotect to read-only and back, each", || {
        timed(|| {
            protect(&space, PageProt::READ);
            protect(&space, PageProt::READ | PageProt::WRITE);
        }) / 2
    });
    report("fork: copy leaves, tables made", || {
        let child = Space::new(&base);
        let rules = ForkRules { sharing: Sharing::Private, child_has_uffd: false };
        let time = timed(|| {
            let mut gather = TlbGather::new(space.tables());
            let (from, to) = (space.tables(), child.tables());
            let copied = from.copy_range(&to, range(), rules, &mut gather, &mut Nobody);
            copied.expect("memory");
            gather.flush(&mut Nobody);
        });
        child.end();
        time
    });
    report("zap", || {
        space.zap();
        map(&space);
        timed(|| space.zap())
    });
    report("split PMD leaves", || {
        space.zap();
        space.free();
        for va in range().iter_pages().step_by(512) {
            let pmd = Pmd::new(Pfn::new(512).expect("a frame"), PageProt::READ).expect("aligned");
            space.tables().alloc_lock_pmd(va).expect("tables").set(va, pmd.entry());
        }
        timed(|| {
            for va in range().iter_pages().step_by(512) {
                assert!(space.tables().split_pmd(va, &mut Nobody).expect("memory"));
            }
        })
    });
    space.end();
}
