//! The command line: one binary that is the VMM and the client that commands it.
//!
//! `run` and `serve` are the VMM; `demo` and `bench` start one and command it; `guest` needs neither
//! KVM nor a VM; everything else is a client of a control socket. Sizes are
//! refused, never rounded. Exit codes: [`crate::exit_code`], docs/cli.md.

mod args;
mod balloon;
mod bench;
mod command;
mod demo;
mod discover;
mod exec;
mod failure;
mod guest;
mod memory;
mod output;
mod own_vm;
mod resize;
mod run;
mod serve;
mod value;

use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::exit_code;
use crate::vm::limit_malloc_arenas;
use args::{Arguments, Command};
use failure::Failure;

/// Stack of the thread that reads the arguments: small enough to serve one of the VM's threads next.
const PARSER_STACK_BYTES: usize = 512 << 10;

/// Runs the command line of this process, which began at `started`.
pub fn main(started: Instant) -> ExitCode {
    limit_malloc_arenas();
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(error) => return say_usage(&error),
    };
    let command = arguments.command.unwrap_or(Command::Serve(arguments.serve));
    match dispatch(command, started) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.say();
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Reads the arguments, and leaves none of the memory that it took with the VMM.
///
/// The parser's deep frames and many small allocations would stay private memory of a process that
/// lives for months: the frames go with a thread of their own, the rest is given back.
fn parse() -> Result<Arguments, clap::Error> {
    let parser = thread::Builder::new().name("arguments".into()).stack_size(PARSER_STACK_BYTES);
    let parsed = match parser.spawn(Arguments::try_parse) {
        Ok(parser) => parser.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(_no_thread) => Arguments::try_parse(),
    };
    trim_heap();
    parsed
}

fn trim_heap() {
    // SAFETY: gives free memory back to the system and moves nothing (malloc_trim(3)); no argument
    // is a pointer.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

fn dispatch(command: Command, started: Instant) -> Result<u8, Failure> {
    match command {
        Command::Run(options) => run::run(*options, started),
        Command::Serve(options) => serve::serve(options, started),
        Command::Demo(options) => demo::demo(&options),
        Command::Bench(command) => bench::bench(&command),
        Command::Balloon(command) => balloon::balloon(command),
        Command::Memory(command) => memory::memory(command),
        Command::Exec(options) => exec::exec(options),
        Command::Info(query) => command::info(&query),
        Command::Pause(target) => command::pause(&target),
        Command::Resume(target) => command::resume(&target),
        Command::Stop(options) => command::stop(&options),
        Command::Metrics(query) => command::metrics(&query),
        Command::Guest(options) => guest::write(&options),
    }
}

/// Prints help, version or what is wrong with the arguments.
fn say_usage(error: &clap::Error) -> ExitCode {
    // A terminal that is gone needs no help text.
    error.print().ok();
    #[expect(clippy::wildcard_enum_match_arm, reason = "foreign enum without end")]
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::from(exit_code::SUCCESS),
        _ => ExitCode::from(exit_code::BAD_ARGUMENTS),
    }
}
