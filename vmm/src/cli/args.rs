//! What the command line may say.

use std::path::{Path, PathBuf};
use std::time::Duration;

use abi::platform::MAX_VCPUS;
use aerostat_api::Size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use guest_ram::BackingKind;

use super::value::{self, DriveArgument, OnResetArgument};
use crate::vm::config::BalloonConfig;
use crate::vm::config::GuestConsole;
use crate::vm::config::hotplug::HotplugConfig;

/// A KVM micro-VMM whose subject is guest memory.
///
/// `aerostat demo` shows in a few seconds what it does. `aerostat run` starts a VM in this
/// terminal; the other commands find it by themselves as long as it is the only one.
///
/// Sizes are bytes, or whole numbers with K, M or G (powers of 1024). They are never rounded.
#[derive(Debug, Parser)]
#[command(name = "aerostat", version, disable_help_subcommand = true, verbatim_doc_comment)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten, next_help_heading = "Options without a command, as of serve")]
    pub(super) serve: ServeOptions,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a VM and stay until it ends
    Run(Box<RunOptions>),
    /// Wait to be configured and started over the control socket, as Firecracker does
    Serve(ServeOptions),
    /// Boot the embedded guest, move its balloon, show what the host really got back
    Demo(DemoOptions),
    /// Boot the embedded guest and measure something in it
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Show or resize the balloon of a running VM
    #[command(subcommand)]
    Balloon(BalloonCommand),
    /// Show, plug or unplug the hotplug memory of a running VM
    #[command(subcommand)]
    Memory(MemoryCommand),
    /// Run a scenario in the guest; its exit code becomes this command's
    Exec(ExecOptions),
    /// Show what a running VM is
    Info(QueryOptions),
    /// Stop the vCPUs of a running VM
    Pause(Target),
    /// Let the vCPUs of a paused VM run again
    Resume(Target),
    /// Ask the guest to power off, and end the VM when it does not
    Stop(StopOptions),
    /// Print every counter as Prometheus text
    Metrics(QueryOptions),
    /// Write the embedded guest to a file, to boot it on another VMM
    Guest(GuestOptions),
}

/// Options of `run`.
#[derive(Debug, Args)]
pub(super) struct RunOptions {
    #[command(flatten)]
    pub(super) memory: MemoryOptions,
    /// vCPUs, 1 to 4
    #[arg(long, value_name = "N", default_value_t = 1, allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_VCPUS)))]
    pub(super) vcpus: u8,
    /// Kernel to boot: an ELF file or a Linux bzImage [default: the embedded guest]
    #[arg(long, value_name = "PATH")]
    pub(super) kernel: Option<PathBuf>,
    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    pub(super) initrd: Option<PathBuf>,
    /// Start a Linux kernel even on a software KVM, where it is silent for minutes and then fails
    #[arg(long, env = "AEROSTAT_ALLOW_SOFTWARE_KVM")]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) allow_software_kvm: bool,
    /// Kernel command line, before the device announcements
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub(super) cmdline: Option<String>,
    /// Disk of the guest: a raw image or a block device, `,ro` for read-only. Repeat it for more: /dev/vda, /dev/vdb, …
    #[arg(long = "drive", value_name = "PATH[,ro]", value_parser = value::drive)]
    pub(super) drives: Vec<DriveArgument>,
    /// Balloon options, separated by commas: target=SIZE, deflate-on-oom (the guest may take pages back rather than kill
    /// a process), stall-after=TIME (2s unless set). There always is a balloon; its target is 0 unless set
    #[arg(long, value_name = "OPTIONS", value_parser = value::balloon_options)]
    pub(super) balloon: Option<BalloonConfig>,
    /// Hotplug memory that can be plugged while the guest runs, in blocks of 2M; after a comma: block=SIZE, slot=SIZE (what
    /// is closed to the guest as a whole), stall-after=TIME (5s unless set). Nothing is plugged at the start
    #[arg(long, value_name = "SIZE[,OPTIONS]", value_parser = value::hotplug)]
    pub(super) hotplug_memory: Option<HotplugConfig>,
    /// A VM as Firecracker's configuration files describe it: only what is configured is there
    #[arg(long, value_name = "PATH")]
    #[arg(conflicts_with_all = ["size", "vcpus", "kernel", "initrd", "cmdline", "drives", "balloon", "hotplug_memory"])]
    pub(super) config_file: Option<PathBuf>,
    /// Guest console that standard input goes to; with hvc0, the output of both is shown
    #[arg(long, value_name = "CONSOLE", default_value = "ttyS0")]
    pub(super) console: ConsoleArgument,
    /// Populate guest RAM before the guest starts
    #[arg(long)]
    pub(super) prefault: bool,
    /// What a guest reset does
    #[arg(long, value_name = "WHAT", default_value = "exit")]
    pub(super) on_reset: OnResetArgument,
    /// Control socket [default: vm-PID.sock in $XDG_RUNTIME_DIR/aerostat, else in /tmp/aerostat-UID]
    #[arg(long, value_name = "PATH")]
    pub(super) api_sock: Option<PathBuf>,
    /// Check the options and this host, say what would run, and start nothing
    #[arg(long)]
    pub(super) check: bool,
    /// What to log on standard error
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub(super) log_level: LogLevel,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub(super) struct ServeOptions {
    /// Control socket [default: ID.sock in $XDG_RUNTIME_DIR/aerostat, else in /tmp/aerostat-UID]
    #[arg(long, value_name = "PATH")]
    pub(super) api_sock: Option<PathBuf>,
    /// Name of the VM: up to 64 letters, digits and hyphens [default: vm-PID]
    #[arg(long, value_name = "ID", value_parser = value::instance_id)]
    pub(super) id: Option<String>,
    /// Start at once the VM that this file describes
    #[arg(long, value_name = "PATH")]
    pub(super) config_file: Option<PathBuf>,
    /// Serve no control socket
    #[arg(long, requires = "config_file", conflicts_with = "api_sock")]
    pub(super) no_api: bool,
    /// Start a Linux kernel even on a software KVM, where it is silent for minutes and then fails
    #[arg(long, env = "AEROSTAT_ALLOW_SOFTWARE_KVM")]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) allow_software_kvm: bool,
    /// What to log on standard error until the logger is configured
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub(super) log_level: LogLevel,
}

/// Guest RAM, for `run` and `demo`.
#[derive(Debug, Args)]
pub(super) struct MemoryOptions {
    /// Guest RAM, 2M to 64G
    #[arg(long = "memory", value_name = "SIZE", default_value = "256M")]
    #[arg(value_parser = value::memory, allow_hyphen_values = true)]
    pub(super) size: Size,
    /// Host memory behind guest RAM: anon, memfd
    #[arg(long, value_name = "KIND", default_value_t = BackingKind::Anon)]
    pub(super) backing: BackingKind,
}

/// What `--console` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ConsoleArgument {
    /// The serial port
    #[value(name = "ttyS0")]
    Serial,
    /// The virtio console
    #[value(name = "hvc0")]
    Virtio,
}

impl From<ConsoleArgument> for GuestConsole {
    fn from(console: ConsoleArgument) -> Self {
        match console {
            ConsoleArgument::Serial => Self::Serial,
            ConsoleArgument::Virtio => Self::Virtio,
        }
    }
}

/// What `--log-level` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoOptions {
    #[command(flatten)]
    pub(super) memory: MemoryOptions,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// What `bench` measures.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// The guest's memory manager: page descriptors, allocators, faults
    Mm(BenchMmOptions),
    /// E2 and E5: batches as arrays or lists; isolation by a swap or by lock and count
    Migrate(ExperimentOptions),
    /// E3: the balloon's PFN stores: bytes, times, and what fails when memory is short
    Stores(ExperimentOptions),
    /// E10: memory that comes to life when little or nothing is free
    Hotplug(ExperimentOptions),
    /// E9: huge pages among ballooned pages, movable and pinned
    Compaction(ExperimentOptions),
    /// What is no measurement
    #[command(external_subcommand)]
    Unknown(Vec<String>),
}

/// Options of an experiment.
#[derive(Debug, Args)]
pub(super) struct ExperimentOptions {
    /// Guest RAM, 2M to 64G [default: the experiment's own]
    #[arg(long = "memory", value_name = "SIZE", value_parser = value::memory)]
    #[arg(allow_hyphen_values = true)]
    pub(super) size: Option<Size>,
    /// Numbers of vCPUs, 1 to 4, separated by commas: a VM for each [default: the experiment's own]
    #[arg(long, value_name = "LIST", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_VCPUS)))]
    pub(super) vcpus: Vec<u8>,
    /// Seeds, 1 to N: a VM for each
    #[arg(long, value_name = "N", default_value_t = 3, allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..))]
    pub(super) seeds: u8,
    /// Rounds in each VM [default: the experiment's own]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(super) rounds: Option<u64>,
    /// Tell of the samples in this file too, which were taken elsewhere: lines as in samples.jsonl
    #[arg(long, value_name = "FILE")]
    pub(super) with: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(super) json: bool,
    /// Write samples.jsonl, table.md and a plot for each metric to this directory
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
}

impl ExperimentOptions {
    /// The numbers of vCPUs asked for, else `default`.
    pub(super) fn vcpus_or<'a>(&'a self, default: &'a [u8]) -> &'a [u8] {
        if self.vcpus.is_empty() { default } else { &self.vcpus }
    }

    /// The options that decide what is measured, as on a command line.
    pub(super) fn as_given(&self) -> String {
        let mut text = format!(" --seeds {}", self.seeds);
        if let Some(size) = self.size {
            text.push_str(&format!(" --memory {}", size.bytes()));
        }
        if !self.vcpus.is_empty() {
            let list: Vec<String> = self.vcpus.iter().map(u8::to_string).collect();
            text.push_str(&format!(" --vcpus {}", list.join(",")));
        }
        if let Some(rounds) = self.rounds {
            text.push_str(&format!(" --rounds {rounds}"));
        }
        if let Some(name) = self.with.as_deref().and_then(Path::file_name) {
            text.push_str(&format!(" --with {}", name.display()));
        }
        text
    }
}

/// Options of `bench mm`.
#[derive(Debug, Args)]
pub(super) struct BenchMmOptions {
    #[command(flatten)]
    pub(super) memory: MemoryOptions,
    /// vCPUs, 1 to 4
    #[arg(long, value_name = "N", default_value_t = 1, allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_VCPUS)))]
    pub(super) vcpus: u8,
    /// Rounds of each measurement, whose median is told
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=15))]
    pub(super) rounds: u8,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// Which VM a client command means.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Control socket of the VM [default: that of the only running VM]
    #[arg(long, value_name = "PATH", env = aerostat_api::SOCKET_ENV, hide_env_values = true)]
    pub(super) api_sock: Option<PathBuf>,
}

/// Options of a query.
#[derive(Debug, Args)]
pub(super) struct QueryOptions {
    #[command(flatten)]
    pub(super) target: Target,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum BalloonCommand {
    /// Show sizes, driver, and what the host really holds
    Get(QueryOptions),
    /// Resize the balloon to SIZE; 0 gives everything back to the guest
    Set {
        /// Absolute size of the balloon
        #[arg(value_parser = value::pages, allow_hyphen_values = true)]
        size: Size,
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Take SIZE more from the guest than the present target
    Inflate {
        /// How much more
        #[arg(value_parser = value::some_pages, allow_hyphen_values = true)]
        size: Size,
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Give SIZE back to the guest, or everything
    Deflate {
        /// How much; without it everything
        #[arg(value_parser = value::some_pages, allow_hyphen_values = true)]
        size: Option<Size>,
        #[command(flatten)]
        wait: WaitOptions,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum MemoryCommand {
    /// Show sizes, driver, and what the host really holds
    Get(QueryOptions),
    /// Ask the guest for SIZE of hotplug memory; the same SIZE again has its driver try anew
    Set {
        /// Absolute size: a multiple of the block size
        #[arg(value_parser = value::pages, allow_hyphen_values = true)]
        size: Size,
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Plug SIZE more than is requested now
    Plug {
        /// How much more: a multiple of the block size
        #[arg(value_parser = value::some_pages, allow_hyphen_values = true)]
        size: Size,
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Unplug SIZE of what is requested now, or everything
    Unplug {
        /// How much: a multiple of the block size; without it everything
        #[arg(value_parser = value::some_pages, allow_hyphen_values = true)]
        size: Option<Size>,
        #[command(flatten)]
        wait: WaitOptions,
    },
}

/// How a resize is waited for. It ends as reached (exit code 0), stalled (10), timed out (11) or
/// superseded (12).
#[derive(Debug, Args)]
pub(super) struct WaitOptions {
    #[command(flatten)]
    pub(super) target: Target,
    /// Return when the resize has begun
    #[arg(long)]
    pub(super) no_wait: bool,
    /// End the resize as timed out (exit code 11) after this long: 500ms, 5s, 2m
    #[arg(long, value_name = "TIME", value_parser = value::duration, allow_hyphen_values = true)]
    pub(super) timeout: Option<Duration>,
    /// Print the operation as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub(super) struct ExecOptions {
    #[command(flatten)]
    pub(super) target: Target,
    /// Print the output as JSON lines
    #[arg(long)]
    pub(super) json: bool,
    /// List the guest's scenarios
    #[arg(long, conflicts_with = "scenario")]
    pub(super) list: bool,
    /// Name of the scenario: touch, verify, census, ...
    #[arg(required_unless_present = "list")]
    pub(super) scenario: Option<String>,
    /// Its arguments; aerostat's own options are taken out unless they follow `--`
    #[arg(value_name = "ARGS")]
    pub(super) args: Vec<String>,
}

/// Options of `stop`.
#[derive(Debug, Args)]
pub(super) struct StopOptions {
    #[command(flatten)]
    pub(super) target: Target,
    /// How long the guest may take: 500ms, 5s, 2m
    #[arg(long, value_name = "TIME", default_value = "5s")]
    #[arg(value_parser = value::duration, allow_hyphen_values = true)]
    pub(super) timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Options of `guest`.
#[derive(Debug, Args)]
pub(super) struct GuestOptions {
    /// Where to write it; an existing file is replaced
    #[arg(long, value_name = "PATH")]
    pub(super) write: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        let words = line.split_whitespace();
        Arguments::try_parse_from(words)
            .map(|a| a.command.expect("a command"))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_after_a_size_are_options_and_not_sizes() {
        for line in [
            "aerostat balloon set 4K --no-wait",
            "aerostat balloon set --no-wait 4K",
            "aerostat balloon deflate --no-wait",
            "aerostat balloon deflate --no-wait 4K",
        ] {
            match parse(line) {
                Ok(Command::Balloon(
                    BalloonCommand::Set { wait, .. } | BalloonCommand::Deflate { wait, .. },
                )) => assert!(wait.no_wait, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_negative_size_is_refused_as_a_size() {
        for line in ["aerostat balloon set -4K", "aerostat balloon deflate -4K"] {
            let message = parse(line).unwrap_err();
            assert!(message.contains("\"-4K\" is no size"), "{line}: {message}");
        }
    }

    #[test]
    fn scenario_arguments_pass_through_and_options_are_taken_out() {
        let parsed = parse("aerostat exec touch all --json -- --x");
        let Ok(Command::Exec(options)) = parsed else { panic!("{parsed:?}") };
        assert!(options.json);
        assert_eq!(options.scenario.as_deref(), Some("touch"));
        assert_eq!(options.args, ["all", "--x"]);
    }

    #[test]
    fn vcpus_name_value_and_range() {
        for value in ["0", "5", "300", "-1", "x"] {
            let message = parse(&format!("aerostat run --vcpus {value}")).unwrap_err();
            assert!(message.contains(value), "{message}");
        }
        assert!(parse("aerostat run --vcpus 5").unwrap_err().contains("1..=4"));
    }

    #[test]
    fn an_experiment_takes_a_list_of_vcpus() {
        let parsed = parse("aerostat bench stores --vcpus 1,2,4 --seeds 5 --memory 64M");
        let Ok(Command::Bench(BenchCommand::Stores(options))) = parsed else {
            panic!("{parsed:?}")
        };
        assert_eq!(options.vcpus_or(&[1]), [1, 2, 4]);
        assert_eq!(options.as_given(), " --seeds 5 --memory 67108864 --vcpus 1,2,4");
        let Ok(Command::Bench(BenchCommand::Stores(options))) = parse("aerostat bench stores")
        else {
            panic!("no options at all")
        };
        assert_eq!((options.vcpus_or(&[1, 2]), options.seeds), (&[1, 2][..], 3));
        for (option, named) in [("--vcpus 1,5", "5"), ("--seeds 0", "0"), ("--rounds -1", "-1")] {
            let message = parse(&format!("aerostat bench stores {option}")).unwrap_err();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn without_a_command_the_options_are_those_of_serve() {
        let line = "aerostat --api-sock /tmp/s --id my-vm";
        let parsed = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        assert!(parsed.command.is_none());
        assert_eq!(parsed.serve.api_sock, Some("/tmp/s".into()));
        assert_eq!(parsed.serve.id.as_deref(), Some("my-vm"));
        assert!(parse("aerostat --api-sock /tmp/s info").is_err(), "neither one nor the other");
        assert!(parse("aerostat serve --no-api").unwrap_err().contains("--config-file"));
        let message = parse("aerostat run --config-file a --memory 1G").unwrap_err();
        assert!(message.contains("--config-file") && message.contains("--memory"), "{message}");
    }

    #[test]
    fn consoles_are_taken_by_the_names_that_linux_gives_them() {
        for (line, expected) in [
            ("aerostat run", ConsoleArgument::Serial),
            ("aerostat run --console ttyS0", ConsoleArgument::Serial),
            ("aerostat run --console hvc0", ConsoleArgument::Virtio),
        ] {
            let Ok(Command::Run(options)) = parse(line) else { panic!("{line}") };
            assert_eq!(options.console, expected, "{line}");
        }
        let message = parse("aerostat run --console tty0").unwrap_err();
        assert!(message.contains("ttyS0, hvc0"), "{message}");
    }

    #[test]
    fn backings_are_taken_by_name_only() {
        assert!(parse("aerostat run --backing memfd").is_ok());
        let message = parse("aerostat run --backing thp").unwrap_err();
        assert!(message.contains("anon, memfd"), "{message}");
    }
}
