//! COM1, polled: the console of early boot and of panics. A byte costs an exit (29 us on a software KVM).

use core::fmt;

use abi::platform::SERIAL_PORT;

use super::port;

/// Line status register: the transmitter is empty.
const LSR_OFFSET: u16 = 5;
const LSR_THR_EMPTY: u8 = 0x20;
const FCR_OFFSET: u16 = 2;
const FIFO_BYTES: usize = 16;
/// A UART that never gets ready loses bytes; it must not hang the guest.
const MAX_POLLS: u32 = 1000;

/// Switches the FIFO on: from then on one look at the line status serves sixteen bytes.
pub(super) fn init() {
    port::write8(SERIAL_PORT + FCR_OFFSET, 1);
}

/// Writes bytes.
pub(super) fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(FIFO_BYTES) {
        let mut polls = 0;
        while port::read8(SERIAL_PORT + LSR_OFFSET) & LSR_THR_EMPTY == 0 && polls < MAX_POLLS {
            polls += 1;
        }
        for &byte in chunk {
            port::write8(SERIAL_PORT, byte);
        }
    }
}

/// COM1 as a formatter's target.
pub(super) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}
