//! The real console driver against the real console device.

use abi::console::AGENT_PORT_NAME;
use devices::console::Console;
use devices::ram::GuestRam;
use guest_mm::console::{AgentState, ConsoleDriver};
use guest_mm::memory::Memory;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use system_tests::sim::{DirectBus, SimMachine, SimPlatform, seeds};

type Bus = DirectBus<Console>;

fn machine() -> (Memory<SimPlatform>, Bus) {
    let machine = SimMachine::new(2048, 0);
    let ranges = machine.ram().ram_ranges().to_vec();
    let bus = Bus::new(Console::new(AGENT_PORT_NAME, None), machine.ram());
    let memory = Memory::new(SimPlatform(machine), &ranges, &[]).expect("a machine with memory");
    (memory, bus)
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
