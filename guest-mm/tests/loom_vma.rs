//! Models of the VMA lock: readers without the space's lock against one writer.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom_vma`
//!
//! What the lock guards is a cell, so loom itself notices a reader and a writer
//! that meet. Each model comes with the mutant that it must kill. That the
//! object is still a VMA when a reader looks at it is RCU's part and has its models
//! in `loom_xarray`.
#![cfg(loom)]

use guest_mm::space::vma_lock::mutant::Mutant;
use guest_mm::space::vma_lock::{LockSeq, Lockable, VmaLock, read_covering};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// A VMA: addresses from 0 up to `end`.
struct Vma {
    lock: VmaLock,
    end: UnsafeCell<u64>,
}

struct Space {
    seq: LockSeq,
    vma: Vma,
}

// SAFETY: the cell is what the lock under test guards; loom checks that it does.
unsafe impl Send for Space {}
// SAFETY: as for `Send`.
unsafe impl Sync for Space {}

impl Lockable for Vma {
    fn vma_lock(&self) -> &VmaLock {
        &self.lock
    }

    fn covers(&self, address: u64) -> bool {
        address < self.end()
    }
}

impl Vma {
    fn end(&self) -> u64 {
        // SAFETY: the caller has the VMA locked; loom checks it.
        self.end.with(|end| unsafe { *end })
    }

    fn set_end(&self, to: u64) {
        // SAFETY: the caller has the VMA locked for writing; loom checks it.
        self.end.with_mut(|end| unsafe { *end = to });
    }
}

impl Space {
    /// A space with one VMA up to `end`, unlocked.
    fn new(end: u64) -> Arc<Self> {
        let seq = LockSeq::new();
        let vma = Vma { lock: VmaLock::new(&seq), end: UnsafeCell::new(end) };
        vma.lock.attach();
        seq.end_write_section();
        Arc::new(Self { seq, vma })
    }

    /// A fault at `address`: reads the VMA if it can be locked.
    fn fault(&self, address: u64) -> bool {
        let locked = read_covering(&self.vma, &self.seq, address);
        if locked {
            assert!(address < self.vma.end(), "the VMA does not cover {address}");
            self.vma.lock.end_read();
        }
        locked
    }

    /// munmap of the part from `end` on.
    fn shrink(&self, end: u64) {
        self.vma.lock.start_write(&self.seq, thread::yield_now);
        self.vma.set_end(end);
        self.seq.end_write_section();
    }

    /// munmap of all of it; then somebody else uses the memory.
    fn remove(&self) {
        self.vma.lock.start_write(&self.seq, thread::yield_now);
        self.vma.lock.detach();
        self.seq.end_write_section();
        self.vma.set_end(0);
    }
}

/// Explores two faults of one reader and a change by a writer.
fn explore(change: fn(&Space), address: u64) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let space = Space::new(10);
        let reader = {
            let space = Arc::clone(&space);
            thread::spawn(move || {
                space.fault(address);
                space.fault(address);
            })
        };
        change(&space);
        reader.join().unwrap();
        assert_eq!(space.vma.lock.readers(), 0);
    });
}

fn with_mutant(mutant: Mutant, model: fn()) {
    let _mutant = mutant.active();
    model();
}

fn shrinking() {
    explore(|space| space.shrink(5), 7);
}

fn changing_twice() {
    let twice = |space: &Space| {
        space.shrink(8);
        space.shrink(6);
    };
    explore(twice, 3);
}

fn removing() {
    explore(Space::remove, 3);
}

#[test]
fn a_reader_never_sees_a_vma_change() {
    changing_twice();
}

#[test]
fn a_reader_gets_no_vma_that_does_not_cover_its_address() {
    shrinking();
}

#[test]
fn a_reader_gets_no_vma_that_was_removed() {
    removing();
}

#[test]
fn two_readers_and_a_writer_never_meet() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let space = Space::new(10);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let space = Arc::clone(&space);
                thread::spawn(move || space.fault(3))
            })
            .collect();
        space.shrink(5);
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(space.fault(3), "nobody has it locked any more");
    });
}

#[test]
#[should_panic]
fn mutant_that_trusts_its_first_look_at_the_section_dies() {
    with_mutant(Mutant::TrustsFirstLook, changing_twice);
}

#[test]
#[should_panic(expected = "does not cover")]
fn mutant_that_trusts_the_range_dies() {
    with_mutant(Mutant::TrustsRange, shrinking);
}

#[test]
#[should_panic]
fn mutant_that_trusts_the_tree_dies() {
    with_mutant(Mutant::TrustsTree, removing);
}
