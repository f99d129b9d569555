//! The real console driver against the real console device.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use abi::console::AGENT_PORT_NAME;
use abi::mmio;
use devices::console::Console;
use devices::ram::GuestRam;
use devices::testing::CountingIrq;
use devices::transport::MmioTransport;
use devices::virtio::QueueProgress;
use guest_mm::console::{AgentState, ConsoleDriver};
use guest_mm::memory::Memory;
use guest_mm::virtio::MmioBus;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use system_tests::sim::{SimMachine, SimPlatform, seeds};

/// Registers that are called directly; doorbells wait for [`Bus::serve`].
#[derive(Clone)]
struct Bus(Rc<RefCell<(MmioTransport<Console>, Vec<u16>)>>);

impl Bus {
    /// Lets the device look at every queue whose doorbell has rung.
    fn serve(&self) {
        let (transport, kicks) = &mut *self.0.borrow_mut();
        for queue in kicks.drain(..) {
            let mut progress = transport.queue_notified(queue);
            while progress == QueueProgress::Pending {
                progress = transport.serve_pending();
            }
        }
    }

    fn host<R>(&self, act: impl FnOnce(&mut Console) -> R) -> R {
        act(self.0.borrow_mut().0.device_mut())
    }
}

impl MmioBus for Bus {
    fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.borrow_mut().0.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write32(&self, offset: u64, value: u32) {
        let (transport, kicks) = &mut *self.0.borrow_mut();
        if offset == mmio::QUEUE_NOTIFY {
            kicks.push(u16::try_from(value).expect("a queue's number"));
        } else {
            let _progress = transport.write(offset, &value.to_le_bytes());
        }
    }

    fn read8(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.0.borrow_mut().0.read(offset, &mut byte);
        byte[0]
    }
}

fn machine() -> (Memory<SimPlatform>, Bus) {
    let machine = SimMachine::new(2048, 0);
    let ranges = machine.ram().ram_ranges().to_vec();
    let irq = Arc::new(CountingIrq::default());
    let transport = MmioTransport::new(Console::new(AGENT_PORT_NAME), machine.ram(), irq);
    let memory = Memory::new(SimPlatform(machine), &ranges, &[]).expect("a machine with memory");
    (memory, Bus(Rc::new(RefCell::new((transport, Vec::new())))))
}

fn open(memory: &Memory<SimPlatform>, bus: &Bus) -> ConsoleDriver<Bus> {
    let mut console = ConsoleDriver::start(bus.clone(), memory).expect("a console");
    for _ in 0..10 {
        bus.serve();
        console.interrupt();
        console.poll().expect("an honest device");
    }
    assert_eq!(console.agent(), AgentState::Open);
    assert!(bus.host(|console| console.guest_open()));
    console
}

#[test]
fn driver_and_device_agree_on_the_agent_port_and_give_all_memory_back() {
    let (memory, bus) = machine();
    let free = memory.free_pages();
    let console = open(&memory, &bus);
    console.shut_down(&memory).expect("a reset");
    assert_eq!(memory.free_pages(), free);
    let console = open(&memory, &bus);
    console.shut_down(&memory).expect("a reset");
    assert_eq!(memory.free_pages(), free);
}

#[test]
fn bytes_cross_both_ways_in_order_whatever_the_timing() {
    for seed in seeds(20) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (memory, bus) = machine();
        let mut console = open(&memory, &bus);
        let mut bytes = vec![0; 30_000];
        rng.fill_bytes(&mut bytes);
        let (mut to_host, mut to_guest) = (0, 0);
        let (mut at_host, mut at_guest) = (Vec::new(), Vec::new());
        for _ in 0..100_000 {
            match rng.random_range(0..6) {
                0 => {
                    let most = rng.random_range(0..3000).min(bytes.len() - to_host);
                    to_host += console.send(&bytes[to_host..to_host + most]).expect("honest");
                }
                1 => {
                    let most = rng.random_range(0..3000).min(bytes.len() - to_guest);
                    let part = &bytes[to_guest..to_guest + most];
                    to_guest += bus.host(|console| console.port_write(part));
                }
                2 => {
                    bus.host(|console| console.port_read(&mut at_host));
                }
                3 => {
                    let mut out = vec![0; rng.random_range(0..3000)];
                    let received = console.receive(&mut out).expect("honest");
                    at_guest.extend_from_slice(&out[..received]);
                }
                4 => bus.serve(),
                _ => {
                    console.interrupt();
                    console.poll().expect("honest");
                }
            }
            if at_host.len() == bytes.len() && at_guest.len() == bytes.len() {
                break;
            }
        }
        assert!(at_host == bytes && at_guest == bytes, "seed {seed}: bytes lost or changed");
    }
}
