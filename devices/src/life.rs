//! The life of a device, from activation to reset, as work outside its lock sees it.
//!
//! A device hands slow work out as a value that runs without the device's
//! lock. A reset must not return while such work still touches guest memory or
//! a disk, and none may begin afterwards. So the work runs inside
//! [`LifeGate`], in steps, and a reset closes the gate first.
//!
//! Lock order: device, then gate; work takes only the gate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lets steps of work run only in the life of the device that they belong to.
#[derive(Debug, Default)]
pub(crate) struct LifeGate {
    /// Number of the present life. Read without the mutex too, so that work
    /// which has many steps stops at the next one and leaves the mutex to the reset.
    life: AtomicU64,
    /// Held while a step runs.
    step: Mutex<()>,
}

impl LifeGate {
    /// The present life.
    pub(crate) fn life(&self) -> u64 {
        // Relaxed: who needs more than a number takes the mutex.
        self.life.load(Ordering::Relaxed)
    }

    /// Ends the present life; waits for a step that is running.
    pub(crate) fn end_life(&self) {
        self.life.fetch_add(1, Ordering::Relaxed);
        // A step that got the mutex before us saw the old life and ends before we get it;
        // one that gets it after us sees the new one, ordered by the mutex.
        drop(self.lock());
    }

    /// Runs `step` if life number `life` has not ended; while it runs it cannot end.
    pub(crate) fn run<T>(&self, life: u64, step: impl FnOnce() -> T) -> Option<T> {
        if self.life() != life {
            return None;
        }
        let _running = self.lock();
        (self.life() == life).then(step)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // The mutex guards no data that a panic of a holder could leave half-changed.
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_step_of_a_life_that_has_ended_does_not_run() {
        let gate = LifeGate::default();
        let life = gate.life();
        assert_eq!(gate.run(life, || 7), Some(7));
        gate.end_life();
        assert_eq!(gate.run(life, || 7), None);
        assert_eq!(gate.run(gate.life(), || 8), Some(8));
    }

    #[test]
    fn the_end_of_a_life_waits_for_a_step_that_runs() {
        let gate = Arc::new(LifeGate::default());
        let (begun, finished) = (mpsc::channel(), Arc::new(AtomicBool::new(false)));
        let (go, may_finish) = mpsc::channel::<()>();
        let worker = thread::spawn({
            let (gate, finished, begun) = (gate.clone(), finished.clone(), begun.0);
            move || {
                gate.run(0, || {
                    begun.send(()).unwrap();
                    may_finish.recv().unwrap();
                    finished.store(true, Ordering::SeqCst);
                })
            }
        });
        begun.1.recv().unwrap();
        let ender = thread::spawn({
            let (gate, finished) = (gate.clone(), finished.clone());
            move || {
                gate.end_life();
                finished.load(Ordering::SeqCst)
            }
        });
        while gate.life() == 0 {
            thread::yield_now();
        }
        go.send(()).unwrap();
        assert!(ender.join().unwrap(), "the life ended while the step ran");
        assert_eq!(worker.join().unwrap(), Some(()));
    }
}
