//! Linux's balloon driver on our device, with what the guest's kernel and the host's say of it agreeing to the page.
//!
//! No count here has a tolerance. On the guest's side: `balloon_inflate` and `balloon_deflate` of /proc/vmstat, MemTotal, and
//! KPF_OFFLINE of every page. On the host's side: the device's `actual`, and the VMM's pagemap, page by page. The VM's memory is
//! prefaulted, so that a page without memory behind it is one that was released.

use std::time::Duration;

use aerostat_api::balloon::{DriverState, OperationState};
use aerostat_api::machine::RunState;
use system_tests::linux::{
    BalloonCounters, LinuxConfig, LinuxGuest, PageSet, images, linux_or_skip,
};
use system_tests::vm::wait_for;

const MIB: u64 = 1 << 20;
const PAGES_PER_MIB: u64 = MIB / 4096;
const RAM: u64 = 512 * MIB;
/// How long a guest may take to power off when it is asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// `actual` by the device, in pages.
fn actual(guest: &LinuxGuest) -> u64 {
    guest.client().balloon_status().expect("an answer").actual_bytes / 4096
}

/// Resizes to `pages` and waits until the driver has done it.
fn resize(guest: &LinuxGuest, pages: u64) {
    guest.resize(pages * 4096);
}

/// A balloon's course with the books of both sides checked after every step.
struct Course {
    guest: LinuxGuest,
    before: BalloonCounters,
    /// Pages inflated and deflated since `before`.
    moved: (u64, u64),
    size: u64,
    /// Every page that has been in the balloon.
    ever: PageSet,
}

impl Course {
    fn new(guest: LinuxGuest) -> Self {
        assert_eq!(guest.absent_pages(), PageSet::new(), "prefaulted memory is all there");
        assert_eq!(actual(&guest), 0);
        let before = guest.balloon_counters();
        Self { guest, before, moved: (0, 0), size: 0, ever: PageSet::new() }
    }

    fn go_to(&mut self, pages: u64) {
        resize(&self.guest, pages);
        self.moved.0 += pages.saturating_sub(self.size);
        self.moved.1 += self.size.saturating_sub(pages);
        self.size = pages;
        self.check();
    }

    /// Every book, after the balloon has come to rest.
    fn check(&mut self) {
        let now = self.guest.balloon_counters();
        let moved = (now.inflated - self.before.inflated, now.deflated - self.before.deflated);
        assert_eq!(moved, self.moved, "vmstat: pages inflated and deflated");
        assert_eq!(self.before.total - now.total, self.size, "MemTotal");
        assert_eq!(actual(&self.guest), self.size, "the device's actual");

        let offline = self.guest.offline_pages();
        assert_eq!(offline.len() as u64, self.size, "pages marked offline");
        self.ever.extend(&offline);
        // A guest at work would touch what it got back between one reading of the host's and the next.
        self.guest.client().set_run_state(RunState::Paused).expect("it can pause");
        let absent = self.guest.absent_pages();
        let held = self.guest.host_bytes("anon") / 4096;
        self.guest.client().set_run_state(RunState::Resumed).expect("it can resume");
        assert_eq!(held, RAM / 4096 - absent.len() as u64, "smaps counts what pagemap lists");
        if self.guest.balloon_counters().migrated > self.before.migrated {
            // Compaction has replaced ballooned pages by others: the sets of before and after cannot be compared.
            return;
        }
        let kept = first(&(&offline - &absent));
        assert!(absent.is_superset(&offline), "ballooned but still held by the host: {kept:?}");
        let lost = first(&(&absent - &self.ever));
        assert!(self.ever.is_superset(&absent), "released but never ballooned: {lost:?}");
    }
}

fn first(pages: &PageSet) -> (usize, Vec<u64>) {
    (pages.len(), pages.iter().take(8).copied().collect())
}

/// To 64, 16, 128 and 0 MiB of 512, and to a size that is no multiple of the driver's buffers.
fn ride(guest: LinuxGuest) {
    let mut course = Course::new(guest);
    for mib in [64, 16, 128, 0] {
        course.go_to(mib * PAGES_PER_MIB);
    }
    course.go_to(257);
    course.go_to(0);
    assert_eq!(course.guest.power_off(), Some(0), "{}", course.guest.output());
}

#[test]
fn a_ride_to_64_16_128_and_0_mib_has_every_page_in_its_place() {
    if linux_or_skip() {
        for image in images() {
            ride(LinuxConfig::new(RAM).image(image).options(&["--prefault"]).start());
        }
    }
}

#[test]
fn a_ride_with_two_vcpus_at_work_has_every_page_in_its_place() {
    if !linux_or_skip() {
        return;
    }
    let guest = LinuxConfig::new(RAM).options(&["--prefault", "--vcpus", "2"]).start();
    assert_eq!(guest.number("nproc"), 2);
    // Allocates, writes and frees pages on both CPUs all the while.
    let churn = "(while dd if=/dev/zero of=/tmp/churn$i bs=64k count=64; do rm /tmp/churn$i; done) >/dev/null 2>&1 &";
    guest.ok(&format!("for i in 1 2; do {churn} done"));
    ride(guest);
}

#[test]
fn retargeting_in_flight_converges_on_the_last_and_a_full_balloon_powers_off_cleanly() {
    if !linux_or_skip() {
        return;
    }
    let mut guest = LinuxConfig::new(RAM).start();
    let before = guest.balloon_counters();
    for (first, last) in [(256 * PAGES_PER_MIB, 40 * PAGES_PER_MIB + 3), (0, 96 * PAGES_PER_MIB)] {
        let from = actual(&guest);
        let begun = guest.begin_resize(first * 4096);
        wait_for("the balloon to move", || (actual(&guest) != from).then_some(()));
        resize(&guest, last);
        let superseded =
            guest.client().operation(Some(begun.id)).expect("an answer").expect("known");
        // On a busy host the driver may have been through before we came with the next target.
        let ends = [OperationState::Superseded, OperationState::Reached];
        assert!(ends.contains(&superseded.state), "{superseded:?}");
        let now = guest.balloon_counters();
        assert_eq!((now.inflated - before.inflated) - (now.deflated - before.deflated), last);
        assert_eq!(before.total - now.total, last);
        assert_eq!(guest.offline_pages().len() as u64, last);
    }
    assert_eq!(guest.power_off(), Some(0), "{}", guest.output());
}

#[test]
fn a_driver_that_leaves_takes_its_pages_along_and_inflates_anew_when_it_is_back() {
    /// How a driver leaves and comes back.
    const WAYS: [(&str, &str); 2] = [
        (
            "echo $(cat /tmp/balloon) >/sys/bus/virtio/drivers/virtio_balloon/unbind",
            "echo $(cat /tmp/balloon) >/sys/bus/virtio/drivers/virtio_balloon/bind",
        ),
        ("rmmod virtio_balloon", "insmod /modules/virtio_balloon.ko"),
    ];
    if !linux_or_skip() {
        return;
    }
    let size = 48 * PAGES_PER_MIB;
    let mut guest = LinuxConfig::new(RAM).start();
    guest.ok("cd /sys/bus/virtio/drivers/virtio_balloon && echo virtio* >/tmp/balloon");
    let before = guest.balloon_counters();
    resize(&guest, size);
    for (round, (leave, return_)) in (1..).zip(WAYS) {
        guest.ok(leave);
        let gone = guest.client().balloon_status().expect("an answer");
        assert_eq!((gone.driver, gone.actual_bytes), (DriverState::Missing, 0));
        assert_eq!(gone.target_bytes, size * 4096, "the target survives");
        let now = guest.balloon_counters();
        assert_eq!((now.deflated - before.deflated, now.total), (round * size, before.total));
        assert_eq!(guest.offline_pages(), PageSet::new());

        guest.ok(return_);
        wait_for_actual(&guest, size);
        let now = guest.balloon_counters();
        assert_eq!(now.inflated - before.inflated, (round + 1) * size);
        assert_eq!(before.total - now.total, size);
        assert_eq!(guest.client().balloon_status().expect("an answer").driver, DriverState::Ready);
    }
    resize(&guest, 0);
    assert_eq!(guest.power_off(), Some(0), "{}", guest.output());
}

#[test]
fn a_reboot_keeps_the_target_and_stop_presses_a_power_button_that_works() {
    if !linux_or_skip() {
        return;
    }
    let size = 32 * PAGES_PER_MIB;
    let mut guest = LinuxConfig::new(RAM).options(&["--on-reset", "reboot"]).start();
    resize(&guest, size);
    let start = guest.console_len();
    guest.send("reboot -f");
    guest.wait_for_ready(start);
    let status = guest.client().balloon_status().expect("an answer");
    assert_eq!(status.target_bytes, size * 4096, "the target survives");
    wait_for_actual(&guest, size);
    let now = guest.balloon_counters();
    assert_eq!((now.inflated, now.deflated), (size, 0), "counted by the new kernel");

    // What a kernel manages depends on where its boot put it, so the new one is compared with itself.
    resize(&guest, 0);
    assert_eq!(guest.balloon_counters().total - now.total, size);

    guest.client().stop(STOP_PATIENCE).expect("the guest powers off");
    assert_eq!(guest.wait_for_end(), Some(0), "{}", guest.output());
    assert!(guest.output().contains("reboot: Power down"), "{}", guest.output());
}

/// Waits until the driver, of its own accord, has brought the balloon to `pages`.
fn wait_for_actual(guest: &LinuxGuest, pages: u64) {
    wait_for("the balloon to be inflated anew", || (actual(guest) == pages).then_some(()));
}
