//! E5 on threads of the host, 1 to as many as there are cores: isolation by one swap, and by lock, reference and list.
//! Prints samples as lines of JSON, for `aerostat bench migrate --with FILE`:
//!
//! `cargo bench -q -p guest-mm --features testing --bench isolation [-- --seeds N] [--rounds N] > FILE`
//!
//! The machine's RAM is on the heap; clock, cores and spinning are the host's own, and locks mask nothing.
#![allow(missing_docs, reason = "a bench has no API")]

use std::io::Write;
use std::ptr::NonNull;
use std::thread::{self, available_parallelism};
use std::time::Instant;

use abi::Pfn;
use guest_mm::bench::isolation::{ATTEMPTS, Arm, Barrier, OWN, Pattern, Slot, with_subject};
use guest_mm::bench::sample::SampleLine;
use guest_mm::bench::{Experiment, Param};
use guest_mm::memory::Memory;
use guest_mm::platform::{MAX_CPUS, Platform};
use guest_mm::scenario::Rng;
use guest_mm::testing::{TestPlatform, range, set_cpu};

/// Frames of the machine: 64 MiB.
const FRAMES: u64 = 1 << 14;

/// The host: heap for RAM, its own clock, and waiting that keeps the CPU, as a kernel's does.
struct Host {
    ram: TestPlatform,
    start: Instant,
}

// SAFETY: the frames are those of the test platform, which keeps the promises.
unsafe impl Platform for Host {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        self.ram.frame_ptr(pfn)
    }

    fn frame_of(&self, address: usize) -> Option<Pfn> {
        self.ram.frame_of(address)
    }

    fn cpu(&self) -> usize {
        self.ram.cpu()
    }

    fn irq_save(&self) -> bool {
        // Nothing interrupts a thread of the host.
        false
    }

    fn irq_restore(&self, _was_masked: bool) {}

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a run is shorter than 500 years")
    }

    fn relax(&self) {
        std::hint::spin_loop();
    }
}

/// What the command line asks for.
struct Options {
    seeds: u64,
    rounds: usize,
    attempts: u64,
}

fn options() -> Options {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: u64| {
        let value = args.iter().position(|arg| arg == name).map(|at| args.get(at + 1));
        value.map_or(default, |value| {
            let number = value.and_then(|value| value.parse().ok()).filter(|number| *number > 0);
            number.unwrap_or_else(|| panic!("{name} takes a number above 0, not {value:?}"))
        })
    };
    // Cargo passes `--bench` if it is to be measured, and not if it is only to be tried.
    if !args.iter().any(|arg| arg == "--bench") {
        return Options { seeds: 1, rounds: 1, attempts: 64 };
    }
    let rounds = usize::try_from(number("--rounds", 12)).expect("rounds fit memory");
    Options { seeds: number("--seeds", 3), rounds, attempts: ATTEMPTS }
}

fn main() {
    let options = options();
    let cores = allowed_cpus();
    // A quota may leave fewer than are allowed.
    let most = available_parallelism().map_or(1, usize::from).min(cores.len());
    let most = u8::try_from(most).unwrap_or(u8::MAX);
    for threads in 1..=most {
        for seed in 1..=options.seeds {
            measure(&options, &cores, threads, seed);
        }
    }
}

/// All patterns and arms with `threads` at once, each on a core of its own.
fn measure(options: &Options, cores: &[usize], threads: u8, seed: u64) {
    let ram = [range(0, FRAMES)];
    let host = Host { ram: TestPlatform::new(&ram, seed), start: Instant::now() };
    let memory = Memory::new(host, &ram, &[]).unwrap_or_else(|error| panic!("{error}"));
    let count = usize::from(threads);
    let mut frames = vec![Pfn::ZERO; OWN * count.max(MAX_CPUS)];
    let measured = with_subject(&memory, &mut frames, |subject| {
        for pattern in Pattern::ALL {
            let slots: Vec<[Slot; Arm::ALL.len()]> =
                (0..count * options.rounds).map(|_| Default::default()).collect();
            let barrier = Barrier::new(count);
            let seeds = Rng::new(seed);
            thread::scope(|scope| {
                for (index, slots) in slots.chunks(options.rounds).enumerate() {
                    let (barrier, memory, seeds) = (&barrier, &memory, &seeds);
                    scope.spawn(move || {
                        set_cpu(index % MAX_CPUS);
                        bind(cores[index]);
                        let mut rng = seeds.stream(index as u64);
                        let mut turn = 0;
                        for (arm, slot) in
                            slots.iter().flat_map(|slots| Arm::ALL.into_iter().zip(slots))
                        {
                            turn += 1;
                            barrier.wait(memory.platform(), turn);
                            let thread = (index, &mut rng);
                            subject.sample(arm, pattern, options.attempts, thread, slot);
                        }
                    });
                }
            });
            print(&slots, pattern, options.attempts, threads, seed);
        }
    });
    measured.unwrap_or_else(|error| panic!("{error}"));
}

/// A line for each sample, with the number of threads where VMs have that of vCPUs.
fn print(
    slots: &[[Slot; Arm::ALL.len()]],
    pattern: Pattern,
    attempts: u64,
    threads: u8,
    seed: u64,
) {
    let params = [("on", Param::Word("host threads")), ("pages", Param::Word(pattern.name()))];
    let mut out = std::io::stdout().lock();
    for (arm, slot) in slots.iter().flat_map(|slots| Arm::ALL.into_iter().zip(slots)) {
        slot.print(arm, &params, attempts, &mut |sample| {
            let line = SampleLine { experiment: Experiment::E5, seed, sample: *sample }.to_string();
            let open = line.strip_suffix('}').expect("a sample is an object");
            writeln!(out, "{open},\"vcpus\":{threads}}}").expect("standard output takes lines");
        });
    }
}

/// Cores that this process may use.
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a cpu_set_t is an array of integers, for which zeroes are the empty set (CPU_SET(3)).
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live cpu_set_t of the size that is passed (sched_getaffinity(2)).
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    let most = usize::try_from(libc::CPU_SETSIZE).expect("a number of CPUs");
    // SAFETY: reads a bit of `set`, whose number of bits CPU_SETSIZE is (CPU_SET(3)).
    let cpus: Vec<usize> = (0..most).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect();
    assert!(!cpus.is_empty(), "a process has a CPU");
    cpus
}

/// Binds the calling thread to a core.
fn bind(cpu: usize) {
    // SAFETY: as in `allowed_cpus`.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: sets a bit of `set`; `cpu` came from `allowed_cpus` and is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a live cpu_set_t of the size that is passed (sched_setaffinity(2)).
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
