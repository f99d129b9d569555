//! What `aerostat bench mm` measures in the guest, as far as it needs no page
//! tables, on the host: `cargo bench -p guest-mm --features testing --bench mm`.
//!
//! One thread, in a table. A plain main: the measurements bring their own rounds.

use std::time::Instant;

use guest_mm::bench::{Bench, Figure, layout, primitive};
use guest_mm::mm::Base;
use guest_mm::testing::memory;

/// 512 MiB.
const PAGES: u64 = 1 << 17;
/// Rounds of each measurement.
const ROUNDS: usize = 9;

fn main() {
    let start = Instant::now();
    let now = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let units = |thousandths: u64| format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
    let mut print = |figure: &Figure<'_>| {
        let case = figure.case.to_string();
        let [min, median, max] =
            [figure.spread.min, figure.spread.median, figure.spread.max].map(units);
        let (name, unit) = (figure.name, figure.unit);
        println!("{name:<18} {case:<34} {min:>16} {median:>16} {max:>16}  {unit}");
    };
    let mut bench = Bench::new(&now, ROUNDS, &mut print);
    let base = Base::new(memory(PAGES)).expect("memory suffices");
    primitive::run(&base, &mut bench).expect("memory suffices");
    layout::run(&base.memory, &mut bench, 1).expect("memory suffices");
}
