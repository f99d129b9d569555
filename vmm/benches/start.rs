//! How long a VM takes to start, and what the VMM holds beside guest RAM.
//!
//! `cargo bench -p aerostat --bench start [RUNS]`. Each run is a process of its
//! own, timed from outside: from just before the spawn to the guest's first
//! serial byte on its standard output. "ready" adds what the VMM itself says
//! about the time from its first line to the guest's `ready`.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use aerostat_api::client::Client;

const RAM: &str = "256M";
const RAM_BYTES: u64 = 256 << 20;
const DEFAULT_RUNS: usize = 30;
/// How long a guest may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// One run, in milliseconds and KiB.
struct Sample {
    first_byte: f64,
    first_byte_inside: f64,
    ready_inside: f64,
    private_kib: f64,
    resident_kib: f64,
}

fn main() -> ExitCode {
    if !fs::exists("/dev/kvm").unwrap_or(false) {
        eprintln!("SKIPPED: no /dev/kvm");
        return ExitCode::SUCCESS;
    }
    let runs = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(DEFAULT_RUNS);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut samples = Vec::with_capacity(runs);
    for run in 0..runs {
        samples.push(sample(dir.path().join(format!("{run}.sock")).as_path()));
        sleep(Duration::from_millis(20));
    }
    let row = |name: &str, field: fn(&Sample) -> f64| {
        let mut values: Vec<_> = samples.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        let (min, median, max) = (values[0], values[values.len() / 2], values[values.len() - 1]);
        println!("| {name} | {min:.2} | {median:.2} | {max:.2} |");
    };
    println!(
        "{RAM}, 1 vCPU, embedded guest, {runs} runs\n\n| | min | median | max |\n|---|---|---|---|"
    );
    row("spawn to first guest byte, ms", |s| s.first_byte);
    row("main to first guest byte, ms", |s| s.first_byte_inside);
    row("main to guest ready, ms", |s| s.ready_inside);
    row("private dirty memory beyond guest RAM, KiB", |s| s.private_kib);
    row("resident beyond guest RAM, KiB", |s| s.resident_kib);
    let binary = fs::metadata(env!("CARGO_BIN_EXE_aerostat")).expect("the binary").len();
    println!("| binary with symbols, KiB | {} | | |", binary / 1024);
    ExitCode::SUCCESS
}

fn sample(socket: &std::path::Path) -> Sample {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_aerostat"))
        .args(["run", "--memory", RAM, "--api-sock"])
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("aerostat starts");
    let mut byte = [0];
    let stdout = child.stdout.as_mut().expect("it is piped");
    stdout.read_exact(&mut byte).expect("the guest prints");
    let first_byte = ms(started.elapsed());
    let client = Client::new(socket);
    // Nothing asks the control socket before the footprint is taken.
    sleep(Duration::from_millis(200));
    let (private_kib, resident_kib) = footprint(child.id());
    let (first_byte_inside, ready_inside) = loop {
        let status = client.vm_status().expect("the control socket answers");
        match (status.first_byte_us, status.ready_us) {
            (Some(first), Some(ready)) => {
                break (ms(Duration::from_micros(first)), ms(Duration::from_micros(ready)));
            }
            _ => assert!(started.elapsed() < PATIENCE, "the guest is never ready"),
        }
        sleep(Duration::from_millis(5));
    };
    stop(child);
    Sample { first_byte, first_byte_inside, ready_inside, private_kib, resident_kib }
}

fn stop(mut child: Child) {
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// KiB of (private dirty, resident) memory of all mappings but guest RAM.
///
/// Private dirty is read as Anonymous: a page of the program's own file that
/// the page cache has not written back yet counts as Private_Dirty too, though
/// nobody wrote to it here.
fn footprint(pid: u32) -> (f64, f64) {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let (mut private, mut resident, mut counts) = (0.0, 0.0, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            counts = end - start != RAM_BYTES;
        }
        let kib = || second.parse::<f64>().expect("a number");
        match first {
            "Anonymous:" if counts => private += kib(),
            "Rss:" if counts => resident += kib(),
            _ => {}
        }
    }
    (private, resident)
}
