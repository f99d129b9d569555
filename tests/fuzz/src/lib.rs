//! The fuzz bodies, compiled without the rest of the system tests.

#[path = "../../src/fuzzing/mod.rs"]
pub mod fuzzing;
