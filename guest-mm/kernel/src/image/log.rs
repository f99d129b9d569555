//! The log: lines on the serial console, filtered by `loglevel=`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use guest_kernel::level::Level;

use super::serial::Serial;
use super::time;

/// Lines above this are dropped; 0: all.
static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Sets the level; `None` switches the log off.
pub(super) fn set_level(level: Option<Level>) {
    LEVEL.store(level.map_or(0, |level| level as u8), Ordering::Relaxed);
}

/// Writes a line if the level lets it through. Time costs no exit, a byte costs one.
pub(super) fn log(level: Level, message: fmt::Arguments<'_>) {
    if level as u8 > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let us = time::now_ns() / 1000;
    // Writing to the serial port cannot fail.
    _ = writeln!(Serial, "[{:5}.{:06}] {level}: {message}", us / 1_000_000, us % 1_000_000);
}

/// The first line: short, and without the time, since nothing is as dear as a byte here.
pub(super) fn banner(ram_pages: u64) {
    if LEVEL.load(Ordering::Relaxed) >= Level::Info as u8 {
        // The hole below 1 MiB is the reason for rounding.
        _ = writeln!(Serial, "aerostat guest, {} MiB", ram_pages.div_ceil(256));
    }
}

macro_rules! error {
    ($($arg:tt)*) => { $crate::image::log::log(guest_kernel::level::Level::Error, format_args!($($arg)*)) };
}
macro_rules! warning {
    ($($arg:tt)*) => { $crate::image::log::log(guest_kernel::level::Level::Warn, format_args!($($arg)*)) };
}
macro_rules! debug {
    ($($arg:tt)*) => { $crate::image::log::log(guest_kernel::level::Level::Debug, format_args!($($arg)*)) };
}
pub(super) use {debug, error, warning};
