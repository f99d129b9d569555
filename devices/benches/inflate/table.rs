//! The table beside criterion's output: spread, calls, and bytes that were really freed.

use std::fmt;
use std::time::Duration;

use guest_ram::BackingKind;

use crate::rig::{PAGES, Sample};

/// All samples of one line.
pub(crate) struct Row {
    kind: BackingKind,
    load: &'static str,
    what: &'static str,
    ns_per_page: Vec<f64>,
    calls: u64,
    freed_bytes: u64,
}

impl Row {
    pub(crate) fn new(kind: BackingKind, load: &'static str, what: &'static str) -> Self {
        Self { kind, load, what, ns_per_page: Vec::new(), calls: 0, freed_bytes: 0 }
    }

    /// Takes a sample; returns its time.
    pub(crate) fn add(&mut self, sample: Sample) -> Duration {
        self.ns_per_page.push(sample.time.as_secs_f64() * 1e9 / f64::from(PAGES));
        self.calls = self.calls.max(sample.calls);
        self.freed_bytes = sample.freed_bytes;
        sample.time
    }
}

/// The rows in the order of measuring.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn push(&mut self, mut row: Row) {
        row.ns_per_page.sort_by(f64::total_cmp);
        self.0.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{PAGES} pages; ns/page over all iterations, warm-up included\n")?;
        writeln!(
            f,
            "| backing | sibling | order | min | median | max | Mpages/s | calls | freed MiB |"
        )?;
        writeln!(f, "|---|---|---|---:|---:|---:|---:|---:|---:|")?;
        for row in &self.0 {
            let Some(min) = row.ns_per_page.first() else { continue };
            let Some(max) = row.ns_per_page.last() else { continue };
            let Some(median) = row.ns_per_page.get(row.ns_per_page.len() / 2) else { continue };
            writeln!(
                f,
                "| {} | {} | {} | {min:.1} | {median:.1} | {max:.1} | {:.2} | {} | {} |",
                row.kind,
                row.load,
                row.what,
                1e3 / median,
                row.calls,
                row.freed_bytes >> 20,
            )?;
        }
        Ok(())
    }
}
