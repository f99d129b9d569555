//! Models of sheaves and of slabs in limbo, explored by loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --lib loom`

use core::ptr::NonNull;
use std::vec::Vec;

use abi::Pfn;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicPtr, Ordering};
use loom::thread;

use super::sheaf::{Sheaf, Sheaves};
use crate::memdesc::{
    Block, BlockKind, Descriptor, DescriptorKind, Memdesc, Order, Word, WordCell,
};
use crate::platform::Platform;
use crate::rcu::{Batches, List, Rcu};
use crate::sync::{LockClass, SpinLock};

/// One CPU of a machine without RAM; each of loom's threads has its own.
struct Cpu(usize);

// SAFETY: `frame_ptr` never returns.
unsafe impl Platform for Cpu {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        panic!("{pfn} is no frame: this platform has no RAM")
    }

    fn frame_of(&self, _address: usize) -> Option<Pfn> {
        None
    }

    fn cpu(&self) -> usize {
        self.0
    }

    fn irq_save(&self) -> bool {
        false
    }

    fn irq_restore(&self, _was_masked: bool) {}

    fn now_ns(&self) -> u64 {
        0
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

// ---- Sheaves ------------------------------------------------------------

type Object = UnsafeCell<u32>;

/// Objects in the slabs, as a cache's lock guards them.
struct Cache {
    sheaves: Sheaves,
    stock: SpinLock<Vec<NonNull<u8>>>,
    objects: Vec<Object>,
}

// SAFETY: loom checks every access to the objects.
unsafe impl Send for Cache {}
// SAFETY: as above.
unsafe impl Sync for Cache {}

impl Cache {
    fn new(objects: usize) -> Arc<Self> {
        let objects: Vec<Object> = (0..objects).map(|_| UnsafeCell::new(0)).collect();
        let stock = objects.iter().map(|object| NonNull::from(object).cast()).collect();
        let stock = SpinLock::new(LockClass::Slab, stock);
        Arc::new(Self { sheaves: Sheaves::new(1), stock, objects })
    }

    fn flush(&self, cpu: &Cpu, sheaf: &mut Sheaf) {
        let mut stock = self.stock.lock(cpu);
        while let Some(object) = sheaf.pop() {
            stock.push(object);
        }
    }

    /// Allocates, uses and frees an object as CPU `cpu`.
    fn use_one(&self, cpu: usize) {
        let cpu = Cpu(cpu);
        let object = self.sheaves.pop(&cpu, |sheaf| {
            if let Some(object) = self.stock.lock(&cpu).pop() {
                sheaf.push(object);
            }
        });
        let Some(object) = object else { return };
        // SAFETY: one of `objects`, which live as long as `self`.
        let cell = unsafe { object.cast::<Object>().as_ref() };
        // SAFETY: ours until it is pushed; loom fails the model if not.
        cell.with_mut(|value| unsafe { *value += 1 });
        self.sheaves.push(&cpu, object, |sheaf| self.flush(&cpu, sheaf));
    }

    fn drain(&self) {
        let cpu = Cpu(3);
        self.sheaves.for_each(&cpu, |sheaf| self.flush(&cpu, sheaf));
    }
}

/// One CPU uses objects while another empties its sheaf and uses some too.
#[test]
fn objects_in_sheaves_have_one_owner_and_a_drain_loses_none() {
    explore(2, || {
        let cache = Cache::new(2);
        let other = Arc::clone(&cache);
        let user = thread::spawn(move || {
            other.use_one(1);
            other.use_one(1);
        });
        cache.drain();
        cache.use_one(2);
        user.join().unwrap();
        let mut kept = 0;
        cache.sheaves.for_each(&Cpu(0), |sheaf| kept += sheaf.len());
        assert_eq!(kept + cache.stock.lock(&Cpu(0)).len(), cache.objects.len());
    });
}

/// Two flows of control of one CPU number: a thread that was moved after it had
/// asked which CPU it runs on.
#[test]
fn a_thread_that_moved_shares_no_object_with_the_cpu_it_left() {
    explore(3, || {
        let cache = Cache::new(2);
        let other = Arc::clone(&cache);
        let moved = thread::spawn(move || other.use_one(0));
        cache.use_one(0);
        moved.join().unwrap();
    });
}

// ---- Slabs in limbo -----------------------------------------------------

/// A frame that is a slab, with what its only object contains.
struct Frame {
    word: WordCell,
    object: UnsafeCell<u64>,
}

/// What an object of the cache's type contains; anything else is another type.
const OF_TYPE: u64 = 0x0b1e;

fn slab() -> Word {
    let descriptor = Descriptor::new(DescriptorKind::Slab, 0xffff_8000_0000_0fe0);
    Memdesc::Descriptor(descriptor.unwrap()).encode()
}

fn frozen() -> Word {
    Memdesc::Block(Block::new(BlockKind::Frozen, Order::ZERO)).encode()
}

#[derive(Default)]
struct Frames(Vec<NonNull<Frame>>);

// SAFETY: loom checks every access to the frames.
unsafe impl Send for Frames {}

impl List for Frames {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct Limbo {
    rcu: Rcu,
    frame: Frame,
    link: AtomicPtr<Frame>,
    batches: SpinLock<Batches<Frames>>,
}

// SAFETY: loom checks every access to the frame.
unsafe impl Send for Limbo {}
// SAFETY: as above.
unsafe impl Sync for Limbo {}

impl Limbo {
    fn new(rcu: Rcu) -> Arc<Self> {
        let frame = Frame { word: WordCell::new(slab()), object: UnsafeCell::new(OF_TYPE) };
        let batches = Batches::new(Frames::default(), Frames::default());
        let batches = SpinLock::new(LockClass::Slab, batches);
        let limbo =
            Arc::new(Self { rcu, frame, link: AtomicPtr::new(std::ptr::null_mut()), batches });
        limbo.link.store((&raw const limbo.frame).cast_mut(), Ordering::Release);
        limbo
    }

    /// A lockless reader: finds the object, looks at it.
    fn read(&self, cpu: usize) {
        let guard = self.rcu.read(cpu);
        let frame = self.link.load(Ordering::Acquire);
        if !frame.is_null() {
            // SAFETY: the frame is part of `self`.
            let frame = unsafe { &*frame };
            // SAFETY: shared access; loom fails the model if somebody writes meanwhile.
            assert_eq!(frame.object.with(|value| unsafe { *value }), OF_TYPE, "another type");
            assert_eq!(frame.word.load(), slab(), "no slab any more");
        }
        drop(guard);
    }

    /// The frame leaves the cache and becomes what its next owner likes.
    fn release(&self, frame: NonNull<Frame>) {
        // SAFETY: the frame is part of `self`.
        let frame = unsafe { frame.as_ref() };
        frame.word.transition(slab(), frozen()).unwrap();
        // SAFETY: the owner's; loom fails the model if a reader is left.
        frame.object.with_mut(|value| unsafe { *value = 0 });
    }

    /// Frees the last object: its slab goes into limbo.
    fn unlink_and_free(&self) {
        self.link.store(std::ptr::null_mut(), Ordering::Release);
        self.batches.lock(&Cpu(0)).fresh().0.push(NonNull::from(&self.frame));
    }

    fn reap(&self) {
        let frame = self.batches.lock(&Cpu(0)).over(&self.rcu, || 0).and_then(|list| list.0.pop());
        if let Some(frame) = frame {
            self.release(frame);
        }
    }
}

fn reader_vs_limbo(rcu: fn() -> Rcu) {
    let limbo = Limbo::new(rcu());
    let other = Arc::clone(&limbo);
    let reader = thread::spawn(move || other.read(1));
    limbo.unlink_and_free();
    limbo.reap();
    limbo.reap();
    reader.join().unwrap();
    limbo.reap();
    assert_eq!(limbo.frame.word.load(), frozen(), "never given back");
}

#[test]
fn a_slab_stays_one_while_a_reader_looks_at_its_object() {
    explore(3, || reader_vs_limbo(Rcu::new));
}

/// The CPU that reaps is not the one that freed, and both ask.
#[test]
fn a_slab_stays_one_whoever_reaps_it() {
    explore(2, || {
        let limbo = Limbo::new(Rcu::new());
        let (reading, reaping) = (Arc::clone(&limbo), Arc::clone(&limbo));
        let reader = thread::spawn(move || reading.read(1));
        let reaper = thread::spawn(move || reaping.reap());
        limbo.unlink_and_free();
        limbo.reap();
        reader.join().unwrap();
        reaper.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "Concurrent read and write accesses")]
fn mutant_grace_periods_that_do_not_wait_change_an_object_under_its_reader() {
    explore(3, || reader_vs_limbo(Rcu::new_broken));
}

#[test]
#[should_panic(expected = "Concurrent read and write accesses")]
fn mutant_slabs_given_back_at_once_change_an_object_under_its_reader() {
    explore(3, || {
        let limbo = Limbo::new(Rcu::new());
        let other = Arc::clone(&limbo);
        let reader = thread::spawn(move || other.read(1));
        limbo.link.store(std::ptr::null_mut(), Ordering::Release);
        limbo.release(NonNull::from(&limbo.frame));
        reader.join().unwrap();
    });
}
