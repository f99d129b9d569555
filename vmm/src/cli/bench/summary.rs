//! Many observations in five numbers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::sample::{Observed, Params};

/// Minimum, median, 99th percentile and maximum by nearest rank, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    /// Observations. With fewer than 100 the 99th percentile is the maximum.
    pub(super) n: usize,
    pub(super) min: u64,
    pub(super) median: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

impl Summary {
    /// Of at least one value, else `None`.
    pub(super) fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        let (&min, &max) = (values.first()?, values.last()?);
        let [median, p99] = [50, 99].map(|percent| nearest_rank(&values, percent));
        Some(Self { n: values.len(), min, median, p99, max })
    }
}

/// The smallest value that at least `percent` of the `sorted` values do not exceed.
fn nearest_rank(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// What was observed of one metric, under the same conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Group {
    pub(super) arm: String,
    pub(super) params: Params,
    pub(super) vcpus: u8,
    /// In thousandths of the metric's unit.
    #[serde(flatten)]
    pub(super) summary: Summary,
}

/// A metric, and its groups: parameters in order, arms in the order of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Metric {
    pub(super) experiment: String,
    pub(super) metric: String,
    pub(super) unit: String,
    pub(super) groups: Vec<Group>,
}

/// Summarises: metrics come in the order in which the guest first told of them.
pub(super) fn summarise(observed: &[Observed]) -> Vec<Metric> {
    let mut metrics: Vec<(Metric, BTreeMap<Key, Vec<u64>>)> = Vec::new();
    let mut arms: Vec<&str> = Vec::new();
    for Observed { sample, vcpus } in observed {
        let arm = position(&mut arms, &sample.arm, |known| *known == sample.arm, |arm| arm);
        let is_same = |(known, _): &(Metric, _)| {
            (&known.experiment, &known.metric, &known.unit)
                == (&sample.experiment, &sample.metric, &sample.unit)
        };
        let at = position(&mut metrics, sample, is_same, |sample| {
            let (experiment, metric) = (sample.experiment.clone(), sample.metric.clone());
            let metric =
                Metric { experiment, metric, unit: sample.unit.clone(), groups: Vec::new() };
            (metric, BTreeMap::new())
        });
        let key = Key { params: sample.params.clone(), vcpus: *vcpus, arm };
        metrics[at].1.entry(key).or_default().push(sample.value);
    }
    metrics
        .into_iter()
        .map(|(mut metric, groups)| {
            metric.groups = groups
                .into_iter()
                .filter_map(|(Key { params, vcpus, arm }, values)| {
                    let (arm, summary) = (arms[arm].to_owned(), Summary::of(values)?);
                    Some(Group { arm, params, vcpus, summary })
                })
                .collect();
            metric
        })
        .collect()
}

/// In the order of a table.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    params: Params,
    vcpus: u8,
    arm: usize,
}

/// Where `new` is in `known`, to which it is added if it is not there.
fn position<T, N>(
    known: &mut Vec<T>,
    new: N,
    is_same: impl Fn(&T) -> bool,
    make: impl Fn(N) -> T,
) -> usize {
    known.iter().position(is_same).unwrap_or_else(|| {
        known.push(make(new));
        known.len() - 1
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::sample::{Param, Sample};
    use super::*;

    /// A sample of E3 under 10 % inflation.
    pub(in super::super) fn observed(
        arm: &str,
        metric: &str,
        inflation: u64,
        value: u64,
    ) -> Observed {
        let sample = Sample {
            experiment: "e3".into(),
            arm: arm.into(),
            params: [("inflation".into(), Param::Number(inflation))].into(),
            seed: 1,
            metric: metric.into(),
            unit: "ns".into(),
            value,
        };
        Observed { sample, vcpus: 1 }
    }

    #[test]
    fn ranks_are_of_values_that_were_observed() {
        let of = |values: &[u64]| Summary::of(values.to_vec());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), Some(Summary { n: 1, min: 7, median: 7, p99: 7, max: 7 }));
        assert_eq!(of(&[9, 1, 5, 3]), Some(Summary { n: 4, min: 1, median: 3, p99: 9, max: 9 }));
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(of(&hundred), Some(Summary { n: 100, min: 1, median: 50, p99: 99, max: 100 }));
        let more: Vec<u64> = (1..=1000).collect();
        assert_eq!(of(&more), Some(Summary { n: 1000, min: 1, median: 500, p99: 990, max: 1000 }));
    }

    proptest! {
        #[test]
        fn a_percentile_is_the_least_value_that_enough_do_not_exceed(
            values in proptest::collection::vec(0u64..1000, 1..300)
        ) {
            let summary = Summary::of(values.clone()).unwrap();
            for (percent, found) in [(50, summary.median), (99, summary.p99), (100, summary.max)] {
                let up_to = |limit| values.iter().filter(|value| **value <= limit).count();
                prop_assert!(up_to(found) * 100 >= values.len() * percent);
                prop_assert!(values.contains(&found));
                if found > 0 {
                    prop_assert!(up_to(found - 1) * 100 < values.len() * percent);
                }
            }
        }
    }

    #[test]
    fn observations_are_grouped_by_metric_parameters_and_arm() {
        let samples = [
            observed("xarray", "inflate", 100, 4),
            observed("bitmap", "inflate", 100, 2),
            observed("xarray", "bytes", 10, 9),
            observed("bitmap", "inflate", 9, 1),
            observed("xarray", "inflate", 100, 6),
        ];
        let metrics = summarise(&samples);
        let names: Vec<_> = metrics.iter().map(|metric| metric.metric.as_str()).collect();
        assert_eq!(names, ["inflate", "bytes"]);
        let groups: Vec<_> = metrics[0]
            .groups
            .iter()
            .map(|group| (group.arm.as_str(), group.params["inflation"].clone(), group.summary.n))
            .collect();
        // Numbers in the order of numbers; arms as the guest told of them.
        let number = Param::Number;
        let expected =
            [("bitmap", number(9), 1), ("xarray", number(100), 2), ("bitmap", number(100), 1)];
        assert_eq!(groups, expected);
    }
}
