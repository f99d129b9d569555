//! A stock Linux guest on aerostat beside the same on QEMU: time to its init, memory of the VMM, reads and writes of a drive.
//!
//! `cargo bench -p system-tests --bench linux [RUNS]` boots the lab, copies itself and QEMU into it and measures there, one VM at
//! a time, the VMMs in turn. The lab's CPU is emulated: only ratios within one boot of it mean anything.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use system_tests::binary::{aerostat, aerostat_path};
use system_tests::host_memory::mappings;
use system_tests::lab::{Item, Patience, Plan, Session, inside_lab, packages_missing};
use system_tests::linux::{LinuxImage, images};
use system_tests::qemu::qemu_files;

const MIB: u64 = 1 << 20;
const RAM: u64 = 256 * MIB;
const DRIVE: u64 = 32 * MIB;
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off";
const DEFAULT_RUNS: usize = 3;
/// Seconds that all of it may take in L1.
const LIMIT_S: u32 = 1500;
/// L1's kernel.
const SERIES: &str = "6.12";

fn main() -> ExitCode {
    let runs = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(DEFAULT_RUNS);
    if inside_lab() {
        measure(runs);
        return ExitCode::SUCCESS;
    }
    if let Some(complaint) = packages_missing(SERIES) {
        eprintln!("SKIPPED: {complaint}");
        return ExitCode::SUCCESS;
    }
    let mut item = Item::new("bench".to_owned(), format!("/lab/linux_bench {runs}"));
    item.limit_s = LIMIT_S;
    let own = std::env::current_exe().expect("a running program has a path");
    let mut files =
        vec![aerostat_path().display().to_string(), format!("{}:/lab/linux_bench", own.display())];
    files.extend(qemu_files().map(|path| format!("{0}:{0}", path.display())));
    for firmware in ["bios-256k.bin", "bios-microvm.bin"] {
        files.push(format!("/usr/share/seabios/{firmware}:/usr/share/seabios/{firmware}"));
    }
    let limit = Duration::from_secs(LIMIT_S.into());
    // Figures of one boot only.
    let patience = Patience { limit, silence: limit, reboots: 0, excuses: 0 };
    let session = Session::start(SERIES, &Plan { files, items: vec![item] }, patience);
    let ended = session.wait("bench");
    session.all_ended();
    match ended {
        Ok(ended) => {
            println!("L1: Linux {SERIES}\n\n{}", ended.output);
            ExitCode::from(u8::from(ended.status != 0))
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Aerostat,
    Microvm,
    Q35,
}

impl Vmm {
    const ALL: [Self; 3] = [Self::Aerostat, Self::Microvm, Self::Q35];

    fn name(self) -> &'static str {
        match self {
            Self::Aerostat => "aerostat",
            Self::Microvm => "QEMU microvm",
            Self::Q35 => "QEMU q35",
        }
    }

    /// The same guest on each: a balloon, a console, an entropy device, a drive, except that q35, whose devices are on PCI, has
    /// none: its time and memory are those of the machine.
    fn command(self, image: &LinuxImage, drive: &Path, dir: &Path) -> Command {
        let drive = drive.display();
        let mut command = if self == Self::Aerostat {
            let mut aerostat = aerostat();
            aerostat.args(["run", "--memory", "256M", "--drive", &drive.to_string(), "--api-sock"]);
            aerostat.arg(dir.join("bench.sock")).arg("--cmdline");
            aerostat
        } else {
            let mut qemu = Command::new("/usr/bin/qemu-system-x86_64");
            qemu.args([
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-m",
                "256",
                "-nodefaults",
                "-no-user-config",
            ]);
            qemu.args(["-no-reboot", "-display", "none", "-serial", "stdio"]);
            if self == Self::Microvm {
                qemu.args(["-M", "microvm", "-global", "virtio-mmio.force-legacy=false"]);
                for device in ["virtio-balloon-device", "virtio-serial-device", "virtio-rng-device"]
                {
                    qemu.args(["-device", device]);
                }
                qemu.args([
                    "-drive",
                    &format!("if=none,id=d,format=raw,cache=writeback,file={drive}"),
                ]);
                qemu.args(["-device", "virtio-blk-device,drive=d"]);
            } else {
                qemu.args(["-M", "q35,smbus=off,sata=off,usb=off,vmport=off"]);
            }
            qemu.arg("-append");
            qemu
        };
        command.arg(CMDLINE);
        let (kernel, initrd) =
            if self == Self::Aerostat { ("--kernel", "--initrd") } else { ("-kernel", "-initrd") };
        command.arg(kernel).arg(&image.kernel).arg(initrd).arg(&image.initrd);
        command
    }
}

/// A VM whose console this program reads.
struct Vm {
    child: Child,
    console: String,
    start: Instant,
}

impl Vm {
    fn start(mut command: Command) -> Self {
        let start = Instant::now();
        let child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        Self { child, console: String::new(), start }
    }

    /// Reads the console until `mark` is on it, in a line that has ended; the milliseconds since the start.
    fn wait_for(&mut self, mark: &str) -> f64 {
        let mut bytes = [0; 4096];
        while !self.console.rsplit_once(mark).is_some_and(|(_, rest)| rest.contains('\n')) {
            let console = self.child.stdout.as_mut().expect("it is piped");
            let read = console.read(&mut bytes).expect("the console is readable");
            assert!(read > 0, "the VM ended before {mark:?}: {}", self.console);
            self.console += &String::from_utf8_lossy(&bytes[..read]);
        }
        self.start.elapsed().as_secs_f64() * 1e3
    }

    /// MB/s of a job in the guest, by this program's clock.
    fn rate(&mut self, number: u32, job: &Job) -> f64 {
        let start = Instant::now();
        let command = job.command("/dev/vda", "iflag=direct", "oflag=direct");
        let keys = self.child.stdin.as_mut().expect("it is piped");
        writeln!(keys, "{number} {command}").expect("the VM reads its console");
        self.wait_for(&format!("@{number} exit "));
        assert!(self.console.contains(&format!("@{number} exit 0\n")), "{}", self.console);
        job.rate(start)
    }

    /// KiB of memory beyond the guest's RAM: private dirty, and the proportional share.
    fn memory(&self) -> (f64, f64) {
        let others =
            mappings(self.child.id()).expect("smaps").into_iter().filter(|m| !m.is_ram(RAM));
        let (dirty, pss) = others.fold((0, 0), |(d, p), m| (d + m.private_dirty, p + m.pss));
        (kib(dirty), kib(pss))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}

/// What is measured of one VM; MB/s of the drive where there is one.
#[derive(Default)]
struct Samples {
    init_ms: Vec<f64>,
    ready_ms: Vec<f64>,
    dirty_kib: Vec<f64>,
    pss_kib: Vec<f64>,
    read: Vec<f64>,
    read_4k: Vec<f64>,
    write: Vec<f64>,
}

/// What is read or written, so much of it that the time of a command is lost in it.
struct Job {
    block: u64,
    count: u64,
    rounds: u64,
    is_write: bool,
}

const READ: Job = Job { block: MIB, count: 32, rounds: 8, is_write: false };
const READ_4K: Job = Job { block: 4096, count: 1024, rounds: 2, is_write: false };
const WRITE: Job = Job { block: MIB, count: 32, rounds: 4, is_write: true };

impl Job {
    /// The job as one line of shell. A write ends with a flush.
    fn command(&self, file: &str, read_flag: &str, write_flag: &str) -> String {
        let Self { block, count, rounds, is_write } = self;
        let files = if *is_write {
            format!("if=/dev/zero of={file} {write_flag} conv=fsync,notrunc")
        } else {
            format!("if={file} of=/dev/null {read_flag}")
        };
        format!(
            "for i in $(seq {rounds}); do dd {files} bs={block} count={count} 2>/dev/null || exit 1; done"
        )
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
    fn rate(&self, start: Instant) -> f64 {
        (self.block * self.count * self.rounds) as f64 / 1e6 / start.elapsed().as_secs_f64()
    }
}

fn measure(runs: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let drive = dir.path().join("drive");
    let random =
        |i: u64| u8::try_from(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).expect("8 bits");
    std::fs::write(&drive, (0..DRIVE).map(random).collect::<Vec<u8>>()).expect("a drive");
    for image in images() {
        println!(
            "Linux {} in L2, {} MiB, 1 vCPU: median of {runs} (min, max)\n",
            image.series,
            RAM / MIB
        );
        println!(
            "| | to init, ms | to a shell, ms | private dirty, KiB | Pss, KiB | read 1 MiB, MB/s | read 4 KiB, MB/s | write 1 MiB, MB/s |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let mut all = [(); 3].map(|()| Samples::default());
        for _ in 0..runs {
            for (vmm, samples) in Vmm::ALL.into_iter().zip(&mut all) {
                sample(vmm, image, &drive, dir.path(), samples);
            }
        }
        for (vmm, s) in Vmm::ALL.into_iter().zip(all) {
            let fields =
                [s.init_ms, s.ready_ms, s.dirty_kib, s.pss_kib, s.read, s.read_4k, s.write];
            println!("| {} | {} |", vmm.name(), fields.map(cell).join(" | "));
        }
        println!();
    }
    let [read, read_4k] = [READ, READ_4K].map(|job| {
        let command = job.command(&drive.display().to_string(), "", "");
        cell(
            (0..runs)
                .map(|_| {
                    let start = Instant::now();
                    let status =
                        Command::new("sh").args(["-c", &command]).status().expect("a shell");
                    assert!(status.success(), "{command}");
                    job.rate(start)
                })
                .collect(),
        )
    });
    println!("The same file read in L1: {read} MB/s by 1 MiB, {read_4k} MB/s by 4 KiB");
}

fn sample(vmm: Vmm, image: &LinuxImage, drive: &Path, dir: &Path, samples: &mut Samples) {
    let mut vm = Vm::start(vmm.command(image, drive, dir));
    samples.init_ms.push(vm.wait_for("@init"));
    samples.ready_ms.push(vm.wait_for("@ready"));
    let (dirty, pss) = vm.memory();
    samples.dirty_kib.push(dirty);
    samples.pss_kib.push(pss);
    if vmm != Vmm::Q35 {
        samples.read.push(vm.rate(1, &READ));
        samples.read_4k.push(vm.rate(2, &READ_4K));
        samples.write.push(vm.rate(3, &WRITE));
    }
}

/// Median, minimum and maximum.
fn cell(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(min), Some(median), Some(max)) => format!("{median:.0} ({min:.0}, {max:.0})"),
        _ => "–".to_owned(),
    }
}
