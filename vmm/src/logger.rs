//! The process's logger: where, from where and how much, changeable while it runs.
//!
//! env_logger filters and formats; what stands in front of it only lets
//! `PUT /logger` put another one in its place. Until then messages go to
//! standard error as env_logger writes them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aerostat_api::LogLevel;
use env_logger::{Builder, Target};
use log::{LevelFilter, Log, Metadata, Record};

use crate::line_file::{self, LineFile};

/// Is the logger of the `log` crate from [`init`] on.
static SWITCH: Switch = Switch { current: RwLock::new(None) };
/// What has been asked for so far.
static SETTINGS: Mutex<Settings> = Mutex::new(Settings::new());

/// Passes messages on to the logger of the moment.
struct Switch {
    current: RwLock<Option<env_logger::Logger>>,
}

impl Switch {
    fn exchange(&self, logger: env_logger::Logger) {
        let level = logger.filter();
        // The old one is dropped, and its file closed, without the lock.
        let old = self.current.write().unwrap_or_else(PoisonError::into_inner).replace(logger);
        log::set_max_level(level);
        drop(old);
    }

    fn with<T>(&self, ask: impl FnOnce(&env_logger::Logger) -> T) -> Option<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(ask)
    }
}

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.with(|logger| logger.enabled(metadata)).unwrap_or(false)
    }

    fn log(&self, record: &Record<'_>) {
        self.with(|logger| logger.log(record));
    }

    fn flush(&self) {
        self.with(Log::flush);
    }
}

/// Starts logging to standard error.
pub(crate) fn init(level: LevelFilter) {
    settings().level = level;
    SWITCH.exchange(Builder::new().filter_level(level).build());
    // Fails only where a test has set a logger before.
    log::set_logger(&SWITCH).ok();
}

/// Does what `wanted` says; what it leaves out stays as it is. `id` is said in each line.
///
/// # Errors
/// The file cannot be opened; nothing has changed then.
pub(crate) fn configure(id: &str, wanted: &aerostat_api::Logger) -> io::Result<()> {
    let mut settings = settings();
    let changed = settings.with(wanted);
    SWITCH.exchange(changed.logger(id)?);
    *settings = changed;
    Ok(())
}

fn settings() -> std::sync::MutexGuard<'static, Settings> {
    // Replaced as a whole or in one field: never half-written.
    SETTINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    /// `None`: standard error.
    path: Option<PathBuf>,
    level: LevelFilter,
    shows_level: bool,
    shows_origin: bool,
    /// Only messages of this module; `None`: all.
    module: Option<String>,
}

impl Settings {
    const fn new() -> Self {
        Self {
            path: None,
            level: LevelFilter::Warn,
            shows_level: false,
            shows_origin: false,
            module: None,
        }
    }

    fn with(&self, wanted: &aerostat_api::Logger) -> Self {
        Self {
            path: wanted.log_path.as_ref().map(PathBuf::from).or_else(|| self.path.clone()),
            level: wanted.level.map_or(self.level, filter),
            shows_level: wanted.show_level.unwrap_or(self.shows_level),
            shows_origin: wanted.show_log_origin.unwrap_or(self.shows_origin),
            module: wanted.module.clone().or_else(|| self.module.clone()),
        }
    }

    fn logger(&self, id: &str) -> io::Result<env_logger::Logger> {
        let mut builder = Builder::new();
        match &self.module {
            Some(module) => builder.filter_module(module, self.level),
            None => builder.filter_level(self.level),
        };
        if let Some(path) = &self.path {
            builder.target(Target::Pipe(Box::new(LogFile::open(path)?)));
        }
        let (id, shows_level, shows_origin) = (id.to_owned(), self.shows_level, self.shows_origin);
        builder.format(move |out, record| {
            let thread = std::thread::current();
            write!(out, "{} [{id}:{}", Timestamp::now(), thread.name().unwrap_or("-"))?;
            if shows_level {
                write!(out, ":{}", record.level())?;
            }
            if shows_origin {
                let (file, line) = (record.file().unwrap_or("-"), record.line().unwrap_or(0));
                write!(out, ":{file}:{line}")?;
            }
            writeln!(out, "] {}", record.args())
        });
        Ok(builder.build())
    }
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warning => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

/// A file of log messages. A message that it does not take is lost: there is nobody to tell.
struct LogFile(LineFile);

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        line_file::open(path).map(|file| Self(LineFile::new(file)))
    }
}

impl Write for LogFile {
    /// Takes one message, as env_logger gives it.
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.0.write_line(message).ok();
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A moment in UTC, as `2026-11-20T14:20:11.123456Z`.
struct Timestamp(Duration);

impl Timestamp {
    fn now() -> Self {
        // A clock before 1970 is a clock that is not set.
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let micros = self.0.subsec_micros();
        write!(f, "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Year, month and day of the Gregorian calendar, `days` after 1 January 1970.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 400 years have the same number of days each time.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(logger: &env_logger::Logger, level: log::Level, module: &str, text: &str) {
        let mut record = Record::builder();
        record.level(level).target(module).file(Some("src/a.rs")).line(Some(7));
        logger.log(&record.args(format_args!("{text}")).build());
    }

    fn wanted(json: &str) -> aerostat_api::Logger {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_left_out_stays() {
        let settings = Settings::new().with(&wanted(r#"{"level":"Debug","module":"a"}"#));
        let settings = settings.with(&wanted(r#"{"show_level":true}"#));
        let expected = Settings {
            level: LevelFilter::Debug,
            module: Some("a".into()),
            shows_level: true,
            ..Settings::new()
        };
        assert_eq!(settings, expected);
        assert_eq!(settings.with(&wanted(r#"{"level":"Off"}"#)).level, LevelFilter::Off);
    }

    #[test]
    fn a_file_gets_what_passes_level_and_module_with_its_origin() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let settings = Settings {
            path: Some(path.clone()),
            level: LevelFilter::Info,
            shows_level: true,
            shows_origin: true,
            module: Some("aerostat::vm".into()),
        };
        let logger = settings.logger("my-vm").unwrap();
        log(&logger, log::Level::Info, "aerostat::vm::exit", "taken");
        log(&logger, log::Level::Debug, "aerostat::vm", "too fine");
        log(&logger, log::Level::Error, "aerostat::control", "of another module");
        let text = std::fs::read_to_string(&path).unwrap();
        let (stamp, rest) = text.split_once(' ').unwrap();
        assert!(stamp.len() == 27 && stamp.ends_with('Z'), "{stamp}");
        let thread = std::thread::current();
        let thread = thread.name().unwrap();
        assert_eq!(rest, format!("[my-vm:{thread}:INFO:src/a.rs:7] taken\n"));
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = Some(directory.path().to_owned());
        assert!(Settings { path, ..Settings::new() }.logger("a").is_err());
    }

    #[test]
    fn days_are_named_as_the_calendar_does() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (789, (1972, 2, 29)),
            (11_016, (2000, 2, 29)),
            (20_777, (2026, 11, 20)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
            (146_097, (2370, 1, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
        let at = Duration::new(20_777 * 86_400 + 51_611, 123_456_789);
        assert_eq!(Timestamp(at).to_string(), "2026-11-20T14:20:11.123456Z");
    }
}
