//! The scenarios: names, arguments, usage. What they do is in the image.

use guest_mm::scenario::{self as mm, Name};

use crate::size;

/// Exit code of a scenario that did what it was asked.
pub const SUCCESS: u8 = 0;
/// Exit code of one that found a fault.
pub const FAILURE: u8 = 1;
/// Exit code of one whose arguments make no sense.
pub const BAD_ARGUMENTS: u8 = 2;
/// Exit code when there is no scenario of the name.
pub const NOT_FOUND: u8 = 127;

/// Bytes that `entropy` reads when it is not told.
pub const ENTROPY_BYTES: u32 = 4096;
/// Fewest bytes that `entropy` can judge: below, chance alone may look like a fault.
pub const MIN_ENTROPY_BYTES: u32 = 32;
/// Most bytes that `entropy` reads.
pub const MAX_ENTROPY_BYTES: u32 = 1 << 20;
/// Longest time that an argument may ask for.
pub const MAX_SECONDS: u32 = 3600;

/// How much memory `touch` dirties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TouchSize {
    /// This many bytes, a multiple of 4 KiB.
    Bytes(u64),
    /// All that there is without running out.
    All,
}

/// A scenario with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Dirties memory and frees it.
    Touch(TouchSize),
    /// Checks sentinels, and that what the host discarded reads as zero.
    Verify,
    /// A scenario of the memory manager's own.
    Mm(Name, mm::Args),
    /// Counts every word, free list and store entry.
    Census,
    /// Prints the balloon driver's state and counters.
    Balloon,
    /// Prints the memory device driver's state and counters.
    Hotplug,
    /// Reads random bytes and looks whether they can be random.
    Entropy {
        /// How many.
        bytes: u32,
    },
    /// Stresses the trap path.
    TrapStress {
        /// How long.
        seconds: u32,
    },
    /// Counts the CPUs that are up, by work on each.
    Cpus,
    /// Stresses what CPUs do to each other.
    SmpStress {
        /// How long.
        seconds: u32,
        /// Replays its random choices, as far as time lets it.
        seed: u64,
    },
    /// Tries what ring 3 may not do with the nucleus' pages.
    Protection,
    /// Computes without serving any device.
    Spin {
        /// How long.
        seconds: u32,
    },
    /// Powers off.
    PowerOff,
    /// Resets the machine.
    Reset,
    /// Panics.
    Panic,
    /// Reads where nothing is mapped.
    WildRead,
    /// Interrupts itself by an NMI.
    Nmi,
    /// Faults while a fault is delivered.
    DoubleFault,
    /// Enters the nucleus where a machine check does.
    MachineCheck,
    /// Takes the page tables away.
    TripleFault,
}

/// Why a scenario was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadCall {
    /// No scenario has this name.
    NoSuchScenario,
    /// The arguments are not what the usage says.
    Usage(&'static str),
    /// As [`Self::Usage`], for one of the memory manager's own.
    MmUsage(Name),
}

impl BadCall {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::NoSuchScenario => NOT_FOUND,
            Self::Usage(_) | Self::MmUsage(_) => BAD_ARGUMENTS,
        }
    }
}

impl core::fmt::Display for BadCall {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoSuchScenario => {
                f.write_str("no such scenario; there are:")?;
                NAMES.iter().try_for_each(|name| write!(f, " {name}"))
            }
            Self::Usage(usage) => write!(f, "usage: {usage}"),
            Self::MmUsage(name) => write!(f, "usage: {}", name.spec()),
        }
    }
}

impl core::error::Error for BadCall {}

/// Names of the kernel's own scenarios.
const OWN: &[&str] = &[
    "touch",
    "verify",
    "balloon",
    "hotplug",
    "entropy",
    "cpus",
    "smp-stress",
    "trap-stress",
    "protection",
    "spin",
    "poweroff",
    "reset",
    "panic",
    "wild-read",
    "nmi",
    "double-fault",
    "machine-check",
    "triple-fault",
];

/// Names of all scenarios: the kernel's own and the memory manager's.
pub const NAMES: &[&str] = &{
    let mut names = [""; OWN.len() + Name::ALL.len()];
    let mut next = 0;
    while next < names.len() {
        names[next] = match next.checked_sub(OWN.len()) {
            None => OWN[next],
            Some(mm) => Name::ALL[mm].spec().name,
        };
        next += 1;
    }
    names
};

impl Call {
    /// The call that `name` and `args` ask for.
    ///
    /// # Errors
    /// [`BadCall`].
    pub fn parse(name: &str, args: &[&str]) -> Result<Self, BadCall> {
        let alone =
            |call, usage| if args.is_empty() { Ok(call) } else { Err(BadCall::Usage(usage)) };
        match name {
            "touch" => match args {
                ["all"] => Some(TouchSize::All),
                [text] => size::parse(text)
                    .filter(|bytes| *bytes > 0 && bytes.is_multiple_of(4096))
                    .map(TouchSize::Bytes),
                _ => None,
            }
            .map(Self::Touch)
            .ok_or(BadCall::Usage("touch SIZE|all, SIZE a multiple of 4K")),
            "verify" => alone(Self::Verify, "verify"),
            "census" => alone(Self::Census, "census"),
            "balloon" => alone(Self::Balloon, "balloon"),
            "hotplug" => alone(Self::Hotplug, "hotplug"),
            "entropy" => {
                let usage = "entropy [BYTES], 32 to 1M";
                let bytes = entropy_bytes(args).ok_or(BadCall::Usage(usage))?;
                Ok(Self::Entropy { bytes })
            }
            "cpus" => alone(Self::Cpus, "cpus"),
            "smp-stress" => {
                let (time, seed) = match args {
                    [time] => (time, Some(1)),
                    [time, seed] => (time, seed.parse().ok()),
                    _ => (&"", None),
                };
                seconds(&[time])
                    .zip(seed)
                    .map(|(seconds, seed)| Self::SmpStress { seconds, seed })
                    .ok_or(BadCall::Usage("smp-stress SECONDS [SEED]"))
            }
            "trap-stress" => {
                let seconds = seconds(args).ok_or(BadCall::Usage("trap-stress SECONDS"))?;
                Ok(Self::TrapStress { seconds })
            }
            "protection" => alone(Self::Protection, "protection"),
            "spin" => {
                let seconds = seconds(args).ok_or(BadCall::Usage("spin SECONDS"))?;
                Ok(Self::Spin { seconds })
            }
            "poweroff" => alone(Self::PowerOff, "poweroff"),
            "reset" => alone(Self::Reset, "reset"),
            "panic" => alone(Self::Panic, "panic"),
            "wild-read" => alone(Self::WildRead, "wild-read"),
            "nmi" => alone(Self::Nmi, "nmi"),
            "double-fault" => alone(Self::DoubleFault, "double-fault"),
            "machine-check" => alone(Self::MachineCheck, "machine-check"),
            "triple-fault" => alone(Self::TripleFault, "triple-fault"),
            _ => {
                let name = Name::parse(name).ok_or(BadCall::NoSuchScenario)?;
                let args = mm::Args::parse(&name.spec(), args).ok_or(BadCall::MmUsage(name))?;
                Ok(Self::Mm(name, args))
            }
        }
    }
}

/// No argument, or one: a size within the limits.
fn entropy_bytes(args: &[&str]) -> Option<u32> {
    match args {
        [] => Some(ENTROPY_BYTES),
        [text] => size::parse(text)
            .and_then(|bytes| u32::try_from(bytes).ok())
            .filter(|bytes| (MIN_ENTROPY_BYTES..=MAX_ENTROPY_BYTES).contains(bytes)),
        _ => None,
    }
}

/// One argument: 1 to [`MAX_SECONDS`].
fn seconds(args: &[&str]) -> Option<u32> {
    let [text] = args else { return None };
    let seconds = text.parse().ok()?;
    (!text.starts_with('+') && (1..=MAX_SECONDS).contains(&seconds)).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_scenario() {
        for name in NAMES {
            assert_ne!(Call::parse(name, &[]), Err(BadCall::NoSuchScenario), "{name}");
        }
        assert_eq!(Call::parse("tuoch", &[]), Err(BadCall::NoSuchScenario));
    }

    #[test]
    fn no_name_is_announced_twice() {
        for (at, name) in NAMES.iter().enumerate() {
            assert!(!name.is_empty() && !NAMES[..at].contains(name), "{name}");
        }
        assert!(NAMES.contains(&"touch") && NAMES.contains(&"gup-stress"));
    }

    #[test]
    fn good_arguments_are_read() {
        assert_eq!(Call::parse("touch", &["all"]), Ok(Call::Touch(TouchSize::All)));
        assert_eq!(Call::parse("touch", &["64M"]), Ok(Call::Touch(TouchSize::Bytes(64 << 20))));
        assert_eq!(Call::parse("entropy", &[]), Ok(Call::Entropy { bytes: 4096 }));
        assert_eq!(Call::parse("entropy", &["1M"]), Ok(Call::Entropy { bytes: 1 << 20 }));
        assert_eq!(Call::parse("trap-stress", &["60"]), Ok(Call::TrapStress { seconds: 60 }));
    }

    #[test]
    fn bad_arguments_end_in_the_usage() {
        for (name, args) in [
            ("touch", &[][..]),
            ("touch", &["0"]),
            ("touch", &["4097"]),
            ("touch", &["12Q"]),
            ("touch", &["all", "x"]),
            ("verify", &["x"]),
            ("entropy", &["31"]),
            ("entropy", &["1048577"]),
            ("entropy", &["x"]),
            ("entropy", &["64", "64"]),
            ("spin", &["0"]),
            ("spin", &["3601"]),
            ("spin", &["-1"]),
            ("trap-stress", &[]),
            ("smp-stress", &["1", "x"]),
            ("smp-stress", &["0", "1"]),
            ("cpus", &["2"]),
        ] {
            let error = Call::parse(name, args).unwrap_err();
            assert_eq!(error.code(), BAD_ARGUMENTS, "{name} {args:?}");
            assert!(error.to_string().starts_with(&format!("usage: {name}")), "{error}");
        }
    }
}
