//! Model checks of zsmalloc's handles: users of an object against compaction,
//! which moves the object, migration, which moves the page under it, and a free
//! with reuse. Entries, the lock and the second look are the real ones; two
//! zspages of one object each and three frames stand for the rest.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom_zsmalloc`.
//! Loom treats SeqCst as AcqRel and cannot show load buffering: a pass is
//! evidence, not proof.
#![cfg(loom)]

use guest_mm::sync::{LockClass, SpinLock};
use guest_mm::zsmalloc::{Entry, Location, Recheck, lock_named};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

#[path = "support/no_ram.rs"]
mod no_ram;

use no_ram::NoRam;

/// What the object holds.
const VALUE: u64 = 7;
/// What frames hold that are nobody's, or another object's.
const OTHER: u64 = 99;
const GENERATION: u64 = 3;

/// Whether migration takes the zspage's lock.
#[derive(Clone, Copy, PartialEq)]
enum Locking {
    Yes,
    No,
}

struct Model {
    platform: NoRam,
    entry: AtomicU64,
    /// Which frame each zspage has.
    zspages: [SpinLock<usize>; 2],
    /// Loom fails if two touch one at once without an order between them.
    frames: [UnsafeCell<u64>; 3],
}

fn at(zspage: u64) -> Location {
    Location { zspage: 64 * (zspage + 1), object: 0 }
}

impl Model {
    /// The object is in zspage 0, which has frame 0; zspage 1 has frame 1; frame 2 is free.
    fn new() -> Arc<Self> {
        let zspage = |frame| SpinLock::new(LockClass::Zspage, frame);
        Arc::new(Self {
            platform: NoRam,
            entry: AtomicU64::new(Entry::used(at(0), GENERATION).bits()),
            zspages: [zspage(0), zspage(1)],
            frames: [VALUE, OTHER, OTHER].map(UnsafeCell::new),
        })
    }

    fn get(&self, frame: usize) -> u64 {
        // SAFETY: the caller means to have the frame; loom checks.
        self.frames[frame].with(|value| unsafe { *value })
    }

    fn set(&self, frame: usize, to: u64) {
        // SAFETY: as for `get`.
        self.frames[frame].with_mut(|value| unsafe { *value = to });
    }

    fn with_object<R>(
        &self,
        generation: u64,
        recheck: Recheck,
        act: impl FnOnce(usize) -> R,
    ) -> Option<R> {
        let locked = lock_named(&self.entry, generation, recheck, |at| {
            self.zspages[usize::try_from(at.zspage / 64 - 1).unwrap()].lock(&self.platform)
        });
        locked.map(|(_, frame)| act(*frame))
    }

    fn read(&self, recheck: Recheck) -> Option<u64> {
        self.with_object(GENERATION, recheck, |frame| self.get(frame))
    }

    /// Moves the object from zspage 0 to zspage 1.
    fn compact(&self) {
        let from = self.zspages[0].lock(&self.platform);
        let to = self.zspages[1].lock_nested(&self.platform);
        self.set(*to, self.get(*from));
        self.entry.store(Entry::used(at(1), GENERATION).bits(), Ordering::Release);
        // Its place is another object's at once.
        self.set(*from, OTHER);
        drop(to);
    }

    /// Moves the page of zspage 0 to frame 2; frame 0 is somebody else's afterwards.
    fn migrate(&self, locking: Locking) {
        let guard = (locking == Locking::Yes).then(|| self.zspages[0].lock(&self.platform));
        self.set(2, self.get(0));
        match guard {
            Some(mut frame) => *frame = 2,
            None => *self.zspages[0].lock(&self.platform) = 2,
        }
        self.set(0, OTHER);
    }

    /// Frees the object, and gives entry and place to a new one.
    fn free_and_reuse(&self) {
        let frame = self.zspages[0].lock(&self.platform);
        self.entry.store(Entry::from_bits(0).bits(), Ordering::Relaxed);
        self.set(*frame, OTHER);
        drop(frame);
        let frame = self.zspages[0].lock(&self.platform);
        self.set(*frame, OTHER + 1);
        self.entry.store(Entry::used(at(0), GENERATION + 1).bits(), Ordering::Release);
        drop(frame);
    }
}

fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn reader_against(recheck: Recheck, mover: impl Fn(&Model) + Copy + Send + Sync + 'static) {
    bounded(move || {
        let model = Model::new();
        let other = Arc::clone(&model);
        let moving = thread::spawn(move || mover(&other));
        assert_eq!(model.read(recheck), Some(VALUE));
        moving.join().unwrap();
        assert_eq!(model.read(recheck), Some(VALUE));
    });
}

#[test]
fn a_reader_finds_an_object_wherever_compaction_has_put_it() {
    reader_against(Recheck::Yes, Model::compact);
}

#[test]
#[should_panic(expected = "assertion")]
fn a_reader_that_does_not_look_again_reads_anothers_object() {
    reader_against(Recheck::No, Model::compact);
}

#[test]
fn a_reader_finds_an_object_on_whichever_page_it_is() {
    reader_against(Recheck::Yes, |model| model.migrate(Locking::Yes));
}

fn writer_against_migration(locking: Locking) {
    bounded(move || {
        let model = Model::new();
        let other = Arc::clone(&model);
        let moving = thread::spawn(move || other.migrate(locking));
        model.with_object(GENERATION, Recheck::Yes, |frame| model.set(frame, 11)).unwrap();
        moving.join().unwrap();
        assert_eq!(model.read(Recheck::Yes), Some(11), "what was written before or after the move");
    });
}

#[test]
fn nothing_written_is_lost_when_its_page_moves() {
    writer_against_migration(Locking::Yes);
}

#[test]
#[should_panic]
fn a_migration_that_does_not_lock_the_zspage_races_with_writers() {
    writer_against_migration(Locking::No);
}

#[test]
fn compaction_and_migration_at_once_keep_the_object() {
    bounded(|| {
        let model = Model::new();
        let other = Arc::clone(&model);
        let moving = thread::spawn(move || other.compact());
        model.migrate(Locking::Yes);
        assert_eq!(model.read(Recheck::Yes), Some(VALUE));
        moving.join().unwrap();
        assert_eq!(model.read(Recheck::Yes), Some(VALUE));
    });
}

#[test]
fn a_reader_of_a_freed_object_gets_nothing_and_never_the_next_one() {
    bounded(|| {
        let model = Model::new();
        let other = Arc::clone(&model);
        let freeing = thread::spawn(move || other.free_and_reuse());
        let read = model.read(Recheck::Yes);
        assert!(matches!(read, None | Some(VALUE)), "{read:?}");
        freeing.join().unwrap();
        assert_eq!(model.read(Recheck::Yes), None);
    });
}
