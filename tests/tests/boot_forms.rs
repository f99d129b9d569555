//! Which form a kernel file is taken for, what its guest is told, and what is said of files that are no kernels.
//! No KVM: guest RAM is ordinary memory here.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use abi::{PAGE_SIZE, PageCount, Pfn, PfnRange};
use aerostat::boot::{
    BootError, BootInfo, Compression, Entry, Form, InitrdError, InitrdFile, KernelImage,
};
use proptest::prelude::*;
use system_tests::bzimage::{BzImage, INIT_SIZE, LOAD_GPA, Packing};
use system_tests::payload::{CODE_GPA, Payload};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RAM_BYTES: u64 = 8 << 20;

fn ram() -> Vec<PfnRange> {
    let pages = PageCount::new(RAM_BYTES / PAGE_SIZE);
    vec![PfnRange::from_start(Pfn::ZERO, pages).expect("in range")]
}

fn memory() -> GuestMemoryMmap {
    let bytes = usize::try_from(RAM_BYTES).expect("small");
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).expect("8 MiB of memory")
}

fn check(file: Vec<u8>) -> Result<Form, BootError> {
    KernelImage::Bytes(Arc::from(file)).check(&ram(), &BootInfo::default())
}

/// The error's text.
fn refusal(file: Vec<u8>) -> String {
    check(file).expect_err("no kernel").to_string()
}

fn load(file: Vec<u8>, info: BootInfo<'_>) -> (GuestMemoryMmap, Result<Entry, BootError>) {
    let memory = memory();
    let entry = KernelImage::Bytes(Arc::from(file)).load(&memory, &ram(), info);
    (memory, entry)
}

fn word(memory: &GuestMemoryMmap, gpa: u64) -> u32 {
    memory.read_obj(GuestAddress(gpa)).expect("in RAM")
}

/// An initrd of these bytes, and the directory that it lies in.
fn initrd(bytes: &[u8]) -> (InitrdFile, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("initrd");
    fs::write(&path, bytes).expect("a file");
    (InitrdFile::open(&path).expect("an initrd"), dir)
}

fn kernel() -> Payload {
    Payload::new().power_off()
}

fn bzimage(packing: Packing, elf: &[u8]) -> BzImage {
    BzImage::new(&kernel().code(), &packing.pack(elf))
}

#[test]
fn each_form_is_recognised() {
    let lz4 = |elf: &[u8]| bzimage(Packing::Lz4, elf).file();
    let pvh = kernel().elf();
    for (file, form) in [
        (pvh.clone(), Form::ElfPvh),
        (kernel().elf_without_pvh(), Form::Elf64),
        (lz4(&pvh), Form::PayloadPvh(Compression::Lz4)),
        (lz4(&kernel().elf_without_pvh()), Form::Payload64(Compression::Lz4)),
        (bzimage(Packing::Gzip, &pvh).file(), Form::PayloadPvh(Compression::Gzip)),
        (bzimage(Packing::Zstd, &pvh).file(), Form::BzImage64),
        (bzimage(Packing::Xz, &pvh).file(), Form::BzImage64),
        (BzImage::new(&kernel().code(), b"who knows what this is").file(), Form::BzImage64),
        (BzImage::new(&kernel().code(), &[]).file(), Form::BzImage64),
    ] {
        assert_eq!(check(file).expect("it can be booted"), form);
    }
}

#[test]
fn a_payload_that_is_no_kernel_of_ours_is_left_to_the_kernels_own_code() {
    // Such as one of another architecture: what runs then is the code before it.
    let mut other = kernel().elf();
    other[18] = 40;
    assert_eq!(check(bzimage(Packing::Gzip, &other).file()).unwrap(), Form::BzImage64);
    assert_eq!(check(bzimage(Packing::Lz4, b"no ELF").file()).unwrap(), Form::BzImage64);
}

#[test]
fn an_error_names_every_form_that_was_tried() {
    let text = refusal(b"#!/bin/sh\necho this is a script\n".to_vec());
    assert!(text.contains("ELF: no ELF file, it begins with [23, 21, 2f, 62]"), "{text}");
    assert!(text.contains("bzImage: no bzImage, the boot flag at 0x1fe is []"), "{text}");

    let neither = bzimage(Packing::Xz, b"").with(0x236, &0u16.to_le_bytes()).file();
    let text = refusal(neither);
    assert!(text.contains("xz payload: the payload is left to the kernel's own"), "{text}");
    assert!(text.contains("64-bit protocol: no 64-bit entry, xloadflags is 0x0"), "{text}");
}

#[test]
fn a_damaged_payload_is_refused_instead_of_halting_silently_in_the_guest() {
    let elf = kernel().elf();
    for packing in [Packing::Lz4, Packing::Gzip] {
        let mut payload = packing.pack(&elf);
        payload[12..20].fill(0xff);
        let text = refusal(BzImage::new(&kernel().code(), &payload).file());
        assert!(text.contains("the payload is corrupt"), "{packing:?}: {text}");
        assert!(!text.contains("64-bit protocol"), "{packing:?}: {text}");
    }
}

#[test]
fn a_payload_that_claims_more_than_its_header_or_ram_allows_is_not_decompressed() {
    for claim in [0, INIT_SIZE + 1, u32::MAX] {
        let mut payload = Packing::Lz4.pack(&kernel().elf());
        let at = payload.len() - 4;
        payload[at..].copy_from_slice(&claim.to_le_bytes());
        // With room for its own decompressor, which is another program.
        let file = BzImage::new(&kernel().code(), &payload).with(0x236, &[0, 0]).file();
        let text = refusal(file);
        let expected = format!("claims to become {claim} B, possible are 1 to {INIT_SIZE} B");
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn a_payload_longer_than_what_it_may_become_is_not_even_read() {
    let payload = Packing::Gzip.pack(&kernel().elf());
    let file = BzImage::new(&kernel().code(), &payload)
        .with(0x260, &64u32.to_le_bytes())
        .with(0x236, &[0, 0])
        .file();
    let text = refusal(file);
    let expected = format!("the payload has {} B, more than the 64 B", payload.len());
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn segments_that_share_memory_are_named() {
    let mut file = kernel().elf();
    // The note becomes a second segment at the place of the first.
    file[64 + 56] = 1;
    let text = refusal(file);
    assert!(text.contains("overlap"), "{text}");
}

#[test]
fn a_bomb_is_stopped_at_the_size_that_it_claims() {
    let zeros = vec![0; 4 << 20];
    for packing in [Packing::Lz4, Packing::Gzip] {
        let mut payload = packing.pack(&zeros);
        let at = payload.len() - 4;
        payload[at..].copy_from_slice(&0x1000u32.to_le_bytes());
        let text = refusal(BzImage::new(&kernel().code(), &payload).file());
        assert!(text.contains("the payload is corrupt"), "{packing:?}: {text}");
    }
}

#[test]
fn header_fields_out_of_range_are_named_with_their_values() {
    let image = || BzImage::new(&kernel().code(), &[]);
    for (image, part) in [
        (image().with(0x1fe, &[0, 0]), "the boot flag at 0x1fe is [00, 00], not [55, aa]"),
        (image().with(0x202, b"HdrT"), "magic at 0x202 is [48, 64, 72, 54]"),
        (image().with(0x206, &0x0209u16.to_le_bytes()), "protocol 2.09 is too old, needed is 2.12"),
        (image().with(0x211, &[0]), "loadflags at 0x211 is [00], not [01]"),
        (image().with(0x1f1, &[200]), "the setup part ends at byte 102912"),
        (image().with(0x1f4, &u32::MAX.to_le_bytes()), "truncated, the kernel ends at byte"),
        (
            image().with(0x24c, &[0xff; 4]).with(0x236, &[0, 0]),
            "truncated, the payload ends at byte",
        ),
        (
            image().with(0x260, &(64u32 << 20).to_le_bytes()),
            "needs 0x200000..0x4200000 but RAM for kernels is 0x100000..0x800000",
        ),
        (image().with(0x258, &0u64.to_le_bytes()), "needs 0x0..0x200000"),
        (image().with(0x258, &u64::MAX.to_le_bytes()), "needs 0xffffffffffffffff..0x1000000000"),
    ] {
        let text = check(image.file()).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[test]
fn the_zero_page_has_the_kernels_header_and_all_that_a_loader_adds() {
    let (mut file, _dir) = initrd(&[7; 5000]);
    let rsdp = Some(GuestAddress(0xe_0000));
    let info = BootInfo { cmdline: "a b", initrd: Some(&mut file), rsdp, refuse_linux: false };
    let (memory, entry) = load(BzImage::new(&kernel().code(), &[]).file(), info);
    let Entry::Linux64 { pc, boot_params } = entry.expect("it boots") else {
        panic!("no PVH here")
    };
    assert_eq!(pc, LOAD_GPA + 0x200);
    let at = |offset| word(&memory, boot_params + offset);
    assert_eq!((at(0x202), at(0x210) & 0xff), (0x5372_6448, 0xff), "HdrS, a loader without number");
    assert_eq!(at(0x70), 0xe_0000, "ACPI's root pointer");
    let mut cmdline = [0; 4];
    memory.read_slice(&mut cmdline, GuestAddress(at(0x228).into())).expect("in RAM");
    assert_eq!(&cmdline, b"a b\0");
    // As high as whole pages allow.
    let gpa = (RAM_BYTES - 5000) / PAGE_SIZE * PAGE_SIZE;
    assert_eq!((u64::from(at(0x218)), at(0x21c), at(0xc0), at(0xc4)), (gpa, 5000, 0, 0));
    assert_eq!(word(&memory, gpa), 0x0707_0707);
    assert_eq!(word(&memory, gpa + 5000), 0);
    assert_eq!(at(0x1e8) & 0xff, 3, "entries of the memory map");
    let map = [0, 1, 2].map(|n| [0, 8, 16].map(|field| at(0x2d0 + 20 * n + field)));
    let high = u32::try_from(RAM_BYTES - 0x10_0000).expect("small");
    assert_eq!(map, [[0, 0xa_0000, 1], [0xa_0000, 0x6_0000, 2], [0x10_0000, high, 1]]);
}

#[test]
fn a_kernel_that_takes_a_shorter_command_line_is_given_none_longer() {
    let image = BzImage::new(&kernel().code(), &[]).with(0x238, &255u32.to_le_bytes()).file();
    let long = "x".repeat(256);
    let (_, entry) = load(image.clone(), BootInfo { cmdline: &long, ..BootInfo::default() });
    let text = entry.expect_err("too long").to_string();
    assert!(text.contains("256 B") && text.contains("at most 255 B"), "{text}");
    let (_, entry) = load(image, BootInfo { cmdline: &long[1..], ..BootInfo::default() });
    entry.expect("as long as it takes");
}

#[test]
fn an_initrd_keeps_below_the_kernels_limit_and_off_the_kernel() {
    let place = |image: BzImage, bytes: usize| {
        let (mut file, _dir) = initrd(&vec![9; bytes]);
        let info = BootInfo { initrd: Some(&mut file), ..BootInfo::default() };
        let (memory, entry) = load(image.file(), info);
        entry.map(|entry| match entry {
            Entry::Linux64 { boot_params, .. } => u64::from(word(&memory, boot_params + 0x218)),
            Entry::Pvh { .. } => panic!("no PVH here"),
        })
    };
    let image = || BzImage::new(&kernel().code(), &[]);
    let limited = |end: u32| image().with(0x22c, &(end - 1).to_le_bytes());
    assert_eq!(place(limited(0x60_0800), 0x1000).unwrap(), 0x5f_f000);
    // The kernel has 2 MiB to 4 MiB; above its end there is too little room, below its start there is enough.
    assert_eq!(place(limited(0x40_1000), 0x1000).unwrap(), 0x40_0000);
    assert_eq!(place(limited(0x40_1000), 0x1001).unwrap(), 0x1f_e000);
    let error = place(limited(0x40_1000), 0x10_0001).expect_err("1 MiB is left").to_string();
    for part in ["of 1048577 B", "RAM for it is 0x100000..0x401000", "has 0x200000..0x400000"] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[test]
fn files_that_are_no_initrd_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::write(&empty, []).unwrap();
    let fifo = dir.path().join("fifo");
    let c_path = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: `c_path` is a string with its NUL, which the call only reads.
    assert_eq!(unsafe { libc::mkfifo(c_path.as_ptr(), 0o600) }, 0);
    for (path, reason) in [
        (dir.path().join("missing"), "Cannot open initrd"),
        (dir.path().to_path_buf(), "Cannot open initrd"),
        (fifo, "Cannot open initrd"),
        (empty, "is empty"),
    ] {
        let error = InitrdFile::open(&path).expect_err("no initrd").to_string();
        assert!(error.contains(reason) && error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn an_initrd_that_shrinks_or_empties_is_noticed() {
    let (mut file, dir) = initrd(&[1; 0x3000]);
    let path = dir.path().join("initrd");
    fs::write(&path, []).unwrap();
    let info = BootInfo { initrd: Some(&mut file), ..BootInfo::default() };
    let (_, entry) = load(kernel().elf(), info);
    assert!(matches!(entry, Err(BootError::Initrd(InitrdError::Empty { .. }))), "{entry:?}");
}

#[test]
fn a_reboot_reads_the_same_file_again_even_if_its_name_is_gone() {
    let (mut file, dir) = initrd(&[3; 100]);
    fs::remove_file(dir.path().join("initrd")).unwrap();
    for _ in 0..2 {
        let info = BootInfo { initrd: Some(&mut file), ..BootInfo::default() };
        let (memory, entry) = load(kernel().elf(), info);
        let Ok(Entry::Pvh { start_info, .. }) = entry else { panic!("{entry:?}") };
        assert_eq!(word(&memory, start_info + 12), 1, "one module");
        let module = u64::from(word(&memory, start_info + 16));
        let gpa = u64::from(word(&memory, module));
        assert_eq!((gpa, word(&memory, module + 8)), (RAM_BYTES - PAGE_SIZE, 100));
        assert_eq!(word(&memory, gpa), 0x0303_0303);
    }
}

#[test]
fn linux_is_refused_where_it_cannot_run_and_nothing_else_is() {
    let refuse = BootInfo { refuse_linux: true, ..BootInfo::default() };
    let check = |file: Vec<u8>| KernelImage::Bytes(Arc::from(file)).check(&ram(), &refuse);
    for linux in [
        kernel().elf_like_linux(),
        bzimage(Packing::Lz4, &kernel().elf()).file(),
        BzImage::new(&kernel().code(), &[]).file(),
    ] {
        let error = check(linux).expect_err("refused").to_string();
        for part in ["software KVM", "--allow-software-kvm"] {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }
    check(kernel().elf()).expect("not Linux");
}

/// Whatever the file: no panic, nothing beyond RAM, and an entry inside what was loaded.
fn survive(file: Vec<u8>) {
    let (_, entry) = load(file, BootInfo::default());
    if let Ok(Entry::Pvh { pc, .. } | Entry::Linux64 { pc, .. }) = entry {
        assert!((CODE_GPA..RAM_BYTES).contains(&pc), "{pc:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_change_of_a_bzimage_is_survived(
        packing in 0..Packing::ALL.len(),
        in_header in prop::collection::vec((0x1f0..0x270usize, any::<u8>()), 0..6),
        anywhere in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = bzimage(Packing::ALL[packing], &kernel().elf()).file();
        for (offset, byte) in in_header {
            file[offset] = byte;
        }
        for (offset, byte) in anywhere {
            let at = offset.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        survive(file);
    }

    #[test]
    fn any_change_inside_the_payload_is_survived(
        packing in 0..Packing::ALL.len(),
        elf in prop::collection::vec((0..0x260usize, any::<u8>()), 0..6),
    ) {
        let mut inner = kernel().elf();
        for (offset, byte) in elf {
            inner[offset] = byte;
        }
        survive(bzimage(Packing::ALL[packing], &inner).file());
    }
}

#[test]
fn an_empty_kernel_is_called_so() {
    let text = refusal(Vec::new());
    assert!(text.contains("ELF: no ELF file, it is empty"), "{text}");
}

/// RAM above 4 GiB has room for segments, but a vCPU started there would meet nothing mapped, or the lower half
/// of the address: a triple fault without a word.
#[test]
fn a_kernel_entered_above_4_gib_is_refused_with_its_entry() {
    let high = 4u64 << 30;
    let pages = PageCount::new(RAM_BYTES / PAGE_SIZE);
    let ram =
        [0, high].map(|gpa| PfnRange::from_start(Pfn::containing(gpa), pages).expect("in range"));
    let refusal = |file: Vec<u8>| {
        let image = KernelImage::Bytes(Arc::from(file)).check(&ram, &BootInfo::default());
        image.expect_err("cannot be entered").to_string()
    };
    let mut elf = kernel().elf_without_pvh();
    // Entry, and the first segment's p_paddr.
    for at in [24, 64 + 24] {
        elf[at..at + 8].copy_from_slice(&(high + 0x10_0000).to_le_bytes());
    }
    let text = refusal(elf);
    let expected = "64-bit protocol: the entry 0x100100000 is beyond the 0x100000000";
    assert!(text.contains(expected), "{text}");
    let image = BzImage::new(&kernel().code(), &[]).with(0x258, &high.to_le_bytes()).file();
    let text = refusal(image);
    assert!(text.contains("64-bit protocol: the entry 0x100000200 is beyond"), "{text}");
}

/// Sixty thousand segments, each a page apart, used to cost seconds and to be listed one by one.
#[test]
fn thousands_of_segments_cost_no_time_and_no_message_of_megabytes() {
    let (count, first) = (20_000u16, 0x20_0000u64);
    let mut file = kernel().elf_without_pvh();
    let table = file.len() as u64;
    file[32..40].copy_from_slice(&table.to_le_bytes());
    file[56..58].copy_from_slice(&count.to_le_bytes());
    for index in 0..u64::from(count) {
        file.extend([1u32, 7].map(u32::to_le_bytes).concat());
        let gpa = first + index * PAGE_SIZE;
        file.extend([0, gpa, gpa, 0, 1, 4].map(u64::to_le_bytes).concat());
    }
    let pages = PageCount::new((first / PAGE_SIZE) + u64::from(count));
    let ram = [PfnRange::from_start(Pfn::ZERO, pages).expect("in range")];
    let text = KernelImage::Bytes(Arc::from(file.clone())).check(&ram, &BootInfo::default());
    let text = text.expect_err("the entry is in none of them").to_string();
    assert!(text.contains("and 19992 more") && text.len() < 2000, "{} B", text.len());
    file[24..32].copy_from_slice(&first.to_le_bytes());
    let (mut initrd, _dir) = initrd(&[1; 0x2000]);
    let info = BootInfo { initrd: Some(&mut initrd), ..BootInfo::default() };
    let form = KernelImage::Bytes(Arc::from(file)).check(&ram, &info);
    assert_eq!(form.expect("there is room below them"), Form::Elf64);
}

#[test]
fn a_missing_kernel_is_named() {
    let kernel = aerostat::vm::config::Kernel::Path(Path::new("/nonexistent/vmlinuz").into());
    let error = KernelImage::open(&kernel).expect_err("nothing there").to_string();
    assert!(error.contains("/nonexistent/vmlinuz"), "{error}");
}
