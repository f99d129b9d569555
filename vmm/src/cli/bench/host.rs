//! The machine that figures are from.

use std::fmt;
use std::fs;
use std::thread::available_parallelism;

use serde::Serialize;

/// What a reader must know of it. What cannot be found out is empty.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HostFacts {
    /// The CPU's name.
    cpu: String,
    /// CPUs that this process may use.
    pub(super) cpus: usize,
    /// The kernel's release.
    kernel: String,
    /// Load averages of 1, 5 and 15 minutes before the first VM.
    load_before: String,
    /// After the last one.
    load_after: String,
}

impl HostFacts {
    /// Looks, before the first VM.
    pub(super) fn before() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let name = name.and_then(|rest| rest.split_once(':')).map_or("", |(_, name)| name.trim());
        Self {
            cpu: name.to_owned(),
            cpus: available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: load(),
            load_after: String::new(),
        }
    }

    /// Looks at the load again.
    pub(super) fn after(mut self) -> Self {
        self.load_after = load();
        self
    }
}

impl fmt::Display for HostFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cpus, kernel, load_before, load_after } = self;
        write!(f, "{cpu}, {cpus} CPUs, Linux {kernel}, load {load_before}")?;
        if load_after.is_empty() { Ok(()) } else { write!(f, " before and {load_after} after") }
    }
}

/// Empty if it is not there: it only describes.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn load() -> String {
    read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_kernel_cpus_and_a_load() {
        let facts = HostFacts::before().after();
        assert!(facts.cpus > 0 && !facts.kernel.is_empty());
        assert_eq!(facts.load_after.split(' ').count(), 3);
        assert!(facts.to_string().contains(" before and "), "{facts}");
    }
}
