//! Raw mode of the terminal, and giving it back whatever happens.
//!
//! The saved settings live in a static, so that every way out can restore them:
//! [`RawTerminal`]'s drop, `exit` (atexit), a panic in any thread (panic hook),
//! and the signals that abort a process.

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use devices::console::ConsoleSize;

/// Standard input, the only terminal that is ever set raw.
const TTY: libc::c_int = libc::STDIN_FILENO;
/// Signals that end the process where no destructor runs.
const FATAL_SIGNALS: [libc::c_int; 3] = [libc::SIGABRT, libc::SIGBUS, libc::SIGILL];

/// The terminal's settings before the first raw mode; written once, before `IS_RAW` is first set.
static SAVED: OnceLock<libc::termios> = OnceLock::new();
/// Whether the terminal is raw now.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Standard input in raw mode; restored on drop.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Sets standard input raw if it is a terminal and this process is in its foreground.
    ///
    /// Every key goes to the guest, Ctrl-C included; output processing stays,
    /// so that host messages keep their line ends.
    ///
    /// # Errors
    /// When the terminal refuses the settings.
    pub fn enter() -> io::Result<Option<Self>> {
        if !is_foreground_terminal() {
            return Ok(None);
        }
        let current = attributes()?;
        SAVED.get_or_init(|| current);
        install_exits();
        let mut raw = current;
        raw.c_iflag &= !(libc::BRKINT | libc::ICRNL | libc::INPCK | libc::ISTRIP | libc::IXON);
        raw.c_lflag &= !(libc::ECHO | libc::ICANON | libc::IEXTEN | libc::ISIG);
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        // Release pairs with the Acquire in `restore`: who sees the flag sees SAVED.
        IS_RAW.store(true, Ordering::Release);
        set_attributes(&raw).inspect_err(|_| restore())?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Size of the terminal that standard output, or else standard input, is; `None` when neither knows one.
pub(crate) fn size() -> Option<ConsoleSize> {
    [libc::STDOUT_FILENO, libc::STDIN_FILENO].into_iter().find_map(|fd| {
        let mut size = MaybeUninit::<libc::winsize>::uninit();
        // SAFETY: TIOCGWINSZ writes one winsize, for which `size` is valid.
        if unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, size.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call returned 0, so it has filled it in.
        let size = unsafe { size.assume_init() };
        let known = size.ws_col != 0 && size.ws_row != 0;
        known.then_some(ConsoleSize { columns: size.ws_col, rows: size.ws_row })
    })
}

/// Gives the terminal its settings back, once. Async-signal-safe.
pub fn restore() {
    if IS_RAW.swap(false, Ordering::Acquire)
        && let Some(saved) = SAVED.get()
    {
        // Nothing can be done about an error here, and the process may be in a signal handler.
        set_attributes(saved).ok();
    }
}

/// A background process that set the terminal would be stopped (SIGTTOU) and would steal its input.
fn is_foreground_terminal() -> bool {
    // SAFETY: no memory argument.
    let foreground = unsafe { libc::tcgetpgrp(TTY) };
    // SAFETY: no memory argument.
    foreground == unsafe { libc::getpgrp() }
}

fn attributes() -> io::Result<libc::termios> {
    let mut current = MaybeUninit::uninit();
    // SAFETY: `current` is valid for a write of one termios.
    if unsafe { libc::tcgetattr(TTY, current.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr returned 0, so it has filled it in.
    Ok(unsafe { current.assume_init() })
}

fn set_attributes(wanted: &libc::termios) -> io::Result<()> {
    // SAFETY: `wanted` is valid for reads during the call.
    match unsafe { libc::tcsetattr(TTY, libc::TCSANOW, wanted) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn install_exits() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            next(info);
        }));
        // SAFETY: `at_exit` is a function of the process's lifetime.
        unsafe { libc::atexit(at_exit) };
        for signal in FATAL_SIGNALS {
            install_fatal(signal);
        }
    });
}

extern "C" fn at_exit() {
    restore();
}

fn install_fatal(signal: libc::c_int) {
    let handler = on_fatal as extern "C" fn(libc::c_int);
    // SAFETY: all-zero is a valid sigaction: no flags, empty mask, default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // The handler returns to the faulting instruction, or to abort, with the default action back.
    action.sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER;
    // SAFETY: `action` is valid for reads, the old action is not asked for, and the handler makes
    // async-signal-safe calls only.
    unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
}

extern "C" fn on_fatal(signal: libc::c_int) {
    restore();
    // SAFETY: async-signal-safe; with the default action back, it ends the process.
    unsafe { libc::raise(signal) };
}
