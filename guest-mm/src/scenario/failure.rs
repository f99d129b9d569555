//! How a scenario says what went wrong.

use core::fmt;
use core::panic::Location;

use super::Signal;
use crate::errno::Errno;

/// What went wrong, and where it was noticed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    what: What,
    at: &'static Location<'static>,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Something was not as it should be.
    Unexpected(&'static str),
    /// A number was not as it should be.
    Differs { what: &'static str, got: u64, expected: u64 },
    /// A call failed.
    Errno(Errno),
    /// An access ended in a signal.
    Signal(Signal),
}

impl Failure {
    /// A failure without figures.
    #[track_caller]
    pub const fn new(what: &'static str) -> Self {
        Self { what: What::Unexpected(what), at: Location::caller() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Unexpected(what) => write!(f, "{what}")?,
            What::Differs { what, got, expected } => {
                write!(f, "{what}: {got:#x} instead of {expected:#x}")?;
            }
            What::Errno(errno) => write!(f, "a call failed with {errno}")?,
            What::Signal(signal) => write!(f, "an access ended in {signal}")?,
        }
        let file = self.at.file();
        let name = file.rsplit_once("scenario/").map_or(file, |(_, name)| name);
        write!(f, " ({name}:{})", self.at.line())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Failure {}

impl From<Errno> for Failure {
    #[track_caller]
    fn from(errno: Errno) -> Self {
        Self { what: What::Errno(errno), at: Location::caller() }
    }
}

impl From<Signal> for Failure {
    #[track_caller]
    fn from(signal: Signal) -> Self {
        Self { what: What::Signal(signal), at: Location::caller() }
    }
}

/// Fails with `what` unless `condition` holds.
///
/// # Errors
/// The failure.
#[track_caller]
pub const fn check(condition: bool, what: &'static str) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::new(what)) }
}

/// Fails unless `got` is `expected`.
///
/// # Errors
/// The failure, with both.
#[track_caller]
pub fn check_eq(got: u64, expected: u64, what: &'static str) -> Result<(), Failure> {
    if got == expected {
        return Ok(());
    }
    Err(Failure { what: What::Differs { what, got, expected }, at: Location::caller() })
}

/// Fails unless `result` is the error `expected`.
///
/// # Errors
/// The failure.
#[track_caller]
pub fn check_err<T, E: PartialEq>(
    result: Result<T, E>,
    expected: E,
    what: &'static str,
) -> Result<(), Failure> {
    if result.is_err_and(|error| error == expected) { Ok(()) } else { Err(Failure::new(what)) }
}

/// Makes a failure of what should not have failed.
pub trait OrFail<T> {
    /// The value.
    ///
    /// # Errors
    /// There is none: the failure, at the caller's line.
    fn or_fail(self) -> Result<T, Failure>;
}

impl<T> OrFail<T> for Option<T> {
    #[track_caller]
    fn or_fail(self) -> Result<T, Failure> {
        match self {
            Some(value) => Ok(value),
            None => Err(Failure::new("nothing where there should be something")),
        }
    }
}

impl<T, E> OrFail<T> for Result<T, E> {
    #[track_caller]
    fn or_fail(self) -> Result<T, Failure> {
        match self {
            Ok(value) => Ok(value),
            Err(_) => Err(Failure::new("an operation failed")),
        }
    }
}

/// Returns a failure that shows the condition, unless it holds.
macro_rules! ensure {
    ($condition:expr) => {
        if !$condition {
            return Err($crate::scenario::Failure::new(stringify!($condition)));
        }
    };
}

/// Returns a failure that shows both expressions, unless they are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr) => {
        if $left != $right {
            return Err($crate::scenario::Failure::new(concat!(
                stringify!($left),
                " is not ",
                stringify!($right)
            )));
        }
    };
}

pub(crate) use {ensure, ensure_eq};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_line_that_noticed_it() {
        fn by_question_mark() -> Result<(), Failure> {
            Err::<(), _>(Errno::EFAULT)?;
            Ok(())
        }
        let text = by_question_mark().unwrap_err().to_string();
        assert!(text.starts_with("a call failed with EFAULT (failure.rs:"), "{text}");
        let line = line!() + 1;
        let text = check_eq(16, 17, "pins").unwrap_err().to_string();
        assert_eq!(text, format!("pins: 0x10 instead of 0x11 (failure.rs:{line})"));
    }
}
