//! Arguments of a scenario: `NAME [--seed N] [--cpus N] [--rounds N] [--seconds N] …`.

use super::Spec;
use crate::platform::MAX_CPUS;

/// What a scenario is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Args {
    /// Replays its random choices; 1 unless given.
    pub seed: u64,
    /// CPUs to use at most; all unless given.
    pub cpus: Option<usize>,
    /// How often it does what it does; its own default unless given.
    pub rounds: Option<u64>,
    /// How long it goes on at least; by rounds alone unless given.
    pub seconds: Option<u64>,
    /// The fault to be built in, which the scenario must notice.
    pub mutant: Option<Mutant>,
}

impl Default for Args {
    fn default() -> Self {
        Self { seed: 1, cpus: None, rounds: None, seconds: None, mutant: None }
    }
}

/// A fault that a scenario can switch on, to show that it would be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// GUP-fast does not look at the frame's word again after taking its reference.
    NoRecheck,
}

impl Mutant {
    /// Its name as an argument.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRecheck => "no-recheck",
        }
    }
}

/// Most rounds that can be asked for.
pub const MAX_ROUNDS: u64 = 1_000_000_000;
/// Longest time that can be asked for.
pub const MAX_SECONDS: u64 = 3600;
/// Options that there are.
const OPTIONS: usize = 5;

impl Args {
    /// Reads the arguments of a scenario; `None` if one is unknown, given twice,
    /// senseless, or not for this scenario.
    pub fn parse(spec: &Spec, words: &[&str]) -> Option<Self> {
        let mut args = Self::default();
        let mut seen = [""; OPTIONS];
        let mut words = words.iter();
        while let Some(&option) = words.next() {
            if seen.contains(&option) {
                return None;
            }
            *seen.iter_mut().find(|slot| slot.is_empty())? = option;
            args.set(spec, option, words.next()?)?;
        }
        Some(args)
    }

    fn set(&mut self, spec: &Spec, option: &str, value: &str) -> Option<()> {
        match option {
            "--seed" => self.seed = number(value)?,
            "--cpus" => {
                let cpus = usize::try_from(number(value)?).ok()?;
                self.cpus = Some((1..=MAX_CPUS).contains(&cpus).then_some(cpus)?);
            }
            "--rounds" => {
                let rounds = number(value)?;
                self.rounds = Some((1..=MAX_ROUNDS).contains(&rounds).then_some(rounds)?);
            }
            "--seconds" if spec.has_seconds => {
                let seconds = number(value)?;
                self.seconds = Some((1..=MAX_SECONDS).contains(&seconds).then_some(seconds)?);
            }
            "--mutant" => {
                let mut known = spec.mutants.iter().copied();
                self.mutant = Some(known.find(|mutant| mutant.name() == value)?);
            }
            _ => return None,
        }
        Some(())
    }
}

/// Decimal digits, nothing else.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Spec = Spec { name: "plain", summary: "", mutants: &[], has_seconds: false };
    const KILLS: Spec = Spec { name: "kills", mutants: &[Mutant::NoRecheck], ..PLAIN };
    const LONG: Spec = Spec { name: "long", has_seconds: true, ..PLAIN };

    #[test]
    fn good_arguments_are_read() {
        assert_eq!(Args::parse(&PLAIN, &[]), Some(Args::default()));
        let args = Args::parse(&PLAIN, &["--seed", "7", "--cpus", "2"]);
        assert_eq!(args, Some(Args { seed: 7, cpus: Some(2), ..Args::default() }));
        let args = Args::parse(&KILLS, &["--mutant", "no-recheck", "--rounds", "9"]);
        let mutant = Some(Mutant::NoRecheck);
        let long = Args::parse(&LONG, &["--seconds", "3600"]);
        assert_eq!(long, Some(Args { seconds: Some(3600), ..Args::default() }));
        assert_eq!(args, Some(Args { rounds: Some(9), mutant, ..Args::default() }));
    }

    #[test]
    fn senseless_arguments_are_refused() {
        for words in [
            &["--seed"][..],
            &["--seed", "-1"],
            &["--seed", "+1"],
            &["--seed", ""],
            &["--seed", "18446744073709551616"],
            &["--seed", "1", "--seed", "1"],
            &["--cpus", "0"],
            &["--cpus", "5"],
            &["--rounds", "0"],
            &["--mutant", "no-recheck"],
            &["--seconds", "1"],
            &["1"],
            &["--frobnicate", "1"],
        ] {
            assert_eq!(Args::parse(&PLAIN, words), None, "{words:?}");
        }
        assert_eq!(Args::parse(&KILLS, &["--mutant", "no-such"]), None);
        assert_eq!(Args::parse(&LONG, &["--seconds", "0"]), None);
        assert_eq!(Args::parse(&LONG, &["--seconds", "3601"]), None);
    }
}
