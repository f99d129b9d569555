//! The console, its host reading and writing as it likes.

use abi::console::AGENT_PORT_NAME;
use devices::console::{Console, PORT_BUFFER_BYTES};

use super::input::Input;
use super::machine::Machine;

/// Host reads and writes of one input at most move this many bytes.
const MAX_READS: usize = 64;

/// Acts an input out; afterwards the host can read the agent port empty.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut machine = Machine::new(Console::new(AGENT_PORT_NAME), |_| {}, &mut input);
    machine.act(&mut input, |machine, input| host(machine.transport.device_mut(), input));
    let console = machine.transport.device_mut();
    let mut out = Vec::new();
    console.console_read(&mut out);
    assert!(out.len() <= PORT_BUFFER_BYTES);
    // A chain may have up to 4 GiB, so the end is not waited for.
    for _ in 0..MAX_READS {
        out.clear();
        if console.port_read(&mut out) == 0 {
            break;
        }
    }
}

fn host(console: &mut Console, input: &mut Input<'_>) {
    let how = input.u8();
    let mut out = Vec::new();
    match how % 3 {
        0 => {
            let expected = console.port_readable();
            assert_eq!(console.port_read(&mut out), expected);
            assert_eq!(out.len(), expected);
        }
        1 => {
            console.console_read(&mut out);
        }
        _ => {
            let data = vec![how; usize::from(input.u16())];
            let open = console.guest_open();
            let taken = console.port_write(&data);
            assert!(taken <= data.len() && (open || taken == 0));
        }
    }
    assert!(out.len() <= PORT_BUFFER_BYTES && console.port_readable() <= PORT_BUFFER_BYTES);
}
