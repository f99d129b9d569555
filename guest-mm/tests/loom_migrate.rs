//! Model checks of migration: who has a page, in every interleaving of migration
//! with itself, with an owner who frees, and with a walker.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p guest-mm --release --test loom_migrate`
//!
//! The swaps are the real ones (`memdesc/isolation.rs`), in the order of
//! `migrate/` and `objects/`; with the mutants that the models must kill.
#![cfg(loom)]

use guest_mm::memdesc::mutant::Mutant;
use guest_mm::memdesc::{
    Block, BlockKind, Claim, Descriptor, DescriptorKind, Hold, Memdesc, Order, PutBack, Transit,
    Word, WordCell,
};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// The word of the page with the one descriptor that there is.
fn described(hold: Hold) -> Word {
    let descriptor = Descriptor::new(DescriptorKind::Movable, 0x1000).expect("aligned");
    Memdesc::Descriptor(descriptor).encode().with_hold(hold).expect("it can move")
}

fn frozen() -> Word {
    Memdesc::Block(Block::new(BlockKind::Frozen, Order::ZERO)).encode()
}

fn transit() -> Word {
    Memdesc::Transit(Transit { order: Order::ZERO }).encode()
}

/// A frame: its word, and contents that only who has it may touch. Loom fails if
/// two do without one handing over to the other.
struct Frame {
    word: WordCell,
    contents: UnsafeCell<u64>,
    users: AtomicUsize,
    /// Times that it was freed.
    freed: AtomicUsize,
}

impl Frame {
    fn new(word: Word) -> Self {
        Self {
            word: WordCell::new(word),
            contents: UnsafeCell::new(0),
            users: AtomicUsize::new(0),
            freed: AtomicUsize::new(0),
        }
    }

    /// What whoever has the frame does with it.
    fn touch(&self) {
        assert_eq!(self.users.fetch_add(1, Ordering::Relaxed), 0, "two have the page");
        // SAFETY: the caller has won the word; loom checks that nobody else is here.
        self.contents.with_mut(|contents| unsafe { *contents += 1 });
        self.users.fetch_sub(1, Ordering::Relaxed);
    }

    /// The frame, whose word says frozen, goes back to the allocator.
    fn free(&self) {
        self.touch();
        assert_eq!(self.word.load(), frozen(), "freed by somebody who does not have it");
        assert_eq!(self.freed.fetch_add(1, Ordering::Relaxed), 0, "freed twice");
    }

    /// `MigrateBatch`: isolated, looked at, put back. Whether it was had.
    fn isolate_and_put_back(&self) -> bool {
        let Ok(isolated) = self.word.isolate(self.word.load()) else { return false };
        self.touch();
        match self.word.put_back(isolated).expect("nobody else changes it") {
            PutBack::Returned => {}
            PutBack::Doomed => {
                self.word.retire(isolated, frozen()).expect("it is ours");
                self.free();
            }
        }
        true
    }

    /// `Base::free_object` by the one owner.
    fn free_as_owner(&self) -> Claim {
        let claim = self.word.claim_or_doom(described(Hold::Movable)).expect("it is the owner's");
        if let Claim::Held(held) = claim {
            self.touch();
            self.word.transition(held, frozen()).expect("it is held");
            self.free();
        }
        claim
    }

    fn assert_freed_once(&self) {
        assert_eq!(self.freed.load(Ordering::Relaxed), 1, "the page is lost");
        assert_eq!(self.word.load(), frozen());
    }
}

fn isolate_twice() {
    let page = Arc::new(Frame::new(described(Hold::Movable)));
    let other = Arc::clone(&page);
    let there = thread::spawn(move || other.isolate_and_put_back());
    let here = page.isolate_and_put_back();
    let there = there.join().unwrap();
    assert!(here || there, "the first to try wins");
    assert_eq!(page.word.load(), described(Hold::Movable));
}

fn isolate_and_free() {
    let page = Arc::new(Frame::new(described(Hold::Movable)));
    let migration = Arc::clone(&page);
    let migration = thread::spawn(move || migration.isolate_and_put_back());
    page.free_as_owner();
    migration.join().unwrap();
    page.assert_freed_once();
}

fn isolate_twice_and_free() {
    let page = Arc::new(Frame::new(described(Hold::Movable)));
    let migrations: Vec<_> = (0..2)
        .map(|_| {
            let page = Arc::clone(&page);
            thread::spawn(move || page.isolate_and_put_back())
        })
        .collect();
    page.free_as_owner();
    for migration in migrations {
        migration.join().unwrap();
    }
    page.assert_freed_once();
}

/// Models with three threads: bounded, or they take minutes.
fn bounded(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn of_two_isolations_one_at_a_time_has_the_page() {
    loom::model(isolate_twice);
}

#[test]
fn a_page_freed_while_it_may_be_isolated_is_freed_once_by_whoever_has_it() {
    loom::model(isolate_and_free);
}

#[test]
fn a_page_given_up_never_goes_back_where_another_migration_finds_it() {
    bounded(isolate_twice_and_free);
}

#[test]
#[should_panic(expected = "Concurrent write accesses")]
fn mutant_isolation_that_looks_and_then_sets_gives_a_page_to_two_migrations() {
    loom::model(|| {
        let _mutant = Mutant::CheckThenSet.active();
        isolate_twice();
    });
}

#[test]
#[should_panic(expected = "Concurrent write accesses")]
fn mutant_isolation_that_looks_and_then_sets_takes_a_page_that_its_owner_has_freed() {
    loom::model(|| {
        let _mutant = Mutant::CheckThenSet.active();
        isolate_and_free();
    });
}

#[test]
#[should_panic(expected = "Concurrent write accesses")]
fn mutant_a_page_given_up_that_is_put_back_before_it_is_freed_has_two_owners() {
    bounded(|| {
        let _mutant = Mutant::FreeAfterPutback.active();
        isolate_twice_and_free();
    });
}

/// A page, a destination, and where the owner looks for the page.
struct Move {
    src: Frame,
    dst: Frame,
    /// In the descriptor: which of the two it is.
    is_at_dst: AtomicUsize,
}

impl Move {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            src: Frame::new(described(Hold::Movable)),
            dst: Frame::new(transit()),
            is_at_dst: AtomicUsize::new(0),
        })
    }

    /// `Mm::migrate_pages` with the test driver's operations. Whether the page moved.
    fn migrate(&self) -> bool {
        let Ok(isolated) = self.src.word.isolate(self.src.word.load()) else {
            self.give_destination_back();
            return false;
        };
        self.src.touch();
        self.dst.touch();
        match self.src.word.hand_over((isolated, frozen()), (&self.dst.word, transit())) {
            Ok(held) => {
                self.is_at_dst.store(1, Ordering::Release);
                let movable = held.with_hold(Hold::Movable).expect("it can move");
                self.dst.word.transition(held, movable).expect("it is held");
                self.src.free();
                true
            }
            Err(_) => {
                self.give_destination_back();
                let back = self.src.word.put_back(isolated).expect("nobody else changes it");
                assert_eq!(back, PutBack::Doomed, "nothing else can be in the way");
                self.src.word.retire(isolated, frozen()).expect("it is ours");
                self.src.free();
                false
            }
        }
    }

    fn give_destination_back(&self) {
        self.dst.word.transition(transit(), frozen()).expect("nobody can find it");
        self.dst.free();
    }

    /// `TestPage::free`.
    fn free_as_owner(&self) {
        loop {
            let is_at_dst = self.is_at_dst.load(Ordering::Acquire) == 1;
            let page = if is_at_dst { &self.dst } else { &self.src };
            match page.word.claim_or_doom(described(Hold::Movable)) {
                Ok(Claim::Doomed) => return,
                Ok(Claim::Held(held)) => {
                    page.touch();
                    page.word.transition(held, frozen()).expect("it is held");
                    return page.free();
                }
                // Between the two, or held where it goes.
                Err(_) => thread::yield_now(),
            }
        }
    }
}

#[test]
fn a_page_freed_while_it_moves_is_freed_once_wherever_it_is() {
    loom::model(|| {
        let step = Move::new();
        let migration = Arc::clone(&step);
        let migration = thread::spawn(move || migration.migrate());
        step.free_as_owner();
        migration.join().unwrap();
        step.src.assert_freed_once();
        step.dst.assert_freed_once();
    });
}

#[test]
fn a_walker_that_looks_at_the_word_again_takes_no_descriptor_for_a_frame_that_it_has_left() {
    loom::model(|| {
        let step = Move::new();
        let walker = Arc::clone(&step);
        let walker = thread::spawn(move || {
            let word = walker.src.word.load();
            if word.decode().is_ok_and(|found| matches!(found, Memdesc::Descriptor(_))) {
                let says_dst = walker.is_at_dst.load(Ordering::Acquire) == 1;
                let same = walker.src.word.load() == word;
                assert!(!(same && says_dst), "the descriptor describes another frame");
            }
        });
        step.migrate();
        walker.join().unwrap();
        assert_eq!(step.dst.word.load(), described(Hold::Movable));
        assert_eq!(step.src.freed.load(Ordering::Relaxed), 1);
    });
}
