//! Model check: a ballooned page migrates while the balloon deflates and its inflation is still with the host.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p guest-mm --release --test loom_balloon`
//!
//! The real word, its table of steps and the real lock. The host touches the page until it has used the inflate
//! buffer, and once more between hearing of a deflation and answering; loom fails if a new owner of the frame
//! is there at the same time, or without the host having handed over.
#![cfg(loom)]

use guest_mm::memdesc::{
    Block, BlockKind, DriverId, Hold, Memdesc, Offline, Order, Word, WordCell,
};
use guest_mm::sync::{LockClass, SpinLock};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

#[path = "support/no_ram.rs"]
mod no_ram;

use no_ram::NoRam;

/// What is built in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// The page becomes movable before the host has used its inflate buffer.
    MovableBeforeUsed,
    /// The source is freed before the host has answered the deflation.
    FreedBeforeAnswer,
    /// Deflation looks whether the page is movable, and takes it without a swap that could fail.
    CheckThenSet,
}

fn offline(hold: Hold) -> Word {
    let (order, driver) = (Order::ZERO, DriverId::BALLOON);
    Memdesc::Offline(Offline { order, driver, hold, skippable: false }).encode()
}

fn frozen() -> Word {
    Memdesc::Block(Block::new(BlockKind::Frozen, Order::ZERO)).encode()
}

struct Machine {
    mutant: Mutant,
    balloon: SpinLock<()>,
    word: WordCell,
    contents: UnsafeCell<u64>,
    /// The host has used the inflate buffer; it has been told of the deflation; it has answered.
    used: AtomicBool,
    told: AtomicBool,
    answered: AtomicBool,
    freed: AtomicUsize,
}

impl Machine {
    fn new(mutant: Mutant) -> Arc<Self> {
        Arc::new(Self {
            mutant,
            balloon: SpinLock::new(LockClass::Balloon, ()),
            word: WordCell::new(offline(Hold::Parked)),
            contents: UnsafeCell::new(1),
            used: AtomicBool::new(false),
            told: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            freed: AtomicUsize::new(0),
        })
    }

    fn touch(&self) {
        // SAFETY: loom checks that nobody else is here.
        self.contents.with_mut(|contents| unsafe { *contents += 1 });
    }

    fn step(&self, from: Word, to: Word) -> bool {
        self.word.transition(from, to).is_ok()
    }

    /// The host's inflate queue: discards and returns the buffer.
    fn discard(&self) {
        self.touch();
        self.used.store(true, Ordering::Release);
    }

    /// The host's deflate queue, which waits for no other: answers a deflation if it sees one.
    fn answer(&self) {
        if !look(&self.told) {
            return;
        }
        self.touch();
        self.answered.store(true, Ordering::Release);
    }

    /// Tells the host of the deflation; whether it has answered in time.
    fn tell(&self) -> bool {
        assert!(!self.told.swap(true, Ordering::AcqRel), "the host hears of one page twice");
        self.mutant == Mutant::FreedBeforeAnswer || look(&self.answered)
    }

    /// The frame is free, and somebody else's at once.
    fn free(&self) {
        assert_eq!(self.freed.fetch_add(1, Ordering::Relaxed), 0, "freed twice");
        self.touch();
    }

    /// The driver's poll: settles the page if the host has used its buffer, then deflates it.
    fn poll(&self) {
        let lock = self.balloon.lock(&NoRam);
        if self.used.load(Ordering::Acquire) || self.mutant == Mutant::MovableBeforeUsed {
            assert!(self.step(offline(Hold::Parked), offline(Hold::Movable)));
        }
        drop(lock);
        let lock = self.balloon.lock(&NoRam);
        let is_claimed = if self.mutant == Mutant::CheckThenSet {
            self.word.load() == offline(Hold::Movable) && {
                thread::yield_now();
                self.step(self.word.load(), offline(Hold::Held));
                true
            }
        } else {
            self.step(offline(Hold::Movable), offline(Hold::Held))
        };
        if is_claimed && self.tell() {
            self.step(offline(Hold::Held), frozen());
            self.free();
        }
        drop(lock);
    }

    /// Migration: isolates, and goes over if the balloon is not busy.
    fn migrate(&self) {
        if self.step(offline(Hold::Movable), offline(Hold::Isolated)) {
            if let Some(lock) = self.balloon.try_lock(&NoRam) {
                // The destination has been inflated before.
                let has_answered = self.tell();
                if !has_answered {
                    // Kept: the host may have heard of it.
                    assert!(self.step(offline(Hold::Isolated), offline(Hold::Parked)));
                }
                drop(lock);
                if has_answered {
                    self.step(offline(Hold::Isolated), frozen());
                    self.free();
                }
            } else {
                assert!(self.step(offline(Hold::Isolated), offline(Hold::Movable)));
            }
        }
    }
}

/// Looks at a flag as often as patience lasts.
fn look(flag: &AtomicBool) -> bool {
    (0..2).any(|_| {
        let is_set = flag.load(Ordering::Acquire);
        if !is_set {
            thread::yield_now();
        }
        is_set
    })
}

fn model(mutant: Mutant) {
    // Four CPUs: all interleavings would be too many.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let machine = Machine::new(mutant);
        let [driver, core, queue] = [(); 3].map(|()| Arc::clone(&machine));
        let queue = thread::spawn(move || queue.answer());
        let driver = thread::spawn(move || driver.poll());
        let core = thread::spawn(move || core.migrate());
        machine.discard();
        queue.join().unwrap();
        driver.join().unwrap();
        core.join().unwrap();
        let is_free = machine.freed.load(Ordering::Relaxed) == 1;
        assert_eq!(machine.word.load() == frozen(), is_free);
    });
}

#[test]
fn a_page_leaves_the_balloon_once_and_after_the_host_is_done_with_it() {
    model(Mutant::None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_page_movable_before_its_buffer_is_used_has_two_users() {
    model(Mutant::MovableBeforeUsed);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_source_freed_before_the_hosts_answer_has_two_users() {
    model(Mutant::FreedBeforeAnswer);
}

#[test]
#[should_panic]
fn a_deflation_that_looks_and_then_takes_shares_the_page_with_migration() {
    model(Mutant::CheckThenSet);
}
