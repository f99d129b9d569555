//! Limits of the process: an error with the size and the reason, never a signal. A binary of its own, one test: limits are the process's.

use std::error::Error;

use guest_ram::{BackingKind, HostRam, HostRamError, Prefault};

const BYTES: u64 = 4 << 30;

/// Runs `body` with the soft limit `resource` at `limit`, and puts it back.
fn with_limit<T>(resource: libc::__rlimit_resource_t, limit: u64, body: impl FnOnce() -> T) -> T {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live `rlimit`, which the call fills in.
    assert_eq!(unsafe { libc::getrlimit(resource, &raw mut before) }, 0);
    let lowered = libc::rlimit { rlim_cur: limit, ..before };
    // SAFETY: the pointer is to a live `rlimit`, which the call only reads.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const lowered) }, 0);
    let result = body();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const before) }, 0);
    result
}

/// The message of an error and of its causes.
fn whole(error: &HostRamError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn limits_of_the_process_end_in_errors_that_name_size_and_reason() {
    for kind in BackingKind::ALL {
        let new = || HostRam::new(BYTES, kind, Prefault::OnDemand);
        let error = with_limit(libc::RLIMIT_AS, 2 << 30, new).expect_err("an address-space limit");
        let text = whole(&error);
        assert!(matches!(error, HostRamError::Map { .. }), "{text}");
        for part in [BYTES.to_string().as_str(), kind.name(), "ulimit -v", "Cannot allocate memory"]
        {
            assert!(text.contains(part), "{part:?} is missing: {text}");
        }
        let limited = with_limit(libc::RLIMIT_FSIZE, 1 << 20, new);
        match kind {
            BackingKind::Anon => drop(limited.expect("no file is behind it")),
            BackingKind::Memfd => {
                let text = whole(&limited.expect_err("a file-size limit"));
                for part in [BYTES.to_string().as_str(), "ulimit -f", "1048576"] {
                    assert!(text.contains(part), "{part:?} is missing: {text}");
                }
            }
        }
        new().expect("without the limits it can be had");
    }
}
