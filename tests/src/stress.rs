//! What `exec smp-stress` prints, and when it was a stress.

/// The figures of a run.
#[derive(Debug)]
pub struct SmpStress(Vec<(String, u64)>);

impl SmpStress {
    /// Takes the `name=value` words of the scenario's output.
    pub fn of<S: AsRef<str>>(lines: &[S]) -> Self {
        let words = lines.iter().flat_map(|line| line.as_ref().split(' '));
        let figures = words.filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(figures.collect())
    }

    /// The figure called `name`.
    ///
    /// # Panics
    /// If there is none.
    pub fn figure(&self, name: &str) -> u64 {
        let found = self.0.iter().find(|(other, _)| other == name);
        found.unwrap_or_else(|| panic!("no {name} in {self:?}")).1
    }

    /// Expects that on `vcpus` CPUs everything happened that the stress is about: a run in which nothing could have gone
    /// wrong proves nothing.
    ///
    /// # Panics
    /// If something did not happen.
    pub fn expect_stress(&self, vcpus: u64) {
        assert_eq!(self.figure("workers"), 2 * vcpus, "{self:?}");
        assert_eq!((self.figure("stale"), self.figure("wrong")), (0, 0), "{self:?}");
        for name in ["loads", "moves", "faults", "waits", "flushes", "preemptions"] {
            assert!(self.figure(name) > 0, "no {name}: {self:?}");
        }
        assert_eq!(self.figure("remote") > 0, vcpus > 1, "{self:?}");
    }
}
