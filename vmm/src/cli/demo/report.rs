//! The demo's table, and the same as JSON.

use std::time::Duration;

use aerostat_api::{BalloonStatus, VmStatus};
use serde::Serialize;

use super::super::failure::Failure;
use super::super::output;

/// Cells of the bar that shows what the host holds of guest RAM.
const BAR_CELLS: u64 = 20;

/// What one step did.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    name: &'static str,
    took_us: u64,
    balloon_bytes: u64,
    guest_left_bytes: u64,
    host_resident_bytes: Option<u64>,
}

impl Step {
    pub(super) fn new(name: &'static str, took: Duration, status: &BalloonStatus) -> Self {
        Self {
            name,
            took_us: micros(took),
            balloon_bytes: status.actual_bytes,
            guest_left_bytes: status.guest_left_bytes,
            host_resident_bytes: status.host_resident_bytes,
        }
    }
}

/// The demo as it goes, and its result.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    ram_bytes: u64,
    backing: String,
    kvm: String,
    truth: Option<String>,
    steps: Vec<Step>,
    stop_us: Option<u64>,
    /// What the inflate's discards claimed to have released.
    claimed_bytes: Option<u64>,
    /// By how much the source of truth fell over the inflate.
    freed_bytes: Option<u64>,
    balloon_bytes: Option<u64>,
    #[serde(skip)]
    is_json: bool,
}

impl Report {
    /// Begins the table.
    pub(super) fn new(vm: &VmStatus, is_json: bool) -> Result<Self, Failure> {
        let report = Self {
            ram_bytes: vm.ram_bytes,
            backing: vm.backing.clone(),
            kvm: vm.kvm.clone(),
            truth: None,
            steps: Vec::new(),
            stop_us: None,
            claimed_bytes: None,
            freed_bytes: None,
            balloon_bytes: None,
            is_json,
        };
        if !is_json {
            let ram = output::human(vm.ram_bytes);
            let (backing, kvm) = (&vm.backing, &vm.kvm);
            output::line(format!("\n  A guest with {ram}, backing {backing}, {kvm} KVM\n"))?;
            output::line(format!(
                "  {:<30} {:>9} {:>12} {:>12} {:>12}",
                "", "took", "balloon", "guest has", "host holds"
            ))?;
        }
        Ok(report)
    }

    /// Adds a row.
    pub(super) fn step(&mut self, step: Step) -> Result<(), Failure> {
        if !self.is_json {
            let host = step.host_resident_bytes;
            let row = format!(
                "  {:<30} {:>9} {:>12} {:>12} {:>12}  {}",
                step.name,
                took(step.took_us),
                output::human(step.balloon_bytes),
                output::human(step.guest_left_bytes),
                host.map_or("unverified".into(), output::human),
                host.map_or(String::new(), |bytes| bar(bytes, self.ram_bytes)),
            );
            output::line(row.trim_end())?;
        }
        self.steps.push(step);
        Ok(())
    }

    /// Ends the table with what the host got back between `full` and `inflated`.
    pub(super) fn end(
        &mut self,
        stop_time: Duration,
        full: &BalloonStatus,
        inflated: &BalloonStatus,
    ) -> Result<(), Failure> {
        self.stop_us = Some(micros(stop_time));
        self.truth = Some(inflated.truth.clone());
        self.balloon_bytes = Some(inflated.actual_bytes);
        self.claimed_bytes = Some(inflated.claimed_bytes.saturating_sub(full.claimed_bytes));
        self.freed_bytes = full
            .host_resident_bytes
            .zip(inflated.host_resident_bytes)
            .map(|(before, after)| before.saturating_sub(after));
        if self.is_json { output::json(self) } else { self.say_result() }
    }

    /// What the host really got back, in percent of the balloon; `None` when it cannot be verified.
    pub(super) fn freed_percent(&self) -> Option<f64> {
        percent(self.freed_bytes?, self.balloon_bytes?)
    }

    fn say_result(&self) -> Result<(), Failure> {
        let stop = took(self.stop_us.unwrap_or_default());
        output::line(format!("  {:<30} {stop:>9}\n", "power off"))?;
        let claimed = output::size(self.claimed_bytes.unwrap_or_default());
        output::line(format!("  The balloon claimed to free   {claimed}"))?;
        match self.freed_bytes {
            Some(freed) => {
                let percent = self.freed_percent().unwrap_or_default();
                let freed = output::size(freed);
                output::line(format!(
                    "  The host really got back      {freed}, {percent:.1} % of the balloon"
                ))?;
                let truth = self.truth.as_deref().unwrap_or_default();
                output::line(format!("  Source of truth               {truth}\n"))
            }
            None => output::line("  What the host got back cannot be verified on this backing\n"),
        }
    }
}

/// `part` of `whole` in percent.
#[expect(clippy::cast_precision_loss, reason = "a percentage for a person and a threshold")]
fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

/// What the host holds of guest RAM; what is more than nothing shows at least one cell.
fn bar(bytes: u64, ram_bytes: u64) -> String {
    let cells = bytes.saturating_mul(BAR_CELLS).checked_div(ram_bytes).unwrap_or(0);
    let cells = cells.clamp(u64::from(bytes > 0), BAR_CELLS);
    (0..BAR_CELLS).map(|cell| if cell < cells { '█' } else { '░' }).collect()
}

/// `12.3 ms`, `1.24 s`.
fn took(micros: u64) -> String {
    match micros {
        0..1_000_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        1_000_000.. => output::time(micros / 1000),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_never_hides_something_nor_overflows() {
        assert_eq!(bar(0, 100), "░".repeat(20));
        assert_eq!(bar(1, 1 << 40), format!("█{}", "░".repeat(19)));
        assert_eq!(bar(50, 100), "█".repeat(10) + &"░".repeat(10));
        assert_eq!(bar(u64::MAX, 1), "█".repeat(20));
        assert_eq!(bar(5, 0), format!("█{}", "░".repeat(19)));
    }

    #[test]
    fn nothing_in_the_balloon_has_no_percentage() {
        assert_eq!(percent(1, 0), None);
        assert_eq!(percent(95, 100), Some(95.0));
    }

    #[test]
    fn times_keep_a_tenth_of_a_millisecond() {
        assert_eq!(took(12_345), "12.3 ms");
        assert_eq!(took(1_240_000), "1.24 s");
    }
}
