//! The register machine against a naive model, over arbitrary access sequences.

use proptest::prelude::*;

use super::*;
use abi::virtio::status::{DRIVER_OK, FEATURES_OK};

/// One queue as a driver would remember it.
#[derive(Debug, Clone, Default)]
struct ModelQueue {
    size: u32,
    desc: u64,
    avail: u64,
    used: u64,
    ready: bool,
}

impl ModelQueue {
    fn is_good(&self, max: u32) -> bool {
        let inside = |at: u64, bytes: u64| u128::from(at) + u128::from(bytes) <= RAM_BYTES as u128;
        let n = u64::from(self.size);
        [1, 2, 4, 8].contains(&self.size)
            && self.size <= max
            && self.desc.is_multiple_of(16)
            && self.avail.is_multiple_of(2)
            && self.used.is_multiple_of(4)
            && inside(self.desc, 16 * n)
            && inside(self.avail, 2 * n + 6)
            && inside(self.used, 8 * n + 6)
    }
}

/// The specification's rules as a list of cases; nothing shared with the implementation.
#[derive(Debug, Clone, Default)]
struct Model {
    status: u32,
    broken: bool,
    feature_sel: u32,
    driver_sel: u32,
    low: u32,
    high: u32,
    beyond: bool,
    queue_sel: u32,
    queues: [ModelQueue; 2],
    interrupts: u32,
}

impl Model {
    fn selected(&mut self) -> Option<(&mut ModelQueue, u32)> {
        let max = *[8, 4].get(self.queue_sel as usize)?;
        Some((self.queues.get_mut(self.queue_sel as usize)?, max))
    }

    fn status(&self) -> u32 {
        self.status + if self.broken { 64 } else { 0 }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            *self = Self::default();
            return;
        }
        let value = if self.broken { value & !64 } else { value };
        // Every legal move, spelled out.
        match (self.status, value) {
            (0, 1) | (0, 3) | (1, 3) if !self.broken => self.status = value,
            (3, 11) if !self.broken => {
                let offered = 1 | 1 << 40 | 1 << 28 | 1 << 29 | 1 << 32;
                let accepted = u64::from(self.low) | u64::from(self.high) << 32;
                if accepted & !offered == 0 && self.high & 1 == 1 && !self.beyond {
                    self.status = 11;
                }
            }
            (11, 15) if !self.broken => {
                self.status = 15;
                if !self.queues[0].ready {
                    self.broken = true;
                    self.interrupts |= 2;
                }
            }
            (now, value) if now & 128 == 0 && value == now | 128 => self.status = value,
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let status = self.status;
        match offset {
            0x014 => self.feature_sel = value,
            0x024 => self.driver_sel = value,
            0x020 if status == 1 || status == 0 => {}
            0x020 if status == 3 => match self.driver_sel {
                0 => self.low = value,
                1 => self.high = value,
                _ => self.beyond |= value != 0,
            },
            0x030 => self.queue_sel = value,
            0x064 => self.interrupts &= !value,
            0x070 => self.write_status(value),
            _ if status == 11 => self.write_queue(offset, value),
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some((queue, max)) = self.selected() else { return };
        let with_low = |address: u64| address >> 32 << 32 | u64::from(value);
        let with_high = |address: u64| address & 0xffff_ffff | u64::from(value) << 32;
        match (offset, queue.ready) {
            (0x044, _) if value == 0 => queue.ready = false,
            (0x044, false) if value == 1 => queue.ready = queue.is_good(max),
            (0x038, false) if [1, 2, 4, 8].contains(&value) && value <= max => queue.size = value,
            (0x080, false) => queue.desc = with_low(queue.desc),
            (0x084, false) => queue.desc = with_high(queue.desc),
            (0x090, false) => queue.avail = with_low(queue.avail),
            (0x094, false) => queue.avail = with_high(queue.avail),
            (0x0a0, false) => queue.used = with_low(queue.used),
            (0x0a4, false) => queue.used = with_high(queue.used),
            _ => {}
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            0x000 => 0x7472_6976,
            0x004 => 2,
            0x008 => 0x1234,
            0x00c => u32::from_le_bytes(*b"AERO"),
            0x010 => match self.feature_sel {
                0 => 1 | 1 << 28 | 1 << 29,
                1 => 1 << 8 | 1,
                _ => 0,
            },
            0x034 => self.selected().map_or(0, |(_, max)| max),
            0x044 => self.selected().is_some_and(|(queue, _)| queue.ready).into(),
            0x060 => self.interrupts,
            0x070 => self.status(),
            0x0b0..0x0c0 => u32::MAX,
            _ => 0,
        }
    }
}

/// An access: mostly a step of a sensible driver, often nearly so, sometimes anything.
fn access() -> impl Strategy<Value = (u64, u32)> {
    let status = prop::sample::select(vec![0, 1, 3, 3, 11, 11, 15, 15, 139, 143, 64, 79, 7, 2]);
    let register = prop::sample::select(vec![0x014u64, 0x024, 0x020, 0x030, 0x038, 0x044, 0x064]);
    let address = prop::sample::select(vec![0x080u64, 0x084, 0x090, 0x094, 0x0a0, 0x0a4]);
    let address_value = prop::sample::select(vec![0, 0x1000, 0x2000, 0x3002, 0xfff0, 0xffff]);
    prop_oneof![
        6 => status.prop_map(|value| (0x070, value)),
        6 => (register, prop_oneof![4 => 0..4u32, 2 => 4..17u32, 1 => any::<u32>()]),
        3 => (address, address_value),
        1 => ((0..0x40u64).prop_map(|n| 4 * n), any::<u32>()),
    ]
}

/// A prefix that brings the machine into its deeper states.
fn beginning() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let negotiated = vec![(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)];
    let mut queue = negotiated.clone();
    queue.extend([(0x38, 4), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000), (0x44, 1)]);
    let mut running = queue.clone();
    running.push((0x70, 15));
    let mut broken = negotiated.clone();
    broken.push((0x70, 15));
    prop::sample::select(vec![vec![], negotiated, queue, running, broken])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_register_reads_as_the_model_says_after_every_write(
        beginning in beginning(),
        accesses in prop::collection::vec(access(), 0..60),
    ) {
        let mut bench = Bench::new();
        let mut model = Model::default();
        for (offset, value) in beginning.into_iter().chain(accesses) {
            // What the rings hold is another test's subject: they stay empty, so
            // the addresses above lead to zeroed memory and kicks do nothing.
            bench.store(offset, value);
            model.write(offset, value);
            for offset in (0..0x100).step_by(4).filter(|&offset| offset != mmio::CONFIG_GENERATION) {
                prop_assert_eq!(bench.load(offset), model.read(offset), "{:#x}", offset);
            }
            let running = model.status == (FEATURES_OK | DRIVER_OK | 3) && !model.broken;
            prop_assert_eq!(bench.transport.is_running(), running);
            prop_assert_eq!(bench.transport.device().activation().is_some(), running
                || (model.status & DRIVER_OK != 0 && model.queues[0].ready));
        }
    }
}
