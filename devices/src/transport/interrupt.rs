//! Interrupt status that vCPUs read and acknowledge without the device lock.

use std::sync::Arc;

use abi::mmio::{INT_CONFIG, INT_VRING};
use abi::virtio::status::DEVICE_NEEDS_RESET;

use crate::interrupt::IrqLine;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::virtio::Interrupt;

const INT_BITS: u32 = INT_VRING | INT_CONFIG;

/// The interrupt side of a device, shared by the transport, the device and the vCPUs.
///
/// One word holds the epoch (high half, one more at each reset) and the flags
/// (low half: `INT_*` and DEVICE_NEEDS_RESET), so that a device activation from
/// before a reset can set nothing after it: the epoch is compared in the same
/// atomic step that sets the flag.
pub struct InterruptStatus {
    word: AtomicU64,
    generation: AtomicU32,
    irq: Arc<dyn IrqLine>,
}

impl InterruptStatus {
    pub(super) fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self { word: AtomicU64::new(0), generation: AtomicU32::new(0), irq }
    }

    /// The INTERRUPT_STATUS register. Lock-free.
    pub fn read(&self) -> u32 {
        self.flags() & INT_BITS
    }

    /// A write to INTERRUPT_ACK: clears the bits that the driver has dealt with. Lock-free.
    pub fn acknowledge(&self, bits: u32) {
        // AcqRel: what the driver did before it acknowledged comes before the
        // next `raise`, and the next `raise` is seen by the driver's next read.
        self.word.fetch_and(!u64::from(bits & INT_BITS), Ordering::AcqRel);
    }

    /// Whether the device has asked for a reset since the last one.
    pub(super) fn needs_reset(&self) -> bool {
        self.flags() & DEVICE_NEEDS_RESET != 0
    }

    /// The configuration generation (§2.5.1): differs whenever configuration space may.
    pub(super) fn generation(&self) -> u32 {
        // Acquire pairs with the Release in `bump_generation`.
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn bump_generation(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Clears everything and makes handles of earlier epochs inert; returns the new epoch.
    pub(super) fn begin_epoch(&self) -> u32 {
        let next = |word| Some(u64::from(epoch_of(word).wrapping_add(1)) << 32);
        let (Ok(word) | Err(word)) =
            self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        epoch_of(word).wrapping_add(1)
    }

    /// Sets `flags` and sends an edge, unless `epoch` is over.
    ///
    /// The edge is sent even if the bits were set already: the driver may have
    /// read the register and be about to acknowledge them.
    fn raise(&self, epoch: u32, flags: u32) {
        let set = |word| (epoch_of(word) == epoch).then_some(word | u64::from(flags));
        // Release orders ring and configuration writes before the bit; pairs
        // with the Acquire in `flags`.
        if self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, set).is_ok() {
            self.irq.trigger();
        }
    }

    fn flags(&self) -> u32 {
        // The mask keeps the low half, which fits.
        u32::try_from(self.word.load(Ordering::Acquire) & u64::from(u32::MAX)).unwrap_or(0)
    }
}

fn epoch_of(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap_or(0)
}

/// What one activation of a device raises its interrupts with.
pub(super) struct EpochInterrupt {
    status: Arc<InterruptStatus>,
    epoch: u32,
}

impl EpochInterrupt {
    /// Starts a new epoch.
    pub(super) fn begin(status: Arc<InterruptStatus>) -> Self {
        let epoch = status.begin_epoch();
        Self { status, epoch }
    }
}

impl Interrupt for EpochInterrupt {
    fn used(&self) {
        self.status.raise(self.epoch, INT_VRING);
    }

    fn config_changed(&self) {
        self.status.bump_generation();
        self.status.raise(self.epoch, INT_CONFIG);
    }

    fn needs_reset(&self) {
        // §2.1.2: the driver learns of it by a configuration change notification.
        self.status.raise(self.epoch, DEVICE_NEEDS_RESET | INT_CONFIG);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::CountingIrq;

    fn status() -> (Arc<InterruptStatus>, Arc<CountingIrq>) {
        let irq = Arc::new(CountingIrq::default());
        (Arc::new(InterruptStatus::new(irq.clone())), irq)
    }

    #[test]
    fn acknowledged_bits_clear_and_others_stay() {
        let (status, _irq) = status();
        let line = EpochInterrupt::begin(status.clone());
        line.used();
        line.config_changed();
        assert_eq!(status.read(), INT_VRING | INT_CONFIG);
        status.acknowledge(INT_VRING | 0xffff_fff0);
        assert_eq!(status.read(), INT_CONFIG);
    }

    #[test]
    fn a_repeated_interrupt_sends_an_edge_each_time() {
        let (status, irq) = status();
        let line = EpochInterrupt::begin(status);
        line.used();
        line.used();
        assert_eq!(irq.edges(), 2);
    }

    #[test]
    fn an_activation_from_before_a_reset_raises_nothing() {
        let (status, irq) = status();
        let old = EpochInterrupt::begin(status.clone());
        old.needs_reset();
        let _new = EpochInterrupt::begin(status.clone());
        assert_eq!((status.read(), status.needs_reset()), (0, false));
        let edges = irq.edges();
        old.used();
        old.needs_reset();
        assert_eq!((status.read(), status.needs_reset(), irq.edges()), (0, false, edges));
    }

    #[test]
    fn a_driver_cannot_acknowledge_needs_reset_away() {
        let (status, _irq) = status();
        EpochInterrupt::begin(status.clone()).needs_reset();
        status.acknowledge(u32::MAX);
        assert!(status.needs_reset());
        assert_eq!(status.read(), 0);
    }
}

/// Every interleaving of a device, a vCPU and a reset. Run with `--cfg loom`.
#[cfg(all(test, loom))]
mod loom_models {
    use loom::thread;

    use super::*;
    use crate::testing::CountingIrq;

    fn start() -> (Arc<InterruptStatus>, EpochInterrupt) {
        let status = Arc::new(InterruptStatus::new(Arc::new(CountingIrq::default())));
        let line = EpochInterrupt::begin(status.clone());
        (status, line)
    }

    /// Lets loom run the other thread first.
    ///
    /// It remembers one last access of an atomic, so the load with which
    /// `raise` begins hides an earlier load from it; a write does not get hidden.
    fn settle(status: &InterruptStatus) {
        status.acknowledge(0);
    }

    /// A driver that acknowledges before it looks misses nothing: it has seen the buffer, or the
    /// bit is set for the next interrupt.
    #[test]
    fn loom_an_acknowledged_interrupt_loses_no_buffer() {
        loom::model(|| {
            let (status, line) = start();
            let used = loom::sync::Arc::new(AtomicU32::new(0));
            let device = thread::spawn({
                let used = used.clone();
                move || {
                    for index in 1..=2 {
                        used.store(index, Ordering::Relaxed);
                        line.used();
                    }
                }
            });
            settle(&status);
            let bits = status.read();
            status.acknowledge(bits);
            let seen = used.load(Ordering::Relaxed);
            assert!(bits == 0 || seen > 0, "the bit was visible before the buffer");
            device.join().unwrap();
            assert!(seen == 2 || status.read() == INT_VRING, "a buffer would wait for ever");
        });
    }

    /// Whatever an activation does while the device is reset, the new epoch begins clean.
    #[test]
    fn loom_a_reset_outlives_every_interrupt_of_before() {
        loom::model(|| {
            let (status, old) = start();
            let device = thread::spawn(move || {
                old.used();
                old.needs_reset();
            });
            let new = EpochInterrupt::begin(status.clone());
            device.join().unwrap();
            assert_eq!((status.read(), status.needs_reset()), (0, false));
            new.used();
            assert_eq!(status.read(), INT_VRING);
        });
    }

    /// An acknowledgement takes away only what it names, whatever else happens.
    #[test]
    fn loom_an_acknowledgement_leaves_other_bits_alone() {
        loom::model(|| {
            let (status, line) = start();
            line.used();
            let device = thread::spawn(move || line.config_changed());
            status.acknowledge(INT_VRING);
            device.join().unwrap();
            assert_eq!(status.read(), INT_CONFIG);
        });
    }
}
