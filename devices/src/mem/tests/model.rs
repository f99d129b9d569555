//! Sequences of requests, sizes and resets against a naive model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Request(u16, u64, u16),
    Resize(u64),
    DeviceReset,
    SystemReset,
    Refuse(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let addr = prop_oneof![
        9 => (0..BLOCKS + 2).prop_map(block),
        1 => (0..BLOCKS * BLOCK).prop_map(|offset| BASE + offset),
        1 => any::<u64>(),
    ];
    let count = prop_oneof![9 => 0..8u16, 1 => any::<u16>()];
    prop_oneof![
        20 => (0..5u16, addr, count).prop_map(|(kind, addr, count)| Step::Request(kind, addr, count)),
        3 => (0..=BLOCKS).prop_map(Step::Resize),
        1 => Just(Step::DeviceReset),
        1 => Just(Step::SystemReset),
        1 => any::<bool>().prop_map(Step::Refuse),
    ]
}

/// What the specification says, one block at a time.
#[derive(Default)]
struct Model {
    plugged: BTreeSet<u64>,
    requested: u64,
    usable: u64,
    refuses: bool,
}

impl Model {
    fn answer(&mut self, kind: u16, addr: u64, count: u16) -> (u16, u16) {
        if kind == UNPLUG_ALL {
            self.unplug_all();
            return (ACK, 0);
        }
        let blocks: Vec<u64> = (0..u64::from(count))
            .map_while(|n| addr.checked_add(n.checked_mul(BLOCK)?))
            .map_while(|at| at.checked_sub(BASE))
            .filter(|offset| offset % BLOCK == 0 && offset / BLOCK < self.usable)
            .map(|offset| offset / BLOCK)
            .collect();
        if kind > STATE || blocks.len() < count.into() || count == 0 {
            return (ERROR, 0);
        }
        let plugged = blocks.iter().filter(|block| self.plugged.contains(block)).count();
        match (kind, plugged) {
            (STATE, 0) => (ACK, 1),
            (STATE, n) => (ACK, if n == blocks.len() { 0 } else { 2 }),
            (PLUG, 0) if self.plugged.len() as u64 + u64::from(count) > self.requested => (NACK, 0),
            (PLUG, 0) if self.refuses => (BUSY, 0),
            (PLUG, 0) => {
                self.plugged.extend(blocks);
                (ACK, 0)
            }
            (UNPLUG, n) if n == blocks.len() => {
                self.plugged.retain(|block| !blocks.contains(block));
                (ACK, 0)
            }
            _ => (ERROR, 0),
        }
    }

    fn unplug_all(&mut self) {
        self.plugged.clear();
        self.usable = if self.requested == 0 { 0 } else { BLOCKS };
    }
}

proptest! {
    #[test]
    fn the_device_answers_as_the_specification_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut machine = MemMachine::new(region());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Request(kind, addr, count) => {
                    let expected = model.answer(kind, addr, count);
                    prop_assert_eq!(machine.request(kind, addr, count), expected);
                }
                Step::Resize(blocks) => {
                    machine.ask_for(blocks * BLOCK);
                    model.requested = blocks;
                    // The region is smaller than the slack.
                    model.usable = if blocks > 0 { BLOCKS } else { model.usable };
                }
                Step::DeviceReset => machine.bring_up(),
                Step::SystemReset => {
                    machine.transport.device_mut().system_reset();
                    machine.bring_up();
                    model.unplug_all();
                }
                Step::Refuse(refuses) => {
                    machine.ram.refuse(refuses);
                    model.refuses = refuses;
                }
            }
            let plugged = model.plugged.len() as u64;
            prop_assert_eq!(machine.sizes(), [model.usable, plugged, model.requested].map(|n| n * BLOCK));
            for number in 0..BLOCKS {
                let there = machine.ram.present().write_obj(1u8, GuestAddress(block(number) + BLOCK - 1));
                prop_assert_eq!(there.is_ok(), model.plugged.contains(&number), "block {}", number);
            }
        }
    }
}
