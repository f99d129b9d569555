//! Log levels.

use core::fmt;

/// How much a line matters; ordered, the most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something asked for has failed.
    Error = 1,
    /// Abnormal but contained.
    Warn = 2,
    /// Rare changes of state.
    Info = 3,
    /// For developers.
    Debug = 4,
    /// For developers in despair.
    Trace = 5,
}

impl Level {
    /// The level of a `loglevel=` value; `Some(None)` is `off`.
    pub fn parse(text: &str) -> Option<Option<Self>> {
        Some(Some(match text {
            "off" => return Some(None),
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        }))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_read_back_from_its_name() {
        for level in [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace] {
            assert_eq!(Level::parse(&level.to_string()), Some(Some(level)));
        }
        assert_eq!(Level::parse("off"), Some(None));
        assert_eq!(Level::parse("loud"), None);
        assert!(Level::Error < Level::Trace);
    }
}
