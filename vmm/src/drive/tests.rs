//! Real files, real locks, real full disks.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use devices::block::{BackendError, BlockBackend, DiskRange};
use devices::ring::{CheckedDesc, RawDesc};
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const KIB: u64 = 1024;

/// A directory with a file of `bytes` zeros.
fn image(bytes: u64) -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a scratch directory");
    let path = dir.path().join("disk.img");
    File::create(&path).expect("a scratch file").set_len(bytes).expect("sparse");
    (dir, path)
}

fn writable(path: &Path) -> DriveFile {
    DriveFile::open(path, false).expect("a drive")
}

fn refused(path: &Path, is_read_only: bool) -> DriveError {
    let error = DriveFile::open(path, is_read_only).expect_err("no drive");
    let said = error.to_string();
    assert!(said.contains(&format!("{path:?}")), "{said} names the path");
    error
}

/// Two regions that touch, so that a buffer can cross from one mapping to the next.
fn memory() -> GuestMemoryMmap {
    let regions = [(GuestAddress(0), 0x10_0000), (GuestAddress(0x10_0000), 0x20_0000)];
    GuestMemoryMmap::from_ranges(&regions).expect("regions")
}

fn buffer(memory: &GuestMemoryMmap, addr: u64, len: u32) -> CheckedDesc {
    CheckedDesc::new(memory, RawDesc { addr, len, flags: 0, next: 0 }).expect("RAM")
}

fn range(drive: &DriveFile, sector: u64, len: u64) -> DiskRange {
    DiskRange::new(sector, len, drive.properties().bytes()).expect("inside the disk")
}

fn allocated_bytes(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").blocks() * 512
}

#[test]
fn a_missing_file_is_named() {
    let (dir, _) = image(512);
    let error = refused(&dir.path().join("none.img"), false);
    assert!(
        matches!(&error, DriveError::Open { source, .. } if source.raw_os_error() == Some(libc::ENOENT))
    );
    assert!(error.is_bad_argument());
    assert!(matches!(refused(&dir.path().join("a/b"), true), DriveError::Open { .. }));
}

#[test]
fn what_is_no_disk_is_refused_by_its_kind_and_never_waited_for() {
    let (dir, _) = image(512);
    let fifo = dir.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs");
    assert!(made.success());
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let loop_link = dir.path().join("loop");
    symlink(&loop_link, &loop_link).expect("a link");
    for (path, kind) in [
        (dir.path(), "a directory"),
        (&fifo, "a FIFO"),
        (&socket, "a socket"),
        (Path::new("/dev/null"), "a character device"),
        (Path::new("/dev/full"), "a character device"),
    ] {
        for is_read_only in [false, true] {
            let error = refused(path, is_read_only);
            assert!(
                matches!(error, DriveError::Kind { kind: said, .. } if said == kind),
                "{error}"
            );
            assert!(error.to_string().contains("regular file or a block device"));
        }
    }
    assert!(matches!(refused(&loop_link, false), DriveError::Open { .. }));
}

#[test]
fn a_link_leads_to_its_file() {
    let (dir, path) = image(512);
    let link = dir.path().join("link");
    symlink(&path, &link).expect("a link");
    assert_eq!(writable(&link).properties().sectors, 1);
}

#[test]
fn a_size_that_is_no_whole_number_of_sectors_is_refused_with_the_next_that_is() {
    for (bytes, next) in [(0, 512), (1, 512), (511, 512), (513, 1024), (1 << 20 | 1, 1049088)] {
        let (_dir, path) = image(bytes);
        let error = refused(&path, true);
        assert!(matches!(error, DriveError::Size { bytes: said, .. } if said == bytes));
        assert!(error.to_string().contains(&format!("{next} B would be")), "{error}");
        assert!(error.is_bad_argument());
    }
}

/// Root may write anything, so this needs another user; without one it is checked by the error alone.
#[test]
fn a_file_that_may_only_be_read_says_so_and_works_read_only() {
    let (_dir, path) = image(512);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("my own file");
    match DriveFile::open(&path, false) {
        Err(error) => {
            assert!(matches!(error, DriveError::NotWritable { .. }), "{error}");
            assert!(error.to_string().contains("PATH,ro"), "{error}");
        }
        // A file that is being executed cannot be written, whoever asks.
        Ok(_) => {
            let running = std::env::current_exe().expect("a test program");
            let error = refused(&running, false);
            assert!(matches!(error, DriveError::NotWritable { .. }), "{error}");
        }
    }
    assert!(DriveFile::open(&path, true).expect("read-only").properties().is_read_only);
}

#[test]
fn one_writer_or_many_readers() {
    let (_dir, path) = image(4096);
    let writer = writable(&path);
    for is_read_only in [false, true] {
        let error = refused(&path, is_read_only);
        assert!(matches!(error, DriveError::Locked { .. }), "{error}");
        assert!(!error.is_bad_argument(), "it may be free later");
    }
    drop(writer);
    let readers = [DriveFile::open(&path, true), DriveFile::open(&path, true)];
    assert!(readers.iter().all(Result::is_ok));
    assert!(matches!(refused(&path, false), DriveError::Locked { for_writing: true, .. }));
    drop(readers);
    writable(&path);
}

/// Not only drives of this process: the lock is the file's.
#[test]
fn another_process_is_kept_off_until_we_close() {
    let (_dir, path) = image(4096);
    let take = |kind: &str| {
        let script = "import fcntl, struct, sys, os
fd = os.open(sys.argv[1], os.O_RDWR)
kind = fcntl.F_WRLCK if sys.argv[2] == 'w' else fcntl.F_RDLCK
try:
    fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', kind, 0, 0, 0, 0))
except OSError as e:
    sys.exit(10)
";
        Command::new("python3").args(["-c", script]).arg(&path).arg(kind).status()
    };
    let drive = writable(&path);
    let Ok(status) = take("w") else {
        eprintln!("SKIPPED: no python3");
        return;
    };
    assert_eq!(status.code(), Some(10), "a second writer");
    assert_eq!(take("r").expect("python3").code(), Some(10), "a reader");
    drop(drive);
    assert_eq!(take("w").expect("python3").code(), Some(0), "closed is free");
}

#[test]
fn bytes_go_straight_between_file_and_scattered_memory() {
    let (_dir, path) = image(64 * KIB);
    let drive = writable(&path);
    let memory = memory();
    let data: Vec<u8> = (0..8192u32).map(|at| (at % 253) as u8).collect();
    // The second piece crosses from one region to the next.
    let pieces = [(0x1000, 100), (0x10_0000 - 50, 4000), (0x18_0001, 4092)];
    let mut at = 0;
    for (addr, len) in pieces {
        memory.write_slice(&data[at..at + len], GuestAddress(addr)).expect("RAM");
        at += len;
    }
    let buffers = pieces.map(|(addr, len)| buffer(&memory, addr, u32::try_from(len).unwrap()));
    drive.write(range(&drive, 3, 8192), &memory, &buffers).expect("a write");
    let mut on_disk = vec![0; 8192];
    File::open(&path).unwrap().read_exact_at(&mut on_disk, 3 * 512).unwrap();
    assert!(on_disk == data);
    let to = buffer(&memory, 0x20_0000, 8192);
    drive.read(range(&drive, 3, 8192), &memory, &[to]).expect("a read");
    let mut read = vec![0; 8192];
    memory.read_slice(&mut read, GuestAddress(0x20_0000)).expect("RAM");
    assert!(read == data);
    drive.flush().expect("a flush");
}

/// What is in the page cache is read at once; what is not is fetched and read later.
#[test]
fn a_read_without_waiting_is_whole_or_not_at_all() {
    let (_dir, path) = image(1 << 20);
    fs::write(&path, vec![0x77; 1 << 20]).unwrap();
    let drive = writable(&path);
    drive.flush().expect("clean pages, which can be dropped");
    let memory = memory();
    let here = [buffer(&memory, 0, 4096)];
    let file = File::open(&path).unwrap();
    // SAFETY: takes numbers only.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    for sector in [0, 800, 2040] {
        let place = range(&drive, sector, 4096);
        memory.write_slice(&[0; 4096], GuestAddress(0)).unwrap();
        if !drive.try_read(place, &memory, &here).expect("a read") {
            drive.read(place, &memory, &here).expect("a read that waits");
        }
        let mut read = [0; 4096];
        memory.read_slice(&mut read, GuestAddress(0)).unwrap();
        assert_eq!(read, [0x77; 4096], "sector {sector}");
    }
    // Now it is in the cache, and stays there as long as nobody else needs the memory.
    let again = drive.try_read(range(&drive, 800, 4096), &memory, &here);
    eprintln!("read without waiting: {again:?}");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(100 * 512).unwrap();
    let beyond = drive.try_read(range(&drive, 96, 4096), &memory, &here);
    assert!(matches!(beyond, Ok(false)), "half of it is gone: {beyond:?}");
}

/// More buffers than one system call takes.
#[test]
fn any_number_of_buffers_is_served() {
    let (_dir, path) = image(1 << 20);
    let drive = writable(&path);
    let memory = memory();
    let buffers: Vec<_> = (0..2048).map(|n| buffer(&memory, n * 1024, 512)).collect();
    for n in 0..2048u64 {
        memory.write_obj(n, GuestAddress(n * 1024)).expect("RAM");
    }
    drive.write(range(&drive, 0, 1 << 20), &memory, &buffers).expect("a write");
    let on_disk = fs::read(&path).unwrap();
    for n in 0..2048usize {
        assert_eq!(on_disk[n * 512..n * 512 + 8], (n as u64).to_le_bytes());
    }
}

#[test]
fn holes_read_as_zeros_and_discards_make_them() {
    let (_dir, path) = image(1 << 20);
    fs::write(&path, vec![0xaa; 1 << 20]).unwrap();
    let drive = writable(&path);
    if !drive.properties().can_discard {
        eprintln!("SKIPPED: this file system punches no holes");
        return;
    }
    drive.flush().expect("allocated");
    let before = allocated_bytes(&path);
    drive.discard(range(&drive, 0, 512 * KIB)).expect("a discard");
    drive.flush().expect("a flush");
    assert!(allocated_bytes(&path) <= before - 512 * KIB, "the host got its space back");
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20, "the disk keeps its size");
    let contents = fs::read(&path).unwrap();
    let half = 512 << 10;
    assert!(
        contents[..half].iter().all(|&b| b == 0) && contents[half..].iter().all(|&b| b == 0xaa)
    );
}

#[test]
fn zeroes_keep_their_space_unless_it_may_go() {
    let (_dir, path) = image(1 << 20);
    fs::write(&path, vec![0xaa; 1 << 20]).unwrap();
    let drive = writable(&path);
    drive.flush().expect("allocated");
    let before = allocated_bytes(&path);
    drive.write_zeroes(range(&drive, 1, 100 * KIB), false).expect("zeroes");
    drive.flush().expect("a flush");
    assert!(allocated_bytes(&path) >= before, "not unmapped");
    drive.write_zeroes(range(&drive, 1024, 100 * KIB), true).expect("zeroes");
    let contents = fs::read(&path).unwrap();
    for (at, byte) in contents.iter().enumerate() {
        let zero = (512..512 + (100 << 10)).contains(&at)
            || (1024 * 512..1024 * 512 + (100 << 10)).contains(&at);
        assert_eq!(*byte, if zero { 0 } else { 0xaa }, "byte {at}");
    }
}

#[test]
fn zeros_can_be_written_where_nothing_better_is_known() {
    let (_dir, path) = image(512 * KIB);
    fs::write(&path, vec![0xaa; 512 << 10]).unwrap();
    let drive = writable(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    transfer::write_zeros(&file, range(&drive, 3, 200 * KIB)).expect("zeros");
    let contents = fs::read(&path).unwrap();
    let end = 3 * 512 + (200 << 10);
    assert!(contents[..3 * 512].iter().all(|&b| b == 0xaa));
    assert!(contents[3 * 512..end].iter().all(|&b| b == 0));
    assert!(contents[end..].iter().all(|&b| b == 0xaa));
}

/// A file that is cut while in use used to have no defined behaviour: now what is gone cannot be read
/// as zeros, and a write does not bring it back as zeros.
#[test]
fn a_file_that_is_cut_gives_errors_and_no_zeros() {
    let (_dir, path) = image(64 * KIB);
    let drive = writable(&path);
    let memory = memory();
    let here = [buffer(&memory, 0, 4096)];
    OpenOptions::new().write(true).open(&path).unwrap().set_len(10 * KIB).unwrap();
    assert_eq!(drive.read(range(&drive, 0, 4096), &memory, &here), Ok(()), "what is left");
    for sector in [16, 20, 120] {
        let gone = range(&drive, sector, 4096);
        assert_eq!(drive.read(gone, &memory, &here), Err(BackendError::PastEnd), "{sector}");
        assert_eq!(drive.write(gone, &memory, &here), Err(BackendError::PastEnd), "{sector}");
        assert_eq!(drive.write_zeroes(gone, false), Err(BackendError::PastEnd), "{sector}");
        assert_eq!(drive.write_zeroes(gone, true), Err(BackendError::PastEnd), "{sector}");
    }
    drive.discard(range(&drive, 100, 4096)).expect("advice about nothing");
    assert_eq!(fs::metadata(&path).unwrap().len(), 10 * KIB, "it did not grow");
}

#[test]
fn a_file_that_grew_is_measured_anew_under_the_same_lock() {
    let (dir, path) = image(4 * KIB);
    let drive = writable(&path);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(8 * KIB).unwrap();
    assert_eq!(drive.properties().sectors, 8, "as the guest knows it");
    let grown = drive.remeasured().expect("a drive");
    assert_eq!(grown.properties().sectors, 16);
    assert!(grown.is_at(&path) && !grown.is_at(&dir.path().join("other")));
    drop(drive);
    assert!(matches!(refused(&path, true), DriveError::Locked { .. }), "still locked");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert!(matches!(grown.remeasured(), Err(DriveError::Size { bytes: 100, .. })));
}

/// A child with a small file size limit, which writes beyond it as a guest would.
#[test]
fn a_write_that_the_host_has_no_room_for_fails_and_nobody_dies() {
    const CHILD: &str = "AEROSTAT_TEST_FILE_LIMIT";
    let name = "drive::tests::a_write_that_the_host_has_no_room_for_fails_and_nobody_dies";
    let Some(path) = std::env::var_os(CHILD) else {
        let (_dir, path) = image(1 << 20);
        let status = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(CHILD, &path)
            .status()
            .expect("the test program runs");
        assert!(status.success(), "{status}");
        return;
    };
    let limit = libc::rlimit { rlim_cur: 64 * KIB, rlim_max: 64 * KIB };
    // SAFETY: `limit` is read during the call only; this process is the test's own child.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    ignore_file_size_signal();
    let drive = writable(Path::new(&path));
    let memory = memory();
    let data = [buffer(&memory, 0, 4096)];
    let outcome = drive.write(range(&drive, 256, 4096), &memory, &data);
    assert_eq!(outcome, Err(BackendError::NoSpace(libc::EFBIG)));
    assert_eq!(drive.write(range(&drive, 0, 4096), &memory, &data), Ok(()));
    assert_eq!(drive.flush(), Ok(()));
}

/// A full file system, where one can be made: a tmpfs of 1 MiB in a mount namespace of its own.
#[test]
fn a_full_file_system_fails_writes_with_no_space() {
    const CHILD: &str = "AEROSTAT_TEST_FULL_DISK";
    let name = "drive::tests::a_full_file_system_fails_writes_with_no_space";
    let Some(dir) = std::env::var_os(CHILD) else {
        let dir = TempDir::new().expect("a scratch directory");
        let script = "mount -t tmpfs -o size=1m tmpfs \"$0\" || exit 77; exec \"$@\"";
        let status = Command::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", script])
            .arg(dir.path())
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(CHILD, dir.path())
            .status();
        match status.map(|status| status.code()) {
            Ok(Some(0)) => {}
            Ok(Some(101)) => panic!("the child failed"),
            other => eprintln!("SKIPPED: no mount namespace here: {other:?}"),
        }
        return;
    };
    let path = Path::new(&dir).join("disk.img");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let drive = writable(&path);
    let memory = memory();
    let data = [buffer(&memory, 0, 1 << 19)];
    let outcomes: Vec<_> =
        (0..16).map(|n| drive.write(range(&drive, n * 1024, 1 << 19), &memory, &data)).collect();
    let full = Err(BackendError::NoSpace(libc::ENOSPC));
    assert_eq!(outcomes[0], Ok(()));
    assert_eq!(outcomes[15], full);
    assert_eq!(drive.write_zeroes(range(&drive, 8 * 1024, 1 << 20), false), full);
    // Space that the guest gives back can be used again.
    drive.discard(range(&drive, 0, 1 << 20)).expect("a discard");
    assert_eq!(drive.write(range(&drive, 15 * 1024, 1 << 19), &memory, &data), Ok(()));
}

#[test]
fn a_read_only_drive_flushes_nothing_and_discards_nothing() {
    let (_dir, path) = image(4096);
    let drive = DriveFile::open(&path, true).expect("a drive");
    assert!(!drive.properties().can_discard);
    assert_eq!(drive.flush(), Ok(()));
}

/// A block device, where one can be made.
#[test]
fn a_block_device_is_a_drive_and_is_held_exclusively() {
    let (_dir, path) = image(1 << 20);
    fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    let Some(device) = LoopDevice::attach(&path) else {
        eprintln!("SKIPPED: no loop device here");
        return;
    };
    let drive = writable(&device.0);
    assert_eq!(drive.properties().sectors, 2048);
    assert!(matches!(refused(&device.0, false), DriveError::InUse { .. }));
    let memory = memory();
    let here = [buffer(&memory, 0, 8192)];
    drive.read(range(&drive, 2032, 8192), &memory, &here).expect("the last sectors");
    assert_eq!(memory.read_obj::<u8>(GuestAddress(8191)).unwrap(), 0x5a);
    drive.write_zeroes(range(&drive, 1, 512), false).expect("zeroes");
    drive.write_zeroes(range(&drive, 8, 4096), true).expect("zeroes");
    if drive.properties().can_discard {
        drive.discard(range(&drive, 1024, 64 * KIB)).expect("a discard");
    }
    drive.flush().expect("a flush");
    let mut file = File::open(&device.0).unwrap();
    let mut on_disk = vec![0; 16 * 512];
    file.seek(SeekFrom::Start(0)).unwrap();
    std::io::Read::read_exact(&mut file, &mut on_disk).unwrap();
    for (sector, bytes) in on_disk.chunks(512).enumerate() {
        let expected = if matches!(sector, 1 | 8..16) { 0 } else { 0x5a };
        assert!(bytes.iter().all(|&byte| byte == expected), "sector {sector}");
    }
}

struct LoopDevice(PathBuf);

impl LoopDevice {
    fn attach(path: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(path).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(device.trim().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.0).status().expect("losetup runs");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { sector: u64, sectors: u64, byte: u8 },
    Zero { sector: u64, sectors: u64, may_unmap: bool },
    Flush,
}

fn steps() -> impl Strategy<Value = Step> {
    let place = (0..120u64, 1..40u64);
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|((sector, sectors), byte)| Step::Write {
            sector,
            sectors,
            byte
        }),
        (place, any::<bool>()).prop_map(|((sector, sectors), may_unmap)| Step::Zero {
            sector,
            sectors,
            may_unmap
        }),
        Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever way the file takes for it, zeroing and writing leave what a plain buffer would hold.
    #[test]
    fn a_file_holds_what_a_buffer_would(steps in prop::collection::vec(steps(), 1..30)) {
        let (_dir, path) = image(128 * 512);
        let drive = writable(&path);
        let memory = memory();
        let mut model = vec![0; 128 * 512];
        for step in steps {
            let clip = |sector: u64, sectors: u64| sectors.min(128 - sector) * 512;
            let bytes = |sector: u64, len: u64| {
                let (from, len) = (usize::try_from(sector * 512).unwrap(), usize::try_from(len).unwrap());
                from..from + len
            };
            match step {
                Step::Write { sector, sectors, byte } => {
                    let len = clip(sector, sectors);
                    let data = vec![byte; usize::try_from(len).unwrap()];
                    memory.write_slice(&data, GuestAddress(0x8001)).unwrap();
                    let from = [buffer(&memory, 0x8001, u32::try_from(len).unwrap())];
                    prop_assert_eq!(drive.write(range(&drive, sector, len), &memory, &from), Ok(()));
                    model[bytes(sector, len)].copy_from_slice(&data);
                }
                Step::Zero { sector, sectors, may_unmap } => {
                    let len = clip(sector, sectors);
                    prop_assert_eq!(drive.write_zeroes(range(&drive, sector, len), may_unmap), Ok(()));
                    model[bytes(sector, len)].fill(0);
                }
                Step::Flush => prop_assert_eq!(drive.flush(), Ok(())),
            }
        }
        prop_assert!(fs::read(&path).unwrap() == model);
    }
}
