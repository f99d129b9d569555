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
    floor_ns_per_page: Vec<f64>,
    calls: u64,
    freed_bytes: u64,
}

impl Row {
    pub(crate) fn new(kind: BackingKind, load: &'static str, what: &'static str) -> Self {
        let (ns_per_page, floor_ns_per_page) = (Vec::new(), Vec::new());
        Self { kind, load, what, ns_per_page, floor_ns_per_page, calls: 0, freed_bytes: 0 }
    }

    /// Takes a sample; returns its time.
    pub(crate) fn add(&mut self, sample: Sample) -> Duration {
        self.ns_per_page.push(per_page(sample.time));
        self.calls = self.calls.max(sample.calls);
        self.freed_bytes = sample.freed_bytes;
        sample.time
    }

    /// Takes the floor's sample that belongs to the next one.
    pub(crate) fn add_floor(&mut self, sample: Sample) {
        assert_eq!(
            sample.freed_bytes,
            u64::from(PAGES) * abi::PAGE_SIZE,
            "the floor frees as much"
        );
        self.floor_ns_per_page.push(per_page(sample.time));
    }
}

fn per_page(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(PAGES)
}

/// Smallest, middle and largest of `values`.
fn spread(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = *sorted.get(sorted.len() / 2)?;
    Some([*sorted.first()?, middle, *sorted.last()?])
}

/// The rows in the order of measuring.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn push(&mut self, row: Row) {
        self.0.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{PAGES} pages; ns/page: min / median / max of all iterations\n")?;
        writeln!(
            f,
            "| backing | sibling | order | inflate | floor | × floor | Mpages/s | calls | freed MiB |"
        )?;
        writeln!(f, "|---|---|---|---|---|---:|---:|---:|---:|")?;
        for row in &self.0 {
            let Some([min, median, max]) = spread(&row.ns_per_page) else { continue };
            write!(f, "| {} | {} | {} | ", row.kind, row.load, row.what)?;
            write!(f, "{min:.1} / {median:.1} / {max:.1} | ")?;
            let ratios =
                row.ns_per_page.iter().zip(&row.floor_ns_per_page).map(|(ns, floor)| ns / floor);
            match (spread(&row.floor_ns_per_page), spread(&ratios.collect::<Vec<_>>())) {
                (Some([min, median, max]), Some([_, ratio, _])) => {
                    write!(f, "{min:.1} / {median:.1} / {max:.1} | {ratio:.2} | ")?;
                }
                _ => write!(f, "– | – | ")?,
            }
            writeln!(f, "{:.2} | {} | {} |", 1e3 / median, row.calls, row.freed_bytes >> 20)?;
        }
        Ok(())
    }
}
