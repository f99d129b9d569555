//! Any device model behind its transport, with a doorbell that waits until a test lets the device look.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use abi::mmio;
use devices::ram::GuestRam;
use devices::testing::CountingIrq;
use devices::transport::MmioTransport;
use devices::virtio::{QueueProgress, VirtioDevice};
use guest_mm::virtio::MmioBus;
use vm_memory::{Bytes, GuestAddress};

/// A driver's way to a device's registers, and a test's to its doorbells.
pub struct DirectBus<D: VirtioDevice>(Rc<RefCell<Wired<D>>>);

struct Wired<D: VirtioDevice> {
    transport: MmioTransport<D>,
    ram: Arc<dyn GuestRam>,
    irq: Arc<CountingIrq>,
    kicks: BTreeSet<u16>,
    selected: u16,
    /// Where each queue's available ring is, below 4 GiB.
    available: BTreeMap<u16, u64>,
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
        let transport = MmioTransport::new(device, ram.clone(), irq.clone());
        let (kicks, available) = Default::default();
        Self(Rc::new(RefCell::new(Wired { transport, ram, irq, kicks, selected: 0, available })))
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

    /// Makes the ring of `queue` contradict itself: the device asks for a reset when it looks next, which
    /// it has reason to. Nothing happens to a device that is not running.
    ///
    /// # Panics
    /// If the ring is not in RAM.
    pub fn break_ring(&self, queue: u16) {
        let Wired { transport, ram, kicks, available, .. } = &mut *self.0.borrow_mut();
        let Some(ring) = available.get(&queue).filter(|_| transport.is_running()) else { return };
        let at = GuestAddress(ring + 2);
        let index: u16 = ram.memory().read_obj(at).expect("a ring in RAM");
        ram.memory().write_obj(index.wrapping_add(0x4000), at).expect("a ring in RAM");
        kicks.insert(queue);
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
        let Wired { transport, kicks, selected, available, .. } = &mut *self.0.borrow_mut();
        match offset {
            mmio::QUEUE_NOTIFY => {
                kicks.insert(u16::try_from(value).expect("a queue's number"));
                return;
            }
            mmio::QUEUE_SEL => *selected = u16::try_from(value).expect("a queue's number"),
            mmio::QUEUE_DRIVER_LOW => {
                available.insert(*selected, value.into());
            }
            mmio::STATUS if value == 0 => {
                kicks.clear();
                available.clear();
            }
            _ => {}
        }
        let _progress = transport.write(offset, &value.to_le_bytes());
    }

    fn read8(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.0.borrow_mut().transport.read(offset, &mut byte);
        byte[0]
    }
}
