//! The lab: a conforming hardware KVM inside an emulated machine (`tests/lab/lab.sh`, docs/lab.md).
//!
//! A [`Plan`] lists commands to run in L1, a [`Session`] has L1 run them one by one, and
//! [`Report`] is what L1 says of each as it goes.

mod boot;
mod plan;
mod report;
mod session;

pub use boot::packages_missing;
pub use plan::{Item, Plan, TestBinary, test_binaries};
pub use report::{Ended, Report};
pub use session::{Patience, Session};

/// What our guest says when it gets an interrupt where it has them off: the CPU's fault, and TCG commits it now and then (docs/lab.md).
pub const INTERRUPT_WHILE_OFF: &str = "interrupt delivered while interrupts were off";

/// Whether the test itself runs inside the lab, on an emulated CPU.
pub fn inside_lab() -> bool {
    std::env::var_os("AEROSTAT_LAB").is_some()
}
