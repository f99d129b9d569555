//! Ctrl-C in the middle of a command with a VM of its own: nothing of it is left behind.

use std::os::raw::c_int;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io, process, thread};

use vmm_sys_util::signal::{block_signal, create_sigset};

/// What ends a command early.
const SIGNALS: [c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Whether somebody waits for the signals.
static IS_WATCHED: AtomicBool = AtomicBool::new(false);

/// From now on a signal that ends the command removes `directory` first. Its VM ends with it.
///
/// A command that has one VM after the other calls it for each: the directory is the same.
/// Call it before other threads exist: it blocks the signals in the calling thread.
pub(super) fn remove_on_signal(directory: PathBuf) -> io::Result<()> {
    if IS_WATCHED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let os_error = |error: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(error.errno());
    for signal in SIGNALS {
        // An error says that it is blocked already, which is what we want.
        block_signal(signal).ok();
    }
    let set = create_sigset(&SIGNALS).map_err(os_error)?;
    let wait = move || {
        let mut signal = 0;
        // SAFETY: `set` is initialised and lives as long as the closure that owns it; `signal` is a
        // local that outlives the call (sigwait(3)).
        let result = unsafe { libc::sigwait(&raw const set, &raw mut signal) };
        if result == 0 {
            // What cannot be removed cannot be helped either: the command ends.
            fs::remove_dir_all(directory).ok();
            process::exit(128_i32.saturating_add(signal));
        }
    };
    thread::Builder::new().name("interrupt".into()).spawn(wait).map(|_thread| ())
}
