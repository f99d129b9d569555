//! `aerostat bench EXPERIMENT`: all samples or none, tables and plots; a VM that dies is an error.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest_mm::scenario::Name;
use serde_json::Value;
use system_tests::binary::aerostat;
use system_tests::kvm::kvm_or_skip;
use system_tests::vm::{child_of, scaled};

/// The experiments' commands, and what their guests' scenarios call them.
const COMMANDS: &[(&str, &[&str])] = &[
    ("migrate", &["e2", "e5"]),
    ("stores", &["e3"]),
    ("compaction", &["e9"]),
    ("hotplug", &["e10"]),
];

fn bench(name: &str, temporary: &Path, more: &[&str]) -> Command {
    let mut command = aerostat();
    command.args(["bench", name, "--seeds", "1", "--rounds", "1"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("TMPDIR", temporary);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_experiment_of_the_guest_has_a_command() {
    let scenarios: Vec<String> = Name::ALL
        .iter()
        .filter_map(|name| name.spec().name.strip_prefix("exp-").map(str::to_owned))
        .collect();
    let mut commanded: Vec<&str> = COMMANDS.iter().flat_map(|(_, ids)| *ids).copied().collect();
    let mut scenarios: Vec<&str> = scenarios.iter().map(String::as_str).collect();
    commanded.sort_unstable();
    scenarios.sort_unstable();
    assert_eq!(commanded, scenarios);
}

#[test]
fn an_unknown_experiment_is_told_what_there_is() {
    let temporary = tempfile::tempdir().unwrap();
    let output = bench("e99", temporary.path(), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("\"e99\"") && said.contains("mm, "), "{said}");
    for (name, _) in COMMANDS {
        assert!(said.contains(name), "{said}");
    }
}

/// Runs an experiment in its shortest form.
fn writes_samples_tables_and_plots_that_agree(name: &str, memory: &str) {
    if !kvm_or_skip() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    let out_name = out.to_str().unwrap();
    let arguments = ["--vcpus", "1", "--memory", memory, "--json", "--out", out_name];
    let output = bench(name, temporary.path(), &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output.stderr));
    let (_, ids) = COMMANDS.iter().find(|(command, _)| *command == name).unwrap();
    agree(ids, &output, &out);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1, "{name} leaves its output");
}

#[test]
fn the_experiments_about_migration_write_what_agrees() {
    writes_samples_tables_and_plots_that_agree("migrate", "64M");
}

#[test]
fn the_experiment_about_stores_writes_what_agrees() {
    writes_samples_tables_and_plots_that_agree("stores", scaled("256M", "64M"));
}

#[test]
fn the_experiment_about_compaction_writes_what_agrees() {
    // At 95 % little more than the low watermark is free, of which the scenario's program once took so much that it was killed.
    writes_samples_tables_and_plots_that_agree("compaction", "128M");
}

#[test]
fn the_experiment_about_hotplug_writes_what_agrees() {
    // 128 MiB of it are kept apart.
    writes_samples_tables_and_plots_that_agree("hotplug", "192M");
}

/// The report on standard output, the samples and the plots tell of the same.
fn agree(ids: &[&str], output: &Output, out: &Path) {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let samples = fs::read_to_string(out.join("samples.jsonl")).unwrap();
    let samples: Vec<Value> =
        samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let metrics = report["metrics"].as_array().unwrap();
    let table = fs::read_to_string(out.join("table.md")).unwrap();
    let mut counted = 0;
    for metric in metrics {
        let is_of = |sample: &&Value| {
            ["experiment", "metric", "unit"].iter().all(|key| sample[key] == metric[key])
        };
        let of: Vec<&Value> = samples.iter().filter(is_of).collect();
        let groups = metric["groups"].as_array().unwrap();
        let n: u64 = groups.iter().map(|group| group["n"].as_u64().unwrap()).sum();
        assert_eq!(n, of.len() as u64, "{metric:#}");
        let values = of.iter().map(|sample| sample["value"].as_u64().unwrap());
        let greatest = groups.iter().map(|group| group["max"].as_u64().unwrap()).max();
        assert_eq!(values.max(), greatest, "{metric:#}");
        assert!(table.contains(&format!("### {}, ", metric["metric"].as_str().unwrap())));
        counted += of.len();
    }
    assert!(counted > 0 && counted == samples.len());
    for id in ids {
        assert!(samples.iter().any(|sample| sample["experiment"] == *id), "no sample of {id}");
    }
    let plots = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let plots: Vec<_> = plots.filter(|path| path.extension().is_some_and(|e| e == "svg")).collect();
    assert_eq!(plots.len(), metrics.len());
    for plot in plots {
        let name = plot.file_name().unwrap().to_str().unwrap();
        assert!(table.contains(&format!("]({name})")), "{name} is not shown");
        assert!(fs::read_to_string(&plot).unwrap().contains("<circle "), "{name} is empty");
    }
}

#[test]
fn a_vm_that_dies_is_an_error_and_nothing_is_written() {
    if !kvm_or_skip() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    // More rounds than anybody waits for.
    let arguments = ["--out", out.to_str().unwrap(), "--memory", "64M", "--rounds", "1000000"];
    let mut command = aerostat();
    command.args(["bench", "stores", "--seeds", "1"]).args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("TMPDIR", temporary.path());
    let running = command.spawn().unwrap();
    kill_vm_of(&running);
    let output = running.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("The VM ended"), "{said}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "files of a run that broke off");
}

/// Kills the process's VM once that measures.
fn kill_vm_of(bench: &Child) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline, "the bench has no VM");
        // It measures when a vCPU has used some time.
        if let Some(vm) = child_of(bench.id()).filter(|vm| vcpu_ticks(*vm) > 20) {
            // SAFETY: sends a signal to a process that our own child has started and not yet waited for.
            assert_eq!(unsafe { libc::kill(vm.try_into().unwrap(), libc::SIGKILL) }, 0);
            return;
        }
        sleep(Duration::from_millis(20));
    }
}

/// Clock ticks that the vCPU threads of a process have run.
fn vcpu_ticks(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let user: u64 = fields.get(11)?.parse().ok()?;
        let system: u64 = fields.get(12)?.parse().ok()?;
        name.contains("(vcpu").then_some(user + system)
    };
    tasks.filter_map(|task| of(task.ok()?)).sum()
}
