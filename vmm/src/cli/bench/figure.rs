//! The guest's figures: lines of JSON in, rows of a table out.

use serde::{Deserialize, Serialize};

use super::super::failure::Failure;
use super::super::output;

/// Longest line that can be a figure's, in bytes.
const MAX_LINE_BYTES: usize = 512;

/// One measurement: minimum, median and maximum of its rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    name: String,
    case: String,
    unit: String,
    min: f64,
    median: f64,
    max: f64,
}

/// As the guest prints it: in thousandths, because its kernel computes with integers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    case: String,
    unit: String,
    min: u64,
    median: u64,
    max: u64,
}

impl Figure {
    /// The figure in a line, or `None` if it is something else: the guest's
    /// scenarios print text too.
    pub(super) fn parse(line: &str) -> Option<Self> {
        if line.len() > MAX_LINE_BYTES {
            return None;
        }
        let Line { name, case, unit, min, median, max } = serde_json::from_str(line).ok()?;
        // The guest is not trusted with the terminal.
        let is_plain = |text: &str| text.chars().all(|c| !c.is_control());
        if ![&name, &case, &unit].into_iter().all(|text| is_plain(text)) {
            return None;
        }
        let [min, median, max] = [min, median, max].map(units);
        Some(Self { name, case, unit, min, median, max })
    }
}

/// Thousandths as units.
#[expect(clippy::cast_precision_loss, reason = "15 digits are enough for a measurement")]
fn units(thousandths: u64) -> f64 {
    thousandths as f64 / 1000.0
}

/// The table as it goes; what has the same name stands together.
#[derive(Debug)]
pub(super) struct Table {
    last: String,
}

impl Table {
    /// Prints the head.
    pub(super) fn begin() -> Result<Self, Failure> {
        output::line(row(["", "", "min", "median", "max", ""]))?;
        Ok(Self { last: String::new() })
    }

    /// Prints a figure.
    pub(super) fn row(&mut self, figure: &Figure) -> Result<(), Failure> {
        let name = if figure.name == self.last { "" } else { &figure.name };
        let [min, median, max] = [figure.min, figure.median, figure.max].map(number);
        output::line(row([name, &figure.case, &min, &median, &max, &figure.unit]))?;
        self.last.clone_from(&figure.name);
        Ok(())
    }
}

fn row([name, case, min, median, max, unit]: [&str; 6]) -> String {
    let text = format!("{name:<18} {case:<34} {min:>12} {median:>12} {max:>12}  {unit}");
    text.trim_end().to_owned()
}

/// Three significant digits at least, and no more decimals than that needs.
fn number(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_guest_is_a_figure_in_units() {
        let line = r#"{"name":"slab pair","case":"64 B","unit":"ns","min":1500,"median":2000,"max":12345}"#;
        let figure = Figure::parse(line).expect("a figure");
        assert_eq!((figure.min, figure.median, figure.max), (1.5, 2.0, 12.345));
        assert_eq!(
            [number(figure.min), number(figure.max), number(4321.9)],
            ["1.50", "12.3", "4322"]
        );
    }

    #[test]
    fn what_is_no_figure_is_text() {
        for line in [
            "",
            "FAILED: no memory",
            "{}",
            r#"{"name":"a","case":"b","unit":"ns","min":-1,"median":0,"max":0}"#,
            r#"{"name":"a","case":"b","unit":"ns","min":1,"median":2,"max":3,"more":4}"#,
            r#"{"name":"a","case":"\u001b[2J","unit":"ns","min":1,"median":2,"max":3}"#,
        ] {
            assert_eq!(Figure::parse(line), None, "{line}");
        }
        let long = format!(
            r#"{{"name":"{}","case":"","unit":"","min":1,"median":2,"max":3}}"#,
            "x".repeat(600)
        );
        assert_eq!(Figure::parse(&long), None);
    }
}
