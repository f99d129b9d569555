//! The guest's trap path under faults, ticks and an MSI flood, and the proof that the stress would notice.
//!
//! The VM runs inside this process: only the process that owns a VM may send it
//! MSIs, and the page through which host and guest count interrupts is mapped
//! from guest RAM's memfd. One test at a time: there must be one VM.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use abi::trap_stress as page;
use aerostat::vm::Vm;
use aerostat::vm::config::{Kernel, SerialPort, VmConfig};
use aerostat::vm::exit::ExitReason;
use aerostat::vm::handle::VmRequest;
use guest_ram::BackingKind;
use system_tests::kvm::kvm_or_skip;
use system_tests::lab::{INTERRUPT_WHILE_OFF, inside_lab};
use system_tests::mutant::guest_image;
use system_tests::vm::scaled;
use tempfile::NamedTempFile;
use tokio::sync::oneshot;

/// Guest RAM.
const RAM_BYTES: u64 = 97 << 20;
/// An interrupt that takes longer is lost; shorter than the guest's own guard in the halt phase, which would hide it.
const PATIENCE: Duration = Duration::from_secs(5);
/// `KVM_SIGNAL_MSI`: `_IOW(0xae, 0xa5, struct kvm_msi)`.
const KVM_SIGNAL_MSI: libc::c_ulong = 0x4020_aea5;

/// `struct kvm_msi`.
#[repr(C)]
struct KvmMsi {
    address_lo: u32,
    address_hi: u32,
    data: u32,
    flags: u32,
    devid: u32,
    pad: [u8; 12],
}

/// Held by the test whose VM is the process' only one.
fn only_vm() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor of this process whose link is `wanted`, as a duplicate: it stays usable when the VM has gone.
fn duplicate_of(wanted: impl Fn(&Path) -> bool) -> Option<OwnedFd> {
    fs::read_dir("/proc/self/fd").ok()?.flatten().find_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        if !wanted(&target) {
            return None;
        }
        let fd: RawFd = entry.file_name().to_str()?.parse().ok()?;
        // SAFETY: duplicating reads nothing but the number; the result is checked and owned by nobody else.
        let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        assert!(duplicate >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: just created, checked above.
        Some(unsafe { OwnedFd::from_raw_fd(duplicate) })
    })
}

/// The page that guest and test share, in a mapping of the test's own.
struct SharedPage(*mut libc::c_void);

impl SharedPage {
    /// Maps the page at `gpa`. Guest RAM is one region from 0, in one memfd.
    fn map(gpa: u64) -> Self {
        let ram = duplicate_of(|target| target.to_string_lossy().contains("memfd:"))
            .map(File::from)
            .filter(|file| file.metadata().is_ok_and(|metadata| metadata.len() >= RAM_BYTES));
        let ram = ram.expect("guest RAM is a memfd of this process");
        let offset = libc::off_t::try_from(gpa).expect("the guest names an address in its RAM");
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (flags, fd) = (libc::MAP_SHARED, ram.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice; nothing is replaced.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd, offset) };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(start)
    }

    fn quad(&self, offset: u64) -> &AtomicU64 {
        assert!(offset <= 4088);
        let offset = usize::try_from(offset).expect("a 64-bit host");
        // SAFETY: inside the page (asserted).
        let quad = unsafe { self.0.byte_add(offset) }.cast::<AtomicU64>();
        // SAFETY: 8-aligned bytes of our mapping, which lives as long as `self`; guest and host both use atomics.
        unsafe { &*quad }
    }

    /// The 32-bit word at `offset`.
    fn word(&self, offset: u64) -> u32 {
        let quad = self.quad(offset & !7).load(Ordering::Acquire);
        let shift = if offset & 4 == 0 { 0 } else { 32 };
        u32::try_from((quad >> shift) & u64::from(u32::MAX)).expect("masked")
    }

    fn phase(&self) -> u32 {
        self.word(page::PHASE_OFFSET)
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`; borrows of it have ended.
        unsafe { libc::munmap(self.0, 4096) };
    }
}

/// What the flood counted.
#[derive(Debug, Default)]
struct Flood {
    sent: u64,
    lost: u64,
    handshakes: u64,
}

/// Sends MSIs as the phases ask until the guest says that it is over or the VM has ended.
struct Flooder<'a> {
    vm: OwnedFd,
    page: SharedPage,
    vectors: u32,
    first: u32,
    vcpus: u32,
    seed: u64,
    ended: &'a dyn Fn() -> bool,
    counts: Flood,
}

impl Flooder<'_> {
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn send(&mut self, index: u32) {
        self.page.quad(page::SEQUENCE_OFFSET + 8 * u64::from(index)).fetch_add(1, Ordering::SeqCst);
        // Each vector has a vCPU of its own: the acknowledgement says that it came through there.
        let destination = index % self.vcpus;
        let msi = KvmMsi {
            address_lo: 0xfee0_0000 | destination << 12,
            address_hi: 0,
            data: self.first + index,
            flags: 0,
            devid: 0,
            pad: [0; 12],
        };
        // SAFETY: `vm` is a VM of this process and `msi` the structure that this ioctl reads.
        let result = unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_SIGNAL_MSI, &raw const msi) };
        assert!(result >= 0, "{}", std::io::Error::last_os_error());
        self.counts.sent += 1;
    }

    /// Waits until the guest has acknowledged everything on a vector.
    fn await_acknowledgement(&mut self, index: u32, phase: u32) {
        let slot = 8 * u64::from(index);
        let sent = self.page.quad(page::SEQUENCE_OFFSET + slot).load(Ordering::SeqCst);
        let acknowledged = self.page.quad(page::ACKNOWLEDGED_OFFSET + slot);
        let start = Instant::now();
        let mut polls = 0u32;
        while acknowledged.load(Ordering::SeqCst) != sent {
            // A phase that ended meanwhile hands over to the next, which acknowledges too.
            if (self.ended)() || self.page.phase() == page::PHASE_DONE {
                return;
            }
            if start.elapsed() > PATIENCE {
                eprintln!("phase {phase}: vector {:#x} not acknowledged", self.first + index);
                self.counts.lost += 1;
                return;
            }
            polls += 1;
            // In the lab there is one CPU: a spin would keep the guest from it.
            if polls > 2000 || inside_lab() {
                thread::yield_now();
            }
        }
    }

    fn run(mut self) -> Flood {
        loop {
            if (self.ended)() {
                return self.counts;
            }
            match self.page.phase() {
                page::PHASE_FLOOD => self.burst(),
                page::PHASE_HALT => self.handshake(),
                page::PHASE_DONE => return self.counts,
                _ => thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    /// Up to 3000 on random vectors, then each must have come; then some one by one.
    fn burst(&mut self) {
        for _ in 0..self.random() % 3000 {
            if self.page.phase() != page::PHASE_FLOOD || (self.ended)() {
                break;
            }
            let index = u32::try_from(self.random() % u64::from(self.vectors)).expect("below 16");
            self.send(index);
        }
        for index in 0..self.vectors {
            self.await_acknowledgement(index, page::PHASE_FLOOD);
        }
        for _ in 0..100 {
            if self.page.phase() != page::PHASE_FLOOD || (self.ended)() {
                return;
            }
            self.send(0);
            self.await_acknowledgement(0, page::PHASE_FLOOD);
        }
    }

    /// One after a random pause, to a guest that halts or is about to.
    fn handshake(&mut self) {
        for _ in 0..self.random() % 2000 {
            std::hint::spin_loop();
        }
        if self.random().is_multiple_of(8) {
            thread::sleep(Duration::from_micros(100));
        }
        let index = u32::try_from(self.random() % u64::from(self.vectors)).expect("below 16");
        self.send(index);
        self.await_acknowledgement(index, page::PHASE_HALT);
        self.counts.handshakes += 1;
    }
}

/// What a run came to.
#[derive(Debug)]
struct Outcome {
    reason: ExitReason,
    output: String,
    flood: Flood,
}

impl Outcome {
    fn is_clean(&self, seconds: u32) -> bool {
        self.reason == ExitReason::PowerOff
            && self.flood.lost == 0
            && self.output.contains(&format!("trap-stress,{seconds}: exit 0"))
    }
}

/// Runs the stress in `kernel` on `vcpus` vCPUs; a guest that hangs is ended.
fn stress(kernel: Kernel, seconds: u32, vcpus: u8) -> Outcome {
    let _only = only_vm();
    let output = NamedTempFile::new().expect("a temporary file");
    let serial =
        SerialPort::Files { input: None, output: output.reopen().expect("a second handle") };
    let config = VmConfig {
        memory_bytes: RAM_BYTES,
        vcpus,
        kernel,
        backing: BackingKind::Memfd,
        cmdline: Some(format!("exec=trap-stress,{seconds} exec=poweroff")),
        serial,
        ..VmConfig::new(Instant::now())
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    let vm_thread = thread::spawn(move || {
        let vm = Vm::build(config).expect("the VM is built");
        sender.send(vm.handle()).expect("the test waits for it");
        vm.run()
    });
    let handle = receiver.recv().expect("the VM is built");
    let text = || fs::read_to_string(output.path()).unwrap_or_default();
    let limit = Instant::now() + Duration::from_secs(60 + 4 * u64::from(seconds));
    let ended = || vm_thread.is_finished() || Instant::now() > limit;
    let mut flood = Flood::default();
    while !ended() {
        if let Some(gpa) = announced(&text()) {
            let page = SharedPage::map(gpa);
            assert_eq!(page.quad(page::MAGIC_OFFSET).load(Ordering::Acquire), page::MAGIC);
            let vm = duplicate_of(|target| target == Path::new("anon_inode:kvm-vm"));
            let flooder = Flooder {
                vm: vm.expect("the VM is open here"),
                vectors: page.word(page::VECTORS_OFFSET),
                first: page.word(page::FIRST_VECTOR_OFFSET),
                page,
                vcpus: vcpus.into(),
                seed: 0x5eed,
                ended: &ended,
                counts: Flood::default(),
            };
            flood = flooder.run();
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    while !ended() {
        thread::sleep(Duration::from_millis(5));
    }
    let (reply, _answer) = oneshot::channel();
    // A VM that has ended does not take requests any more.
    drop(handle.post(VmRequest::Stop { timeout: Duration::ZERO, reply }));
    let reason = vm_thread.join().expect("the VM's thread does not panic");
    Outcome { reason, output: text(), flood }
}

/// The address in the scenario's first line, once the line is complete.
fn announced(output: &str) -> Option<u64> {
    let line = output.split_inclusive('\n').find(|line| line.starts_with("trap-stress: gpa=0x"))?;
    let digits = line.strip_suffix('\n')?.strip_prefix("trap-stress: gpa=0x")?;
    u64::from_str_radix(digits.split(' ').next()?, 16).ok()
}

#[test]
fn no_register_changes_and_no_interrupt_is_lost_under_faults_ticks_and_a_flood() {
    if !kvm_or_skip() {
        return;
    }
    let seconds = scaled(60, 10);
    let outcome = stress(Kernel::Embedded, seconds, 1);
    println!("{}{:?}", outcome.output, outcome.flood);
    assert!(outcome.is_clean(seconds), "{outcome:?}");
    // Otherwise it was no stress.
    assert!(outcome.flood.sent > scaled(10_000, 100), "{outcome:?}");
    assert!(outcome.flood.handshakes > scaled(100, 10), "{outcome:?}");
}

/// Every vCPU has stubs, tables and stacks of its own.
#[test]
fn no_vcpu_loses_a_register_or_an_interrupt_when_all_are_stressed_at_once() {
    if !kvm_or_skip() {
        return;
    }
    let seconds = scaled(10, 10);
    for vcpus in [2, 4] {
        let outcome = stress(Kernel::Embedded, seconds, vcpus);
        println!("{}{:?}", outcome.output, outcome.flood);
        assert!(outcome.is_clean(seconds), "{vcpus} vCPUs: {outcome:?}");
        assert!(outcome.output.contains(&format!(" cpus={vcpus}")), "{outcome:?}");
        assert!(outcome.flood.sent > scaled(1000, 50), "{outcome:?}");
        assert!(outcome.flood.handshakes > scaled(20, 5), "{outcome:?}");
    }
}

/// The guest image with a deliberate fault in its nucleus.
fn mutant(name: &str) -> Kernel {
    Kernel::Image(Arc::from(guest_image(name)))
}

/// The negative controls: a stress that finds nothing proves little unless it finds these.
#[test]
fn each_deliberate_fault_in_the_nucleus_is_found() {
    if !kvm_or_skip() || inside_lab() {
        // The lab has no compiler, and its local APIC forgives one of them.
        return;
    }
    for (name, sign) in [
        ("no-fxrstor", "CORRUPT: first at quad 16"),
        ("no-replay", "lost=5"),
        ("halt-unchecked", "lost=5"),
        ("no-ist-toggle", ""),
        // Faults of a CPU: the guest has to say so.
        ("interrupt-while-off-masked", INTERRUPT_WHILE_OFF),
        ("interrupt-while-off-unmasked", INTERRUPT_WHILE_OFF),
    ] {
        let outcome = stress(mutant(name), 4, 1);
        assert!(!outcome.is_clean(4), "{name} was not found: {outcome:?}");
        assert!(outcome.output.contains(sign), "{name} was found as something else: {outcome:?}");
    }
}
