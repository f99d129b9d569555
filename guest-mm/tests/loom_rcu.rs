//! Models of callbacks and of waiting for a grace period, explored by loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom_rcu`
//!
//! The domain itself and its stamps: `loom_xarray.rs`. Each model comes with
//! the mutant that it must kill.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ptr::NonNull;

use guest_mm::rcu::{Callbacks, Rcu, RcuHead};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use loom::thread;

#[path = "support/no_ram.rs"]
mod no_ram;

use no_ram::NoRam;

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// An object that readers find by a link; its head is the first field.
#[repr(C)]
struct Object {
    head: RcuHead,
    value: UnsafeCell<u32>,
}

struct World {
    rcu: Rcu,
    callbacks: Callbacks<AtomicUsize>,
    /// Callbacks that have run: their context.
    ran: AtomicUsize,
    link: AtomicPtr<Object>,
    object: Object,
}

// SAFETY: loom checks every access to the cell.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn new(rcu: Rcu) -> Arc<Self> {
        let world = Arc::new(Self {
            rcu,
            callbacks: Callbacks::new(),
            ran: AtomicUsize::new(0),
            link: AtomicPtr::new(std::ptr::null_mut()),
            object: Object { head: RcuHead::new(), value: UnsafeCell::new(1) },
        });
        world.link.store((&raw const world.object).cast_mut(), Ordering::Release);
        world
    }

    fn read(&self) {
        let guard = self.rcu.read(1);
        let object = self.link.load(Ordering::Acquire);
        if !object.is_null() {
            // SAFETY: the object is part of `self`.
            let value = unsafe { &(*object).value };
            // SAFETY: shared access; loom fails the model if somebody writes meanwhile.
            assert_eq!(value.with(|value| unsafe { *value }), 1);
        }
        drop(guard);
    }

    fn unlink(&self) {
        self.link.store(std::ptr::null_mut(), Ordering::Release);
    }

    fn reuse(&self) {
        // SAFETY: nobody else has the object; loom fails the model if so.
        self.object.value.with_mut(|value| unsafe { *value = 2 });
    }

    fn call(&self) {
        let head = NonNull::from(&self.object).cast();
        // SAFETY: the object outlives the queue, is in it once and unlinked.
        unsafe { self.callbacks.call(&self.rcu, &NoRam, head, 64, reuse) };
    }

    fn process(&self) -> usize {
        self.callbacks.process(&self.rcu, &NoRam, &self.ran)
    }
}

unsafe fn reuse(ran: &AtomicUsize, head: NonNull<RcuHead>) {
    // SAFETY: the head is an object's first field.
    let object = unsafe { head.cast::<Object>().as_ref() };
    // SAFETY: as in `World::reuse`.
    object.value.with_mut(|value| unsafe { *value = 2 });
    ran.fetch_add(1, Ordering::Relaxed);
}

/// Runs `write` against a reader.
fn race(rcu: Rcu, write: impl FnOnce(&World)) -> Arc<World> {
    let world = World::new(rcu);
    let other = Arc::clone(&world);
    let reader = thread::spawn(move || other.read());
    world.unlink();
    write(&world);
    reader.join().unwrap();
    world
}

fn callback_vs_reader(rcu: Rcu) {
    let world = race(rcu, |world| {
        world.call();
        world.process();
        world.process();
    });
    world.process();
    assert_eq!(world.ran.load(Ordering::Relaxed), 1);
}

#[test]
fn a_callback_runs_after_the_readers_have_left() {
    explore(3, || callback_vs_reader(Rcu::new()));
}

#[test]
#[should_panic(expected = "Concurrent read and write accesses to `UnsafeCell`")]
fn mutant_callbacks_without_a_grace_period_change_an_object_under_its_reader() {
    explore(3, || callback_vs_reader(Rcu::new_broken()));
}

#[test]
fn of_two_cpus_that_process_one_runs_the_callback() {
    explore(2, || {
        let world = World::new(Rcu::new());
        world.unlink();
        world.call();
        let other = Arc::clone(&world);
        let there = thread::spawn(move || other.process());
        let here = world.process();
        let ran = here + there.join().unwrap() + world.process();
        assert_eq!((ran, world.ran.load(Ordering::Relaxed)), (1, 1));
    });
}

#[test]
fn a_barrier_returns_after_the_callback_that_another_cpu_runs() {
    explore(2, || {
        let world = World::new(Rcu::new());
        world.unlink();
        world.call();
        let other = Arc::clone(&world);
        let runner = thread::spawn(move || other.process());
        world.callbacks.barrier(&world.rcu, &NoRam, &world.ran);
        assert_eq!(world.ran.load(Ordering::Relaxed), 1);
        // What the callback wrote is ours to see and to change.
        world.reuse();
        runner.join().unwrap();
    });
}

fn synchronize_vs_reader(rcu: Rcu) {
    race(rcu, |world| {
        world.rcu.synchronize(&NoRam);
        world.reuse();
    });
}

#[test]
fn synchronize_returns_after_the_readers_have_left() {
    explore(3, || synchronize_vs_reader(Rcu::new()));
}

#[test]
#[should_panic(expected = "Concurrent read and write accesses to `UnsafeCell`")]
fn mutant_waits_that_do_not_wait_change_an_object_under_its_reader() {
    explore(3, || synchronize_vs_reader(Rcu::new_broken()));
}

#[test]
fn an_expedited_wait_returns_after_the_readers_have_left() {
    explore(2, || {
        race(Rcu::new(), |world| {
            world.rcu.synchronize_expedited(&NoRam);
            world.reuse();
        });
    });
}
