//! One observation: a line of the guest, and of `samples.jsonl`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest line that can be a sample's, in bytes.
const MAX_LINE_BYTES: usize = 512;

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Param {
    Number(u64),
    Word(String),
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Word(word) => word.fmt(f),
        }
    }
}

/// What varies beside arm, seed and vCPUs, by name.
pub(super) type Params = BTreeMap<String, Param>;

/// As the guest prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sample {
    pub(super) experiment: String,
    pub(super) arm: String,
    pub(super) params: Params,
    pub(super) seed: u64,
    pub(super) metric: String,
    pub(super) unit: String,
    /// In thousandths of the unit: the guest's kernel computes with integers.
    pub(super) value: u64,
}

/// As the host keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Observed {
    #[serde(flatten)]
    pub(super) sample: Sample,
    pub(super) vcpus: u8,
}

impl Observed {
    /// A line of `samples.jsonl`; why it is none.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let mut object: serde_json::Map<_, _> =
            serde_json::from_str(line).map_err(|error| error.to_string())?;
        let vcpus = object.remove("vcpus").ok_or("vcpus is missing")?;
        let vcpus = vcpus.as_u64().and_then(|vcpus| u8::try_from(vcpus).ok()).filter(|n| *n > 0);
        let vcpus = vcpus.ok_or("vcpus is not a number from 1 to 255")?;
        match Line::parse(&serde_json::Value::Object(object).to_string()) {
            Line::Sample(sample) => Ok(Self { sample, vcpus }),
            Line::End(_) | Line::Remark => Err("it is no sample".to_owned()),
        }
    }
}

/// The line after the last sample.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    pub(super) experiment: String,
    pub(super) seed: u64,
    pub(super) samples: u64,
}

/// A line of a scenario that measures.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Sample(Sample),
    End(End),
    /// For people.
    Remark,
}

impl Line {
    /// What the guest, which is not trusted with the terminal, has printed.
    pub(super) fn parse(line: &str) -> Self {
        if line.len() > MAX_LINE_BYTES {
            return Self::Remark;
        }
        match serde_json::from_str(line) {
            Ok(sample) if is_plain(&sample) => Self::Sample(sample),
            Ok(_) => Self::Remark,
            Err(_) => serde_json::from_str(line).map_or(Self::Remark, Self::End),
        }
    }
}

/// Whether its texts can stand in a table's cell, and name a file.
fn is_plain(sample: &Sample) -> bool {
    let plain = |text: &str| {
        !text.is_empty() && text.chars().all(|c| !c.is_control() && !"|<>&\"\\".contains(c))
    };
    let Sample { experiment, arm, params, metric, unit, .. } = sample;
    let words = params.values().all(|value| match value {
        Param::Number(_) => true,
        Param::Word(word) => plain(word),
    });
    words
        && params.keys().all(|name| plain(name))
        && [experiment, arm, metric, unit].into_iter().all(|text| plain(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"experiment":"e3","arm":"bitmap","params":{"inflation":10,"pattern":"random"},"seed":7,"metric":"store","unit":"B/page","value":1250}"#;

    #[test]
    fn a_line_of_the_guest_is_a_sample() {
        let Line::Sample(sample) = Line::parse(LINE) else { panic!("no sample") };
        assert_eq!((sample.arm.as_str(), sample.seed, sample.value), ("bitmap", 7, 1250));
        assert_eq!(sample.params["inflation"], Param::Number(10));
        assert_eq!(sample.params["pattern"].to_string(), "random");
        let kept = serde_json::to_string(&Observed { sample, vcpus: 2 }).unwrap();
        assert_eq!(kept, LINE.replace("1250}", "1250,\"vcpus\":2}"));
    }

    #[test]
    fn what_was_kept_can_be_read_again() {
        let kept = LINE.replace("1250}", "1250,\"vcpus\":2}");
        let observed = Observed::parse(&kept).unwrap();
        assert_eq!(serde_json::to_string(&observed).unwrap(), kept);
        for (line, why) in [
            (LINE.to_owned(), "missing"),
            (kept.replace(":2}", ":0}"), "1 to 255"),
            (kept.replace(":2}", ":256}"), "1 to 255"),
            (kept.replace("random", "a|b"), "no sample"),
            (kept.replace("1250", "-1"), "no sample"),
            ("[]".to_owned(), "expected"),
        ] {
            let said = Observed::parse(&line).unwrap_err();
            assert!(said.contains(why), "{line}: {said}");
        }
    }

    #[test]
    fn the_end_is_told_from_samples_and_remarks() {
        let end = r#"{"experiment":"e3","seed":7,"samples":9}"#;
        let expected = End { experiment: "e3".into(), seed: 7, samples: 9 };
        assert_eq!(Line::parse(end), Line::End(expected));
        for line in ["", "FAILED: no memory", "{}", r#"{"experiment":"e3","samples":-1,"seed":1}"#]
        {
            assert_eq!(Line::parse(line), Line::Remark, "{line}");
        }
    }

    #[test]
    fn what_a_hostile_guest_prints_is_no_sample() {
        for (from, to) in [
            ("bitmap", r"\u001b[2J"),
            ("B/page", "<script>"),
            ("random", "a|b"),
            ("e3", ""),
            ("1250", "-1"),
            ("\"seed\":7", "\"seed\":7,\"more\":1"),
            ("random", &"x".repeat(600)),
        ] {
            let line = LINE.replace(from, to);
            assert_ne!(line, LINE);
            assert_eq!(Line::parse(&line), Line::Remark, "{line}");
        }
    }
}
