//! What an experiment prints: one observation a line, for the host to summarise.
//!
//! The format is fixed in `docs/experiments/README.md`.

use core::fmt;

/// Longest line that the host takes for a sample, in bytes.
pub const MAX_LINE_BYTES: usize = 512;

/// The experiments that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Experiment {
    /// PFN arrays or linked lists in migration.
    E2,
    /// The PFN stores.
    E3,
    /// Isolation by CAS, or by lock and reference.
    E5,
    /// Compaction among ballooned pages.
    E9,
    /// Memory that comes to life when nothing is free.
    E10,
}

impl Experiment {
    /// Its name in samples.
    pub const fn name(self) -> &'static str {
        match self {
            Self::E2 => "e2",
            Self::E3 => "e3",
            Self::E5 => "e5",
            Self::E9 => "e9",
            Self::E10 => "e10",
        }
    }
}

/// The value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Param {
    /// A number: an order, a percentage, a number of CPUs.
    Number(u64),
    /// A word without quotes and backslashes.
    Word(&'static str),
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Word(word) => write!(f, "\"{word}\""),
        }
    }
}

/// One observation. No text in it has quotes, backslashes or control characters.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The design or the baseline.
    pub arm: &'static str,
    /// What else varies, by name; each name once.
    pub params: &'a [(&'static str, Param)],
    /// What was measured.
    pub metric: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The value, in thousandths of the unit.
    pub value: u64,
}

/// A sample as it is printed: a JSON object without line breaks.
#[derive(Debug, Clone, Copy)]
pub struct SampleLine<'a> {
    /// Whose it is.
    pub experiment: Experiment,
    /// Of the random choices.
    pub seed: u64,
    /// What was observed.
    pub sample: Sample<'a>,
}

impl fmt::Display for SampleLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { experiment, seed, sample: Sample { arm, params, metric, unit, value } } = self;
        let experiment = experiment.name();
        write!(f, "{{\"experiment\":\"{experiment}\",\"arm\":\"{arm}\",\"params\":{{")?;
        for (index, (name, value)) in params.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}\"{name}\":{value}")?;
        }
        write!(
            f,
            "}},\"seed\":{seed},\"metric\":\"{metric}\",\"unit\":\"{unit}\",\"value\":{value}}}"
        )
    }
}

/// The line after the last sample: how many there were.
#[derive(Debug, Clone, Copy)]
pub struct EndLine {
    /// Whose samples they were.
    pub experiment: Experiment,
    /// Of the random choices.
    pub seed: u64,
    /// How many there were.
    pub samples: u64,
}

impl fmt::Display for EndLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { experiment, seed, samples } = self;
        let experiment = experiment.name();
        write!(f, "{{\"experiment\":\"{experiment}\",\"seed\":{seed},\"samples\":{samples}}}")
    }
}

/// Thousandths of operations per second: `ops` in `ns` nanoseconds; 0 if the clock stood still.
pub fn per_second(ops: u64, ns: u64) -> u64 {
    let thousandths = u128::from(ops) * 1_000_000_000_000;
    thousandths.checked_div(ns.into()).map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
}

/// Thousandths of `total` per item; 0 if there are no items.
pub fn per_item(total: u64, items: u64) -> u64 {
    let thousandths = u128::from(total) * 1000;
    thousandths.checked_div(items.into()).map_or(0, |each| u64::try_from(each).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_line_of_json() {
        let params = [("inflation", Param::Number(10)), ("pattern", Param::Word("random"))];
        let sample =
            Sample { arm: "bitmap", params: &params, metric: "store", unit: "B/page", value: 1250 };
        let line = SampleLine { experiment: Experiment::E3, seed: 7, sample };
        assert_eq!(
            line.to_string(),
            r#"{"experiment":"e3","arm":"bitmap","params":{"inflation":10,"pattern":"random"},"seed":7,"metric":"store","unit":"B/page","value":1250}"#
        );
        let bare = SampleLine { sample: Sample { params: &[], ..sample }, ..line };
        assert!(bare.to_string().contains(r#""params":{},"seed":7"#));
    }

    #[test]
    fn the_end_says_how_many_samples_there_were() {
        let end = EndLine { experiment: Experiment::E10, seed: 3, samples: 12 };
        assert_eq!(end.to_string(), r#"{"experiment":"e10","seed":3,"samples":12}"#);
    }

    #[test]
    fn rates_are_in_thousandths_and_do_not_overflow() {
        assert_eq!(per_second(3, 2_000_000_000), 1500);
        assert_eq!((per_second(3, 0), per_item(5, 0)), (0, 0));
        assert_eq!(per_second(u64::MAX, 1), u64::MAX);
        assert_eq!(per_item(9_375, 1000), 9375);
    }
}
