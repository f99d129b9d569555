//! Byte streams survive any interleaving of guest, host and pauses.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    GuestSends(u16),
    GuestOffers(u16),
    HostReads,
    HostWrites(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![4 => 1..64u16, 2 => 64..4096u16, 1 => 4096..16384u16];
    prop_oneof![
        4 => len().prop_map(Step::GuestSends),
        4 => len().prop_map(Step::GuestOffers),
        1 => Just(Step::HostReads),
        3 => len().prop_map(Step::HostWrites),
    ]
}

/// `len` bytes of a sequence that shows any loss, repetition or reordering.
fn bytes(position: &mut usize, len: usize) -> Vec<u8> {
    let start = *position;
    *position += len;
    (start..start + len).map(|n| (n % 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_byte_is_lost_repeated_or_reordered(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::opened();
        let (mut sent, mut written) = (0, 0);
        let (mut at_host, mut at_guest) = (Vec::new(), Vec::new());
        let (mut tx_busy, mut rx_busy) = (0, 0);
        for step in steps {
            match step {
                Step::GuestSends(len) if tx_busy < QUEUE_SIZE => {
                    let data = bytes(&mut sent, len.into());
                    bench.transmit(AGENT_TX, &data);
                    tx_busy += 1;
                }
                Step::GuestOffers(len) if rx_busy < QUEUE_SIZE => {
                    bench.offer(AGENT_RX, len.into(), true);
                    bench.kick(AGENT_RX);
                    rx_busy += 1;
                }
                Step::GuestSends(_) | Step::GuestOffers(_) => {}
                Step::HostReads => {
                    bench.console().port_read(&mut at_host);
                }
                Step::HostWrites(len) => {
                    let mut next = written;
                    let data = bytes(&mut next, len.into());
                    written += bench.console().port_write(&data);
                }
            }
            tx_busy -= bench.queues[AGENT_TX].take_all_used().len() as u16;
            let received = bench.received(AGENT_RX);
            rx_busy -= received.len() as u16;
            at_guest.extend(received.concat());
            prop_assert!(bench.console().port_readable() <= PORT_BUFFER_BYTES);
        }
        at_host.extend(bench.read_agent());
        prop_assert_eq!(at_host, bytes(&mut 0, sent));
        let arrived = at_guest.len();
        prop_assert!(arrived <= written && written - arrived <= PORT_BUFFER_BYTES);
        prop_assert_eq!(at_guest, bytes(&mut 0, arrived));
        // Buffers left over and bytes left over never coexist.
        prop_assert!(rx_busy == 0 || arrived == written);
    }
}
