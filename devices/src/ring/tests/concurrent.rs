//! Driver and device on two threads: no notification is lost in either direction.

use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::virtio::Interrupt;

const CHAINS: u32 = 200_000;
/// Only a lost notification takes this long.
const LOST: Duration = Duration::from_secs(60);

/// A doorbell or interrupt line that wakes the other thread.
struct Bell(Mutex<Sender<()>>);

impl Bell {
    fn new() -> (Arc<Self>, Receiver<()>) {
        let (sender, receiver) = channel();
        (Arc::new(Self(Mutex::new(sender))), receiver)
    }

    fn ring(&self) {
        // An error says that the other side is done already.
        let sent = self.0.lock().unwrap().send(());
        sent.unwrap_or_default();
    }
}

impl Interrupt for Bell {
    fn used(&self) {
        self.ring();
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {
        panic!("the ring is good");
    }
}

/// A driver that suppresses both ways as the specification lets it (§2.7.7, §2.7.10).
struct Driver {
    ring: DriverQueue,
    event_idx: bool,
    free: Vec<u16>,
    avail: u16,
    used: u16,
}

impl Driver {
    /// Offers as much as fits, then kicks if the device asked for it.
    fn fill(&mut self, left: &mut u32, kick: &Bell) {
        let before = self.avail;
        while *left > 0
            && let Some(head) = self.free.pop()
        {
            self.ring.offer_chain(head, &[(DATA, 4, true)]);
            self.avail = self.avail.wrapping_add(1);
            *left -= 1;
        }
        // Pairs with the device's fence between arming kicks and looking again.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let passed = self.avail.wrapping_sub(self.ring.avail_event()).wrapping_sub(1);
            passed < self.avail.wrapping_sub(before)
        } else {
            self.ring.used_flags() & VIRTQ_USED_F_NO_NOTIFY == 0
        };
        if self.avail != before && wanted {
            kick.ring();
        }
    }

    fn reclaim(&mut self) -> u32 {
        let mut count = 0;
        // Acquire side of the used index: elements are read after it.
        while self.ring.used_index() != self.used {
            fence(Ordering::Acquire);
            let used = self.ring.take_used().unwrap();
            self.free.push(u16::try_from(used.head).unwrap());
            self.used = self.used.wrapping_add(1);
            count += 1;
        }
        count
    }

    /// Asks for an interrupt at the next used element; whether there is one already.
    fn arm(&mut self) -> bool {
        if self.event_idx {
            self.ring.set_used_event(self.used);
        } else {
            self.ring.set_avail_flags(0);
        }
        // Pairs with the device's fence between the used index and the decision.
        fence(Ordering::SeqCst);
        self.ring.used_index() != self.used
    }

    fn disarm(&self) {
        if !self.event_idx {
            self.ring.set_avail_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
        }
    }

    fn run(mut self, kick: &Bell, interrupts: &Receiver<()>) {
        let (mut left, mut back) = (CHAINS, 0);
        while back < CHAINS {
            self.disarm();
            back += self.reclaim();
            self.fill(&mut left, kick);
            if back < CHAINS && !self.arm() {
                interrupts.recv_timeout(LOST).expect("an interrupt was lost");
            }
        }
        kick.ring();
    }
}

fn exchange(features: u64) {
    let bench = Bench::new(features);
    let (ram, mut queue) = (bench.ram, bench.queue);
    let (kick, kicks) = Bell::new();
    let (interrupt, interrupts) = Bell::new();
    let driver = Driver {
        ring: bench.driver,
        event_idx: features & VIRTIO_F_EVENT_IDX != 0,
        free: (0..SIZE).collect(),
        avail: 0,
        used: 0,
    };
    std::thread::scope(|scope| {
        scope.spawn(move || driver.run(&kick, &interrupts));
        let mut served = 0;
        while served < CHAINS {
            while let Some(chain) = queue.pop(ram.memory()).unwrap() {
                queue.complete(ram.memory(), chain, 4).unwrap();
                queue.signal_used(ram.memory(), &*interrupt).unwrap();
                served += 1;
            }
            if served < CHAINS {
                kicks.recv_timeout(LOST).expect("a kick was lost");
            }
        }
    });
}

#[test]
fn no_notification_is_lost_with_flags() {
    exchange(0);
}

#[test]
fn no_notification_is_lost_with_event_idx() {
    exchange(VIRTIO_F_EVENT_IDX);
}
