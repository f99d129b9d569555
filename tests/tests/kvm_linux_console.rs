//! Stock Linux on our console and entropy device: `hvc0` both ways, the agent's port by its name, random bytes.

use std::fmt::Write as _;

use system_tests::linux::{LinuxConfig, images, linux_or_skip};

const MEMORY: u64 = 256 << 20;

#[test]
fn linux_takes_its_random_bytes_from_our_device() {
    if !linux_or_skip() {
        return;
    }
    for image in images() {
        let mut guest = LinuxConfig::new(MEMORY).image(image).start();
        assert_eq!(guest.ok("cat /sys/class/misc/hw_random/rng_current").trim(), "virtio_rng.0");
        let read = |path: &str| guest.ok(&format!("head -c 10000 {path} | sha256sum"));
        assert_ne!(read("/dev/hwrng"), read("/dev/hwrng"), "{}", image.series);
        assert_eq!(guest.number("head -c 10000 /dev/hwrng | wc -c"), 10_000);
        assert_eq!(guest.power_off(), Some(0));
    }
}

#[test]
fn hvc0_carries_commands_in_and_a_mebibyte_out() {
    if !linux_or_skip() {
        return;
    }
    for image in images() {
        // Its init listens on hvc0: that the guest is ready, and every answer, is the proof of both ways.
        let config = LinuxConfig::new(MEMORY).image(image).options(&["--console", "hvc0"]);
        let mut guest = config.cmdline("console=hvc0 test.console=hvc0").start();
        assert!(guest.ok("cat /sys/class/tty/console/active").contains("hvc0"));
        let count = (1u32 << 20) / 8;
        // In large writes: each is a round trip to the host, and the lab's CPU is emulated.
        guest.ok(&format!("seq 1000001 {} >/tmp/lines", 1_000_000 + count));
        let printed = guest.ok("cat /tmp/lines");
        let mut expected = String::new();
        for number in 1_000_001..=1_000_000 + count {
            writeln!(expected, "{number}").expect("a string takes all");
        }
        assert!(printed.trim() == expected.trim(), "{}: output was changed", image.series);
        assert_eq!(guest.power_off(), Some(0));
    }
}

#[test]
fn the_agents_port_is_found_by_its_name() {
    if !linux_or_skip() {
        return;
    }
    for image in images() {
        let mut guest = LinuxConfig::new(MEMORY).image(image).start();
        let ports = guest.ok("cd /sys/class/virtio-ports; grep -l '^org.aerostat.agent$' */name");
        let port = ports.trim().split('/').next().expect("a port").to_owned();
        guest.ok(&format!("test -c /dev/{port}"));
        // The port takes lines: this one is no message of the protocol and is counted as such.
        guest.ok(&format!("echo hello > /dev/{port}"));
        assert_eq!(guest.power_off(), Some(0));
    }
}
