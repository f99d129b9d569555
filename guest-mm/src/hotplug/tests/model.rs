//! Random plugging, unplugging and faults against what a simple model expects.

use proptest::prelude::*;

use abi::mem::response;

use super::blocks::{SECTION, UNIT};
use super::device::Mischief;
use super::driver::with_rig;
use crate::buddy::Gfp;
use crate::hotplug::HotplugPhase;
use crate::memdesc::Order;
use crate::platform::FaultSite;

#[derive(Debug, Clone)]
enum Op {
    /// The device wishes for so many blocks.
    Wish(u64),
    /// The guest takes a block of this order and fills it with its number.
    Take(u32),
    /// The guest frees one of its blocks.
    Free(usize),
    /// The next requests go wrong.
    Mischief(Vec<Mischief>),
    /// Mapping fails the next time.
    NoMap,
}

fn mischief() -> impl Strategy<Value = Mischief> {
    prop_oneof![
        Just(Mischief::Answer(response::VIRTIO_MEM_RESP_NACK)),
        Just(Mischief::Answer(response::VIRTIO_MEM_RESP_BUSY)),
        Just(Mischief::Reset),
        Just(Mischief::DoneThenReset),
        Just(Mischief::WrongHead),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..3 * SECTION / UNIT).prop_map(Op::Wish),
        2 => (0..4u64).prop_map(Op::Wish),
        4 => (0..=10u32).prop_map(Op::Take),
        3 => any::<usize>().prop_map(Op::Free),
        2 => prop::collection::vec(mischief(), 1..4).prop_map(Op::Mischief),
        1 => Just(Op::NoMap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_memory_is_lost_and_all_of_it_comes_back(
        ops in prop::collection::vec(op(), 1..25)
    ) {
        with_rig(UNIT, |rig| {
            let memory = rig.memory();
            let mut held: Vec<(u8, crate::memory::FrozenFrames)> = Vec::new();
            for (mark, op) in ops.into_iter().enumerate() {
                let mark = u8::try_from(mark).unwrap();
                match op {
                    Op::Wish(units) => {
                        let status = rig.request(units * UNIT);
                        prop_assert_eq!(status.phase, HotplugPhase::Running);
                        prop_assert_eq!(status.plugged.get(), rig.device.plugged());
                        // Growing always succeeds; shrinking, as far as nobody is in the way.
                        prop_assert!(status.plugged.get() >= units * UNIT);
                        if held.is_empty() {
                            prop_assert_eq!(status.plugged.get(), units * UNIT);
                        }
                    }
                    Op::Take(order) => {
                        let order = Order::try_from(order).unwrap();
                        if let Ok(mut frames) = memory.alloc_frozen(order, Gfp::USER) {
                            memory.bytes_mut(&mut frames).fill(mark);
                            held.push((mark, frames));
                        }
                    }
                    Op::Free(n) if !held.is_empty() => {
                        let (mark, frames) = held.swap_remove(n % held.len());
                        prop_assert!(memory.bytes(&frames).iter().all(|byte| *byte == mark));
                        memory.free_frozen(frames);
                    }
                    Op::Free(_) => {}
                    // No more than a device may do in a row before it is given up.
                    Op::Mischief(list) => *rig.device.mischief.borrow_mut() = list.into(),
                    Op::NoMap => memory.platform().faults().fail_nth(FaultSite::MapBlock, 1),
                }
                rig.assert_consistent();
            }
            for (mark, frames) in held {
                prop_assert!(memory.bytes(&frames).iter().all(|byte| *byte == mark));
                memory.free_frozen(frames);
            }
            memory.platform().faults().fail_nth(FaultSite::MapBlock, 0);
            Ok(())
        })?;
    }
}
