//! Random requests in random layouts against a naive disk.

use std::collections::BTreeMap;

use abi::block::request::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use abi::block::status::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use proptest::prelude::*;

use super::*;

const SECTORS: u64 = 24;
/// Pieces of the arena for one request, so that requests of a batch do not overlap.
const SLOT_BYTES: u64 = 0x4000;
const ARENA: u64 = 0x2_0000;

/// A request as a driver lays it out.
#[derive(Debug, Clone)]
struct Plan {
    kind: u32,
    sector: u64,
    /// Bytes between header and status: of data, or of segments.
    data: Vec<u8>,
    /// Whether the data is the device's to write.
    is_writable: bool,
    /// Where readable and writable bytes are cut into descriptors.
    cuts: Vec<u16>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let sector = prop_oneof![8 => 0..SECTORS + 2, 1 => any::<u64>()];
    let cuts = prop::collection::vec(any::<u16>(), 0..6);
    let transfer = (
        prop::sample::select(vec![VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT]),
        0..6usize,
        any::<u8>(),
        prop_oneof![9 => Just(0usize), 1 => 1..512usize],
        prop::bool::weighted(0.95),
    )
        .prop_map(|(kind, sectors, seed, odd, right)| {
            let is_writable = (kind == VIRTIO_BLK_T_IN) == right;
            (kind, pattern(seed, sectors * 512 + odd), is_writable)
        });
    let part = (0..SECTORS + 2, 0..6u32, prop::sample::select(vec![0u32, 0, 0, 1, 2]));
    let zero = (
        prop::sample::select(vec![VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES]),
        prop::collection::vec(part, 0..4),
    )
        .prop_map(|(kind, parts)| {
            let bytes =
                parts.into_iter().map(|(sector, count, flags)| segment(sector, count, flags));
            (kind, bytes.collect::<Vec<_>>().concat(), false)
        });
    let other = prop::sample::select(vec![VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, 99])
        .prop_map(|kind| (kind, vec![0; if kind == VIRTIO_BLK_T_GET_ID { 20 } else { 0 }], true));
    let body = prop_oneof![4 => transfer, 2 => zero, 1 => other];
    (body, sector, cuts).prop_map(|((kind, data, is_writable), sector, cuts)| Plan {
        kind,
        sector,
        data,
        is_writable,
        cuts,
    })
}

/// What a naive disk says to a request: the status, and the bytes that the driver gets.
fn expect(disk: &mut [u8], plan: &Plan) -> (u8, Option<Vec<u8>>) {
    const BAD: (u8, Option<Vec<u8>>) = (VIRTIO_BLK_S_IOERR, None);
    let part = |sector: u64, bytes: usize| {
        let from = usize::try_from(sector.checked_mul(512)?).ok()?;
        let to = from.checked_add(bytes)?;
        (bytes.is_multiple_of(512) && to as u64 <= SECTORS * 512).then_some(from..to)
    };
    match plan.kind {
        VIRTIO_BLK_T_FLUSH => (VIRTIO_BLK_S_OK, None),
        VIRTIO_BLK_T_GET_ID => (VIRTIO_BLK_S_OK, Some([&b"drive0"[..], &[0; 14]].concat())),
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => {
            let is_read = plan.kind == VIRTIO_BLK_T_IN;
            if plan.data.is_empty() || is_read != plan.is_writable {
                return BAD;
            }
            let Some(range) = part(plan.sector, plan.data.len()) else { return BAD };
            if is_read {
                return (VIRTIO_BLK_S_OK, Some(disk[range].to_vec()));
            }
            disk[range].copy_from_slice(&plan.data);
            (VIRTIO_BLK_S_OK, None)
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            if plan.data.is_empty() {
                return BAD;
            }
            let known = u32::from(plan.kind == VIRTIO_BLK_T_WRITE_ZEROES);
            let mut ranges = Vec::new();
            for bytes in plan.data.chunks(16) {
                let sector = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                let sectors = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
                let flags = u32::from_le_bytes(bytes[12..].try_into().unwrap());
                if flags & !known != 0 {
                    return (VIRTIO_BLK_S_UNSUPP, None);
                }
                let Some(range) = part(sector, sectors as usize * 512) else { return BAD };
                ranges.push(range);
            }
            ranges.into_iter().for_each(|range| disk[range].fill(0));
            (VIRTIO_BLK_S_OK, None)
        }
        _ => (VIRTIO_BLK_S_UNSUPP, None),
    }
}

/// Cuts `len` bytes at `at` into pieces, each followed by a gap.
fn cut(at: u64, len: usize, cuts: &[u16], is_writable: bool) -> Vec<(u64, u32, bool)> {
    let mut points: Vec<usize> = cuts.iter().map(|&cut| usize::from(cut) % len.max(1)).collect();
    points.extend([0, len]);
    points.sort_unstable();
    points.dedup();
    let pieces = points.windows(2).zip(0u64..);
    pieces
        .map(|(piece, number)| {
            let start = at + piece[0] as u64 + number * 3;
            (start, u32::try_from(piece[1] - piece[0]).unwrap(), is_writable)
        })
        .collect()
}

fn scatter(machine: &BlockMachine, pieces: &[(u64, u32, bool)], mut bytes: &[u8]) {
    for &(at, len, _) in pieces {
        let (now, later) = bytes.split_at(len as usize);
        put(machine, at, now);
        bytes = later;
    }
}

fn collect(machine: &BlockMachine, pieces: &[(u64, u32, bool)]) -> Vec<u8> {
    pieces.iter().flat_map(|&(at, len, _)| get(machine, at, len as usize)).collect()
}

/// Lays a request out and makes it available; returns its writable pieces.
fn offer(machine: &mut BlockMachine, head: u16, slot: u64, plan: &Plan) -> Vec<(u64, u32, bool)> {
    let (out, room) = if plan.is_writable { (&[][..], plan.data.len()) } else { (&*plan.data, 0) };
    let header =
        [&plan.kind.to_le_bytes()[..], &[0xee; 4], &plan.sector.to_le_bytes(), out].concat();
    let base = ARENA + slot * SLOT_BYTES;
    let readable = cut(base, header.len(), &plan.cuts, false);
    let writable = cut(base + SLOT_BYTES / 2, room + 1, &plan.cuts, true);
    scatter(machine, &readable, &header);
    scatter(machine, &writable, &vec![0xff; room + 1]);
    machine.queue().offer_chain(head, &[readable, writable.clone()].concat());
    writable
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Requests of a batch have no order, so the naive disk sees them in ours, one batch at a time.
    #[test]
    fn any_request_in_any_layout_does_what_a_naive_disk_does(
        batches in prop::collection::vec(prop::collection::vec(plans(), 1..6), 1..6),
    ) {
        let (mut machine, disk) = machine(SECTORS);
        let mut naive = pattern(0x42, 24 * 512);
        disk.fill(0, &naive);
        for batch in batches {
            let mut offered = BTreeMap::new();
            for (plan, slot) in batch.into_iter().zip(0..) {
                let head = slot * 40;
                let writable = offer(&mut machine, head, slot.into(), &plan);
                offered.insert(u32::from(head), (plan, writable));
            }
            machine.kick();
            let used = machine.queue().take_all_used();
            prop_assert_eq!(used.len(), offered.len(), "each chain comes back once");
            for (used, (head, _)) in used.iter().zip(&offered) {
                prop_assert_eq!(used.head, *head, "in the order in which they were offered");
            }
            for (used, (plan, writable)) in used.into_iter().zip(offered.values()) {
                let (status, data) = expect(&mut naive, plan);
                let mut got = collect(&machine, writable);
                prop_assert_eq!(got.pop(), Some(status), "{:?}", plan);
                if let Some(data) = data {
                    prop_assert!(got == data, "{:?} read something else", plan);
                    prop_assert_eq!(used.written as usize, data.len() + 1);
                } else {
                    prop_assert!(got.iter().all(|&byte| byte == 0xff), "nothing was read");
                    prop_assert_eq!(used.written, u32::from(got.is_empty()));
                }
            }
            prop_assert!(disk.contents() == naive, "the disks differ");
        }
    }
}
