//! Models of lockless readers against one writer, explored by loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom_xarray`
//!
//! Nodes have four slots here, and freed nodes are handed out again at once,
//! last freed first, so that a reader of reused memory reads a wrong entry. Each
//! model comes with the mutant that it must kill.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use guest_mm::rcu::Rcu;
use guest_mm::xarray::{Content, Entry, Mutant, XArray};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicPtr, Ordering};
use loom::thread;

#[path = "support/loom_nodes.rs"]
mod loom_nodes;

use loom_nodes::Nodes;

/// Explores `model` with at most `preemptions` involuntary switches.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    // Grace periods and retries make long executions; the default is 1,000.
    builder.max_branches = 10_000;
    builder.check(model);
}

type Array = XArray<'static, Nodes>;

fn value(n: usize) -> Entry<usize> {
    Entry::value(n).unwrap()
}

/// An array and its domain.
struct World {
    array: Option<Array>,
    rcu: *mut Rcu,
}

// SAFETY: the domain is shared only, through the array and `rcu`.
unsafe impl Send for World {}
// SAFETY: as for `Send`.
unsafe impl Sync for World {}

impl World {
    fn new(rcu: Rcu) -> Arc<Self> {
        let rcu = Box::into_raw(Box::new(rcu));
        // SAFETY: freed in `drop` only, after the array.
        let array = Array::new(unsafe { &*rcu }, Nodes::new());
        Arc::new(Self { array: Some(array), rcu })
    }

    fn array(&self) -> &Array {
        self.array.as_ref().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.array = None;
        // SAFETY: from `Box::into_raw`; its only user is gone.
        drop(unsafe { Box::from_raw(self.rcu) });
    }
}

/// Runs `read` in a thread of its own against `write`, over what `fill` stored.
fn race(rcu: Rcu, fill: fn(&Array), write: fn(&Array), read: fn(&Array)) {
    let world = World::new(rcu);
    fill(world.array());
    let reader = {
        let world = world.clone();
        thread::spawn(move || read(world.array()))
    };
    write(world.array());
    reader.join().unwrap();
    world.array().validate().unwrap();
}

// ---- RCU alone ----------------------------------------------------------

/// A reader follows a pointer that the writer unlinks and whose target it then
/// overwrites as soon as the grace period is over.
///
/// With `is_pushed` a third CPU moves the epoch meanwhile: its step may have scanned before the unlinking, so it must not
/// count.
fn rcu_reuse(new: fn() -> Rcu, is_pushed: bool) {
    struct Shared {
        rcu: Rcu,
        link: AtomicPtr<UnsafeCell<u32>>,
        target: UnsafeCell<u32>,
    }
    // SAFETY: loom checks every access to the cell.
    unsafe impl Sync for Shared {}
    // SAFETY: as above.
    unsafe impl Send for Shared {}

    let shared = Arc::new(Shared {
        rcu: new(),
        link: AtomicPtr::new(std::ptr::null_mut()),
        target: UnsafeCell::new(1),
    });
    shared.link.store((&raw const shared.target).cast_mut(), Ordering::Release);
    let reader = {
        let shared = shared.clone();
        thread::spawn(move || {
            let guard = shared.rcu.read(1);
            let target = shared.link.load(Ordering::Acquire);
            if !target.is_null() {
                // SAFETY: the cell lives in `shared`.
                let cell = unsafe { &*target };
                // SAFETY: shared access; loom fails the model if it is not.
                assert_eq!(cell.with(|value| unsafe { *value }), 1);
            }
            drop(guard);
        })
    };
    let pusher = is_pushed.then(|| {
        let shared = shared.clone();
        thread::spawn(move || {
            shared.rcu.is_over(shared.rcu.stamp());
        })
    });
    shared.link.store(std::ptr::null_mut(), Ordering::Release);
    let stamp = shared.rcu.stamp();
    if shared.rcu.is_over(stamp) {
        // SAFETY: nobody else has the cell any more; loom fails the model if so.
        shared.target.with_mut(|value| unsafe { *value = 2 });
    }
    reader.join().unwrap();
    pusher.into_iter().for_each(|pusher| pusher.join().unwrap());
    assert!(shared.rcu.is_over(stamp));
}

#[test]
fn a_reader_never_sees_an_object_reused() {
    explore(3, || rcu_reuse(Rcu::new, false));
}

#[test]
fn a_reader_never_sees_an_object_reused_while_another_cpu_moves_the_epoch() {
    explore(3, || rcu_reuse(Rcu::new, true));
}

#[test]
#[should_panic(expected = "Concurrent read and write accesses to `UnsafeCell`")]
fn mutant_grace_periods_that_do_not_wait_let_a_reader_see_an_object_reused() {
    explore(3, || rcu_reuse(Rcu::new_broken, false));
}

// ---- Load against erase, shrink and reuse of the nodes ------------------

fn load_vs_shrink(rcu: Rcu) {
    race(
        rcu,
        |array| {
            array.store(0, value(100)).unwrap();
            array.store(5, value(105)).unwrap();
        },
        |array| {
            // Shrinks the tree to its head, and reuses the nodes elsewhere.
            array.erase(5);
            array.store(9, value(109)).unwrap();
        },
        |array| {
            let five = array.load(5);
            assert!(five.is_none() || five == Some(value(105)), "{five:?}");
            assert_eq!(array.load(0), Some(value(100)));
        },
    );
}

#[test]
fn load_sees_old_or_nothing_while_the_tree_shrinks() {
    explore(2, || load_vs_shrink(Rcu::new()));
}

#[test]
#[should_panic(expected = "Concurrent load and mut accesses")]
fn mutant_nodes_freed_at_once_give_a_reader_another_index() {
    explore(2, || load_vs_shrink(Rcu::new_broken()));
}

// ---- Load against a store over a subtree --------------------------------

fn load_vs_subtree_store() {
    race(
        Rcu::new(),
        |array| {
            array.store(1, value(1)).unwrap();
            array.store(6, value(6)).unwrap();
        },
        |array| {
            array.store_order(0, 2, value(50)).unwrap();
        },
        |array| {
            let one = array.load(1);
            assert!([Some(value(1)), Some(value(50))].contains(&one), "subtree: {one:?}");
            let two = array.load(2);
            assert!([None, Some(value(50))].contains(&two), "subtree: {two:?}");
            assert_eq!(array.load(6), Some(value(6)));
        },
    );
}

#[test]
fn load_sees_old_or_new_while_a_subtree_becomes_one_entry() {
    explore(2, load_vs_subtree_store);
}

fn load_vs_widening() {
    race(
        Rcu::new(),
        |array| {
            array.store(1, value(1)).unwrap();
            array.store(2, value(2)).unwrap();
        },
        |array| {
            array.store_order(0, 1, value(50)).unwrap();
        },
        |array| {
            let one = array.load(1);
            assert!([Some(value(1)), Some(value(50))].contains(&one), "widening: {one:?}");
        },
    );
}

#[test]
fn load_sees_old_or_new_while_an_entry_takes_its_neighbours_slot() {
    explore(3, load_vs_widening);
}

#[test]
#[should_panic(expected = "widening: None")]
fn mutant_siblings_stored_before_their_entry_show_nothing() {
    explore(3, || {
        let _mutant = Mutant::SiblingsFirst.active();
        load_vs_widening();
    });
}

// ---- Load of a sibling against a split ----------------------------------

fn load_vs_split() {
    race(
        Rcu::new(),
        |array| {
            array.store_order(2, 1, value(7)).unwrap();
        },
        |array| {
            array.split(2, 0).unwrap();
            array.store(2, value(8)).unwrap();
        },
        |array| {
            // Index 3 never held anything else.
            assert_eq!(array.load(3), Some(value(7)));
        },
    );
}

#[test]
fn load_of_a_sibling_never_sees_its_neighbour_after_a_split() {
    explore(3, load_vs_split);
}

#[test]
#[should_panic(expected = "left: Some(value:8)")]
fn mutant_siblings_not_looked_at_again_give_the_neighbour() {
    explore(3, || {
        let _mutant = Mutant::TrustSiblings.active();
        load_vs_split();
    });
}

/// The same across a level of the tree: the entry's slots become nodes.
#[test]
fn load_sees_the_entry_throughout_a_split_into_nodes() {
    explore(2, || {
        race(
            Rcu::new(),
            |array| {
                array.store_order(8, 3, value(7)).unwrap();
            },
            |array| array.split(8, 1).unwrap(),
            |array| {
                assert_eq!(array.load(13), Some(value(7)));
                assert_eq!(array.load(8), Some(value(7)));
            },
        );
    });
}

// ---- Iteration against nodes that die under the cursor ------------------

#[test]
fn iteration_sees_every_entry_that_stays() {
    explore(2, || {
        race(
            Rcu::new(),
            |array| {
                array.store(0, value(100)).unwrap();
                array.store(5, value(105)).unwrap();
            },
            |array| {
                array.erase(5);
                array.store(1, value(101)).unwrap();
            },
            |array| {
                let guard = array.rcu().read(0);
                let found: Vec<u64> =
                    array.entries(&guard, 0..=u64::MAX).map(|found| found.index).collect();
                assert_eq!(found[0], 0);
                assert!(found[1..].iter().all(|index| [1, 5].contains(index)), "{found:?}");
                assert!(found.is_sorted());
            },
        );
    });
}

/// A cursor inside a leaf when the leaf leaves the tree goes on from the head.
fn cursor_vs_dead_leaf() {
    race(
        Rcu::new(),
        |array| {
            array.store(0, value(100)).unwrap();
            array.store(5, value(105)).unwrap();
        },
        |array| {
            array.erase(5);
            array.store(6, value(106)).unwrap();
            array.erase(0);
        },
        |array| {
            let guard = array.rcu().read(0);
            let mut cursor = array.cursor(&guard, 5);
            cursor.load();
            if array.load(0).is_none() {
                // Index 6 was stored before index 0 was erased.
                cursor.seek(6);
                let six = cursor.load();
                assert!(six == Content::Entry(value(106)), "dead leaf: {six:?}");
            }
        },
    );
}

#[test]
fn a_cursor_in_a_dead_leaf_finds_what_is_stored_afterwards() {
    explore(2, cursor_vs_dead_leaf);
}

#[test]
#[should_panic(expected = "dead leaf: empty")]
fn mutant_dead_nodes_without_retry_words_hide_what_is_stored_afterwards() {
    explore(2, || {
        let _mutant = Mutant::NoRetry.active();
        cursor_vs_dead_leaf();
    });
}
