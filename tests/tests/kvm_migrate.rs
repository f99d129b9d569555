//! Ballooned pages move, seen from the host: what was freed stays freed, what was not is unchanged, `actual` is exact.
//!
//! The host's memory is read from `/proc` by the test itself, never from what the VMM claims.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use system_tests::host_memory::mappings;
use system_tests::kvm::kvm_or_skip;
use system_tests::vm::{TestVm, scaled};

const MIB: u64 = 1 << 20;

fn ram() -> u64 {
    scaled(128 * MIB, 64 * MIB)
}

/// The number before `what` in the first line that has it.
fn number_before(lines: &[String], what: &str) -> u64 {
    let line = lines.iter().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{lines:?}"));
    let before = line.split(what).next().expect("found above").trim_end();
    let number = before.rsplit([' ', ',']).next().expect("split gives one");
    number.parse().unwrap_or_else(|_| panic!("no number before {what:?} in {line:?}"))
}

/// Half of RAM is ballooned, then every block is emptied of it in turn.
fn moved_balloon_stays_freed(backing: &str, order: &str) {
    let cmdline = format!("balloon.order={order}");
    let vm = TestVm::start(ram(), &["--backing", backing, "--cmdline", &cmdline]);
    vm.exec_ok("touch", &["all"]);
    let full = vm.host_bytes(backing);
    let half = ram() / 2;
    vm.resize(half);
    let before = vm.host_bytes(backing);
    assert!(full - before.min(full) >= half / 100 * 95, "{full} B, then {before} B");

    let lines = vm.exec_ok("balloon-migrate", &[]);
    println!("{backing}, order {order}: {:?}", vm.exec_ok("balloon", &[]).last());
    let moved = number_before(&lines, "pages moved out of") * 4096;
    assert!(moved >= half / 100 * 90, "{moved} B of {half} moved: {lines:#?}");
    // Whatever else the scenario did, it gave back: what it touched may be resident now.
    let after = vm.host_bytes(backing);
    let freed = full - after.min(full);
    assert!(freed >= half / 100 * 90, "{full} B, {before} B, and {after} B after the move");
    let status = vm.client().balloon_status().expect("an answer");
    assert_eq!((status.target_bytes, status.actual_bytes), (half, half));
    // Sentinels unchanged; what the host discarded reads as zero; all books agree.
    vm.exec_ok("verify", &[]);
    vm.exec_ok("census", &[]);

    vm.resize(0);
    vm.exec_ok("touch", &["all"]);
    vm.exec_ok("verify", &[]);
    vm.exec_ok("census", &[]);
}

#[test]
fn a_balloon_inflated_page_by_page_moves_and_stays_freed_on_anonymous_memory() {
    if kvm_or_skip() {
        moved_balloon_stays_freed("anon", "0");
    }
}

#[test]
fn a_balloon_of_large_blocks_moves_and_stays_freed_on_a_memfd() {
    if kvm_or_skip() {
        moved_balloon_stays_freed("memfd", "10");
    }
}

#[test]
fn a_balloon_that_gives_pages_to_whoever_is_out_of_memory_moves_meanwhile() {
    if !kvm_or_skip() {
        return;
    }
    let options = ["--balloon", "deflate-on-oom", "--vcpus", "2"];
    let vm = TestVm::start(64 * MIB, &options);
    vm.resize(24 * MIB);
    let lines = vm.exec_ok("balloon-migrate-oom", &[]);
    let given = number_before(&lines, "came from the balloon") * 4096;
    let status = vm.client().balloon_status().expect("an answer");
    // What the host answered too late for whoever asked came as well.
    assert!(given > 0 && status.actual_bytes <= 24 * MIB - given, "{status:?}, {lines:#?}");
    vm.exec_ok("census", &[]);
    vm.resize(24 * MIB);
    vm.exec_ok("verify", &[]);
}

const HAMMERED_RAM: u64 = 64 * MIB;
const HAMMERED_BALLOON: u64 = 24 * MIB;

/// Bytes of anonymous memory behind the RAM of VM `pid`.
fn resident(pid: u32) -> u64 {
    let mappings = mappings(pid).expect("the VMM's smaps").into_iter();
    mappings.filter(|mapping| mapping.is_ram(HAMMERED_RAM)).map(|mapping| mapping.anonymous).sum()
}

/// Runs `work`, and looks every few milliseconds what memory VM `pid` has meanwhile; returns the most.
fn most_resident<R>(pid: u32, work: impl FnOnce() -> R) -> (R, u64) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(resident(pid));
                // Where one CPU is all there is, looking takes it away from the guest.
                thread::sleep(Duration::from_millis(scaled(20, 500)));
            }
            most
        });
        // The watcher is to end, whatever becomes of the work.
        let result = catch_unwind(AssertUnwindSafe(work));
        is_over.store(true, Ordering::Relaxed);
        let most = watcher.join().expect("the watcher only reads");
        (result.unwrap_or_else(|panic| resume_unwind(panic)), most)
    })
}

/// Data is used on every CPU while its pages and the balloon's move. The host has no memory behind a page of the
/// balloon at any time, though it had behind each of them before.
fn hammer(vcpus: &str, how_long: &[&str]) {
    let vm = TestVm::start(HAMMERED_RAM, &["--vcpus", vcpus, "--backing", "anon"]);
    vm.exec_ok("touch", &["all"]);
    vm.resize(HAMMERED_BALLOON);
    let (lines, most) = most_resident(vm.pid(), || vm.exec_ok("migrate-hammer", how_long));
    println!("{vcpus} vCPUs: {}; the host had at most {} KiB", lines[0], most >> 10);
    // A look takes a moment, in which pages move from where it has been to where it comes.
    let limit = HAMMERED_RAM - HAMMERED_BALLOON / 10 * 9;
    assert!(0 < most && most <= limit, "{most} B of {HAMMERED_RAM}: {lines:#?}");
    let quiet = resident(vm.pid());
    assert!(quiet <= HAMMERED_RAM - HAMMERED_BALLOON, "{quiet} B of {HAMMERED_RAM}");
    let status = vm.client().balloon_status().expect("an answer");
    assert_eq!(status.actual_bytes, HAMMERED_BALLOON);
    let census = vm.exec_ok("census", &[]);
    assert!(census.iter().any(|line| line == "0 discrepancies"), "{census:#?}");
    vm.exec_ok("verify", &[]);
    // What comes back reads as zero, wherever it has been meanwhile.
    vm.resize(0);
    let verified = vm.exec_ok("verify", &[]);
    assert!(number_before(&verified, "discarded pages read as zero") > 0, "{verified:#?}");
}

#[test]
fn data_survives_while_its_pages_and_the_balloons_move() {
    if kvm_or_skip() {
        let rounds = ["--rounds", scaled("8", "2")];
        ["1", "2", "4"].into_iter().for_each(|vcpus| hammer(vcpus, &rounds));
    }
}

/// A long run, `cargo test -p system-tests --test kvm_migrate -- --ignored --nocapture`; the latest result is in
/// `docs/long-runs.md`.
#[test]
#[ignore = "a minute for each number of vCPUs"]
fn data_survives_a_minute_of_it() {
    if kvm_or_skip() {
        ["1", "2", "4"].into_iter().for_each(|vcpus| hammer(vcpus, &["--seconds", "60"]));
    }
}
