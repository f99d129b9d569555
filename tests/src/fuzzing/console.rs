//! The console, its host reading and writing as it likes.

use abi::console::AGENT_PORT_NAME;
use devices::console::{Console, ConsoleQueue, ConsoleSize, PORT_BUFFER_BYTES};
use devices::virtio::QueueProgress;

use super::input::Input;
use super::machine::Machine;

/// Host reads and writes of one input at most move this many bytes.
const MAX_READS: usize = 64;
/// Rounds of service for queues that a ring full of chains has left pending.
const MAX_ROUNDS: usize = 8;

/// Acts an input out; afterwards the host can read the agent port empty.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    // The size, if there is one, comes with the last byte: seeds without it stay what they were.
    let columns = data.last().copied().filter(|byte| byte & 1 != 0);
    let size = columns.map(|byte| ConsoleSize { columns: byte.into(), rows: 24 });
    let mut machine = Machine::new(Console::new(AGENT_PORT_NAME, size), |_| {}, &mut input);
    machine.act(&mut input, host);
    let console = machine.transport.device_mut();
    let mut out = Vec::new();
    console.console_read(&mut out, usize::MAX);
    assert!(out.len() <= PORT_BUFFER_BYTES);
    // A chain may have up to 4 GiB, so the end is not waited for.
    for _ in 0..MAX_READS {
        out.clear();
        if console.port_read(&mut out) == 0 {
            break;
        }
    }
}

fn host(machine: &mut Machine<Console>, input: &mut Input<'_>) {
    let how = input.u8();
    let mut out = Vec::new();
    let console = machine.transport.device_mut();
    match how % 6 {
        0 => {
            let expected = console.port_readable();
            assert_eq!(console.port_read(&mut out), expected);
            assert_eq!(out.len(), expected);
        }
        1 => {
            let max = usize::from(input.u16());
            let expected = console.console_readable().min(max);
            assert_eq!(console.console_read(&mut out, max), expected);
            assert_eq!(out.len(), expected);
        }
        2 => {
            let data = vec![how; usize::from(input.u16())];
            let room = console.console_room();
            assert_eq!(console.console_write(&data), data.len().min(room));
        }
        3 => {
            console.set_console_reader(input.u8() & 1 != 0);
            let queue = ConsoleQueue::Transmit(0).index();
            let mut progress = machine.transport.resume_queue(queue);
            for _ in 0..MAX_ROUNDS {
                if progress == QueueProgress::Idle {
                    break;
                }
                progress = machine.transport.serve_pending();
            }
        }
        4 => {
            let size = ConsoleSize { columns: input.u16(), rows: input.u16() };
            if console.set_size(size) {
                machine.transport.config_changed();
            }
        }
        _ => {
            let data = vec![how; usize::from(input.u16())];
            let open = console.guest_open();
            let taken = console.port_write(&data);
            assert!(taken <= data.len() && (open || taken == 0));
        }
    }
    let console = machine.transport.device();
    let most = [out.len(), console.port_readable(), console.console_readable()];
    assert!(most.into_iter().all(|bytes| bytes <= PORT_BUFFER_BYTES));
}
