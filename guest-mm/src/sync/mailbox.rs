//! Requests between CPUs that cannot wait for each other in a circle.
//!
//! A CPU has one request under way at most, so it is a slot of its sender's.
//! The receiver's word says whose requests wait, and whoever looks at it on the
//! receiver takes all of it: the handler of its interrupt, a spin for a lock,
//! the wait for its own answers. So a CPU that spins or waits serves the
//! others all the same.
//!
//! What rings and halts is the machine's, given as closures; `tests/loom_mailbox.rs`
//! explores the rest.

use super::shim::{AtomicBool, AtomicU32, Ordering, UnsafeCell, fence};
use crate::platform::{CpuSet, MAX_CPUS};

/// A CPU's request; on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Request<T> {
    what: UnsafeCell<T>,
    /// CPUs that have not answered, as bits.
    remaining: AtomicU32,
    /// The sender halts or is about to: the last to answer rings.
    is_asleep: AtomicBool,
}

/// Whose requests wait for a CPU, as bits; on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Mailbox(AtomicU32);

/// The requests and mailboxes of all CPUs.
///
/// `me` is always the calling CPU, masked where the method says so: that is
/// what makes its slot its own.
#[derive(Debug)]
pub struct Mailboxes<T> {
    requests: [Request<T>; MAX_CPUS],
    boxes: [Mailbox; MAX_CPUS],
    /// The last to answer does not ring: the mutant that the models must kill.
    #[cfg(loom)]
    is_silent: bool,
}

// SAFETY: `what` is written by its sender while `remaining` is 0 and read by CPUs
// whose bit in `remaining` is set. The sender sets the bits by a Release store
// and the receiver's bit in the mailbox by a Release of its own, which the
// receiver acquires; it sees the bits cleared by Acquire before it writes again.
unsafe impl<T: Copy + Send> Sync for Mailboxes<T> {}

impl<T> Request<T> {
    #[cfg(not(loom))]
    const fn new(nothing: T) -> Self {
        Self {
            what: UnsafeCell::new(nothing),
            remaining: AtomicU32::new(0),
            is_asleep: AtomicBool::new(false),
        }
    }

    #[cfg(loom)]
    fn new(nothing: T) -> Self {
        Self {
            what: UnsafeCell::new(nothing),
            remaining: AtomicU32::new(0),
            is_asleep: AtomicBool::new(false),
        }
    }
}

impl<T: Copy> Mailboxes<T> {
    /// No request under way; slots hold `nothing` until they are used.
    #[cfg(not(loom))]
    pub const fn new(nothing: T) -> Self {
        const { assert!(MAX_CPUS == 4) };
        let requests = [
            Request::new(nothing),
            Request::new(nothing),
            Request::new(nothing),
            Request::new(nothing),
        ];
        Self { requests, boxes: [const { Mailbox(AtomicU32::new(0)) }; MAX_CPUS] }
    }

    /// No request under way; slots hold `nothing` until they are used.
    #[cfg(loom)]
    pub fn new(nothing: T) -> Self {
        Self {
            requests: core::array::from_fn(|_| Request::new(nothing)),
            boxes: core::array::from_fn(|_| Mailbox(AtomicU32::new(0))),
            is_silent: false,
        }
    }

    /// Mailboxes whose last answer rings for nobody.
    #[cfg(loom)]
    pub fn new_silent(nothing: T) -> Self {
        Self { is_silent: true, ..Self::new(nothing) }
    }

    /// Asks each of `others` for `what`. Masked, and so until [`Self::is_answered`].
    ///
    /// `ring` interrupts a CPU: those whose mailbox was empty. Whoever finds one
    /// that is not, knows that its owner has been rung for and not looked yet.
    pub fn post(&self, me: usize, others: CpuSet, what: T, mut ring: impl FnMut(usize)) {
        let request = &self.requests[me % MAX_CPUS];
        debug_assert!(self.is_answered(me), "CPU {me} has a request under way");
        // SAFETY: `remaining` is 0: nobody reads.
        request.what.with_mut(|slot| unsafe { *slot = what });
        let bits = others.without(me).iter().fold(0, |bits, cpu| bits | 1 << cpu);
        request.remaining.store(bits, Ordering::Release);
        for cpu in others.without(me).iter() {
            // Release pairs with the Acquire in `serve`.
            if self.boxes[cpu % MAX_CPUS].0.fetch_or(1 << me, Ordering::AcqRel) == 0 {
                ring(cpu);
            }
        }
    }

    /// Whether somebody's request waits for this CPU.
    pub fn has_mail(&self, me: usize) -> bool {
        self.boxes[me % MAX_CPUS].0.load(Ordering::Relaxed) != 0
    }

    /// Does what others ask of this CPU, by `act`, and answers. Masked: a
    /// request that has been taken must be done before anything else runs here,
    /// since its sender waits, perhaps with a lock that the other wants.
    pub fn serve(&self, me: usize, mut act: impl FnMut(T), mut ring: impl FnMut(usize)) {
        // Acquire pairs with the Release in `post`.
        let from = self.boxes[me % MAX_CPUS].0.swap(0, Ordering::AcqRel);
        for sender in (0..MAX_CPUS).filter(|sender| from >> sender & 1 == 1) {
            let request = &self.requests[sender];
            // SAFETY: our bit in `remaining` is set, so the sender waits and does not write.
            act(request.what.with(|slot| unsafe { *slot }));
            // Release: what was done, and that the slot has been read. Acquire: nobody's act is lost to the last.
            let before = request.remaining.fetch_and(!(1 << me), Ordering::AcqRel);
            // Pairs with the fence in `sleep`: either the sender sees our answer, or we see it asleep.
            fence(Ordering::SeqCst);
            let must_ring = before == 1 << me && request.is_asleep.load(Ordering::Relaxed);
            #[cfg(loom)]
            let must_ring = must_ring && !self.is_silent;
            if must_ring {
                ring(sender);
            }
        }
    }

    /// Whether all have answered this CPU's last request.
    pub fn is_answered(&self, me: usize) -> bool {
        // Acquire pairs with the Release of the answers.
        self.requests[me % MAX_CPUS].remaining.load(Ordering::Acquire) == 0
    }

    /// Halts until something may have changed, in the wait for answers. Masked.
    ///
    /// `drain` handles what is pending, this module's interrupt included, since
    /// it would end the halt at once; `halt` returns when something is pending,
    /// at once if it is already.
    pub fn sleep(&self, me: usize, drain: impl FnOnce(), halt: impl FnOnce()) {
        let request = &self.requests[me % MAX_CPUS];
        request.is_asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        drain();
        if !self.is_answered(me) && !self.has_mail(me) {
            halt();
        }
        request.is_asleep.store(false, Ordering::Relaxed);
    }
}
