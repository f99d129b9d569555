//! The DSDT: devices that no bus lists, and the one sleep state.
//!
//! No methods: nothing of it is executed, only read.
//! Source: ACPI 6.5 §19 (ASL) and §20 (AML), virtio 1.2 §4.2.2.1 and Linux `drivers/virtio/virtio_mmio.c` for LNRO0005,
//! QEMU `docs/specs/pvpanic.rst` for QEMU0001.

use abi::mmio::WINDOW_BYTES;
use abi::platform::{PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope, ZERO,
};

use super::VirtioSlot;
use crate::serial;

/// Length of a virtio-mmio window.
#[expect(clippy::cast_possible_truncation, reason = "4 KiB")]
const WINDOW_LEN: u32 = WINDOW_BYTES as u32;
/// _STA: present, enabled, shown, working.
const STATUS: u8 = 0xf;

/// What follows the table's header. `slots` have been checked.
pub(super) fn definitions(slots: &[VirtioSlot]) -> Vec<u8> {
    let mut devices = Vec::with_capacity(2048);
    let ports = u8::try_from(serial::REGISTERS).unwrap_or(u8::MAX);
    device(
        &mut devices,
        "COM1",
        &EISAName::new("PNP0501"),
        0,
        &[&IO::new(SERIAL_PORT, SERIAL_PORT, 1, ports), &edge(SERIAL_GSI)],
    );
    device(&mut devices, "PEVT", &"QEMU0001", 0, &[&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)]);
    for (uid, slot) in (0u8..).zip(slots) {
        // Below 4 GiB, since the gap for devices is.
        let base = u32::try_from(slot.base).unwrap_or(u32::MAX);
        let window = Memory32Fixed::new(true, base, WINDOW_LEN);
        device(
            &mut devices,
            &format!("VR{uid:02X}"),
            &"LNRO0005",
            uid,
            &[&window, &edge(slot.gsi)],
        );
    }
    let mut bytes = Vec::with_capacity(devices.len() + 64);
    sleep_state().to_aml_bytes(&mut bytes);
    bytes.extend(Scope::raw("\\_SB_".into(), devices));
    bytes
}

/// Appends a device. `name`: 4 capital letters or digits.
fn device(bytes: &mut Vec<u8>, name: &str, hid: &dyn Aml, uid: u8, resources: &[&dyn Aml]) {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &uid);
    let status = Name::new("_STA".into(), &STATUS);
    let resources = ResourceTemplate::new(resources.to_vec());
    let resources = Name::new("_CRS".into(), &resources);
    Device::new(name.into(), vec![&hid, &uid, &status, &resources]).to_aml_bytes(bytes);
}

/// An edge-triggered, active-high interrupt of the device's own.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// `\_S5`: SLP_TYPa and SLP_TYPb are 0, so that SLP_EN alone powers the machine off ([`abi::platform::PM1A_SLEEP_S5`]).
fn sleep_state() -> Name {
    Name::new("\\_S5_".into(), &Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO]))
}
