//! [`DeferQueue`]: unlinked objects that wait for their readers to leave.

use core::fmt;
use core::ptr::{self, NonNull};

use super::{Rcu, Stamp};
use crate::sync::shim::{AtomicPtr, Ordering};

/// The part of an object that links it into a [`DeferQueue`] or a queue of
/// [`Callbacks`](super::Callbacks).
///
/// Atomic because readers may still hold shared references to the object; only
/// the queue's owner touches it.
#[derive(Debug)]
pub struct RcuHead {
    next: AtomicPtr<()>,
    /// A stamp as an address, or a callback; null while in no queue.
    what: AtomicPtr<()>,
}

impl RcuHead {
    /// A head that is in no queue.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { next: AtomicPtr::new(ptr::null_mut()), what: AtomicPtr::new(ptr::null_mut()) }
    }

    /// A head that is in no queue.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { next: AtomicPtr::new(ptr::null_mut()), what: AtomicPtr::new(ptr::null_mut()) }
    }
}

impl RcuHead {
    /// Whether the object waits in a queue.
    pub(crate) fn is_queued(&self) -> bool {
        // No stamp is 0: it lies ahead of the epoch that it was taken in.
        !self.what.load(Ordering::Relaxed).is_null()
    }

    /// Puts the object at the end of a queue, for the reason `what`.
    pub(super) fn enqueue(&self, what: *mut ()) {
        self.next.store(ptr::null_mut(), Ordering::Relaxed);
        self.what.store(what, Ordering::Relaxed);
    }

    /// Takes the object out of its queue; returns the next one and the reason.
    pub(super) fn dequeue(&self) -> (*mut (), *mut ()) {
        let what = self.what.load(Ordering::Relaxed);
        self.what.store(ptr::null_mut(), Ordering::Relaxed);
        (self.next.load(Ordering::Relaxed), what)
    }

    /// Makes `next` follow this one.
    pub(super) fn set_next(&self, next: *mut ()) {
        self.next.store(next, Ordering::Relaxed);
    }

    fn stamp(&self) -> Stamp {
        Stamp::from_address(self.what.load(Ordering::Relaxed).addr())
    }
}

impl Default for RcuHead {
    fn default() -> Self {
        Self::new()
    }
}

/// An object with a [`RcuHead`] in it.
///
/// # Safety
/// [`Self::rcu_head`] returns the same head each time, which no other object
/// shares and nobody but the queue uses.
pub unsafe trait Deferrable {
    /// The head.
    fn rcu_head(&self) -> &RcuHead;
}

// SAFETY: itself, which is nothing but a head.
unsafe impl Deferrable for RcuHead {
    fn rcu_head(&self) -> &RcuHead {
        self
    }
}

/// Objects waiting for a grace period, oldest first. Holds them, and does not
/// know how to free them: its owner takes them out.
pub struct DeferQueue<T> {
    first: Option<NonNull<T>>,
    last: Option<NonNull<T>>,
    len: usize,
}

// SAFETY: the queue owns its objects; moving it moves them.
unsafe impl<T: Send> Send for DeferQueue<T> {}

impl<T> DeferQueue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { first: None, last: None, len: 0 }
    }

    /// Objects waiting.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T: Deferrable> DeferQueue<T> {
    /// Adds an object that new readers can no longer reach.
    ///
    /// `stamp` was taken after it was unlinked and is no older than those of the
    /// objects queued before: a queue is of one domain.
    ///
    /// # Safety
    /// `object` is valid until it comes out of this queue, and in no other.
    pub unsafe fn defer(&mut self, object: NonNull<T>, stamp: Stamp) {
        // SAFETY: valid by the caller's promise; shared access only.
        let head = unsafe { object.as_ref() }.rcu_head();
        head.enqueue(ptr::without_provenance_mut(stamp.to_address()));
        match self.last {
            None => self.first = Some(object),
            Some(last) => {
                // SAFETY: in the queue, hence valid by the promise at its `defer`.
                let last = unsafe { last.as_ref() }.rcu_head();
                last.set_next(object.as_ptr().cast());
            }
        }
        self.last = Some(object);
        self.len += 1;
    }

    /// The oldest object if its grace period is over, out of the queue.
    pub fn pop_over(&mut self, rcu: &Rcu) -> Option<NonNull<T>> {
        // SAFETY: in the queue, hence valid by the promise at its `defer`.
        let head = unsafe { self.first?.as_ref() }.rcu_head();
        if rcu.is_over(head.stamp()) { self.pop_now() } else { None }
    }

    /// The oldest object, whether or not its grace period is over: for an owner
    /// that can prove in another way that no reader is left.
    pub fn pop_now(&mut self) -> Option<NonNull<T>> {
        let object = self.first?;
        // SAFETY: in the queue, hence valid by the promise at its `defer`.
        let head = unsafe { object.as_ref() }.rcu_head();
        let (next, _) = head.dequeue();
        self.first = NonNull::new(next.cast());
        if self.first.is_none() {
            self.last = None;
        }
        self.len -= 1;
        Some(object)
    }
}

impl<T> Default for DeferQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for DeferQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferQueue").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Object {
        head: RcuHead,
        id: u32,
    }

    // SAFETY: the field is the object's own and used by nothing else.
    unsafe impl Deferrable for Object {
        fn rcu_head(&self) -> &RcuHead {
            &self.head
        }
    }

    #[test]
    fn objects_come_out_in_order_and_only_after_their_readers() {
        let rcu = Rcu::new();
        let objects: Vec<Object> = (0..3).map(|id| Object { head: RcuHead::new(), id }).collect();
        let mut queue = DeferQueue::new();
        // SAFETY: the objects outlive the queue and are in it once.
        unsafe { queue.defer(NonNull::from(&objects[0]), rcu.stamp()) };
        assert!(queue.pop_over(&rcu).is_some());
        let guard = rcu.read(0);
        for object in &objects {
            // SAFETY: as above; the first one came out again.
            unsafe { queue.defer(NonNull::from(object), rcu.stamp()) };
        }
        assert_eq!(queue.len(), 3);
        assert!(queue.pop_over(&rcu).is_none());
        drop(guard);
        for expected in 0..3 {
            let object = queue.pop_over(&rcu).unwrap();
            // SAFETY: `objects` is alive.
            assert_eq!(unsafe { object.as_ref() }.id, expected);
        }
        assert!(queue.is_empty() && queue.pop_now().is_none());
    }
}
