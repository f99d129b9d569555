//! One SVG for each metric: a line of the plot for each line of the table.
//!
//! Text is left to whoever shows the file: no font is read, so the same
//! observations give the same bytes everywhere.

use std::collections::BTreeSet;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::summary::{Group, Metric};
use super::table::number;

/// Width of what is right of the names, in pixels.
const WIDTH: u32 = 620;
/// Width of a character of a name, at most on average.
const CHARACTER: u32 = 8;
/// Height of a line, and of what is above and below the lines.
const ROW: u32 = 22;
const FRAME: u32 = 96;
/// A scale is logarithmic if the values span more than this.
const WIDE: u64 = 30;
/// Colours that people with any colour vision can tell apart (Okabe and Ito), one for each arm.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Of the lines between comparisons.
const PALE: RGBColor = RGBColor(220, 220, 220);

/// The plot of a metric.
pub(super) fn svg(metric: &Metric) -> Result<String, String> {
    let labels = labels(metric);
    let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let [rows, longest] = [labels.len(), longest].map(u32::try_from);
    let (Ok(rows), Ok(longest)) = (rows, longest) else {
        return Err("it is too large".to_owned());
    };
    let names = longest * CHARACTER;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (names + WIDTH, rows * ROW + FRAME));
        let plot = Plot { metric, labels, names };
        plot.draw(&root.into_drawing_area()).map_err(|error| error.to_string())?;
    }
    Ok(text)
}

/// A name for each line: the arm, and what varies between lines.
fn labels(metric: &Metric) -> Vec<String> {
    let groups = &metric.groups;
    let varies = |of: &dyn Fn(&Group) -> Option<String>| {
        groups.iter().map(of).collect::<BTreeSet<_>>().len() > 1
    };
    let value = |group: &Group, name: &str| group.params.get(name).map(ToString::to_string);
    let names: BTreeSet<&String> = groups.iter().flat_map(|group| group.params.keys()).collect();
    let names: Vec<&String> =
        names.into_iter().filter(|name| varies(&|group| value(group, name))).collect();
    let vcpus_vary = varies(&|group| Some(group.vcpus.to_string()));
    let label = |group: &Group| {
        let params =
            names.iter().filter_map(|name| Some(format!("{name} {}", value(group, name)?)));
        let vcpus = vcpus_vary.then(|| format!("vCPUs {}", group.vcpus));
        let rest: Vec<String> = params.chain(vcpus).collect();
        if rest.is_empty() {
            group.arm.clone()
        } else {
            format!("{}: {}", group.arm, rest.join(", "))
        }
    };
    groups.iter().map(label).collect()
}

/// What is drawn.
struct Plot<'p> {
    metric: &'p Metric,
    labels: Vec<String>,
    /// Pixels for the names.
    names: u32,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

impl Plot<'_> {
    fn draw<'a>(&self, root: &Area<'a>) -> Drawn<'a> {
        let metric = self.metric;
        root.fill(&WHITE)?;
        let summaries = || metric.groups.iter().map(|group| group.summary);
        let least = summaries().map(|summary| summary.min).min().unwrap_or(0);
        let most = summaries().map(|summary| summary.max).max().unwrap_or(0);
        if least > 0 && most / least >= WIDE {
            let low = value(least) / 1.3;
            self.lines(root, (low..value(most) * 1.3).log_scale())?;
        } else {
            self.lines(root, 0.0..(value(most) * 1.05).max(0.001))?;
        }
        root.present()
    }

    fn lines<'a, X>(&self, root: &Area<'a>, scale: X) -> Drawn<'a>
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
    {
        let rows = self.labels.len() as f64;
        let Metric { experiment, metric: name, unit, groups } = self.metric;
        let mut chart = ChartBuilder::on(root)
            .caption(format!("{}: {name}", experiment.to_uppercase()), ("sans-serif", 22))
            .margin(8)
            .margin_right(24)
            .x_label_area_size(40)
            .y_label_area_size(self.names)
            .build_cartesian_2d(scale, rows..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .y_labels(0)
            .x_labels(8)
            .x_label_formatter(&|x| number(thousandths(*x)))
            .x_desc(format!(
                "{unit} (dot: median; thick: to the 99th percentile; thin: minimum to maximum)"
            ))
            .label_style(("sans-serif", 16))
            .axis_desc_style(("sans-serif", 16))
            .max_light_lines(1)
            .draw()?;
        let mut arms: Vec<&str> = Vec::new();
        for (index, (group, label)) in groups.iter().zip(&self.labels).enumerate() {
            if !arms.contains(&group.arm.as_str()) {
                arms.push(&group.arm);
            }
            let arm = arms.iter().position(|arm| *arm == group.arm).unwrap_or(0);
            let colour = COLOURS[arm % COLOURS.len()];
            let (y, summary) = (index as f64 + 0.5, group.summary);
            let is_like =
                |other: &Group| (&other.params, other.vcpus) == (&group.params, group.vcpus);
            if index > 0 && !is_like(&groups[index - 1]) {
                // A comparison ends: arms beside each other are those of the same parameters.
                let (_, pixel) = chart.backend_coord(&(value(summary.median), index as f64));
                let right = i32::try_from(self.names + WIDTH).unwrap_or(i32::MAX);
                root.draw(&PathElement::new([(0, pixel), (right, pixel)], PALE))?;
            }
            let [min, median, p99, max] =
                [summary.min, summary.median, summary.p99, summary.max].map(value);
            chart.draw_series([
                PathElement::new([(min, y), (max, y)], colour.stroke_width(1)),
                PathElement::new([(median, y), (p99, y)], colour.stroke_width(3)),
            ])?;
            chart.draw_series([Circle::new((median, y), 4, colour.filled())])?;
            let (_, pixel) = chart.backend_coord(&(median, y));
            let at = (i32::try_from(self.names).unwrap_or(0), pixel);
            let style = ("sans-serif", 16).into_text_style(root);
            let anchor = plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Right,
                plotters::style::text_anchor::VPos::Center,
            );
            root.draw(&Text::new(label.as_str(), at, style.pos(anchor)))?;
        }
        Ok(())
    }
}

/// Thousandths as units.
#[expect(clippy::cast_precision_loss, reason = "a pixel needs no 15 digits")]
fn value(thousandths: u64) -> f64 {
    thousandths as f64 / 1000.0
}

/// Units as thousandths.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a label of an axis that begins at 0 or above; the cast saturates"
)]
fn thousandths(value: f64) -> u64 {
    (value * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::super::summary::summarise;
    use super::super::summary::tests::observed;
    use super::*;

    fn plot(values: &[(&str, u64)]) -> String {
        let samples: Vec<_> =
            values.iter().map(|(arm, value)| observed(arm, "inflate", 100, *value)).collect();
        svg(&summarise(&samples)[0]).unwrap()
    }

    #[test]
    fn a_plot_has_a_dot_and_a_name_for_each_line_of_the_table() {
        let text = plot(&[("xarray", 4000), ("xarray", 6000), ("bitmap", 2000)]);
        assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"));
        assert_eq!(text.matches("<circle ").count(), 2);
        for name in ["xarray", "bitmap", "E3: inflate"] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn names_say_what_varies_and_nothing_else() {
        let samples = [("a", 10), ("b", 10), ("a", 100)]
            .map(|(arm, inflation)| observed(arm, "inflate", inflation, 1));
        let mut metric = summarise(&samples).remove(0);
        assert_eq!(labels(&metric), ["a: inflation 10", "b: inflation 10", "a: inflation 100"]);
        metric.groups[2].vcpus = 2;
        assert_eq!(labels(&metric)[2], "a: inflation 100, vCPUs 2");
        metric.groups.truncate(2);
        assert_eq!(labels(&metric), ["a", "b"]);
    }

    #[test]
    fn a_line_parts_what_is_not_to_be_compared() {
        let lines = |inflations: [u64; 3]| {
            let arms = ["a", "b", "a"].into_iter().zip(inflations);
            let samples: Vec<_> =
                arms.map(|(arm, inflation)| observed(arm, "inflate", inflation, 1)).collect();
            svg(&summarise(&samples)[0]).unwrap().matches("#DCDCDC").count()
        };
        assert_eq!((lines([10, 10, 10]), lines([10, 10, 20]), lines([10, 20, 30])), (0, 1, 2));
    }

    #[test]
    fn dots_stand_where_their_values_are() {
        let x = |text: &str| -> Vec<u32> {
            let dots = text.split("<circle cx=\"").skip(1);
            dots.map(|dot| dot.split('"').next().unwrap().parse().unwrap()).collect()
        };
        let linear = x(&plot(&[("a", 1000), ("b", 2000), ("c", 4000)]));
        assert!(linear[1] - linear[0] > 20);
        let twice = 2 * (linear[1] - linear[0]);
        assert!((linear[2] - linear[1]).abs_diff(twice) <= 2, "{linear:?}");
        // Over a wide range the same ratio is the same distance.
        let log = x(&plot(&[("a", 1000), ("b", 10_000), ("c", 100_000)]));
        assert!((log[2] - log[1]).abs_diff(log[1] - log[0]) <= 2, "{log:?}");
    }

    #[test]
    fn nothing_but_zeroes_is_a_plot_too() {
        let text = plot(&[("a", 0), ("b", 0)]);
        assert_eq!(text.matches("<circle ").count(), 2);
        assert!(!text.contains("NaN"), "{text}");
    }

    #[test]
    fn the_same_observations_give_the_same_bytes() {
        let values = [("a", 1000), ("b", 3_500_000)];
        assert_eq!(plot(&values), plot(&values));
    }
}
