//! Model checks of sleep against wake-up.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom_sleeper`
//!
//! Loom treats SeqCst accesses as AcqRel, but not fences, which are what this relies on.
#![cfg(loom)]

use abi::Pfn;
use guest_mm::platform::WaitKey;
use guest_mm::sync::Sleeper;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

struct Scene {
    sleeper: Sleeper,
    is_over: AtomicBool,
}

fn key(number: u64) -> WaitKey {
    WaitKey::frame(Pfn::new(number).expect("a small number"))
}

/// The scheduler's part: says so, looks, and stays awake or lets the CPU go.
fn sleep(scene: &Scene) {
    scene.sleeper.fall_asleep(key(3));
    if scene.is_over.load(Ordering::Relaxed) {
        scene.sleeper.rise();
    }
}

/// The mutant: looks, and then says that it sleeps.
fn look_and_sleep(scene: &Scene) {
    if !scene.is_over.load(Ordering::Relaxed) {
        scene.sleeper.fall_asleep(key(3));
    }
}

fn sleep_against_wake(sleep: fn(&Scene)) {
    let scene = Arc::new(Scene { sleeper: Sleeper::new(), is_over: AtomicBool::new(false) });
    let theirs = Arc::clone(&scene);
    let sleeper = thread::spawn(move || sleep(&theirs));
    scene.is_over.store(true, Ordering::Relaxed);
    Sleeper::before_wake_up();
    // A large folio: the key is among them.
    scene.sleeper.wake_up(key(0), 4);
    sleeper.join().expect("the sleeper");
    assert!(scene.sleeper.is_awake(), "the wake-up was lost");
}

#[test]
fn no_wake_up_is_lost() {
    loom::model(|| sleep_against_wake(sleep));
}

#[test]
#[should_panic(expected = "the wake-up was lost")]
fn mutant_that_looks_before_it_says_that_it_sleeps_misses_the_wake_up() {
    loom::model(|| sleep_against_wake(look_and_sleep));
}

#[test]
fn another_keys_waker_wakes_nobody() {
    loom::model(|| {
        let sleeper = Sleeper::new();
        sleeper.fall_asleep(key(3));
        assert!(!sleeper.wake_up(key(0), 3));
        assert!(!sleeper.wake_up(key(4), u64::MAX));
        assert!(!sleeper.is_awake());
        assert!(sleeper.wake_up(key(3), 1));
        assert!(sleeper.is_awake());
    });
}
