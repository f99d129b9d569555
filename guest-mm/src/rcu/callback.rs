//! [`Callbacks`]: functions that run after a grace period.

use core::fmt;
use core::marker::PhantomData;
use core::mem::take;
use core::ptr::NonNull;

use super::{Batches, List, Rcu, RcuHead};
use crate::platform::Platform;
use crate::sync::{LockClass, SpinLock};

/// Callbacks that one call of [`Callbacks::process`] runs at most.
pub const MAX_BATCH: usize = 64;

/// Runs after a grace period with the context that [`Callbacks::process`] was
/// given. May queue its object again, or others.
///
/// # Safety
/// The head is the one it was queued with, whose object nobody else uses.
pub type Callback<C> = unsafe fn(&C, NonNull<RcuHead>);

/// Callbacks that wait for a grace period (Linux's `call_rcu`), in the order
/// they were queued; linked through their objects, so queueing never fails.
///
/// They run when somebody calls [`Self::process`]: an idle CPU, a timer, a
/// thread that waits. Never inside [`Self::call`], whose caller may hold locks.
/// `C` is what they get besides their object; everybody passes the same one.
pub struct Callbacks<C: ?Sized> {
    queue: SpinLock<Queue>,
    context: PhantomData<fn(&C)>,
}

#[derive(Debug)]
struct Queue {
    batches: Batches<Heads>,
    /// Those that may run; the runner's alone while there is one.
    due: Heads,
    is_running: bool,
    /// Callbacks ever queued.
    queued: u64,
    /// Callbacks that have returned.
    done: u64,
}

/// Heads, oldest first.
#[derive(Debug, Default)]
struct Heads {
    first: Option<NonNull<RcuHead>>,
    last: Option<NonNull<RcuHead>>,
    /// Memory of their objects, and of those popped since it was last empty.
    bytes: u64,
}

// SAFETY: the heads are the queue's until they come out; moving it moves them.
unsafe impl Send for Heads {}

impl List for Heads {
    fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

impl Heads {
    const fn new() -> Self {
        Self { first: None, last: None, bytes: 0 }
    }

    /// # Safety
    /// `head` is valid until it comes out, and in no queue.
    unsafe fn push(&mut self, head: NonNull<RcuHead>, what: *mut (), bytes: u64) {
        // SAFETY: valid by the caller's promise; shared access only.
        unsafe { head.as_ref() }.enqueue(what);
        match self.last {
            None => self.first = Some(head),
            // SAFETY: in the queue, hence valid.
            Some(last) => unsafe { last.as_ref() }.set_next(head.as_ptr().cast()),
        }
        self.last = Some(head);
        self.bytes += bytes;
    }

    fn pop(&mut self) -> Option<(NonNull<RcuHead>, *mut ())> {
        let head = self.first?;
        // SAFETY: in the queue, hence valid by the promise at its `push`.
        let (next, what) = unsafe { head.as_ref() }.dequeue();
        self.first = NonNull::new(next.cast());
        if self.first.is_none() {
            self.last = None;
        }
        Some((head, what))
    }
}

impl<C: ?Sized> Callbacks<C> {
    /// No callbacks.
    pub fn new() -> Self {
        let queue = Queue {
            batches: Batches::new(Heads::new(), Heads::new()),
            due: Heads::new(),
            is_running: false,
            queued: 0,
            done: 0,
        };
        Self { queue: SpinLock::new(LockClass::Rcu, queue), context: PhantomData }
    }

    /// Runs `callback` with `head` after a grace period of `rcu`.
    ///
    /// `bytes`: the memory that waits, for the statistics. Never waits, never
    /// fails, may be called from a trap handler and below locks outside
    /// [`LockClass::Rcu`].
    ///
    /// # Safety
    /// `head` is valid until `callback` gets it and in no queue; what it belongs
    /// to can no longer be found by new readers; `callback` may be called with
    /// it then, on any CPU. All callbacks here are of the same `rcu`.
    pub unsafe fn call<P: Platform>(
        &self,
        rcu: &Rcu,
        platform: &P,
        head: NonNull<RcuHead>,
        bytes: usize,
        callback: Callback<C>,
    ) {
        let bytes = bytes as u64;
        rcu.note_deferred(bytes);
        let mut queue = self.queue.lock(platform);
        // SAFETY: the caller's promise.
        unsafe { queue.batches.fresh().push(head, callback as *mut (), bytes) };
        queue.queued += 1;
    }

    /// Callbacks that have not returned yet.
    pub fn pending<P: Platform>(&self, platform: &P) -> u64 {
        let queue = self.queue.lock(platform);
        queue.queued - queue.done
    }

    /// Moves the grace period on and runs up to [`MAX_BATCH`] callbacks whose
    /// time has come. Returns how many. Never waits; returns 0 if another CPU
    /// is at it.
    ///
    /// The caller holds no lock that a callback takes.
    pub fn process<P: Platform>(&self, rcu: &Rcu, platform: &P, context: &C) -> usize {
        let mut queue = self.queue.lock(platform);
        if queue.is_running {
            return 0;
        }
        if queue.due.is_empty() {
            let Some(over) = queue.batches.over(rcu, || platform.now_ns()) else { return 0 };
            queue.due = take(over);
        }
        queue.is_running = true;
        let mut due = take(&mut queue.due);
        drop(queue);
        let ran = run(&mut due, context);
        if due.is_empty() {
            rcu.note_reclaimed(take(&mut due.bytes));
        }
        let mut queue = self.queue.lock(platform);
        queue.due = due;
        queue.is_running = false;
        queue.done += ran as u64;
        ran
    }

    /// Waits until all callbacks queued before have returned; runs them itself
    /// if nobody else does.
    ///
    /// A caller inside a read section of `rcu`, or in a callback, waits for ever.
    pub fn barrier<P: Platform>(&self, rcu: &Rcu, platform: &P, context: &C) {
        // They return in the order they were queued: one runner at a time.
        let target = self.queue.lock(platform).queued;
        while self.queue.lock(platform).done < target {
            if self.process(rcu, platform, context) == 0 {
                platform.relax();
            }
        }
    }
}

/// Runs up to [`MAX_BATCH`] callbacks.
fn run<C: ?Sized>(due: &mut Heads, context: &C) -> usize {
    for ran in 0..MAX_BATCH {
        let Some((head, what)) = due.pop() else { return ran };
        // SAFETY: what `call` put there: a `Callback<C>` of this `C`.
        let callback = unsafe { core::mem::transmute::<*mut (), Callback<C>>(what) };
        // SAFETY: queued with this head by the promise of `call`; its grace period is
        // over and it is in no queue any more.
        unsafe { callback(context, head) };
    }
    MAX_BATCH
}

impl<C: ?Sized> Default for Callbacks<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: ?Sized> fmt::Debug for Callbacks<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::testing::TestPlatform;

    /// An object that callbacks know by its head, the first field.
    #[repr(C)]
    struct Object {
        head: RcuHead,
        id: usize,
    }

    fn objects(count: usize) -> Vec<Object> {
        (0..count).map(|id| Object { head: RcuHead::new(), id }).collect()
    }

    type Seen = RefCell<Vec<usize>>;

    unsafe fn note(seen: &Seen, head: NonNull<RcuHead>) {
        // SAFETY: the head is an object's first field.
        seen.borrow_mut().push(unsafe { head.cast::<Object>().as_ref() }.id);
    }

    struct World {
        rcu: Rcu,
        platform: TestPlatform,
        callbacks: Callbacks<Seen>,
        seen: Seen,
    }

    impl World {
        fn new() -> Self {
            Self {
                rcu: Rcu::new(),
                platform: TestPlatform::new(&[], 0),
                callbacks: Callbacks::new(),
                seen: Seen::default(),
            }
        }

        fn call(&self, object: &Object) {
            let head = NonNull::from(object).cast();
            let bytes = size_of::<Object>();
            // SAFETY: the tests' objects outlive the queue, and are in it once.
            unsafe { self.callbacks.call(&self.rcu, &self.platform, head, bytes, note) };
        }

        fn process(&self) -> usize {
            self.callbacks.process(&self.rcu, &self.platform, &self.seen)
        }
    }

    #[test]
    fn callbacks_run_in_order_after_their_readers_and_not_before_somebody_asks() {
        let world = World::new();
        let objects = objects(5);
        let reader = world.rcu.read(0);
        objects[..3].iter().for_each(|object| world.call(object));
        assert_eq!(world.process(), 0);
        drop(reader);
        objects[3..].iter().for_each(|object| world.call(object));
        assert!(world.seen.borrow().is_empty());
        // The first three have a stamp; the others get theirs afterwards.
        assert_eq!((world.process(), world.process(), world.process()), (3, 2, 0));
        assert_eq!(*world.seen.borrow(), [0, 1, 2, 3, 4]);
        assert_eq!(world.callbacks.pending(&world.platform), 0);
    }

    #[test]
    fn a_call_runs_no_more_than_a_batch() {
        let world = World::new();
        let objects = objects(2 * MAX_BATCH + 1);
        objects.iter().for_each(|object| world.call(object));
        let stats = world.rcu.stats();
        assert_eq!(stats.deferred_bytes, (objects.len() * size_of::<Object>()) as u64);
        assert_eq!([world.process(), world.process(), world.process()], [MAX_BATCH, MAX_BATCH, 1]);
        assert_eq!(*world.seen.borrow(), (0..objects.len()).collect::<Vec<_>>());
        let after = world.rcu.stats();
        assert_eq!((after.deferred_bytes, after.peak_deferred_bytes), (0, stats.deferred_bytes));
        assert_eq!(after.normal.count, 1, "one grace period for all");
    }

    #[test]
    fn a_barrier_returns_after_all_that_were_queued_before() {
        let world = World::new();
        let objects = objects(3 * MAX_BATCH);
        objects.iter().for_each(|object| world.call(object));
        world.callbacks.barrier(&world.rcu, &world.platform, &world.seen);
        assert_eq!(world.seen.borrow().len(), objects.len());
        world.callbacks.barrier(&world.rcu, &world.platform, &world.seen);
    }

    #[test]
    fn a_callback_may_queue_its_object_again_and_may_find_the_queue_busy() {
        struct Context {
            world: World,
            callbacks: Callbacks<Context>,
        }
        unsafe fn again(context: &Context, head: NonNull<RcuHead>) {
            let World { rcu, platform, seen, .. } = &context.world;
            assert_eq!(context.callbacks.process(rcu, platform, context), 0, "one at a time");
            // SAFETY: the head is an object's first field.
            let object = unsafe { head.cast::<Object>().as_ref() };
            seen.borrow_mut().push(object.id);
            if seen.borrow().len() < 3 {
                // SAFETY: the object outlives the queue and has just come out.
                unsafe { context.callbacks.call(rcu, platform, head, 16, again) };
            }
        }
        let context = Context { world: World::new(), callbacks: Callbacks::new() };
        let objects = objects(1);
        let head = NonNull::from(&objects[0]).cast();
        let World { rcu, platform, seen, .. } = &context.world;
        // SAFETY: as above.
        unsafe { context.callbacks.call(rcu, platform, head, 16, again) };
        while context.callbacks.process(rcu, platform, &context) > 0 {}
        assert_eq!(*seen.borrow(), [0, 0, 0]);
    }
}
