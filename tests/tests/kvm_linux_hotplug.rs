//! Linux's virtio-mem driver on our device.

use aerostat_api::ClientError;
use aerostat_api::balloon::DriverState;
use system_tests::linux::{LinuxConfig, LinuxGuest, images, linux_or_skip};
use system_tests::vm::wait_for;

const MIB: u64 = 1 << 20;
const RAM: u64 = 256 * MIB;
/// Another size than RAM's, by which its mapping is found.
const REGION: u64 = 384 * MIB;

fn guest(image: usize) -> LinuxGuest {
    let config = LinuxConfig::new(RAM).image(&images()[image]);
    // Without it 6.1 leaves plugged memory to user space, of which there is none here; and only movable memory comes out again.
    let config = config.cmdline("memhp_default_state=online_movable");
    let region = REGION.to_string();
    let guest = config.options(&["--hotplug-memory", &region]).start();
    wait_for("the driver", || {
        let status = guest.client().hotplug_status().expect("an answer");
        (status.driver == DriverState::Ready).then_some(())
    });
    guest
}

fn plugged(guest: &LinuxGuest) -> u64 {
    guest.client().hotplug_status().expect("an answer").plugged_bytes
}

#[test]
fn a_rebooted_guest_plugs_again_what_is_requested() {
    if !linux_or_skip() {
        return;
    }
    let config = LinuxConfig::new(RAM).cmdline("memhp_default_state=online_movable");
    let region = REGION.to_string();
    let mut guest = config.options(&["--hotplug-memory", &region, "--on-reset", "reboot"]).start();
    guest.resize_hotplug(128 * MIB);
    let place = guest.console_len();
    guest.send("reboot -f");
    guest.wait_for_ready(place);
    wait_for("the memory", || (plugged(&guest) == 128 * MIB).then_some(()));
    let metrics = guest.client().metrics().expect("an answer");
    assert!(metrics.contains("event=\"system_resets\"} 1\n"), "{metrics}");
}

#[test]
fn a_size_beyond_the_region_is_refused_and_changes_nothing() {
    if !linux_or_skip() {
        return;
    }
    let guest = guest(images().len() - 1);
    for mib in [385, 512, u64::MAX] {
        match guest.client().update_hotplug_memory(mib) {
            Err(ClientError::Refused { status: 400, message }) => {
                assert!(message.contains("allowed") || message.contains("multiple"), "{message}");
            }
            other => panic!("{mib} MiB: {other:?}"),
        }
    }
    assert_eq!(guest.client().hotplug_memory().expect("an answer").requested_size_mib, 0);
}
