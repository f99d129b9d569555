use std::fs;

use aerostat_api as api;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

fn from<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("a section")
}

/// A file of a few bytes in `directory`.
fn file(directory: &TempDir, name: &str) -> String {
    let path = directory.path().join(name);
    fs::write(&path, [0; 4096]).unwrap();
    path.to_str().unwrap().to_owned()
}

fn drive(id: &str, path: &str, is_root: bool) -> Change {
    Change::Drive(from(json!({
        "drive_id": id, "path_on_host": path, "is_root_device": is_root, "is_read_only": false
    })))
}

fn refused(configuration: &mut Configuration, change: Change) -> String {
    let before = configuration.description().clone();
    let error = configuration.change(change).expect_err("refused");
    assert_eq!(*configuration.description(), before, "a refused change has changed something");
    error.to_string()
}

#[test]
fn what_is_out_of_range_is_refused_with_value_and_range() {
    let mut configuration = Configuration::new("a");
    for (change, words) in [
        (json!({"vcpu_count": 0, "mem_size_mib": 128}), ["vcpu_count is 0", "1 to 4"]),
        (json!({"vcpu_count": 32, "mem_size_mib": 128}), ["vcpu_count is 32", "1 to 4"]),
        (json!({"vcpu_count": 1, "mem_size_mib": 1}), ["mem_size_mib is 1;", "2 to 65536"]),
        (
            json!({"vcpu_count": 1, "mem_size_mib": u64::MAX}),
            ["18446744073709551615", "2 to 65536"],
        ),
    ] {
        let said = refused(&mut configuration, Change::Machine(from(change)));
        assert!(said.starts_with("machine-config: "), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    let balloon = json!({"amount_mib": 129, "deflate_on_oom": false});
    let said = refused(&mut configuration, Change::Balloon(from(balloon)));
    assert!(said.contains("amount_mib is 129; allowed: 0 to mem_size_mib, 128"), "{said}");
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_what_asks_for_nothing_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let disk = file(&directory, "disk");
    let machine = |name: &str, value: Value| {
        let mut json = json!({"vcpu_count": 1, "mem_size_mib": 128});
        json[name] = value;
        Change::Machine(from(json))
    };
    let drive = |name: &str, value: Value| {
        let mut json = json!({"drive_id": "a", "path_on_host": disk, "is_root_device": false});
        json[name] = value;
        Change::Drive(from(json))
    };
    let balloon = |name: &str, value: Value| {
        let mut json = json!({"amount_mib": 0, "deflate_on_oom": false});
        json[name] = value;
        Change::Balloon(from(json))
    };
    let limiter = json!({"ops": {"size": 1, "refill_time": 1}});
    for (change, name) in [
        (machine("smt", json!(true)), "smt"),
        (machine("track_dirty_pages", json!(true)), "track_dirty_pages"),
        (machine("huge_pages", json!("2M")), "huge_pages: \"2M\""),
        (machine("huge_pages", json!("Transparent")), "huge_pages: \"Transparent\""),
        (machine("cpu_template", json!("T2")), "cpu_template: \"T2\""),
        (drive("socket", json!("/s")), "socket"),
        (drive("partuuid", json!("0eaa91a0-01")), "partuuid"),
        (drive("io_engine", json!("Async")), "io_engine: \"Async\""),
        (drive("rate_limiter", limiter.clone()), "rate_limiter"),
        (balloon("stats_polling_interval_s", json!(1)), "stats_polling_interval_s"),
        (balloon("free_page_hinting", json!(true)), "free_page_hinting"),
        (balloon("free_page_reporting", json!(true)), "free_page_reporting"),
        (Change::Serial(from(json!({"rate_limiter": limiter}))), "rate_limiter"),
    ] {
        let said = refused(&mut Configuration::new("a"), change);
        assert!(said.contains(name) && said.contains("is not supported by aerostat"), "{said}");
    }
    for change in [
        machine("cpu_template", json!("None")),
        machine("huge_pages", json!("None")),
        machine("smt", json!(false)),
        drive("io_engine", json!("Sync")),
        drive("cache_type", json!("Writeback")),
        drive("rate_limiter", Value::Null),
        drive("rate_limiter", json!({})),
        drive("rate_limiter", json!({"ops": {"size": 0, "refill_time": 0}, "bandwidth": null})),
        balloon("stats_polling_interval_s", json!(0)),
        balloon("free_page_reporting", json!(false)),
        Change::Entropy(from(json!({"rate_limiter": null}))),
    ] {
        Configuration::new("a")
            .change(change.clone())
            .unwrap_or_else(|e| panic!("{change:?}: {e}"));
    }
}

#[test]
fn sections_that_are_not_supported_are_refused_by_name() {
    for (name, value) in [
        ("vsock", json!({"guest_cid": 3, "uds_path": "/s"})),
        ("network-interfaces", json!([{"iface_id": "eth0", "host_dev_name": "tap0"}])),
        ("mmds-config", json!({})),
        ("cpu-config", json!({})),
        ("pmem", json!([{}])),
    ] {
        let error = Configuration::from_description("a", from(json!({name: value})));
        let said = error.expect_err(name).to_string();
        assert!(said.contains(name) && said.contains("is not supported by aerostat"), "{said}");
    }
    for nothing in [json!({"vsock": null}), json!({"network-interfaces": [], "pmem": []})] {
        Configuration::from_description("a", from(nothing)).unwrap();
    }
}

#[test]
fn files_that_are_not_there_or_of_the_wrong_kind_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let (there, none) = (file(&directory, "there"), "/nonexistent/x");
    let folder = directory.path().to_str().unwrap();
    let source = |kernel: &str, initrd: Option<&str>| {
        Change::BootSource(api::BootSource {
            kernel_image_path: kernel.into(),
            initrd_path: initrd.map(Into::into),
            boot_args: None,
        })
    };
    let metrics = |path: &str| Change::Metrics(api::Metrics { metrics_path: path.into() });
    let mut configuration = Configuration::new("a");
    for (change, words) in [
        (source(none, None), ["boot-source", none]),
        (source(folder, None), ["boot-source", "regular file"]),
        (source(&there, Some(none)), ["boot-source", none]),
        (source(&there, Some(folder)), [folder, "regular file"]),
        (source("embedded", Some(&there)), ["initrd_path", "embedded guest"]),
        (drive("d", none, false), ["\"d\"", none]),
        (drive("d", folder, false), ["\"d\"", folder]),
        (drive("d", "/dev/null", false), ["path_on_host", "/dev/null"]),
        (drive("", &there, false), ["drive_id", "bytes long"]),
        (drive(&"d".repeat(100), &there, false), ["drive_id", "bytes long"]),
        (metrics(folder), ["metrics_path", folder]),
        (metrics("/nonexistent/x"), ["metrics_path", none]),
        (Change::Logger(from(json!({"log_path": none}))), ["log_path", none]),
        (Change::Serial(from(json!({"serial_out_path": none}))), ["serial_out_path", none]),
    ] {
        let said = refused(&mut configuration, change);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    }
    configuration.change(source("embedded", None)).unwrap();
    configuration.change(source(&there, Some(&there))).unwrap();
}

#[test]
fn metrics_are_configured_once() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = |name| {
        let metrics_path = directory.path().join(name).to_str().unwrap().into();
        Change::Metrics(api::Metrics { metrics_path })
    };
    let mut configuration = Configuration::new("a");
    configuration.change(metrics("one")).unwrap();
    assert!(refused(&mut configuration, metrics("two")).contains("already"));
}

#[test]
fn no_vm_can_have_more_drives_than_slots() {
    let directory = tempfile::tempdir().unwrap();
    let disk = file(&directory, "disk");
    let mut configuration = Configuration::new("a");
    for n in 0..MAX_DRIVES {
        configuration.change(drive(&format!("d{n}"), &disk, false)).unwrap();
    }
    let said = refused(&mut configuration, drive("one_more", &disk, false));
    assert!(said.contains(&format!("no more than {MAX_DRIVES}")), "{said}");
    configuration.change(drive("d3", &disk, true)).expect("a drive that is there can be replaced");
    assert_eq!(configuration.description().drives[0].drive_id, "d3");
}

#[test]
fn a_vm_is_what_was_configured_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut configuration = Configuration::new("my-vm");
    assert!(configuration.vm_config().unwrap_err().to_string().contains("boot-source"));
    let source = json!({"kernel_image_path": "embedded", "boot_args": "quiet"});
    configuration.change(Change::BootSource(from(source))).unwrap();
    let vm = configuration.vm_config().unwrap();
    vm.validate().unwrap();
    assert_eq!((vm.id.as_str(), vm.memory_bytes, vm.vcpus), ("my-vm", 128 << 20, 1));
    assert_eq!(vm.cmdline.as_deref(), Some("quiet"));
    assert!(
        vm.balloon.is_none()
            && vm.entropy.is_none()
            && vm.drives.is_empty()
            && vm.metrics.is_none()
    );

    let balloon = json!({"amount_mib": 64, "deflate_on_oom": true});
    configuration.change(Change::Balloon(from(balloon))).unwrap();
    let limiter = json!({"bandwidth": {"size": 4096, "refill_time": 250}});
    configuration.change(Change::Entropy(from(json!({"rate_limiter": limiter})))).unwrap();
    configuration.change(drive("a", &file(&directory, "a"), false)).unwrap();
    configuration.change(drive("b", &file(&directory, "b"), true)).unwrap();
    let vm = configuration.vm_config().unwrap();
    let balloon = vm.balloon.unwrap();
    assert_eq!((balloon.target.bytes(), balloon.deflate_on_oom), (64 << 20, true));
    let drives: Vec<_> = vm.drives.iter().map(|d| (d.id.as_str(), d.is_root_device)).collect();
    assert_eq!(drives, [("b", true), ("a", false)]);
    let limit =
        RateLimit { size: 4096, one_time_burst: 0, refill_time: Duration::from_millis(250) };
    assert_eq!(vm.entropy, Some(EntropyConfig { bandwidth: Some(limit), ops: None }));
    assert_eq!(vm.describe(), *configuration.description());
}

/// What a client can ask for, small enough that changes meet each other.
#[derive(Debug, Clone)]
enum Step {
    Memory(u64),
    Vcpus(u8),
    Balloon(u32),
    Drive { id: u8, is_root: bool },
    Boot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u64..12).prop_map(Step::Memory),
        (0u8..6).prop_map(Step::Vcpus),
        (0u32..12).prop_map(Step::Balloon),
        (0u8..4, any::<bool>()).prop_map(|(id, is_root)| Step::Drive { id, is_root }),
        Just(Step::Boot),
    ];
    proptest::collection::vec(step, 0..40)
}

/// The same rules, written down as naively as possible.
#[derive(Debug, Default, Clone, PartialEq)]
struct Model {
    memory: Option<u64>,
    vcpus: Option<u8>,
    balloon: Option<u32>,
    /// In the order of their first appearance.
    drives: Vec<(u8, bool)>,
    boots: bool,
}

impl Model {
    fn step(&self, step: &Step) -> Option<Self> {
        let mut next = self.clone();
        match *step {
            Step::Memory(mib) => next.memory = Some(mib),
            Step::Vcpus(vcpus) => next.vcpus = Some(vcpus),
            Step::Balloon(mib) => next.balloon = Some(mib),
            Step::Drive { id, is_root } => match next.drives.iter_mut().find(|d| d.0 == id) {
                Some(there) => there.1 = is_root,
                None => next.drives.push((id, is_root)),
            },
            Step::Boot => next.boots = true,
        }
        next.is_possible().then_some(next)
    }

    fn is_possible(&self) -> bool {
        let memory = self.memory.unwrap_or(128);
        memory >= 2
            && (1..=4).contains(&self.vcpus.unwrap_or(1))
            && u64::from(self.balloon.unwrap_or(0)) <= memory
            && self.drives.iter().filter(|drive| drive.1).count() <= 1
    }
}

proptest! {
    #[test]
    fn any_sequence_of_changes_is_taken_or_refused_as_the_model_says(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let disk = file(&directory, "disk");
        let mut configuration = Configuration::new("a");
        let mut model = Model::default();
        for step in steps {
            let update = api::MachineConfigUpdate::default();
            let change = match step {
                Step::Memory(mib) => {
                    Change::UpdateMachine(api::MachineConfigUpdate { mem_size_mib: Some(mib), ..update })
                }
                Step::Vcpus(vcpus) => {
                    Change::UpdateMachine(api::MachineConfigUpdate { vcpu_count: Some(vcpus), ..update })
                }
                Step::Balloon(mib) => {
                    Change::Balloon(from(json!({"amount_mib": mib, "deflate_on_oom": false})))
                }
                Step::Drive { id, is_root } => drive(&format!("d{id}"), &disk, is_root),
                Step::Boot => Change::BootSource(from(json!({"kernel_image_path": "embedded"}))),
            };
            let before = configuration.description().clone();
            let next = model.step(&step);
            prop_assert_eq!(configuration.change(change).is_ok(), next.is_some(), "{:?}", step);
            match next {
                Some(next) => model = next,
                None => prop_assert_eq!(configuration.description(), &before),
            }
            let told = configuration.description();
            prop_assert_eq!(told.machine_config.mem_size_mib, model.memory.unwrap_or(128));
            prop_assert_eq!(told.machine_config.vcpu_count, model.vcpus.unwrap_or(1));
            prop_assert_eq!(told.balloon.as_ref().map(|b| b.amount_mib), model.balloon);
            prop_assert_eq!(told.boot_source.is_some(), model.boots);
            let mut drives: Vec<_> = told.drives.iter().map(|d| (d.drive_id.clone(), d.is_root_device)).collect();
            prop_assert!(drives.iter().skip(1).all(|d| !d.1), "the root device is first");
            drives.sort();
            let mut expected: Vec<_> = model.drives.iter().map(|d| (format!("d{}", d.0), d.1)).collect();
            expected.sort();
            prop_assert_eq!(drives, expected);
            match configuration.vm_config() {
                Ok(vm) => prop_assert!(model.boots && vm.validate().is_ok()),
                Err(_) => prop_assert!(!model.boots),
            }
        }
    }
}
