//! Model checks of requests between CPUs: every interleaving of two or three.
//!
//! Built and run only by
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom_mailbox`.
//! A halt that nobody ends shows as a deadlock: it is a wait on a condition variable.
#![cfg(loom)]

use guest_mm::platform::CpuSet;
use guest_mm::sync::Mailboxes;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// CPUs that do nothing but ask each other.
struct Machine {
    mail: Mailboxes<usize>,
    /// An interrupt is pending; the nucleus' word and the HLT that it ends.
    pending: Vec<(Mutex<bool>, Condvar)>,
    /// What a CPU has cached of each page: touched by that CPU alone, and by the
    /// sender of a flush once it has been answered.
    cached: Vec<UnsafeCell<bool>>,
}

impl Machine {
    fn new(mail: Mailboxes<usize>, cpus: usize) -> Arc<Self> {
        Arc::new(Self {
            mail,
            pending: (0..cpus).map(|_| (Mutex::new(false), Condvar::new())).collect(),
            cached: (0..cpus).map(|_| UnsafeCell::new(true)).collect(),
        })
    }

    fn ring(&self, cpu: usize) {
        let (pending, halt) = &self.pending[cpu];
        *pending.lock().unwrap() = true;
        halt.notify_one();
    }

    fn serve(&self, me: usize) {
        if self.mail.has_mail(me) {
            let drop_cached = |page: usize| {
                assert_eq!(page, 7, "a request that nobody made");
                // SAFETY: the CPU's own until it has answered; loom checks it.
                self.cached[me].with_mut(|cached| unsafe { *cached = false });
            };
            self.mail.serve(me, drop_cached, |cpu| self.ring(cpu));
        }
    }

    /// Handles what is pending: the only interrupt there is.
    fn drain(&self, me: usize) {
        let was_pending = std::mem::take(&mut *self.pending[me].0.lock().unwrap());
        if was_pending {
            self.serve(me);
        }
    }

    fn halt(&self, me: usize) {
        let (pending, halt) = &self.pending[me];
        let mut pending = pending.lock().unwrap();
        while !*pending {
            pending = halt.wait(pending).unwrap();
        }
    }

    /// Asks `to` for a flush of page 7 and waits, halting at every turn.
    fn ask(&self, me: usize, to: usize) {
        self.mail.post(me, CpuSet::of(to), 7, |cpu| self.ring(cpu));
        while !self.mail.is_answered(me) {
            self.serve(me);
            self.mail.sleep(me, || self.drain(me), || self.halt(me));
        }
    }

    /// Flushes on `other`, which flushes here: each serves the other in its wait, or later.
    fn flush_both(&self, me: usize, other: usize) {
        self.ask(me, other);
        // The other may have asked only now.
        while self.cached[me].with(|cached| {
            // SAFETY: this CPU's own.
            unsafe { *cached }
        }) {
            self.halt(me);
            self.drain(me);
        }
    }

    /// Flushes page 7 on `others`, halting at every turn.
    fn flush(&self, me: usize, others: CpuSet) {
        self.mail.post(me, others, 7, |cpu| self.ring(cpu));
        while !self.mail.is_answered(me) {
            self.serve(me);
            self.mail.sleep(me, || self.drain(me), || self.halt(me));
        }
        for cpu in others.iter() {
            // SAFETY: the CPU has answered and touches it no more; loom checks it.
            let cached = self.cached[cpu].with(|cached| unsafe { *cached });
            assert!(!cached, "CPU {cpu} has it still");
        }
    }
}

fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn an_answer_wakes_the_sender_and_its_flush_is_done() {
    bounded(|| {
        let machine = Machine::new(Mailboxes::new(0), 2);
        let other = Arc::clone(&machine);
        let receiver = thread::spawn(move || {
            other.halt(1);
            other.drain(1);
        });
        machine.flush(0, CpuSet::of(1));
        receiver.join().unwrap();
    });
}

#[test]
fn two_cpus_that_flush_each_other_at_once_both_return() {
    bounded(|| {
        let machine = Machine::new(Mailboxes::new(0), 2);
        let other = Arc::clone(&machine);
        let second = thread::spawn(move || other.flush_both(1, 0));
        machine.flush_both(0, 1);
        second.join().unwrap();
    });
}

#[test]
fn two_requests_to_one_cpu_are_both_answered_though_one_rings() {
    bounded(|| {
        let machine = Machine::new(Mailboxes::new(0), 3);
        let (first, second) = (Arc::clone(&machine), Arc::clone(&machine));
        let senders =
            [thread::spawn(move || first.ask(0, 2)), thread::spawn(move || second.ask(1, 2))];
        // It halts until rung for, as often as it takes.
        let mut answered = 0;
        while answered < 2 {
            machine.halt(2);
            *machine.pending[2].0.lock().unwrap() = false;
            machine.mail.serve(2, |_| answered += 1, |cpu| machine.ring(cpu));
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

/// A CPU that spins for a lock which the flusher holds, masked: no interrupt is handled, only the mailbox looked at.
#[test]
fn a_masked_spinner_does_not_hold_up_the_lock_holders_flush() {
    bounded(|| {
        let machine = Machine::new(Mailboxes::new(0), 2);
        let is_locked = Arc::new(AtomicBool::new(true));
        let (other, lock) = (Arc::clone(&machine), Arc::clone(&is_locked));
        let spinner = thread::spawn(move || {
            while lock.load(Ordering::Acquire) {
                other.serve(1);
                thread::yield_now();
            }
        });
        machine.flush(0, CpuSet::of(1));
        is_locked.store(false, Ordering::Release);
        spinner.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_answer_that_does_not_ring_leaves_the_sender_asleep() {
    bounded(|| {
        let machine = Machine::new(Mailboxes::new_silent(0), 2);
        let other = Arc::clone(&machine);
        let receiver = thread::spawn(move || {
            other.halt(1);
            other.drain(1);
        });
        machine.flush(0, CpuSet::of(1));
        receiver.join().unwrap();
    });
}
