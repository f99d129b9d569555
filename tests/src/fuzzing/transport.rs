//! The registers and rings, with a device that returns everything.

use devices::testing::ToyDevice;

use super::input::Input;
use super::machine::Machine;

/// Acts an input out; afterwards every head that was offered has been returned.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut machine = Machine::new(ToyDevice::default(), |_| {}, &mut input);
    machine.act(&mut input, |machine, input| {
        machine.transport.device_mut().set_config(input.u32());
        machine.transport.config_changed();
    });
    for queue in 0..ToyDevice::QUEUE_SIZES.len() {
        assert!(machine.outstanding(queue).is_none_or(|heads| heads == 0), "queue {queue}");
    }
}
