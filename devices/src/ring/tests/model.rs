//! The walker and the ring against naive models, over arbitrary memory.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// What a chain says, as plainly as the specification puts it: follow, collect,
/// judge; no early exit except where one cannot go on.
fn naive_walk(
    mem: &GuestMemoryMmap,
    table: u64,
    head: u16,
    indirect: bool,
) -> Option<Vec<RawDesc>> {
    let at = |table: u64, index: u16| -> Option<RawDesc> {
        let bytes: [u8; 16] = mem.read_obj(GuestAddress(table + 16 * u64::from(index))).ok()?;
        Some(RawDesc::from_le_bytes(bytes))
    };
    let mut found = Vec::new();
    let (mut table, mut entries, mut index, mut inside) = (table, SIZE, head, false);
    loop {
        let raw = at(table, index)?;
        if raw.flags & VIRTQ_DESC_F_INDIRECT != 0 {
            let whole = raw.len != 0 && raw.len % 16 == 0 && raw.len / 16 <= u32::from(SIZE);
            let in_ram = u128::from(raw.addr) + u128::from(raw.len) <= RAM_BYTES as u128;
            if inside || !indirect || raw.has_next() || !whole || !in_ram {
                return None;
            }
            (table, entries, index, inside) =
                (raw.addr, u16::try_from(raw.len / 16).unwrap(), 0, true);
            continue;
        }
        found.push(raw);
        if found.len() > usize::from(SIZE) {
            return None;
        }
        if !raw.has_next() {
            break;
        }
        index = raw.next;
        if index >= entries {
            return None;
        }
    }
    let in_ram = |raw: &RawDesc| u128::from(raw.addr) + u128::from(raw.len) <= RAM_BYTES as u128;
    let sorted = found.is_sorted_by_key(|raw| raw.is_writable());
    let good = found.iter().all(|raw| raw.len > 0 && in_ram(raw)) && sorted;
    good.then_some(found)
}

/// Descriptors that are mostly plausible, so that long walks happen.
fn descriptor() -> impl Strategy<Value = RawDesc> {
    let addr = prop_oneof![
        8 => DATA..DATA + 0x1000,
        4 => prop::sample::select(vec![TABLE, TABLE + 0x100, RING]),
        1 => any::<u64>(),
        1 => RAM_BYTES as u64 - 64..RAM_BYTES as u64 + 64,
    ];
    let len = prop_oneof![
        8 => 1..64u32,
        4 => (0..=u32::from(SIZE) + 1).prop_map(|n| 16 * n),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        6 => Just(VIRTQ_DESC_F_NEXT),
        3 => Just(VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE),
        3 => Just(VIRTQ_DESC_F_WRITE),
        2 => Just(0),
        3 => Just(VIRTQ_DESC_F_INDIRECT),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![12 => 0..SIZE, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| RawDesc { addr, len, flags, next })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn the_walker_agrees_with_a_naive_one(
        ring in prop::collection::vec(descriptor(), usize::from(SIZE)),
        tables in prop::collection::vec(descriptor(), 2 * usize::from(SIZE) + 2),
        head in 0..SIZE,
        indirect: bool,
    ) {
        let features = if indirect { VIRTIO_F_INDIRECT_DESC } else { 0 };
        let mut bench = Bench::new(features);
        for (index, raw) in (0..).zip(ring) {
            bench.driver.set_desc(index, raw);
        }
        for (index, raw) in (0..).zip(tables) {
            let half = SIZE + 1;
            let table = if index < half { TABLE } else { TABLE + 0x100 };
            bench.driver.set_desc_at(table, index % half, raw);
        }
        let expected = naive_walk(bench.mem(), RING, head, indirect);
        bench.driver.offer(head);
        let chain = bench.pop().unwrap().unwrap();
        let found = chain.buffers().ok().map(|buffers| {
            let pairs = |descs: &[CheckedDesc], writable| {
                descs.iter().map(|d| (d.addr().0, d.len(), writable)).collect::<Vec<_>>()
            };
            [pairs(buffers.readable(), false), pairs(buffers.writable(), true)].concat()
        });
        bench.complete(chain, 0);
        let expected = expected.map(|descs| {
            descs.iter().map(|d| (d.addr, d.len, d.is_writable())).collect::<Vec<_>>()
        });
        prop_assert_eq!(found, expected);
        // Whatever it was, it went back once.
        let back = UsedElement { head: head.into(), written: 0 };
        prop_assert_eq!(bench.driver.take_all_used(), vec![back]);
    }

    #[test]
    fn heads_come_back_once_each_in_the_order_of_completion(
        steps in prop::collection::vec((0..4u8, 0..SIZE), 1..200),
        event_idx: bool,
    ) {
        let mut bench = Bench::new(if event_idx { VIRTIO_F_EVENT_IDX } else { 0 });
        let mut free: Vec<u16> = (0..SIZE).collect();
        let mut offered = VecDeque::new();
        let mut held: Vec<PoppedChain> = Vec::new();
        let mut expected = VecDeque::new();
        for (step, pick) in steps {
            match step {
                0 => if let Some(head) = free.pop() {
                    bench.driver.offer_chain(head, &[(DATA, 8, true)]);
                    offered.push_back(head);
                },
                1 => {
                    let popped = bench.pop().unwrap();
                    prop_assert_eq!(popped.as_ref().map(PoppedChain::head), offered.pop_front());
                    held.extend(popped);
                }
                2 => if !held.is_empty() {
                    let chain = held.swap_remove(usize::from(pick) % held.len());
                    expected.push_back(UsedElement { head: chain.head().into(), written: 8 });
                    bench.complete(chain, 8);
                },
                _ => if let Some(used) = bench.driver.take_used() {
                    prop_assert_eq!(Some(used), expected.pop_front());
                    free.push(u16::try_from(used.head).unwrap());
                },
            }
        }
        held.into_iter().for_each(PoppedChain::abandon_at_reset);
        prop_assert_eq!(bench.driver.take_all_used(), Vec::from(expected));
    }

    #[test]
    fn arbitrary_ring_memory_never_panics_and_chains_go_back(
        bytes in prop::collection::vec(any::<u8>(), 0x200),
        avail: u16,
        features in prop::sample::select(vec![0, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX]),
    ) {
        let mut bench = Bench::new(features);
        bench.mem().write_slice(&bytes, GuestAddress(RING)).unwrap();
        bench.driver.set_avail_index(avail);
        let before = bench.driver.used_index();
        let mut popped = 0u16;
        while let Ok(Some(chain)) = bench.pop() {
            popped += 1;
            bench.complete(chain, 0);
            prop_assert!(popped <= SIZE);
        }
        // The ring's bytes were random, so its index only means something once written.
        if popped > 0 {
            prop_assert_eq!(bench.driver.used_index(), popped);
        } else {
            prop_assert_eq!(bench.driver.used_index(), before);
        }
    }
}
