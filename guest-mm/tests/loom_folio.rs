//! Models of the readers that take references to folios without a lock.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom_folio`
//!
//! A descriptor that is freed is used again at once, for another frame or another
//! page of the file, which is the worst that a type-safe cache does. Each model comes
//! with the mutants that it must kill.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ptr::NonNull;

use abi::Pfn;
use guest_mm::folio::mutant::Mutant;
use guest_mm::folio::speculative::{Glance, glance};
use guest_mm::folio::{CacheGlance, Folio, FolioKind, FolioRef, FrozenFolio, cache_glance};
use guest_mm::memdesc::{Block, BlockKind, Memdesc, Order, Word, WordCell};
use guest_mm::rcu::Rcu;
use guest_mm::xarray::{Entry, XArray};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

#[path = "support/loom_nodes.rs"]
mod loom_nodes;

use loom_nodes::Nodes;

/// Explores `model` with at most `preemptions` involuntary switches.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn frozen_word() -> Word {
    Memdesc::Block(Block::new(BlockKind::Frozen, Order::ZERO)).encode()
}

fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

/// Two frames, and a descriptor that describes the first.
struct Frames {
    descriptor: *mut Folio,
    words: [WordCell; 2],
    /// What the owner of a frame, or who has a reference, may touch.
    contents: [UnsafeCell<u64>; 2],
}

// SAFETY: loom checks every access to the cells; the descriptor is shared only.
unsafe impl Send for Frames {}
// SAFETY: as for `Send`.
unsafe impl Sync for Frames {}

impl Frames {
    fn new() -> Arc<Self> {
        let descriptor = Box::into_raw(Box::new(Folio::unused()));
        let frames = Arc::new(Self {
            descriptor,
            words: [WordCell::new(frozen_word()), WordCell::new(frozen_word())],
            contents: [UnsafeCell::new(0), UnsafeCell::new(0)],
        });
        // SAFETY: nobody else has it yet.
        let folio = unsafe { FrozenFolio::own(frames.folio()) };
        // The reference is the writer's, who makes the handle again.
        frames.publish(folio, 0).into_raw();
        frames
    }

    fn folio<'m>(&self) -> &'m Folio {
        // SAFETY: freed in `drop`, when no thread is left.
        unsafe { &*self.descriptor }
    }

    fn word(&self) -> Word {
        FolioKind::Anon.word_of(NonNull::new(self.descriptor).unwrap())
    }

    /// The reference that `new` left.
    fn first_reference<'m>(&self) -> FolioRef<'m> {
        // SAFETY: called once in each model, by the writer.
        unsafe { FolioRef::from_raw(NonNull::new(self.descriptor).unwrap()) }
    }

    /// As `Mm::alloc_folio` does: fields, word, count.
    fn publish<'m>(&self, folio: FrozenFolio<'m>, frame: usize) -> FolioRef<'m> {
        folio.describe(pfn(frame as u64), Order::ZERO, FolioKind::Anon);
        self.words[frame].transition(frozen_word(), self.word()).unwrap();
        folio.unfreeze(1)
    }

    /// As `Mm::free_folio` does up to the free frame: the word goes.
    fn dissolve(&self, folio: &FrozenFolio<'_>) {
        let frame = usize::try_from(folio.pfn().number()).unwrap();
        self.words[frame].transition(self.word(), frozen_word()).unwrap();
        // The frame is its next owner's.
        // SAFETY: loom fails the model if anybody else is here.
        self.contents[frame].with_mut(|contents| unsafe { *contents += 1 });
    }

    /// A PFN walker: takes a reference by the word of the first frame, looks, and puts it.
    fn walk(&self) {
        // SAFETY: the descriptor stays a descriptor until all threads are done.
        match unsafe { glance(&self.words[0]) } {
            Glance::Folio(folio) => {
                assert_eq!(folio.pfn(), pfn(0), "another frame's folio");
                // SAFETY: a reference keeps the frame; loom fails the model if not.
                self.contents[0].with(|contents| unsafe { *contents });
                self.put(folio);
            }
            Glance::Moved(folio) => self.put(folio),
            Glance::NotFolio(_) | Glance::Frozen => {}
        }
    }

    fn put(&self, folio: FolioRef<'_>) {
        if let Some(frozen) = folio.release() {
            self.dissolve(&frozen);
        }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: from `Box::into_raw`, and no thread is left.
        drop(unsafe { Box::from_raw(self.descriptor) });
    }
}

/// Runs PFN walkers against `write`.
fn walkers_against(walkers: usize, write: fn(&Frames)) {
    let frames = Frames::new();
    let readers: Vec<_> = (0..walkers)
        .map(|_| {
            let frames = Arc::clone(&frames);
            thread::spawn(move || frames.walk())
        })
        .collect();
    write(&frames);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

// ---- Put to zero and reuse against try_get ------------------------------

/// The last reference goes; the descriptor is used for the other frame at once.
fn put_and_reuse(frames: &Frames) {
    if let Some(frozen) = frames.first_reference().release() {
        frames.dissolve(&frozen);
        let folio = frames.publish(frozen, 1);
        assert!(folio.refcount() >= 1);
        frames.put(folio);
    }
}

#[test]
fn a_walker_never_gets_the_folio_that_its_descriptor_became() {
    explore(3, || walkers_against(1, put_and_reuse));
}

#[test]
fn two_walkers_never_get_the_folio_that_their_descriptor_became() {
    explore(2, || walkers_against(2, put_and_reuse));
}

#[test]
#[should_panic(expected = "another frame's folio")]
fn mutant_without_the_second_look_a_walker_gets_another_frames_folio() {
    explore(3, || {
        let _mutant = Mutant::NoWordRecheck.active();
        walkers_against(1, put_and_reuse);
    });
}

#[test]
#[should_panic(expected = "Concurrent read and write accesses")]
fn mutant_a_count_written_with_the_fields_lets_a_walker_into_an_unpublished_folio() {
    explore(3, || {
        let _mutant = Mutant::PlainRefcount.active();
        walkers_against(1, put_and_reuse);
    });
}

// ---- Freeze against try_get ---------------------------------------------

/// Freezes if alone, and then does what only the owner of all references may.
fn freeze_and_change(frames: &Frames) {
    match frames.first_reference().freeze(1) {
        Ok(frozen) => {
            // SAFETY: frozen; loom fails the model if a reader is here.
            frames.contents[0].with_mut(|contents| unsafe { *contents += 1 });
            frames.put(frozen.unfreeze(1));
        }
        Err(folio) => frames.put(folio),
    }
}

#[test]
fn a_frozen_folio_has_no_reader() {
    explore(3, || walkers_against(1, freeze_and_change));
}

#[test]
fn of_two_freezes_one_wins() {
    explore(3, || {
        let frames = Frames::new();
        let first = frames.first_reference();
        let second = first.get();
        let attempt = |folio: FolioRef<'_>, frames: &Frames| match folio.freeze(2) {
            Ok(frozen) => {
                // SAFETY: frozen; loom fails the model if the other is here too.
                frames.contents[0].with_mut(|contents| unsafe { *contents += 1 });
                frozen.unfreeze(2).into_raw();
                true
            }
            Err(folio) => {
                folio.into_raw();
                false
            }
        };
        let there = {
            let frames = Arc::clone(&frames);
            thread::spawn(move || attempt(second, &frames))
        };
        let here = attempt(first, &frames);
        let there = there.join().unwrap();
        assert!(here || there, "the first to try wins");
        assert_eq!(frames.folio().refcount(), 2);
    });
}

// ---- Page-cache lookup --------------------------------------------------

const MAPPING: u64 = 0x1000;

/// A file with a folio at page 1.
struct File {
    pages: Option<XArray<'static, Nodes, Folio>>,
    rcu: *mut Rcu,
    descriptor: *mut Folio,
}

// SAFETY: the domain and the descriptor are shared only.
unsafe impl Send for File {}
// SAFETY: as for `Send`.
unsafe impl Sync for File {}

impl File {
    fn new() -> Arc<Self> {
        let rcu = Box::into_raw(Box::new(Rcu::new()));
        // SAFETY: freed in `drop` only, after the array.
        let pages = XArray::new(unsafe { &*rcu }, Nodes::new());
        let descriptor = Box::into_raw(Box::new(Folio::unused()));
        let file = Arc::new(Self { pages: Some(pages), rcu, descriptor });
        // SAFETY: nobody else has it yet.
        let frozen = unsafe { FrozenFolio::own(&*descriptor) };
        // The cache's reference.
        file.add(frozen, 1).into_raw();
        file
    }

    fn pages(&self) -> &XArray<'static, Nodes, Folio> {
        self.pages.as_ref().unwrap()
    }

    /// A new folio, put into the cache at `index`, with the cache's reference as its only one.
    fn add<'m>(&self, frozen: FrozenFolio<'m>, index: u64) -> FolioRef<'m> {
        frozen.describe(pfn(7), Order::ZERO, FolioKind::File);
        let folio = frozen.unfreeze(1);
        folio.place(MAPPING, index);
        self.pages().insert(index, Entry::Pointer(folio.as_ptr())).unwrap();
        folio
    }

    /// Truncates page 1; the descriptor becomes page 2's, of the same file, at once.
    fn truncate_and_reuse(&self) {
        let cached = NonNull::new(self.descriptor).unwrap();
        self.pages().erase(1);
        // SAFETY: the cache's reference, which the slot no longer stands for.
        let folio: FolioRef<'static> = unsafe { FolioRef::from_raw(cached) };
        folio.unplace();
        if let Some(frozen) = folio.release() {
            self.add(frozen, 2).into_raw();
        }
    }

    fn lookup(&self) {
        let guard = self.pages().rcu().read(1);
        // SAFETY: the domain is the array's; the descriptor outlives the threads.
        let seen = unsafe { cache_glance(self.pages(), &guard, MAPPING, 1) };
        match seen {
            CacheGlance::Folio(folio) => {
                assert_eq!(folio.index(), 1, "another page's folio");
                drop(folio.release());
            }
            CacheGlance::Moved(folio) => drop(folio.release()),
            CacheGlance::Absent | CacheGlance::Frozen => {}
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.pages = None;
        // SAFETY: from `Box::into_raw`; their only users are gone.
        drop(unsafe { Box::from_raw(self.rcu) });
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(self.descriptor) });
    }
}

fn lookup_vs_truncate() {
    let file = File::new();
    let reader = {
        let file = Arc::clone(&file);
        thread::spawn(move || file.lookup())
    };
    file.truncate_and_reuse();
    reader.join().unwrap();
}

#[test]
fn a_lookup_never_gets_the_page_that_its_descriptor_became() {
    explore(3, lookup_vs_truncate);
}

#[test]
#[should_panic(expected = "another page's folio")]
fn mutant_without_the_second_look_a_lookup_gets_another_page() {
    explore(3, || {
        let _mutant = Mutant::NoSlotRecheck.active();
        lookup_vs_truncate();
    });
}

// ---- Migration against try_get ------------------------------------------

/// What only migration may touch the contents for, while nobody has a reference:
/// the folio's page goes from the first frame to the second.
fn migrate(frames: &Frames) {
    let folio = frames.first_reference();
    match folio.freeze(1) {
        Ok(frozen) => {
            // Copies: SAFETY: frozen; loom fails the model if a reader is here.
            let bytes = frames.contents[0].with_mut(|contents| unsafe { *contents });
            // SAFETY: the destination is nobody's yet.
            frames.contents[1].with_mut(|contents| unsafe { *contents = bytes });
            let adopt = || frames.words[1].transition(frozen_word(), frames.word()).unwrap();
            let leave = || {
                frames.words[0].transition(frames.word(), frames.left_word()).unwrap();
            };
            let folio = frozen.relocate(pfn(1), 1, adopt, leave);
            // The source goes to its next owner.
            frames.words[0].transition(frames.left_word(), frozen_word()).unwrap();
            // SAFETY: nobody names the first frame any more.
            frames.contents[0].with_mut(|contents| unsafe { *contents += 1 });
            frames.put(folio);
        }
        Err(folio) => frames.put(folio),
    }
}

impl Frames {
    fn left_word(&self) -> Word {
        FolioKind::Anon.left_word_of(NonNull::new(self.descriptor).unwrap())
    }

    /// A PFN walker by the word of frame `frame`, which looks twice where the folio is.
    fn walk_at(&self, frame: usize) {
        // SAFETY: the descriptor stays a descriptor until all threads are done.
        match unsafe { glance(&self.words[frame]) } {
            Glance::Folio(folio) => {
                assert_eq!(folio.pfn(), pfn(frame as u64), "another frame's folio");
                // SAFETY: a reference keeps the folio there; loom fails the model if not.
                self.contents[frame].with(|contents| unsafe { *contents });
                assert_eq!(folio.pfn(), pfn(frame as u64), "the folio moved under a reference");
                self.put(folio);
            }
            Glance::Moved(folio) => self.put(folio),
            Glance::NotFolio(_) | Glance::Frozen => {}
        }
    }
}

/// Runs a walker by each of `words` against a migration.
fn walkers_against_migration(words: &'static [usize]) {
    let frames = Frames::new();
    let readers: Vec<_> = words
        .iter()
        .map(|&word| {
            let frames = Arc::clone(&frames);
            thread::spawn(move || frames.walk_at(word))
        })
        .collect();
    migrate(&frames);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn a_walker_by_the_old_frame_never_gets_the_folio_where_it_is_not() {
    explore(3, || walkers_against_migration(&[0]));
}

#[test]
fn a_walker_by_the_new_frame_never_gets_the_folio_before_it_is_there() {
    explore(3, || walkers_against_migration(&[1]));
}

#[test]
fn walkers_by_both_frames_meet_the_folio_in_one_of_them() {
    explore(2, || walkers_against_migration(&[0, 1]));
}

#[test]
#[should_panic(expected = "Concurrent read and write accesses")]
fn mutant_without_a_freeze_the_folio_moves_under_a_reference() {
    explore(3, || {
        let _mutant = Mutant::NoFreeze.active();
        walkers_against_migration(&[0]);
    });
}

#[test]
#[should_panic(expected = "another frame's folio")]
fn mutant_a_word_taken_away_after_the_unfreeze_leads_to_another_frames_folio() {
    explore(3, || {
        let _mutant = Mutant::WordAfterUnfreeze.active();
        walkers_against_migration(&[0]);
    });
}

/// A page-cache lookup needs nothing new: the slot names the descriptor, which stays.
#[test]
fn a_lookup_finds_the_page_wherever_it_is_or_looks_again() {
    explore(3, || {
        let file = File::new();
        let reader = {
            let file = Arc::clone(&file);
            thread::spawn(move || file.lookup())
        };
        let cached = NonNull::new(file.descriptor).unwrap();
        // SAFETY: the cache's reference; it is frozen with the folio and comes back with it.
        let folio: FolioRef<'static> = unsafe { FolioRef::from_raw(cached) };
        let folio = match folio.freeze(1) {
            Ok(frozen) => frozen.relocate(pfn(8), 1, || (), || ()),
            Err(folio) => folio,
        };
        folio.into_raw();
        reader.join().unwrap();
    });
}
