use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;

fn gate(threads: u8) -> Arc<Gate> {
    Arc::new(Gate {
        wanted: AtomicU8::new(Wanted::Run as u8),
        parked: Mutex::new(0),
        changed: Condvar::new(),
        threads,
    })
}

fn events() -> (VcpuEvents, mpsc::Receiver<VcpuEvent>) {
    let (sender, receiver) = mpsc::channel();
    let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd"));
    (VcpuEvents::new(sender, wake), receiver)
}

#[test]
fn a_pause_is_reported_once_when_the_last_thread_has_parked() {
    let (gate, (events, receiver)) = (gate(3), events());
    gate.want(Wanted::Pause);
    thread::scope(|scope| {
        let passes: Vec<_> = (0..3)
            .map(|_| {
                let (gate, events) = (gate.clone(), events.clone());
                scope.spawn(move || gate.pass(&events))
            })
            .collect();
        assert_eq!(receiver.recv(), Ok(VcpuEvent::Paused));
        gate.want(Wanted::Run);
        assert!(passes.into_iter().all(|pass| pass.join().expect("no panic")));
    });
    assert_eq!(*gate.lock(), 0, "nobody is parked any more");
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Empty));
}

#[test]
fn a_stop_ends_parked_threads_and_those_that_come_later() {
    let (gate, (events, receiver)) = (gate(2), events());
    gate.want(Wanted::Pause);
    thread::scope(|scope| {
        let parked = scope.spawn(|| gate.pass(&events));
        gate.want(Wanted::Stop);
        assert!(!parked.join().expect("no panic"));
    });
    assert!(!gate.pass(&events));
    assert!(receiver.try_recv().is_err(), "one of two was never a pause");
}

#[test]
fn a_running_gate_is_passed_without_a_lock() {
    let (gate, (events, _receiver)) = (gate(1), events());
    let _held = gate.lock();
    assert!(gate.pass(&events));
}
