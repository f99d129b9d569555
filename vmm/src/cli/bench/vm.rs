//! One run: a scenario that measures, in a VM of its own.

use std::fmt;
use std::time::Duration;

use abi::PAGE_SIZE;
use aerostat_api::{Client, ExecEvent, ExecRequest, OperationRequest, OperationState, Size};
use serde::Serialize;

use super::super::args::MemoryOptions;
use super::super::failure::Failure;
use super::super::own_vm::OwnVm;
use super::super::resize::Subject;
use super::catalogue::Part;
use super::pin::pin_vcpus;
use super::sample::{End, Line, Observed, Param, Sample};

/// How long the guest may take to power off.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How long an inflation may take, in milliseconds.
const INFLATE_MS: u64 = 120_000;
/// Remarks that an error repeats at most.
const REMARKS: usize = 5;
/// How remarks begin that say why a scenario failed.
const REASONS: [&str; 4] = ["FAILED: ", "LEAK: ", "DISCREPANCY: ", "not ok "];

/// What a run is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) part: &'a Part,
    pub(super) memory: &'a MemoryOptions,
    pub(super) vcpus: u8,
    pub(super) seed: u64,
    pub(super) rounds: u64,
    /// Percent of guest RAM to which the balloon is inflated first.
    pub(super) inflate: Option<u8>,
}

/// What the VM was, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct VmFacts {
    version: String,
    /// `software` where ring 0 is interpreted.
    pub(super) kvm: String,
    ram_bytes: u64,
    backing: String,
}

impl fmt::Display for VmFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, kvm, ram_bytes, backing } = self;
        let ram = Size::from_bytes(*ram_bytes).human();
        write!(f, "aerostat {version}, {ram} of {backing} memory, {kvm} KVM")
    }
}

/// Runs it; all of its samples, or an error.
pub(super) fn run(request: &Request<'_>) -> Result<(VmFacts, Vec<Observed>), Failure> {
    let Request { part, memory, vcpus, seed, rounds, inflate } = *request;
    let own = OwnVm::start_with(memory, vcpus, &[&["--prefault"], part.run].concat())?;
    let client = own.client();
    let vm = client.vm_status()?;
    let bound = pin_vcpus(vm.pid)
        .map_err(|error| Failure::other(format!("Cannot bind the vCPUs to CPUs: {error}")))?;
    if bound != usize::from(vcpus) {
        return Err(Failure::other(format!("The VM has {bound} vCPU threads instead of {vcpus}")));
    }
    if let Some(percent) = inflate {
        inflate_by(&client, vm.ram_bytes, percent)?;
    }
    let numbers = [("--seed", seed), ("--cpus", vcpus.into()), ("--rounds", rounds)];
    let args = numbers.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]);
    let request = ExecRequest { scenario: part.scenario.into(), args: args.collect() };
    let mut collected = Collected::default();
    let ended = client.exec(&request).and_then(|events| {
        events.into_iter().try_for_each(|event| event.map(|event| collected.take(event)))
    });
    let samples = match ended {
        Ok(()) => collected.finish(part, seed),
        Err(error) => Err(error.into()),
    };
    let samples = match samples {
        Ok(samples) => samples,
        // If the VM is why, it has the better explanation.
        Err(failure) => return Err(own.failure_or(failure)),
    };
    client.stop(STOP_TIME)?;
    own.wait_for_end()?;
    let facts =
        VmFacts { version: vm.version, kvm: vm.kvm, ram_bytes: vm.ram_bytes, backing: vm.backing };
    let observed = samples.into_iter().map(|mut sample| {
        if let Some(percent) = inflate {
            // What the host has set, instead of what the guest makes of it.
            sample.params.insert("inflation".to_owned(), Param::Number(percent.into()));
        }
        Observed { sample, vcpus }
    });
    Ok((facts, observed.collect()))
}

/// Inflates the balloon to a share of guest RAM, all of it.
fn inflate_by(client: &Client, ram_bytes: u64, percent: u8) -> Result<(), Failure> {
    let pages = ram_bytes / PAGE_SIZE * u64::from(percent) / 100;
    let target_bytes = pages * PAGE_SIZE;
    let request = OperationRequest { target_bytes, timeout_ms: Some(INFLATE_MS) };
    let begun = client.begin_operation(&request)?;
    let ended = Subject::BALLOON.wait(client, begun, false)?;
    match ended.state {
        OperationState::Reached => Ok(()),
        OperationState::Running
        | OperationState::Stalled
        | OperationState::TimedOut
        | OperationState::Superseded => Err(Failure::other(Subject::BALLOON.summary(&ended))),
    }
}

/// What a scenario has printed so far.
#[derive(Debug, Default)]
struct Collected {
    samples: Vec<Sample>,
    /// The line after the last sample, with the samples that had come by then.
    end: Option<(End, usize)>,
    remarks: Vec<String>,
    exit: Option<(i32, u64)>,
}

impl Collected {
    fn take(&mut self, event: ExecEvent) {
        match event {
            ExecEvent::Line { line } => match Line::parse(&line) {
                Line::Sample(sample) => self.samples.push(sample),
                Line::End(end) => self.end = Some((end, self.samples.len())),
                Line::Remark => self.remarks.push(line),
            },
            ExecEvent::Exit { exit, lost } => self.exit = Some((exit, lost)),
        }
    }

    /// The samples, if they are all there.
    fn finish(self, part: &Part, seed: u64) -> Result<Vec<Sample>, Failure> {
        let Self { samples, end, remarks, exit } = self;
        let (scenario, count) = (part.scenario, samples.len());
        let fail = |why: String| {
            // What says why, else what came last.
            let is_reason = |line: &&String| REASONS.iter().any(|reason| line.starts_with(*reason));
            let reasons: Vec<&String> = remarks.iter().filter(is_reason).take(REMARKS).collect();
            let last = if reasons.is_empty() {
                remarks[remarks.len().saturating_sub(REMARKS)..].join("; ")
            } else {
                reasons.into_iter().map(String::as_str).collect::<Vec<_>>().join("; ")
            };
            let last = if last.is_empty() { last } else { format!(": {last}") };
            Err(Failure::other(format!("{scenario}, seed {seed}, {why}{last}")))
        };
        match exit {
            Some((0, 0)) => {}
            Some((0, lost)) => return fail(format!("lost {lost} lines of output")),
            Some((code, _)) => return fail(format!("ended with exit code {code}")),
            None => return fail("ended with the VM".to_owned()),
        }
        let Some((end, before)) = end else {
            return fail(format!("did not say that its {count} samples are all"));
        };
        let expected = (part.id, seed, count as u64, count);
        if (end.experiment.as_str(), end.seed, end.samples, before) != expected {
            return fail(format!("printed {count} samples and speaks of {}", end.samples));
        }
        if samples.is_empty() {
            return fail("printed no samples".to_owned());
        }
        let is_foreign = |sample: &&Sample| sample.experiment != part.id || sample.seed != seed;
        if let Some(Sample { experiment, seed, .. }) = samples.iter().find(is_foreign) {
            return fail(format!("printed a sample of {experiment} and seed {seed}"));
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::STORES;
    use super::*;

    const SAMPLE: &str = r#"{"experiment":"e3","arm":"list","params":{},"seed":7,"metric":"m","unit":"ns","value":1}"#;
    const END: &str = r#"{"experiment":"e3","seed":7,"samples":2}"#;

    fn finish(lines: &[&str], exit: Option<(i32, u64)>) -> Result<usize, String> {
        let mut collected = Collected::default();
        for line in lines {
            collected.take(ExecEvent::Line { line: (*line).to_owned() });
        }
        if let Some((exit, lost)) = exit {
            collected.take(ExecEvent::Exit { exit, lost });
        }
        let finished = collected.finish(&STORES.parts[0], 7);
        finished.map(|samples| samples.len()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_complete_run_gives_all_samples() {
        let lines = ["remark", SAMPLE, SAMPLE, END, "0 discrepancies"];
        assert_eq!(finish(&lines, Some((0, 0))), Ok(2));
    }

    #[test]
    fn part_of_the_samples_is_never_taken_for_all() {
        let foreign = SAMPLE.replace("\"seed\":7", "\"seed\":8");
        let other = END.replace("e3", "e2");
        let none = END.replace(":2", ":0");
        for (lines, exit, why) in [
            (&[SAMPLE, SAMPLE][..], Some((0, 0)), "did not say"),
            (&[SAMPLE, END], Some((0, 0)), "printed 1 samples and speaks of 2"),
            (&[SAMPLE, END, SAMPLE], Some((0, 0)), "speaks of 2"),
            (&[SAMPLE, SAMPLE, SAMPLE, END], Some((0, 0)), "speaks of 2"),
            (&[SAMPLE, SAMPLE, &other], Some((0, 0)), "speaks of 2"),
            (&[SAMPLE, &foreign, END], Some((0, 0)), "seed 8"),
            (&[&none], Some((0, 0)), "no samples"),
            (&[SAMPLE, SAMPLE, END], Some((0, 3)), "lost 3 lines"),
            (
                &["FAILED: x", SAMPLE, SAMPLE, END, "9 pages"],
                Some((1, 0)),
                "exit code 1: FAILED: x",
            ),
            (&["9 pages"], Some((2, 0)), "exit code 2: 9 pages"),
            (&[SAMPLE, SAMPLE, END], None, "ended with the VM"),
        ] {
            let failure = finish(lines, exit).unwrap_err();
            assert!(failure.starts_with("exp-e3, seed 7, "), "{failure}");
            assert!(failure.contains(why), "{why}: {failure}");
        }
    }
}
