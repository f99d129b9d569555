//! The FADT: fixed hardware, its interrupt, and what this machine does not have.
//!
//! Source: ACPI 6.5 §5.2.9.

use abi::platform::{
    I8042_COMMAND_PORT, I8042_RESET, PM1A_CONTROL_PORT, PM1A_STATUS_PORT, SCI_GSI,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// PM1 status and enable, 2 bytes each.
const PM1_EVENT_BYTES: u8 = 4;
/// PM1 control.
const PM1_CONTROL_BYTES: u8 = 2;
/// P_LVL2_LAT above 100 µs: no C2 state.
const NO_C2: u16 = 101;
/// P_LVL3_LAT above 1000 µs: no C3 state.
const NO_C3: u16 = 1001;

/// IAPC_BOOT_ARCH (§5.2.9.3). LEGACY_DEVICES and 8042 stay clear: COM1 is in the DSDT, and there is no keyboard controller
/// (only its reset command).
const VGA_NOT_PRESENT: u16 = 1 << 2;
const MSI_NOT_SUPPORTED: u16 = 1 << 3;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Feature flags (§5.2.9, table 5.10). PWR_BUTTON stays clear: the power button is the fixed one of PM1.
const FLAGS: [Flags; 6] = [
    Flags::Wbinvd,
    Flags::ProcC1,
    // "No fixed sleep button", and "no RTC wake-up in the fixed registers".
    Flags::SlpButton,
    Flags::FixRtc,
    Flags::ResetRegSup,
    Flags::Headless,
];

/// The table, which points at the FACS and the DSDT.
///
/// No SMI_CMD: the machine is always in ACPI mode. No PM timer (PM_TMR_LEN 0, allowed since ACPI 5.0 A): a guest has better
/// clocks, and each read would leave the guest. No GPE block: nothing raises one.
pub(super) fn fadt(facs: u32, dsdt: u32) -> FADT {
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION).firmware_ctrl_32(facs);
    // Both are allowed and must agree; old kernels know the 32-bit one alone.
    table.dsdt = dsdt.into();
    table.x_dsdt = u64::from(dsdt).into();
    // SCI_INT is 16 bits wide and holds a GSI below 24.
    table.sci_int = u16::try_from(SCI_GSI).unwrap_or_default().into();
    table.pm1a_evt_blk = u32::from(PM1A_STATUS_PORT).into();
    table.pm1_evt_len = PM1_EVENT_BYTES;
    table.x_pm1a_evt_blk = port(PM1A_STATUS_PORT, 8 * PM1_EVENT_BYTES, AccessSize::WordAccess);
    table.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    table.pm1_cnt_len = PM1_CONTROL_BYTES;
    table.x_pm1a_cnt_blk = port(PM1A_CONTROL_PORT, 8 * PM1_CONTROL_BYTES, AccessSize::WordAccess);
    table.p_lvl2_lat = NO_C2.into();
    table.p_lvl3_lat = NO_C3.into();
    table.iapc_boot_arch = (VGA_NOT_PRESENT | MSI_NOT_SUPPORTED | CMOS_RTC_NOT_PRESENT).into();
    table.reset_reg = port(I8042_COMMAND_PORT, 8, AccessSize::ByteAccess);
    table.reset_value = I8042_RESET;
    table.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    FLAGS.into_iter().fold(table, FADTBuilder::flag).finalize()
}

fn port(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}
