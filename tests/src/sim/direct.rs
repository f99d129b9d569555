//! Any device model behind its transport, with a doorbell that waits until a test lets the device look.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use abi::mmio;
use devices::ram::GuestRam;
use devices::testing::CountingIrq;
use devices::transport::MmioTransport;
use devices::virtio::{QueueProgress, VirtioDevice};
use guest_mm::virtio::MmioBus;

/// A driver's way to a device's registers, and a test's to its doorbells.
pub struct DirectBus<D: VirtioDevice>(Rc<RefCell<Wired<D>>>);

struct Wired<D: VirtioDevice> {
    transport: MmioTransport<D>,
    irq: Arc<CountingIrq>,
    kicks: BTreeSet<u16>,
}

impl<D: VirtioDevice> Clone for DirectBus<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D: VirtioDevice> DirectBus<D> {
    /// `device` over `ram`.
    pub fn new(device: D, ram: Arc<dyn GuestRam>) -> Self {
        let irq = Arc::new(CountingIrq::default());
        let transport = MmioTransport::new(device, ram, irq.clone());
        Self(Rc::new(RefCell::new(Wired { transport, irq, kicks: BTreeSet::new() })))
    }

    /// Lets the device look at every queue whose doorbell has rung, until it has nothing more to do.
    pub fn serve(&self) {
        let Wired { transport, kicks, .. } = &mut *self.0.borrow_mut();
        for queue in std::mem::take(kicks) {
            let mut progress = transport.queue_notified(queue);
            while progress == QueueProgress::Pending {
                progress = transport.serve_pending();
            }
        }
    }

    /// The transport, for what a host does with it.
    pub fn transport<R>(&self, act: impl FnOnce(&mut MmioTransport<D>) -> R) -> R {
        act(&mut self.0.borrow_mut().transport)
    }

    /// The device.
    pub fn host<R>(&self, act: impl FnOnce(&mut D) -> R) -> R {
        self.transport(|transport| act(transport.device_mut()))
    }

    /// Interrupt edges since the beginning.
    pub fn edges(&self) -> u64 {
        self.0.borrow().irq.edges()
    }
}

impl<D: VirtioDevice> MmioBus for DirectBus<D> {
    fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.borrow_mut().transport.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write32(&self, offset: u64, value: u32) {
        let Wired { transport, kicks, .. } = &mut *self.0.borrow_mut();
        if offset == mmio::QUEUE_NOTIFY {
            kicks.insert(u16::try_from(value).expect("a queue's number"));
        } else {
            let _progress = transport.write(offset, &value.to_le_bytes());
        }
    }

    fn read8(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.0.borrow_mut().transport.read(offset, &mut byte);
        byte[0]
    }
}
