//! Exit codes of the `aerostat` process: distinct, documented, stable.

/// The guest powered off, or the operator stopped it (`stop`, SIGINT, SIGTERM).
pub const SUCCESS: u8 = 0;
/// The host failed: no KVM, memory that it cannot give, an I/O error.
pub const HOST_ERROR: u8 = 1;
/// Arguments that can never work: a bad size, a file that is no kernel, a command line that is too long.
pub const BAD_ARGUMENTS: u8 = 2;
/// The guest reset itself and `--on-reset reboot` was not given.
pub const GUEST_RESET: u8 = 3;
/// The guest reported a panic.
pub const GUEST_PANIC: u8 = 4;
/// A vCPU shut down: triple fault.
pub const TRIPLE_FAULT: u8 = 5;
/// The host's KVM could not run the guest's code.
pub const KVM_CANNOT_RUN_GUEST: u8 = 6;
/// A balloon operation made no progress for the stall time (client commands).
pub const OPERATION_STALLED: u8 = 10;
/// A balloon operation met its deadline (client commands).
pub const OPERATION_TIMED_OUT: u8 = 11;
/// A later target took the operation's place (client commands).
pub const OPERATION_SUPERSEDED: u8 = 12;
