//! What `--out DIR` gets: samples, tables and plots, all or nothing. What `--with FILE` adds.

use std::fs;
use std::io;
use std::path::Path;

use super::super::failure::Failure;
use super::plot;
use super::sample::Observed;
use super::summary::Metric;

/// Makes the directory, before anything is measured.
pub(super) fn prepare(directory: &Path) -> Result<(), Failure> {
    fs::create_dir_all(directory).map_err(|error| failure(directory, &error))
}

/// Writes everything; `table` is the text of `table.md` up to each metric's plot.
pub(super) fn write(
    directory: &Path,
    observed: &[Observed],
    table: &str,
    metrics: &[Metric],
) -> Result<(), Failure> {
    let mut files = vec![("table.md".to_owned(), table.to_owned())];
    for metric in metrics {
        let text = plot::svg(metric)
            .map_err(|error| Failure::other(format!("Cannot plot {}: {error}", metric.metric)))?;
        files.push((plot_name(metric), text));
    }
    let mut samples = String::new();
    for one in observed {
        samples.push_str(&serde_json::to_string(one).map_err(io::Error::from)?);
        samples.push('\n');
    }
    // Last: where it is, the rest is.
    files.push(("samples.jsonl".to_owned(), samples));
    for (name, text) in files {
        let path = directory.join(name);
        fs::write(&path, text).map_err(|error| failure(&path, &error))?;
    }
    Ok(())
}

/// The samples of a file, which are of these experiments: all lines, or an error.
pub(super) fn read(path: &Path, experiments: &[&str]) -> Result<Vec<Observed>, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::other(format!("Cannot read {}: {error}", path.display())))?;
    let parse = |(at, line): (usize, &str)| {
        let observed = Observed::parse(line).and_then(|observed| {
            let of = observed.sample.experiment.as_str();
            if experiments.contains(&of) {
                return Ok(observed);
            }
            Err(format!("it is of {of:?} and not of {}", experiments.join(" or ")))
        });
        let place = format!("{}, line {}", path.display(), at + 1);
        observed.map_err(|why| Failure::other(format!("{place}: {why}")))
    };
    let observed: Vec<Observed> = text.lines().enumerate().map(parse).collect::<Result<_, _>>()?;
    if observed.is_empty() {
        return Err(Failure::other(format!("{} has no samples", path.display())));
    }
    Ok(observed)
}

/// File name of a metric's plot: `e3-pages-inflated.svg`.
pub(super) fn plot_name(metric: &Metric) -> String {
    let mut slug = String::new();
    for c in metric.metric.chars() {
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let experiment: String =
        metric.experiment.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{experiment}-{}.svg", slug.trim_matches('-'))
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::other(format!("Cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::summary::summarise;
    use super::super::summary::tests::observed;
    use super::*;

    #[test]
    fn a_directory_gets_samples_table_and_plots() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("a/b");
        prepare(&out).unwrap();
        let samples = [observed("a", "pages, inflated", 10, 5), observed("a", "x", 10, 6)];
        let metrics = summarise(&samples);
        write(&out, &samples, "the table\n", &metrics).unwrap();
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(read("table.md"), "the table\n");
        assert_eq!(read("samples.jsonl").lines().count(), 2);
        assert!(read("e3-pages-inflated.svg").contains("</svg>"));
        assert!(read("e3-x.svg").contains("</svg>"));
    }

    #[test]
    fn samples_that_were_written_are_read_again_all_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let samples = [observed("a", "x", 10, 5), observed("b", "x", 10, 6)];
        write(directory.path(), &samples, "", &[]).unwrap();
        let path = directory.path().join("samples.jsonl");
        let values: Vec<u64> =
            read(&path, &["e3"]).unwrap().iter().map(|one| one.sample.value).collect();
        assert_eq!(values, [5, 6]);
        let said = |experiments: &[&str]| read(&path, experiments).unwrap_err().to_string();
        assert!(said(&["e2", "e5"]).contains("line 1: it is of \"e3\" and not of e2 or e5"));
        fs::write(&path, fs::read_to_string(&path).unwrap() + "nonsense\n").unwrap();
        assert!(said(&["e3"]).contains("line 3: "), "{}", said(&["e3"]));
        fs::write(&path, "").unwrap();
        assert!(said(&["e3"]).contains("no samples"));
        fs::remove_file(&path).unwrap();
        assert!(said(&["e3"]).contains("Cannot read"));
    }

    #[test]
    fn names_of_files_do_not_leave_the_directory() {
        let mut metric = summarise(&[observed("a", "../../etc/x y", 1, 1)]).remove(0);
        metric.experiment = "../e3".into();
        assert_eq!(plot_name(&metric), "e3-etc-x-y.svg");
    }

    #[test]
    fn a_file_in_the_way_of_the_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "").unwrap();
        let said = prepare(&path).unwrap_err().to_string();
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
}
