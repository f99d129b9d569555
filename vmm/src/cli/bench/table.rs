//! Tables of summaries: for the terminal and as Markdown.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::summary::{Group, Metric};

/// Cells of text: a head, and rows as long as it. The first columns are words, the rest numbers.
#[derive(Debug)]
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    words: usize,
}

impl Table {
    /// The table of a metric. Lines with more vCPUs than the host has CPUs are marked.
    pub(super) fn of(metric: &Metric, host_cpus: usize) -> Self {
        let names: BTreeSet<&String> =
            metric.groups.iter().flat_map(|group| group.params.keys()).collect();
        let mut head = vec!["arm".to_owned()];
        head.extend(names.iter().map(|name| (*name).clone()));
        head.push("vCPUs".to_owned());
        let words = head.len();
        head.extend(["n", "min", "median", "p99", "max"].map(str::to_owned));
        let row =
            |group: &Group| {
                let mut row = vec![group.arm.clone()];
                row.extend(names.iter().map(|name| {
                    group.params.get(*name).map_or_else(String::new, ToString::to_string)
                }));
                let is_over = usize::from(group.vcpus) > host_cpus;
                let mark = if is_over { " (oversubscribed)" } else { "" };
                row.push(format!("{}{mark}", group.vcpus));
                let summary = group.summary;
                row.push(summary.n.to_string());
                let values = [summary.min, summary.median, summary.p99, summary.max];
                row.extend(values.map(number));
                row
            };
        Self { head, rows: metric.groups.iter().map(row).collect(), words }
    }

    /// Lines with columns of equal width.
    pub(super) fn lines(&self) -> Vec<String> {
        let width = |column: usize| {
            let cells = self.all().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let padded = if column < self.words {
                    format!("{gap}{cell:<width$}")
                } else {
                    format!("{gap}{cell:>width$}")
                };
                line.push_str(&padded);
            }
            line.trim_end().to_owned()
        };
        self.all().map(line).collect()
    }

    /// The table in Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        text.push_str(&line(&self.head));
        let rules: Vec<String> = (0..self.head.len())
            .map(|column| if column < self.words { "---" } else { "---:" }.to_owned())
            .collect();
        // A rule has no spaces around it: the house's way of writing tables.
        writeln!(text, "|{}|", rules.join("|")).ok();
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }

    fn all(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.head).chain(&self.rows)
    }
}

/// A value of so many thousandths: at least three digits, no decimals that say nothing.
pub(super) fn number(thousandths: u64) -> String {
    let decimals: u32 = match thousandths {
        _ if thousandths.is_multiple_of(1000) => 0,
        0..=9_999 => 3,
        10_000..=99_999 => 2,
        100_000..=999_999 => 1,
        1_000_000.. => 0,
    };
    let step = 10_u64.pow(3 - decimals);
    let rounded = thousandths.saturating_add(step / 2) / step;
    if decimals == 0 {
        return grouped(rounded);
    }
    let one = 10_u64.pow(decimals);
    format!("{}.{:0width$}", rounded / one, rounded % one, width = decimals as usize)
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::summary::summarise;
    use super::super::summary::tests::observed;
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_say_something() {
        let texts =
            [125, 0, 9_156, 12_345, 999_940, 1_000_000, 4_321_987, 12_345_678_499].map(number);
        let expected = ["0.125", "0", "9.156", "12.35", "999.9", "1,000", "4,322", "12,345,678"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_table_is_the_same_on_the_terminal_and_in_markdown() {
        let samples = [
            observed("xarray", "inflate", 100, 4000),
            observed("xarray", "inflate", 100, 6500),
            observed("bitmap", "inflate", 100, 2_000_000),
        ];
        let mut metrics = summarise(&samples);
        metrics[0].groups[1].vcpus = 4;
        let table = Table::of(&metrics[0], 2);
        assert_eq!(
            table.lines(),
            [
                "arm     inflation  vCPUs               n    min  median    p99    max",
                "xarray  100        1                   2      4       4  6.500  6.500",
                "bitmap  100        4 (oversubscribed)  1  2,000   2,000  2,000  2,000",
            ]
        );
        assert_eq!(
            table.markdown(),
            "| arm | inflation | vCPUs | n | min | median | p99 | max |\n\
             |---|---|---|---:|---:|---:|---:|---:|\n\
             | xarray | 100 | 1 | 2 | 4 | 4 | 6.500 | 6.500 |\n\
             | bitmap | 100 | 4 (oversubscribed) | 1 | 2,000 | 2,000 | 2,000 | 2,000 |\n"
        );
    }
}
