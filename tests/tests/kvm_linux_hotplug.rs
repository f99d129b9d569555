//! Linux's virtio-mem driver on our device: what is plugged is in MemTotal to the page, and what is unplugged is gone from the host.

use aerostat_api::ClientError;
use aerostat_api::balloon::DriverState;
use system_tests::linux::{LinuxConfig, LinuxGuest, images, linux_or_skip};
use system_tests::vm::wait_for;

const MIB: u64 = 1 << 20;
const RAM: u64 = 256 * MIB;
/// Another size than RAM's, by which its mapping is found.
const REGION: u64 = 384 * MIB;
/// Without the first 6.1 leaves plugged memory to user space, of which there is none here; and only movable memory comes out again.
/// Without the second, which Debian's kernels do not default to, every page is written before it is unplugged: 128 MiB have taken the lab's
/// emulated CPU from eight seconds to more than a minute.
const WORDS: &str = "memhp_default_state=online_movable init_on_alloc=0";

fn guest(image: usize) -> LinuxGuest {
    let config = LinuxConfig::new(RAM).image(&images()[image]).cmdline(WORDS);
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
fn plugged_memory_is_in_memtotal_to_the_page_and_unplugged_memory_leaves_the_host() {
    if linux_or_skip() {
        comes_and_goes(images().len() - 1);
    }
}

/// A kernel that leaves plugged memory offline unless it is told otherwise.
#[test]
fn memory_comes_and_goes_under_the_oldest_kernel_as_well() {
    if linux_or_skip() {
        comes_and_goes(0);
    }
}

fn comes_and_goes(image: usize) {
    let guest = guest(image);
    let before = guest.mem_total();
    assert_eq!(guest.hotplug_host_bytes(REGION), 0);
    guest.resize_hotplug(256 * MIB);
    wait_for("MemTotal", || (guest.mem_total() == before + 256 * MIB).then_some(()));
    // Movable memory is what pages of files come from first.
    guest.ok("dd if=/dev/zero of=/tmp/file bs=1M count=64 2>/dev/null");
    let held = guest.hotplug_host_bytes(REGION);
    assert!((48 * MIB..=256 * MIB).contains(&held), "{held} B are held");
    guest.ok("rm /tmp/file");
    guest.resize_hotplug(0);
    assert_eq!(guest.hotplug_host_bytes(REGION), 0, "all of it is given back");
    wait_for("MemTotal", || (guest.mem_total() == before).then_some(()));
    assert_eq!(plugged(&guest), 0);
    let metrics = guest.client().metrics().expect("an answer");
    for event in ["errors", "busies", "chain_bad"] {
        let line = format!("aerostat_hotplug_events_total{{event=\"{event}\"}} 0\n");
        assert!(metrics.contains(&line), "{event}: {metrics}");
    }
    assert!(metrics.contains("aerostat_hotplug_unplugged_accesses_total 0\n"), "{metrics}");
}

#[test]
fn a_part_comes_out_while_the_rest_is_in_use() {
    if !linux_or_skip() {
        return;
    }
    let guest = guest(images().len() - 1);
    let before = guest.mem_total();
    guest.resize_hotplug(REGION);
    guest.ok("dd if=/dev/urandom of=/tmp/file bs=1M count=8 2>/dev/null");
    let sum = guest.ok("md5sum /tmp/file");
    // Its pages move out of the blocks that go.
    guest.resize_hotplug(256 * MIB);
    assert_eq!(plugged(&guest), 256 * MIB);
    assert!(guest.hotplug_host_bytes(REGION) <= 256 * MIB);
    wait_for("MemTotal", || (guest.mem_total() == before + 256 * MIB).then_some(()));
    assert_eq!(guest.ok("md5sum /tmp/file"), sum);
}
#[test]
fn a_rebooted_guest_plugs_again_what_is_requested() {
    if !linux_or_skip() {
        return;
    }
    let config = LinuxConfig::new(RAM).cmdline(WORDS);
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
