//! Model checks of words and locks: every interleaving of two or three CPUs.
//!
//! Built and run only by
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom`.
//! Loom treats SeqCst as AcqRel and cannot show load buffering: a pass is
//! evidence, not proof.
#![cfg(loom)]

use guest_mm::memdesc::{
    Block, BlockKind, DriverId, Hold, Memdesc, Offline, Order, TransitionError, Word, WordCell,
};
use guest_mm::sync::{LockClass, SpinLock};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

#[path = "support/no_ram.rs"]
mod no_ram;

use no_ram::NoRam;

fn offline(hold: Hold) -> Word {
    let (order, driver) = (Order::ZERO, DriverId::BALLOON);
    Memdesc::Offline(Offline { order, driver, hold, skippable: false }).encode()
}

fn block(kind: BlockKind) -> Word {
    Memdesc::Block(Block::new(kind, Order::ZERO)).encode()
}

/// A frame: its word, and contents that only its owner may touch. Loom fails
/// if two CPUs touch the contents without one handing over to the other.
struct Frame {
    word: WordCell,
    contents: UnsafeCell<u64>,
    owners: AtomicUsize,
}

impl Frame {
    fn new(word: Word) -> Arc<Self> {
        Arc::new(Self {
            word: WordCell::new(word),
            contents: UnsafeCell::new(0),
            owners: AtomicUsize::new(0),
        })
    }

    /// What an owner does.
    fn own(&self) {
        assert_eq!(self.owners.fetch_add(1, Ordering::Relaxed), 0, "two owners");
        // SAFETY: the caller has won the word; loom checks that nobody else is here.
        self.contents.with_mut(|contents| unsafe { *contents += 1 });
        self.owners.fetch_sub(1, Ordering::Relaxed);
    }

    fn step(&self, from: Word, to: Word) -> bool {
        match self.word.transition(from, to) {
            Ok(()) => true,
            Err(TransitionError::Raced { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Isolates, works, puts back.
    fn migrate(&self) -> bool {
        let won = self.step(offline(Hold::Movable), offline(Hold::Isolated));
        if won {
            self.own();
            assert!(self.step(offline(Hold::Isolated), offline(Hold::Movable)));
        }
        won
    }

    /// Claims the movable block and frees it, as a deflate does.
    fn deflate(&self) -> bool {
        let won = self.step(offline(Hold::Movable), offline(Hold::Held));
        if won {
            self.own();
            assert!(self.step(offline(Hold::Held), block(BlockKind::Frozen)));
        }
        won
    }
}

#[test]
fn of_two_isolations_one_at_a_time_has_the_block() {
    loom::model(|| {
        let frame = Frame::new(offline(Hold::Movable));
        let other = Arc::clone(&frame);
        let there = thread::spawn(move || other.migrate());
        let here = frame.migrate();
        let there = there.join().unwrap();
        assert!(here || there, "the first to try wins");
        assert_eq!(frame.word.load(), offline(Hold::Movable));
    });
}

#[test]
fn of_an_isolation_and_a_deflate_one_at_a_time_has_the_block() {
    loom::model(|| {
        let frame = Frame::new(offline(Hold::Movable));
        let other = Arc::clone(&frame);
        let isolated = thread::spawn(move || other.migrate());
        let deflated = frame.deflate();
        let isolated = isolated.join().unwrap();
        assert!(isolated || deflated);
        let end = if deflated { block(BlockKind::Frozen) } else { offline(Hold::Movable) };
        assert_eq!(frame.word.load(), end);
    });
}

#[test]
fn two_isolations_and_a_deflate_never_share_the_block() {
    loom::model(|| {
        let frame = Frame::new(offline(Hold::Movable));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let frame = Arc::clone(&frame);
                thread::spawn(move || frame.migrate())
            })
            .collect();
        let deflated = frame.deflate();
        for other in others {
            other.join().unwrap();
        }
        let end = if deflated { block(BlockKind::Frozen) } else { offline(Hold::Movable) };
        assert_eq!(frame.word.load(), end);
    });
}

#[test]
fn a_block_becomes_movable_with_its_contents_published() {
    loom::model(|| {
        let frame = Frame::new(offline(Hold::Held));
        let other = Arc::clone(&frame);
        let migration = thread::spawn(move || other.migrate());
        frame.own();
        assert!(frame.step(offline(Hold::Held), offline(Hold::Parked)));
        assert!(frame.step(offline(Hold::Parked), offline(Hold::Movable)));
        migration.join().unwrap();
    });
}

#[test]
fn of_two_claims_of_a_parked_block_one_wins() {
    loom::model(|| {
        let frame = Frame::new(offline(Hold::Parked));
        let claim = |frame: &Frame| {
            let won = frame.step(offline(Hold::Parked), offline(Hold::Held));
            if won {
                frame.own();
            }
            won
        };
        let other = Arc::clone(&frame);
        let there = thread::spawn(move || claim(&other));
        let here = claim(&frame);
        assert!(here ^ there.join().unwrap());
    });
}

#[test]
fn of_two_frees_of_one_block_one_wins() {
    loom::model(|| {
        let frame = Frame::new(block(BlockKind::Frozen));
        let other = Arc::clone(&frame);
        let free = |frame: &Frame| frame.step(block(BlockKind::Frozen), offline(Hold::Held));
        let there = thread::spawn(move || free(&other));
        assert!(free(&frame) ^ there.join().unwrap());
    });
}

#[test]
fn the_lock_admits_one_at_a_time_and_publishes_what_was_written() {
    loom::model(|| {
        let lock = Arc::new(SpinLock::new(LockClass::Zone, (0u64, 0u64)));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || {
                    let mut guard = lock.lock(&NoRam);
                    guard.0 += 1;
                    guard.1 += 1;
                })
            })
            .collect();
        for other in others {
            other.join().unwrap();
        }
        let guard = lock.lock(&NoRam);
        assert_eq!(*guard, (2, 2));
    });
}

#[test]
fn a_try_fails_or_has_the_lock_alone() {
    loom::model(|| {
        let lock = Arc::new(SpinLock::new(LockClass::Balloon, 0u64));
        let other = Arc::clone(&lock);
        let there = thread::spawn(move || {
            let mut guard = other.lock(&NoRam);
            *guard += 1;
        });
        let here = lock.try_lock(&NoRam).is_some_and(|mut guard| {
            *guard += 1;
            true
        });
        there.join().unwrap();
        assert_eq!(*lock.lock(&NoRam), 1 + u64::from(here));
    });
}
