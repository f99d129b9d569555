//! A ring of arbitrary place and content, popped and returned in any order.

use abi::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};
use devices::ram::GuestRam;
use devices::ring::{Buffers, CheckedDesc, PoppedChain, RingLayout, Virtqueue};
use devices::testing::{CountingInterrupt, TestRam};
use vm_memory::{Bytes, GuestAddress};

use super::input::Input;

const REGIONS: [(u64, usize); 2] = [(0, 0x8000), (0xc000, 0x4000)];
const MAX_SIZE: u16 = 16;
const MAX_ACTIONS: usize = 256;

/// Acts an input out.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = TestRam::new(&REGIONS);
    let mem = ram.memory();
    let how = input.u8();
    let layout = RingLayout {
        size: 1 << (how & 7),
        desc: address(&mut input, 16),
        avail: address(&mut input, 2),
        used: address(&mut input, 4),
    };
    let mut features = if how & 8 != 0 { VIRTIO_F_INDIRECT_DESC } else { 0 };
    features |= if how & 16 != 0 { VIRTIO_F_EVENT_IDX } else { 0 };
    let verdict = layout.check(MAX_SIZE, mem);
    let Ok(mut queue) = Virtqueue::new(0, MAX_SIZE, layout, features, mem) else {
        assert!(verdict.is_err());
        return;
    };
    verdict.expect("a queue is made of a good layout only");
    let interrupt = CountingInterrupt::default();
    let mut held: Vec<PoppedChain> = Vec::new();
    for _ in 0..MAX_ACTIONS {
        if input.is_empty() {
            break;
        }
        let going = match input.u8() % 8 {
            0..3 => {
                let at = GuestAddress(u64::from(input.u16()));
                let len = usize::from(input.u8() & 0x3f);
                // Outside RAM nothing is written.
                mem.write_slice(input.bytes(len), at).is_ok() || len > 0
            }
            3..6 => match queue.pop(mem) {
                Ok(chain) => {
                    if let Some(Ok(buffers)) = chain.as_ref().map(PoppedChain::buffers) {
                        check(buffers, layout.size);
                    }
                    held.extend(chain);
                    true
                }
                Err(_) => false,
            },
            6 => held.pop().is_none_or(|chain| queue.complete(mem, chain, 0).is_ok()),
            _ => queue.signal_used(mem, &interrupt).is_ok(),
        };
        assert!(held.len() <= usize::from(layout.size), "more chains than descriptors");
        if !going {
            break;
        }
    }
    for chain in held {
        queue.complete(mem, chain, 0).expect("the ring was in RAM and is so still");
    }
}

fn address(input: &mut Input<'_>, align: u64) -> u64 {
    let exact = input.u8() & 1 == 0;
    let address = if exact { u64::from(input.u16()) } else { input.u64() };
    if exact { address & !(align - 1) } else { address }
}

fn check(buffers: &Buffers, size: u16) {
    let all = [buffers.readable(), buffers.writable()];
    assert!(all.iter().map(|part| part.len()).sum::<usize>() <= usize::from(size));
    let bytes = |part: &[CheckedDesc]| part.iter().map(|desc| u64::from(desc.len())).sum::<u64>();
    assert_eq!(bytes(buffers.readable()), u64::from(buffers.readable_bytes()));
    assert_eq!(bytes(buffers.writable()), u64::from(buffers.writable_bytes()));
    for desc in all.concat() {
        let (start, end) = (desc.addr().0, u128::from(desc.addr().0) + u128::from(desc.len()));
        let inside =
            REGIONS.iter().any(|&(at, len)| start >= at && end <= u128::from(at) + len as u128);
        assert!(inside && desc.len() > 0, "{desc:?} is not RAM");
    }
}
