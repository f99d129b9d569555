//! What both accelerators are put through.

use serde_json::{Value, json};

use super::{Accelerator, QemuGuest, QemuOptions};
use crate::agent::Agent;
use crate::stress::SmpStress;
use crate::vm::wait_for;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Properties that change how a device offers its rings: none of them may change what the guest sees.
const RING_OFFERS: &[&str] = &[
    "",
    ",packed=on",
    ",event_idx=off",
    ",indirect_desc=off",
    ",packed=on,event_idx=off,indirect_desc=off",
];

/// Queue-bearing and other features of the balloon, one set a machine.
const BALLOON_OFFERS: &[&str] = &[
    ",deflate-on-oom=on",
    ",free-page-reporting=on",
    ",free-page-reporting=on,deflate-on-oom=on,page-poison=off",
    ",free-page-hint=on,iothread=io,free-page-reporting=on,packed=on",
];

/// Sets the balloon by QMP: 128 MiB of 256 and back, and twice in one flight; `actual` is exact, the guest's books agree
/// after every step, and the end that the agent asks for is clean.
///
/// # Panics
/// If anything of it is not so.
pub fn balloon_goes_and_comes_back_exactly(accelerator: Accelerator, vcpus: u8) {
    let mut guest = QemuGuest::start(&QemuOptions { vcpus, ..QemuOptions::new(accelerator) });
    let mut agent = guest.agent();
    assert!(agent.free_pages() > 200 * MIB / PAGE, "free: {}", agent.free_pages());
    books_agree(&mut agent, 0);
    assert_eq!(guest.balloon_actual(), 256 * MIB);
    run(&mut agent, "touch", &["all"]);

    guest.leave(128 * MIB);
    expect_balloon_event(&mut guest, 128 * MIB);
    books_agree(&mut agent, 128 * MIB);

    guest.leave(256 * MIB);
    expect_balloon_event(&mut guest, 256 * MIB);
    books_agree(&mut agent, 0);
    // Pages that QEMU has discarded are ordinary memory again.
    run(&mut agent, "touch", &["all"]);

    guest.execute("balloon", json!({ "value": 64 * MIB }));
    guest.leave(200 * MIB + PAGE);
    books_agree(&mut agent, 56 * MIB - PAGE);
    run(&mut agent, "entropy", &["64K"]);
    power_off(&mut guest, &mut agent);
}

/// Every way to offer rings, and statistics, reporting and hinting in several combinations: the guest declines what it does
/// not use, no queue is taken for another, and the balloon does the same as without.
///
/// # Panics
/// If anything of it is not so.
pub fn offers_are_declined_and_nothing_changes(accelerator: Accelerator) {
    for rings in RING_OFFERS {
        let options = QemuOptions::new(accelerator);
        short_course(&QemuOptions { balloon: rings, console: rings, entropy: rings, ..options });
    }
    for balloon in BALLOON_OFFERS {
        let more = &["-object", "iothread,id=io"];
        short_course(&QemuOptions { balloon, more, ..QemuOptions::new(accelerator) });
    }
}

/// Balloon to the half and back on a small machine, with what QEMU says of the negotiation.
fn short_course(options: &QemuOptions) {
    let mut guest = QemuGuest::start(&QemuOptions { memory_mib: 64, ..options.clone() });
    let mut agent = guest.agent();
    // QEMU polls statistics, which the guest has not accepted: no queue may be taken for the statistics'.
    let polling = json!({
        "path": "/machine/peripheral/balloon", "property": "guest-stats-polling-interval", "value": 1,
    });
    guest.execute("qom-set", polling);
    for (device, properties) in
        [("balloon", options.balloon), ("console", options.console), ("entropy", options.entropy)]
    {
        assert_declined(&mut guest, device, properties);
    }
    guest.leave(32 * MIB);
    books_agree(&mut agent, 32 * MIB);
    guest.leave(64 * MIB);
    books_agree(&mut agent, 0);
    run(&mut agent, "entropy", &["1K"]);
    power_off(&mut guest, &mut agent);
    let serial = guest.serial();
    assert!(!serial.contains("error") && !serial.contains("warn"), "{options:?}: {serial}");
}

/// Features that no driver of ours accepts, as QEMU names them, and the property that makes a device offer each.
const UNWANTED: &[(&str, &str)] = &[
    ("RING_PACKED", "packed=on"),
    ("EVENT_IDX", ""),
    ("INDIRECT_DESC", ""),
    ("STATS_VQ", ""),
    ("REPORTING", "free-page-reporting=on"),
    ("FREE_PAGE_HINT", "free-page-hint=on"),
    ("PAGE_POISON", ""),
];

/// Features that our drivers accept where they are offered, as QEMU names them, and the property that makes a device offer each.
const WANTED: &[(&str, &str)] = &[("DEFLATE_ON_OOM", "deflate-on-oom=on")];

/// What QEMU says of the negotiation with `device`: live, version 1, and of all that was offered what the drivers know and
/// nothing else.
fn assert_declined(guest: &mut QemuGuest, device: &str, properties: &str) {
    let path = json!({ "path": format!("/machine/peripheral/{device}") });
    let status = guest.execute("x-query-virtio-status", path);
    let live = status["status"]["statuses"].to_string();
    assert!(live.contains("DRIVER_OK") && !live.contains("FAILED"), "{device}: {live}");
    assert_eq!(status["broken"], false, "{device}");
    let accepted = status["guest-features"].to_string();
    let offered = status["host-features"].to_string();
    assert!(accepted.contains("VIRTIO_F_VERSION_1"), "{device}: {accepted}");
    for (feature, property) in UNWANTED {
        assert!(!accepted.contains(feature), "{device} accepted {feature}: {accepted}");
        // Otherwise declining it would be no merit.
        let asked_for = !property.is_empty() && properties.contains(property);
        assert!(!asked_for || offered.contains(feature), "{device}: no {feature} in {offered}");
    }
    for (feature, property) in WANTED {
        let asked_for = properties.contains(property);
        assert_eq!(accepted.contains(feature), asked_for, "{device}, {feature}: {accepted}");
    }
}

/// Windows of version 1: each device is skipped by name, and the guest lives without any.
///
/// # Panics
/// If anything of it is not so.
pub fn legacy_devices_are_skipped_by_name(accelerator: Accelerator) {
    let (serial, status) = run_to_the_end(&QemuOptions {
        legacy: true,
        cmdline: "exec=census exec=touch,16M exec=balloon exec=entropy exec=poweroff",
        ..QemuOptions::new(accelerator)
    });
    assert!(status, "{serial}");
    let skipped = serial.lines().filter(|line| {
        line.contains("is skipped: A legacy virtio-mmio device (version 1) is not supported")
    });
    assert_eq!(skipped.count(), 3, "{serial}");
    for expected in ["census: exit 0", "touch,16M: exit 0", "balloon: exit 1", "entropy: exit 1"] {
        assert!(serial.contains(expected), "no `{expected}` in\n{serial}");
    }
}

/// A device that insists on a feature that we must not accept is given up, and says so; the others work.
///
/// # Panics
/// If anything of it is not so.
pub fn a_device_that_insists_on_an_unknown_feature_costs_itself_only(accelerator: Accelerator) {
    let (serial, status) = run_to_the_end(&QemuOptions {
        entropy: ",iommu_platform=on",
        cmdline: "exec=entropy exec=balloon exec=census exec=poweroff",
        ..QemuOptions::new(accelerator)
    });
    assert!(status, "{serial}");
    assert!(serial.contains("The device refused the features 0x100000000"), "{serial}");
    for expected in ["entropy: exit 1", "balloon: exit 0", "census: exit 0"] {
        assert!(serial.contains(expected), "no `{expected}` in\n{serial}");
    }
}

/// A panic of the guest reaches QEMU's panic device.
///
/// # Panics
/// If it does not.
pub fn a_panic_is_seen_by_the_panic_device(accelerator: Accelerator) {
    let mut guest = QemuGuest::start(&QemuOptions {
        memory_mib: 64,
        more: &["-device", "pvpanic", "-action", "panic=exit-failure", "-S"],
        cmdline: "exec=panic",
        ..QemuOptions::new(accelerator)
    });
    guest.go();
    let panicked = guest.qmp().wait_for_event(|event| event["event"] == "GUEST_PANICKED");
    assert!(panicked.is_ok(), "{panicked:?}\n{}", guest.serial());
    let (data, status) = guest.wait_for_end();
    assert_eq!((data["guest"].as_bool(), status.code()), (Some(true), Some(1)), "{data}");
    assert!(guest.serial().contains("deliberate: the scenario `panic`"), "{}", guest.serial());
}

/// Two vCPUs, found in ACPI's tables or by a word on the command line, come up and stress each other.
///
/// # Panics
/// If anything of it is not so.
pub fn a_second_cpu_comes_up_and_holds(accelerator: Accelerator) {
    for (acpi, cmdline) in [
        (true, "exec=cpus exec=smp-stress,2 exec=trap-stress,2 exec=census exec=poweroff"),
        (false, "cpus=2 exec=cpus exec=smp-stress,2 exec=trap-stress,2 exec=census exec=poweroff"),
    ] {
        let options = QemuOptions { vcpus: 2, acpi, cmdline, ..QemuOptions::new(accelerator) };
        let (serial, status) = run_to_the_end(&options);
        assert!(status, "{serial}");
        for expected in ["2 CPUs up\n", "cpus: exit 0", "trap-stress,2: exit 0", "census: exit 0"] {
            assert!(serial.contains(expected), "no `{expected}` in\n{serial}");
        }
        SmpStress::of(&serial.lines().collect::<Vec<_>>()).expect_stress(2);
    }
}

/// A CPU that is announced and does not exist is waited for, named and left out.
///
/// # Panics
/// If anything of it is not so.
pub fn a_cpu_that_does_not_come_is_left_out(accelerator: Accelerator) {
    let cmdline = "cpus=3 exec=cpus exec=census exec=poweroff";
    let options = QemuOptions { vcpus: 2, cmdline, ..QemuOptions::new(accelerator) };
    let (serial, status) = run_to_the_end(&options);
    assert!(status, "{serial}");
    let named = "CPU 2 (APIC id 2) does not come up: left out";
    for expected in [named, "2 CPUs up\n", "cpus: exit 0", "census: exit 0"] {
        assert!(serial.contains(expected), "no `{expected}` in\n{serial}");
    }
}

/// Runs a machine that ends by itself; returns its console, and whether it ended cleanly.
///
/// # Panics
/// If it does not end.
pub fn run_to_the_end(options: &QemuOptions) -> (String, bool) {
    let mut guest =
        QemuGuest::start(&QemuOptions { memory_mib: 64, more: &["-S"], ..options.clone() });
    guest.go();
    let (data, status) = guest.wait_for_end();
    (guest.serial(), data["guest"] == true && status.success())
}

fn power_off(guest: &mut QemuGuest, agent: &mut Agent) {
    agent.send("poweroff", &[]).expect("the port is open");
    let (data, status) = guest.wait_for_end();
    // A microvm without ACPI has no register to power off by: the guest ends it by a reset, and `-no-reboot` makes that
    // the end.
    assert_eq!(data, json!({ "guest": true, "reason": "guest-reset" }), "{}", guest.serial());
    assert!(status.success(), "{status}");
}

/// Runs a scenario that must succeed.
fn run(agent: &mut Agent, scenario: &str, args: &[&str]) -> Vec<String> {
    let (code, lines) = agent.exec(scenario, args).expect("the port is open");
    assert_eq!(code, 0, "{scenario} {args:?}: {lines:#?}");
    lines
}

/// Census and sentinels are clean, and the census counts `ballooned_bytes` in the balloon.
///
/// `actual` leaves out what the guest has begun to take back; its books do when the device has answered.
fn books_agree(agent: &mut Agent, ballooned_bytes: u64) {
    wait_for("the device's answers", || {
        let state = run(agent, "balloon", &[]);
        state[0].ends_with(" inflating=0 deflating=0").then_some(())
    });
    let census = run(agent, "census", &[]);
    let ballooned = format!("ballooned {}", ballooned_bytes / PAGE);
    assert!(census.iter().any(|line| line.ends_with(&ballooned)), "no `{ballooned}`: {census:#?}");
    assert!(census.iter().any(|line| line == "0 discrepancies"), "{census:#?}");
    run(agent, "verify", &[]);
}

/// QEMU tells of changes at most once a second, the last of a row always.
fn expect_balloon_event(guest: &mut QemuGuest, actual: u64) {
    let is_it = |event: &Value| {
        event["event"] == "BALLOON_CHANGE" && event["data"]["actual"].as_u64() == Some(actual)
    };
    let event = guest.qmp().wait_for_event(is_it);
    assert!(event.is_ok(), "no BALLOON_CHANGE to {actual}: {event:?}");
}
