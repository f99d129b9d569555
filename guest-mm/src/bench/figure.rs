//! What a measurement prints, and how times are taken.

use core::fmt;

/// Most rounds of a measurement.
const MAX_ROUNDS: usize = 15;
/// Least time of a round of [`Bench::time`], in nanoseconds.
const ROUND_NS: u64 = 2_000_000;
/// Most operations of a round, and all of it if the clock stands still.
const MAX_OPS: u64 = 1 << 16;
/// Operations after which a clock that did not move is taken to stand still.
const STILL_OPS: u64 = 64;

/// Minimum, median and maximum of the rounds, in thousandths of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Of the fastest round.
    pub min: u64,
    /// Of the one in the middle.
    pub median: u64,
    /// Of the slowest.
    pub max: u64,
}

impl Spread {
    /// A value that does not vary.
    pub const fn exactly(thousandths: u64) -> Self {
        Self { min: thousandths, median: thousandths, max: thousandths }
    }
}

/// One result, which prints as a JSON object without line breaks:
/// `{"name":"…","case":"…","unit":"…","min":N,"median":N,"max":N}`, in
/// thousandths of the unit.
#[derive(Debug, Clone, Copy)]
pub struct Figure<'a> {
    /// What was measured; no quotes or backslashes in any of the texts.
    pub name: &'static str,
    /// In which case.
    pub case: fmt::Arguments<'a>,
    /// The unit.
    pub unit: &'static str,
    /// The values.
    pub spread: Spread,
}

impl fmt::Display for Figure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, case, unit, spread: Spread { min, median, max } } = self;
        write!(
            f,
            "{{\"name\":\"{name}\",\"case\":\"{case}\",\"unit\":\"{unit}\",\
             \"min\":{min},\"median\":{median},\"max\":{max}}}"
        )
    }
}

/// A series of measurements: their clock, their rounds, and where figures go.
pub struct Bench<'a> {
    now_ns: &'a dyn Fn() -> u64,
    rounds: usize,
    print: &'a mut dyn FnMut(&Figure<'_>),
}

impl fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("rounds", &self.rounds).finish_non_exhaustive()
    }
}

impl<'a> Bench<'a> {
    /// Measurements of `rounds` rounds each, an odd number up to 15, by the
    /// clock `now_ns`; `print` gets the figures.
    pub fn new(
        now_ns: &'a dyn Fn() -> u64,
        rounds: usize,
        print: &'a mut dyn FnMut(&Figure<'_>),
    ) -> Self {
        Self { now_ns, rounds: rounds.clamp(1, MAX_ROUNDS) | 1, print }
    }

    /// Rounds of each measurement.
    pub const fn round_count(&self) -> usize {
        self.rounds
    }

    /// The clock.
    pub fn now_ns(&self) -> u64 {
        (self.now_ns)()
    }

    /// Hands a figure out.
    pub fn print(
        &mut self,
        name: &'static str,
        case: fmt::Arguments<'_>,
        unit: &'static str,
        spread: Spread,
    ) {
        (self.print)(&Figure { name, case, unit, spread });
    }

    /// Nanoseconds that `work` takes.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn elapsed<E>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<u64, E> {
        let start = self.now_ns();
        work()?;
        Ok(self.now_ns().saturating_sub(start))
    }

    /// The spread of what `round` returns: nanoseconds and the operations done in them.
    ///
    /// # Errors
    /// Those of `round`.
    pub fn rounds<E>(
        &self,
        mut round: impl FnMut(&Self) -> Result<(u64, u64), E>,
    ) -> Result<Spread, E> {
        let mut values = [0; MAX_ROUNDS];
        let values = &mut values[..self.rounds];
        for value in &mut *values {
            let (ns, ops) = round(self)?;
            *value = ns.saturating_mul(1000) / ops.max(1);
        }
        values.sort_unstable();
        let [min, .., max] = *values else { return Ok(Spread::exactly(values[0])) };
        Ok(Spread { min, median: values[values.len() / 2], max })
    }

    /// Nanoseconds of one `op`, of which each round does as many as take some milliseconds.
    ///
    /// # Errors
    /// Those of `op`.
    pub fn time<E>(&self, mut op: impl FnMut() -> Result<(), E>) -> Result<Spread, E> {
        let mut many = |ops| self.elapsed(|| (0..ops).try_for_each(|_| op()));
        let mut ops = 1;
        while ops < MAX_OPS {
            let ns = many(ops)?;
            if ns >= ROUND_NS || ns == 0 && ops >= STILL_OPS {
                break;
            }
            ops *= 2;
        }
        self.rounds(|_| Ok((many(ops)?, ops)))
    }

    /// As [`Self::time`], and prints it.
    ///
    /// # Errors
    /// Those of `op`.
    pub fn figure<E>(
        &mut self,
        name: &'static str,
        case: fmt::Arguments<'_>,
        op: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let spread = self.time(op)?;
        self.print(name, case, "ns", spread);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[test]
    fn a_figure_is_a_line_of_json() {
        let spread = Spread { min: 1, median: 2, max: 3 };
        let figure = Figure { name: "slab", case: format_args!("{} B", 64), unit: "ns", spread };
        assert_eq!(
            figure.to_string(),
            r#"{"name":"slab","case":"64 B","unit":"ns","min":1,"median":2,"max":3}"#
        );
    }

    #[test]
    fn times_are_per_operation_and_in_order() {
        let clock = Cell::new(0);
        let now = || clock.get();
        let mut ignore = |_: &Figure<'_>| {};
        let bench = Bench::new(&now, 5, &mut ignore);
        let mut slow = 0;
        let spread = bench.time(|| {
            slow += 1;
            clock.set(clock.get() + 1500 + slow % 2);
            Ok::<_, ()>(())
        });
        let spread = spread.unwrap();
        assert!(spread.min <= spread.median && spread.median <= spread.max);
        assert!((1_500_000..=1_501_000).contains(&spread.median), "{spread:?}");
    }

    #[test]
    fn a_clock_that_stands_still_ends_the_measurement() {
        let mut ignore = |_: &Figure<'_>| {};
        let bench = Bench::new(&|| 7, 3, &mut ignore);
        let mut ops = 0;
        let spread = bench.time(|| {
            ops += 1;
            Ok::<_, ()>(())
        });
        assert_eq!(spread, Ok(Spread::exactly(0)));
        assert!(ops < 1000, "{ops}");
    }
}
