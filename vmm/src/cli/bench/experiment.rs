//! Runs the experiments of a command and says what was observed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use guest_ram::BackingKind;
use serde::Serialize;

use aerostat_api::Size;

use super::super::args::{ExperimentOptions, MemoryOptions};
use super::super::failure::Failure;
use super::super::output;
use super::catalogue::{Catalogued, Part};
use super::files;
use super::host::HostFacts;
use super::sample::Observed;
use super::summary::{Metric, summarise};
use super::table::Table;
use super::vm::{self, Request, VmFacts};
use crate::exit_code;
use crate::kvm::Host;
use crate::vm::StartError;

/// The VMs, by experiment.
type Vms = BTreeMap<&'static str, VmFacts>;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    command: &'a str,
    host: &'a HostFacts,
    /// By experiment: their VMs differ.
    vms: &'a Vms,
    seeds: u64,
    /// In thousandths of their units.
    metrics: &'a [Metric],
}

/// Runs all of them, then tells.
pub(super) fn run(catalogued: &Catalogued, options: &ExperimentOptions) -> Result<u8, Failure> {
    // A host without KVM says so itself and not through a process that failed.
    let most = options.vcpus.iter().max().copied().unwrap_or(1);
    drop(Host::open(most).map_err(StartError::from)?);
    if let Some(directory) = &options.out {
        files::prepare(directory)?;
    }
    let ids: Vec<&str> = catalogued.parts.iter().map(|part| part.id).collect();
    let with = options.with.as_deref().map(|path| files::read(path, &ids)).transpose()?;
    let host = HostFacts::before();
    let mut observed = Vec::new();
    let mut vms = BTreeMap::new();
    for part in catalogued.parts {
        for &vcpus in options.vcpus_or(part.vcpus) {
            for seed in 1..=u64::from(options.seeds) {
                for inflate in part.inflations() {
                    let (vm, samples) = run_one(part, options, vcpus, seed, inflate)?;
                    observed.extend(samples);
                    vms.insert(part.id, vm);
                }
            }
        }
    }
    observed.extend(with.unwrap_or_default());
    let host = host.after();
    let metrics = summarise(&observed);
    if let Some(directory) = &options.out {
        let text = markdown(catalogued, options, &host, &vms, &metrics);
        files::write(directory, &observed, &text, &metrics)?;
    }
    if options.json {
        let (command, seeds) = (catalogued.name, options.seeds.into());
        output::json(&Report { command, host: &host, vms: &vms, seeds, metrics: &metrics })?;
    } else {
        print(catalogued, &host, &vms, &metrics)?;
    }
    Ok(exit_code::SUCCESS)
}

fn run_one(
    part: &Part,
    options: &ExperimentOptions,
    vcpus: u8,
    seed: u64,
    inflate: Option<u8>,
) -> Result<(VmFacts, Vec<Observed>), Failure> {
    let size = options.size.unwrap_or(Size::from_bytes(part.memory));
    let memory = &MemoryOptions { size, backing: BackingKind::Anon };
    let rounds = options.rounds.unwrap_or(part.rounds);
    let ran = vm::run(&Request { part, memory, vcpus, seed, rounds, inflate })?;
    let (name, count) = (part.id.to_uppercase(), ran.1.len());
    eprintln!("{name}, vCPUs {vcpus}, seed {seed}: {count} samples");
    Ok(ran)
}

/// Where and how it was measured, one line each.
fn circumstances(host: &HostFacts, vms: &Vms) -> Vec<String> {
    let mut lines = vec![format!("Host: {host}")];
    for (id, vm) in vms {
        let id = id.to_uppercase();
        lines.push(format!("{id}: {vm}; vCPUs bound to CPUs, host memory populated before"));
    }
    if vms.values().any(|vm| vm.kvm == "software") {
        lines.push(
            "Ring 0 is interpreted here: what enters it (page faults, flushes, masking) takes longer.".into(),
        );
    }
    lines
}

fn title(part: &Part) -> String {
    format!("{}: {}", part.id.to_uppercase(), part.title)
}

fn print(
    catalogued: &Catalogued,
    host: &HostFacts,
    vms: &Vms,
    metrics: &[Metric],
) -> Result<(), Failure> {
    circumstances(host, vms).into_iter().try_for_each(output::line)?;
    for part in catalogued.parts {
        output::line(format!("\n{}", title(part)))?;
        for metric in metrics.iter().filter(|metric| metric.experiment == part.id) {
            output::line(format!("\n{}, {}", metric.metric, metric.unit))?;
            Table::of(metric, host.cpus).lines().into_iter().try_for_each(output::line)?;
        }
    }
    Ok(())
}

/// The text of `table.md`.
fn markdown(
    catalogued: &Catalogued,
    options: &ExperimentOptions,
    host: &HostFacts,
    vms: &Vms,
    metrics: &[Metric],
) -> String {
    let mut text = format!("`aerostat bench {}{}`\n\n", catalogued.name, options.as_given());
    for line in circumstances(host, vms) {
        writeln!(text, "* {line}").ok();
    }
    for part in catalogued.parts {
        writeln!(text, "\n## {}", title(part)).ok();
        for metric in metrics.iter().filter(|metric| metric.experiment == part.id) {
            let (name, plot) = (&metric.metric, files::plot_name(metric));
            writeln!(text, "\n### {name}, {}\n\n![{name}]({plot})\n", metric.unit).ok();
            text.push_str(&Table::of(metric, host.cpus).markdown());
        }
    }
    text
}
