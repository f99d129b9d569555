//! The `aerostat` command.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    aerostat::cli::main(Instant::now())
}
