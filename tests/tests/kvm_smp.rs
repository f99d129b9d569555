//! More than one vCPU: they come up, work at once, flush each other's TLBs, and devices are served meanwhile.

use system_tests::kvm::kvm_or_skip;
use system_tests::stress::SmpStress;
use system_tests::vm::{TestVm, scaled};

const MIB: u64 = 1 << 20;

#[test]
fn as_many_cpus_come_up_as_there_are() {
    if !kvm_or_skip() {
        return;
    }
    for vcpus in ["1", "2", "4"] {
        let vm = TestVm::start(64 * MIB, &["--vcpus", vcpus]);
        let lines = vm.exec_ok("cpus", &[]);
        assert_eq!(lines.first(), Some(&format!("{vcpus} CPUs up")), "{lines:#?}");
        assert!(!vm.output().contains("warn"), "{}", vm.output());
    }
}

#[test]
fn fewer_cpus_are_used_where_the_command_line_says_so() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(64 * MIB, &["--vcpus", "2", "--cmdline", "cpus=1"]);
    let lines = vm.exec_ok("cpus", &[]);
    assert_eq!(lines.first().map(String::as_str), Some("1 CPUs up"), "{lines:#?}");
}

#[test]
fn no_translation_outlives_its_flush_and_faults_wait_for_sleeping_locks() {
    if !kvm_or_skip() {
        return;
    }
    for vcpus in [1, 2, 4] {
        let vm = TestVm::start(64 * MIB, &["--vcpus", &vcpus.to_string()]);
        for seed in ["1", "2", "3"] {
            let lines = vm.exec_ok("smp-stress", &[scaled("2", "1"), seed]);
            SmpStress::of(&lines).expect_stress(vcpus);
        }
        let census = vm.exec_ok("census", &[]);
        assert!(census.iter().any(|line| line == "0 discrepancies"), "{census:#?}");
    }
}

#[test]
fn the_balloon_moves_while_every_cpu_is_at_work() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(128 * MIB, &["--vcpus", "2"]);
    let seconds = scaled("6", "10");
    std::thread::scope(|scope| {
        let stress = scope.spawn(|| vm.exec_ok("smp-stress", &[seconds]));
        vm.resize(64 * MIB);
        vm.resize(0);
        assert!(!stress.is_finished(), "the balloon moved after the stress");
        SmpStress::of(&stress.join().expect("the scenario ends")).expect_stress(2);
    });
    vm.exec_ok("verify", &[]);
}
