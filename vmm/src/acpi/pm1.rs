//! PM1: the status, enable and control registers of ACPI's fixed hardware, with one event, the power button.
//!
//! A guest writes 1 to clear a status bit. The SCI is a level: asserted exactly
//! while a status bit and its enable bit are both set, whoever changed either.
//! The registers and the line change together under one lock, so that the line
//! never shows an older state than the registers.
//!
//! Source: ACPI 6.5 §4.8.3; which accesses kernels make: Linux `drivers/acpi/acpica/hwregs.c`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::platform::{PM1A_CONTROL_PORT, PM1A_ENABLE_PORT, PM1A_SLEEP_S5, PM1A_STATUS_PORT};

use crate::line::LevelLine;

/// First port.
pub(crate) const FIRST_PORT: u16 = PM1A_STATUS_PORT;
/// Last port.
pub(crate) const LAST_PORT: u16 = PM1A_CONTROL_PORT + 1;
const _: () = assert!(PM1A_ENABLE_PORT == PM1A_STATUS_PORT + 2);
const _: () = assert!(PM1A_CONTROL_PORT == PM1A_STATUS_PORT + 4);

/// PWRBTN_STS and PWRBTN_EN.
const POWER_BUTTON: u16 = 1 << 8;
/// Enable bits that hold what is written: TMR, GBL, PWRBTN, SLPBTN, RTC. A kernel reads back what it has enabled, and calls
/// hardware that does not answer broken; only [`POWER_BUTTON`] ever has an event.
const ENABLE_BITS: u16 = 1 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10;
/// SCI_EN of PM1 control: always in ACPI mode, since there is no SMI command to leave it by.
const SCI_EN: u16 = 1;
/// SLP_EN and SLP_TYP of PM1 control: the bits that say which sleep state is entered.
const SLEEP_MASK: u16 = 0x3c00;

/// Bytes of all registers together.
const BYTES: usize = 6;
/// The widest access of a CPU; longer data come from string instructions.
const MAX_ACCESS: usize = 4;

/// What a press of the power button came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Press {
    /// The guest is told.
    Raised,
    /// The guest has not enabled the event; nothing has changed.
    NotEnabled,
}

/// What a write to the registers asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pm1Write {
    /// Nothing beyond the registers.
    Done,
    /// The machine powers off (S5).
    PowerOff,
    /// No access that the registers know: from a string instruction.
    Ignored,
}

#[derive(Default)]
struct Registers {
    status: u16,
    enable: u16,
    /// What the line was last set to.
    asserted: bool,
}

/// The register block and its interrupt line.
pub(crate) struct Pm1 {
    registers: Mutex<Registers>,
    sci: Arc<dyn LevelLine>,
}

impl Pm1 {
    /// As after power-on, with `sci` not asserted.
    pub(crate) fn new(sci: Arc<dyn LevelLine>) -> Self {
        Self { registers: Mutex::default(), sci }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        // Two numbers and a flag, any of which a guest may bring about.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the registers on the line.
    fn update_sci(&self, registers: &mut Registers) {
        let asserted = registers.status & registers.enable != 0;
        if registers.asserted != asserted {
            registers.asserted = asserted;
            self.sci.set_level(asserted);
        }
    }

    /// Presses the power button, if the guest listens.
    ///
    /// A press that nobody listens to leaves no trace: it would otherwise power the guest off when its
    /// driver is loaded, long after the operator was told that the press came to nothing.
    pub(crate) fn press_power_button(&self) -> Press {
        let mut registers = self.lock();
        if registers.enable & POWER_BUTTON == 0 {
            return Press::NotEnabled;
        }
        registers.status |= POWER_BUTTON;
        self.update_sci(&mut registers);
        Press::Raised
    }

    /// Back to the state after power-on.
    pub(crate) fn reset(&self) {
        let mut registers = self.lock();
        (registers.status, registers.enable) = (0, 0);
        self.update_sci(&mut registers);
    }

    /// A read of `data` at `port`, between [`FIRST_PORT`] and [`LAST_PORT`]; what lies beyond reads all ones.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let registers = self.lock();
        let mut bytes = [0; BYTES];
        let words = [registers.status, registers.enable, SCI_EN];
        for (bytes, word) in bytes.chunks_exact_mut(2).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let from = bytes.iter().skip(offset(port));
        if data.len() <= MAX_ACCESS {
            data.iter_mut().zip(from).for_each(|(to, byte)| *to = *byte);
        }
    }

    /// A write of `data` at `port`, between [`FIRST_PORT`] and [`LAST_PORT`]; what lies beyond is dropped.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Pm1Write {
        if data.len() > MAX_ACCESS {
            return Pm1Write::Ignored;
        }
        let (mut values, mut written) = ([0; BYTES], [0; BYTES]);
        let targets = values.iter_mut().zip(&mut written).skip(offset(port));
        for ((value, written), byte) in targets.zip(data) {
            (*value, *written) = (*byte, 0xff);
        }
        let [status, enable, control] = words(values);
        let [_, enable_written, control_written] = words(written);
        let mut registers = self.lock();
        registers.status &= !status;
        registers.enable = registers.enable & !enable_written | enable & ENABLE_BITS;
        self.update_sci(&mut registers);
        let sleeps = control_written & SLEEP_MASK == SLEEP_MASK;
        if sleeps && control & SLEEP_MASK == PM1A_SLEEP_S5 {
            Pm1Write::PowerOff
        } else {
            Pm1Write::Done
        }
    }
}

/// Byte of the block that `port` is.
fn offset(port: u16) -> usize {
    port.saturating_sub(FIRST_PORT).into()
}

/// Status, enable, control.
fn words(bytes: [u8; BYTES]) -> [u16; 3] {
    let [a, b, c, d, e, f] = bytes;
    [[a, b], [c, d], [e, f]].map(u16::from_le_bytes)
}

#[cfg(test)]
mod tests;
