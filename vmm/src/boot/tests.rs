use proptest::prelude::*;

use abi::{PageCount, Pfn};

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};

use super::*;
use crate::guest_image::GUEST_ELF;

const RAM_BYTES: usize = 64 << 20;

fn memory() -> (GuestMemoryMmap, Vec<PfnRange>) {
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("64 MiB of memory");
    let pages = PageCount::new(RAM_BYTES as u64 / abi::PAGE_SIZE);
    (memory, vec![PfnRange::from_start(Pfn::ZERO, pages).expect("in range")])
}

fn boot(image: &[u8], cmdline: &str) -> Result<Entry, BootError> {
    let (memory, ram) = memory();
    let info = BootInfo { cmdline, ..BootInfo::default() };
    load(&mut Cursor::new(image), &memory, &ram, info)
}

/// Why the form that was tried last did not do.
fn last_reason(error: BootError) -> FormError {
    let BootError::NoForm { mut tried } = error else { panic!("{error}") };
    tried.pop().expect("something was tried").error
}

/// The embedded guest with `bytes` written at `offset`.
fn patched(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = GUEST_ELF.to_vec();
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

/// File offset of program header `index`.
fn phdr(index: usize) -> usize {
    let at = &GUEST_ELF[32..40];
    let table = usize::from_le_bytes(at.try_into().expect("eight bytes"));
    table + index * 56
}

/// Index of the first program header of type `kind`.
fn first_of(kind: u32) -> usize {
    (0..16)
        .find(|&index| GUEST_ELF[phdr(index)..].starts_with(&kind.to_le_bytes()))
        .expect("the guest has one")
}

#[test]
fn the_embedded_guest_gets_a_start_info_with_map_and_command_line() {
    let (memory, ram) = memory();
    let rsdp = Some(GuestAddress(0xe_0000));
    let info = BootInfo { cmdline: "hello world", rsdp, ..BootInfo::default() };
    let entry = load(&mut Cursor::new(GUEST_ELF), &memory, &ram, info).expect("it boots");
    let Entry::Pvh { pc, start_info } = entry else { panic!("{entry:?}") };
    let info: hvm_start_info = memory.read_obj(GuestAddress(start_info)).expect("the start info");
    assert_eq!((info.magic, info.version, info.nr_modules), (0x336e_c578, 1, 0));
    assert_eq!(info.rsdp_paddr, 0xe_0000);
    let mut text = [0; 12];
    memory.read_slice(&mut text, GuestAddress(info.cmdline_paddr)).expect("the command line");
    assert_eq!(&text, b"hello world\0");
    assert_eq!(info.memmap_entries, 3);
    let map: [hvm_memmap_table_entry; 3] = [0, 1, 2].map(|index| {
        let entry = info.memmap_paddr + index * size_of::<hvm_memmap_table_entry>() as u64;
        memory.read_obj(GuestAddress(entry)).expect("the memory map")
    });
    let map = map.map(|entry| (entry.addr, entry.size, entry.type_));
    let high = RAM_BYTES as u64 - KERNEL_FLOOR;
    assert_eq!(map, [(0, 0xa_0000, 1), (0xa_0000, 0x6_0000, 2), (KERNEL_FLOOR, high, 1)]);
    assert!(pc >= KERNEL_FLOOR);
}

#[test]
fn memory_above_the_gap_has_an_entry_of_its_own() {
    let (low, high) = (0, 4u64 << 30);
    let memory = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(low), RAM_BYTES),
        (GuestAddress(high), 1 << 20),
    ]);
    let memory = memory.expect("two regions");
    let range = |gpa, bytes| {
        PfnRange::from_start(Pfn::containing(gpa), PageCount::new(bytes / abi::PAGE_SIZE))
    };
    let ram = [range(low, RAM_BYTES as u64), range(high, 1 << 20)].map(|r| r.expect("in range"));
    let entry = load(&mut Cursor::new(GUEST_ELF), &memory, &ram, BootInfo::default());
    let Ok(Entry::Pvh { start_info, .. }) = entry else { panic!("{entry:?}") };
    let info: hvm_start_info = memory.read_obj(GuestAddress(start_info)).expect("the start info");
    assert_eq!(info.memmap_entries, 4);
    let last = GuestAddress(info.memmap_paddr + 3 * size_of::<hvm_memmap_table_entry>() as u64);
    let last: hvm_memmap_table_entry = memory.read_obj(last).expect("the last entry");
    assert_eq!((last.addr, last.size), (high, 1 << 20));
}

#[test]
fn a_file_that_is_no_elf_is_quoted() {
    for (image, quoted) in [(&b""[..], &b""[..]), (b"\x7fE", b"\x7fE"), (b"#!/bin/sh", b"#!/b")] {
        let error = boot(image, "").expect_err("no ELF");
        let BootError::NoForm { tried } = error else { panic!("{error}") };
        let [elf, bzimage] = &tried[..] else { panic!("{tried:?}") };
        assert!(matches!(&elf.error, FormError::NotElf { found } if found == quoted), "{elf}");
        assert!(matches!(&bzimage.error, FormError::NotBzImage { .. }), "{bzimage}");
    }
}

#[test]
fn an_elf_for_something_else_is_refused_by_its_field() {
    for (offset, byte, field) in [
        (4, 1, "EI_CLASS"),
        (5, 2, "EI_DATA"),
        (16, 1, "e_type"),
        (18, 40, "e_machine"),
        (54, 32, "e_phentsize"),
    ] {
        let error = boot(&patched(offset, &[byte]), "").expect_err(field);
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn a_file_that_ends_before_its_last_segment_is_truncated() {
    let field = |at: usize| usize::from_le_bytes(GUEST_ELF[at..][..8].try_into().expect("8 bytes"));
    let load = phdr(first_of(1));
    let end_of_segment = field(load + 8) + field(load + 32);
    for len in [5, 63, 64, 100, phdr(1), end_of_segment - 1] {
        let error = last_reason(boot(&GUEST_ELF[..len], "").expect_err("truncated"));
        assert!(matches!(error, FormError::Truncated { .. }), "{len}: {error}");
    }
}

/// [`GUEST_ELF`] without its note and with `entry` in its header.
fn without_note(entry: u64) -> Vec<u8> {
    let mut image = patched(phdr(first_of(4)), &0u32.to_le_bytes());
    image[24..32].copy_from_slice(&entry.to_le_bytes());
    image
}

#[test]
fn an_elf_without_a_pvh_note_is_entered_in_long_mode() {
    let entry = boot(&without_note(0x20_0000), "").expect("the 64-bit protocol needs no note");
    assert_eq!(entry, Entry::Linux64 { pc: 0x20_0000, boot_params: layout::ZERO_PAGE });
}

#[test]
fn an_elf_with_neither_note_nor_entry_is_told_both() {
    let text = boot(&without_note(0x3f0_0000), "").expect_err("no way in").to_string();
    for part in ["ELF by PVH: no PVH note", "64-bit protocol: the entry 0x3f00000 lies outside"] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[test]
fn an_entry_outside_the_loaded_segments_is_refused() {
    let note = phdr(first_of(4));
    let offset = usize::from_le_bytes(GUEST_ELF[note + 8..][..8].try_into().expect("8 bytes"));
    let image = patched(offset + 16, &0x3f0_0000u32.to_le_bytes());
    let image = [&image[..24], &[0; 8], &image[32..]].concat();
    let text = boot(&image, "").expect_err("outside").to_string();
    assert!(text.contains("ELF by PVH: the entry 0x3f00000 lies outside"), "{text}");
}

#[test]
fn segments_that_ram_does_not_have_are_named_with_their_range() {
    let load = phdr(first_of(1));
    let cases = [
        (load + 24, 0u64),             // below the floor
        (load + 24, RAM_BYTES as u64), // beyond the end
        (load + 24, u64::MAX - 0xfff), // wraps around
        (load + 40, u64::MAX),         // a .bss without end
        (load + 40, RAM_BYTES as u64), // a .bss just too large
    ];
    for (offset, value) in cases {
        let error = boot(&patched(offset, &value.to_le_bytes()), "").expect_err("no room");
        let error = last_reason(error);
        assert!(matches!(error, FormError::DoesNotFit { .. }), "{value:#x}: {error}");
        assert!(error.to_string().contains("0x100000..0x4000000"), "{error}");
    }
}

#[test]
fn a_segment_larger_in_the_file_than_in_memory_is_refused() {
    let load = phdr(first_of(1));
    for memory_bytes in [0u64, 1] {
        let image = patched(load + 40, &memory_bytes.to_le_bytes());
        let error = last_reason(boot(&image, "").expect_err("more bytes than room"));
        assert!(matches!(error, FormError::BadSegment { .. }), "{memory_bytes}: {error}");
    }
}

#[test]
fn a_command_line_that_is_too_long_is_refused_with_both_lengths() {
    let error = boot(GUEST_ELF, &"x".repeat(cmdline::MAX_BYTES + 1)).expect_err("too long");
    assert!(error.to_string().contains("2048") && error.to_string().contains("2047"), "{error}");
}

#[test]
fn only_regular_files_are_kernels() {
    for path in ["/dev/zero", "/", "/nonexistent"] {
        let error = KernelImage::open(&Kernel::Path(path.into())).expect_err(path);
        assert!(error.to_string().contains(path), "{error}");
    }
}

proptest! {
    /// Headers and the note are where offsets and lengths are; anything may be there.
    #[test]
    fn any_header_is_survived(
        changes in prop::collection::vec((0..0x400usize, any::<u8>()), 1..12),
    ) {
        let mut image = GUEST_ELF.to_vec();
        for (offset, byte) in changes {
            image[offset] = byte;
        }
        // An error or a kernel that loads: no panic, no endless loop, no huge allocation.
        let _loaded_or_not = boot(&image, "").is_ok();
    }
}
