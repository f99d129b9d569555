//! Random operations on several CPUs, with faults, against a set of objects.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::rcu::{Rcu, RcuHead, ReadGuard};
use crate::testing::set_cpu;

/// An object: its head, and a mark behind it.
#[repr(C)]
struct Object {
    head: RcuHead,
    mark: u64,
    filler: [u64; 5],
}

#[derive(Debug, Clone)]
enum Step {
    Alloc,
    /// Takes an object while the buddy allocator, or the cache itself, fails.
    AllocFailing(FaultSite),
    Free(prop::sample::Index),
    /// Frees after a grace period; immediately in a type-safe cache.
    Defer(prop::sample::Index),
    FreeTwice(prop::sample::Index),
    OpenReader,
    CloseReader,
    Drain,
    Shrink,
    Reap,
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        8 => Just(Step::Alloc),
        2 => Just(Step::AllocFailing(FaultSite::BuddyAlloc)),
        1 => Just(Step::AllocFailing(FaultSite::SlabAlloc)),
        5 => index().prop_map(Step::Free),
        3 => index().prop_map(Step::Defer),
        1 => index().prop_map(Step::FreeTwice),
        1 => Just(Step::OpenReader),
        2 => Just(Step::CloseReader),
        1 => Just(Step::Drain),
        1 => Just(Step::Shrink),
        2 => Just(Step::Reap),
    ];
    (0..4usize, step)
}

/// The naive books.
struct Model<'a> {
    memory: &'a Memory<TestPlatform>,
    cache: KmemCache,
    rcu: &'a Rcu,
    is_type_safe: bool,
    live: Vec<NonNull<u8>>,
    /// Objects that wait for a grace period, oldest first: their addresses, and how
    /// many of the readers open then are open still.
    deferred: VecDeque<(usize, usize)>,
    /// Marks of live and deferred objects, by address.
    marks: BTreeMap<usize, u64>,
    next_mark: u64,
    readers: Vec<ReadGuard<'a>>,
}

impl Model<'_> {
    fn alloc(&mut self, fault: Option<FaultSite>) {
        let faults = self.memory.platform().faults();
        let stats = self.cache.stats(self.memory);
        let has_free = stats.slabs * stats.objects_per_slab > stats.in_use;
        if let Some(site) = fault {
            faults.fail_nth(site, 1);
        }
        let allocated = self.cache.alloc(self.memory, Gfp::KERNEL);
        // Whatever did not strike must not strike later.
        faults.fail_nth(FaultSite::BuddyAlloc, 0);
        faults.fail_nth(FaultSite::SlabAlloc, 0);
        let must_fail = fault == Some(FaultSite::SlabAlloc)
            || fault == Some(FaultSite::BuddyAlloc) && !has_free;
        assert_eq!(allocated.is_err(), must_fail, "{fault:?} {stats:?}");
        let Ok(object) = allocated else { return };
        self.next_mark += 1;
        let value = Object { head: RcuHead::new(), mark: self.next_mark, filler: [!0; 5] };
        // SAFETY: ours, and of that size.
        unsafe { object.cast::<Object>().write(value) };
        let before = self.marks.insert(object.addr().get(), self.next_mark);
        assert_eq!(before, None, "handed out twice, or before its readers left");
        self.live.push(object);
    }

    /// Takes an object off the books.
    fn pick(&mut self, index: prop::sample::Index) -> Option<NonNull<u8>> {
        if self.live.is_empty() {
            return None;
        }
        let object = self.live.swap_remove(index.index(self.live.len()));
        // SAFETY: live.
        let mark = unsafe { object.cast::<Object>().as_ref() }.mark;
        assert_eq!(Some(&mark), self.marks.get(&object.addr().get()), "written by another owner");
        Some(object)
    }

    fn free(&mut self, object: NonNull<u8>) {
        free(self.memory, &self.cache, object);
        self.marks.remove(&object.addr().get());
    }

    fn defer(&mut self, object: NonNull<u8>) {
        if self.is_type_safe {
            return self.free(object);
        }
        // SAFETY: live, with a head; the model uses it no more.
        assert_eq!(unsafe { self.cache.free_rcu(self.memory, self.rcu, object) }, Ok(()));
        self.deferred.push_back((object.addr().get(), self.readers.len()));
        self.forget_freed();
    }

    /// Forgets the marks of deferred objects that have been freed: oldest first.
    fn forget_freed(&mut self) {
        while self.deferred.len() > self.cache.deferred(self.memory) {
            if let Some((address, readers)) = self.deferred.pop_front() {
                assert_eq!(readers, 0, "freed under its readers");
                self.marks.remove(&address);
            }
        }
    }

    fn reap(&mut self) {
        self.cache.reap(self.memory, self.rcu, usize::MAX);
        self.forget_freed();
        if self.readers.is_empty() {
            assert_eq!(self.cache.deferred(self.memory), 0, "nothing to wait for");
            assert_eq!(self.cache.stats(self.memory).limbo, 0, "nothing to wait for");
        }
    }

    fn step(&mut self, cpu: usize, step: Step) {
        set_cpu(cpu);
        match step {
            Step::Alloc => self.alloc(None),
            Step::AllocFailing(site) => self.alloc(Some(site)),
            Step::Free(index) => {
                if let Some(object) = self.pick(index) {
                    self.free(object);
                }
            }
            Step::Defer(index) => {
                if let Some(object) = self.pick(index) {
                    self.defer(object);
                }
            }
            Step::FreeTwice(index) => {
                if let Some(object) = self.pick(index) {
                    self.free(object);
                    let again = refusal(self.memory, &self.cache, object);
                    // The slab itself may have gone with its last object.
                    let expected = [SlabFreeError::DoubleFree, SlabFreeError::NotSlab];
                    assert!(again.is_some_and(|error| expected.contains(&error)), "{again:?}");
                }
            }
            Step::OpenReader => self.readers.push(self.rcu.read(cpu)),
            Step::CloseReader => {
                drop(self.readers.pop());
                for (_, readers) in &mut self.deferred {
                    *readers = self.readers.len().min(*readers);
                }
            }
            Step::Drain => {
                self.cache.drain(self.memory);
                assert_eq!(self.cache.stats(self.memory).per_cpu, 0);
            }
            Step::Shrink => {
                self.cache.shrink(self.memory);
            }
            Step::Reap => self.reap(),
        }
    }

    fn check(&self) {
        assert_consistent(self.memory, &[&self.cache]);
        let in_use = self.live.len() + self.cache.deferred(self.memory);
        assert_eq!(self.cache.stats(self.memory).in_use, in_use as u64);
    }

    /// Ends everything: the memory must be as it was.
    fn finish(mut self) {
        self.readers.clear();
        for object in std::mem::take(&mut self.live) {
            self.free(object);
        }
        self.cache.reap(self.memory, self.rcu, usize::MAX);
        self.cache.shrink(self.memory);
        self.cache.reap(self.memory, self.rcu, usize::MAX);
        assert_eq!(self.memory.free_pages(), self.memory.managed_pages());
        assert_eq!(self.rcu.stats().deferred_bytes, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn caches_agree_with_a_set_of_objects_after_every_step(
        per_cpu in any::<bool>(),
        is_type_safe in any::<bool>(),
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let memory = memory(2048);
        let rcu = Rcu::new();
        let rcu_head = (!is_type_safe).then_some(core::mem::offset_of!(Object, head));
        let options =
            SlabOptions { per_cpu, type_safe: is_type_safe, rcu_head, ..SlabOptions::default() };
        let mut model = Model {
            memory: &memory,
            cache: KmemCache::new(&memory, "model", 576, options).unwrap(),
            rcu: &rcu,
            is_type_safe,
            live: Vec::new(),
            deferred: VecDeque::new(),
            marks: BTreeMap::new(),
            next_mark: 0,
            readers: Vec::new(),
        };
        for (cpu, step) in steps {
            model.step(cpu, step);
            model.check();
        }
        model.finish();
        set_cpu(0);
    }
}

#[test]
fn every_nth_failing_step_leaves_books_that_agree() {
    let memory = memory(2048);
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        for nth in 1..60 {
            let cache = KmemCache::new(
                &memory,
                "nth",
                576,
                SlabOptions { per_cpu: true, ..SlabOptions::default() },
            )
            .unwrap();
            memory.platform().faults().fail_nth(site, nth);
            let objects: Vec<_> =
                (0..60).filter_map(|_| cache.alloc(&memory, Gfp::KERNEL).ok()).collect();
            memory.platform().faults().fail_nth(site, 0);
            assert_eq!(cache.stats(&memory).in_use, objects.len() as u64);
            assert!(objects.len() >= 59);
            assert_consistent(&memory, &[&cache]);
            objects.into_iter().for_each(|object| free(&memory, &cache, object));
            cache.shrink(&memory);
            assert_eq!(memory.free_pages(), memory.managed_pages());
        }
    }
}
