//! Real memory of this host: the truth falls, and released bytes read as zero.

use abi::Pfn;
use abi::platform::MMIO_GAP_END;
use vm_memory::Bytes;

use super::*;

const MIB: u64 = 1 << 20;

fn frames(start: u64, len: u64) -> PfnRange {
    let start = Pfn::new(start).expect("a small frame number");
    PfnRange::from_start(start, PageCount::new(len)).expect("a small range")
}

fn resident(ram: &HostRam) -> u64 {
    ram.resident_bytes().expect("readable").expect("verified")
}

fn fill(ram: &HostRam, range: PfnRange, byte: u8) {
    let bytes = vec![byte; to_usize(range.len().bytes())];
    ram.memory().write_slice(&bytes, GuestAddress(range.start().gpa())).expect("in RAM");
}

fn is_filled(ram: &HostRam, range: PfnRange, byte: u8) -> bool {
    let mut bytes = vec![!byte; to_usize(range.len().bytes())];
    ram.memory().read_slice(&mut bytes, GuestAddress(range.start().gpa())).expect("in RAM");
    bytes.iter().all(|&b| b == byte)
}

#[test]
fn fresh_ram_holds_nothing_after_the_probe() {
    for kind in BackingKind::ALL {
        let ram = HostRam::new(64 * MIB, kind, Prefault::OnDemand).expect("64 MiB");
        assert_eq!(resident(&ram), 0, "{kind}");
    }
}

#[test]
fn discard_lowers_the_truth_by_every_byte_and_zeroes() {
    for kind in BackingKind::ALL {
        let ram = HostRam::new(16 * MIB, kind, Prefault::OnDemand).expect("16 MiB");
        fill(&ram, frames(0, 4096), 0xaa);
        assert_eq!(resident(&ram), 16 * MIB, "{kind}");
        let scattered: Vec<PfnRange> = (0..1500).map(|n| frames(2 * n, 1)).collect();
        let done = ram.discard(&scattered).expect("the host releases");
        assert_eq!(done.pages.get(), 1500);
        assert_eq!(resident(&ram), 16 * MIB - 1500 * 4096, "{kind}");
        let whole = ram.discard(&[frames(3000, 1096)]).expect("the host releases");
        assert_eq!((whole.pages.get(), whole.calls), (1096, 1));
        assert_eq!(resident(&ram), 1500 * 4096, "{kind}");
        assert!(is_filled(&ram, frames(1, 1), 0xaa), "{kind}: a neighbour changed");
        assert!(
            is_filled(&ram, frames(2, 1), 0) && is_filled(&ram, frames(3000, 1096), 0),
            "{kind}"
        );
    }
}

#[test]
fn ram_on_both_sides_of_the_gap_is_one_memory_and_releases_in_one_call() {
    for kind in BackingKind::ALL {
        let ram =
            HostRam::new((3 << 30) + 4 * MIB, kind, Prefault::OnDemand).expect("lazily backed");
        let shape: Vec<_> = ram.regions().iter().map(|r| (r.gpa(), r.len_bytes())).collect();
        assert_eq!(shape, [(0, 3 << 30), (MMIO_GAP_END, 4 * MIB)]);
        assert_eq!(ram.regions()[1].hva() % (2 * MIB), 0);
        let last_low = frames((3 << 18) - 1, 1);
        let first_high = frames(4 << 18, 1);
        for range in [last_low, first_high] {
            fill(&ram, range, 0x77);
        }
        assert_eq!(resident(&ram), 2 * 4096, "{kind}");
        let done = ram.discard(&[last_low, first_high]).expect("the host releases");
        assert_eq!(done.pages.get(), 2);
        assert_eq!(resident(&ram), 0, "{kind}");
    }
}

#[test]
fn ranges_outside_ram_are_refused_before_anything_is_released() {
    let ram = HostRam::new(4 * MIB, BackingKind::Anon, Prefault::OnDemand).expect("4 MiB");
    fill(&ram, frames(0, 1), 1);
    let beyond = frames(1023, 2);
    let error = ram.discard(&[frames(0, 1), beyond]).expect_err("half of it is no RAM");
    assert_eq!((error.range, error.done.pages), (beyond, PageCount::ZERO));
    assert!(is_filled(&ram, frames(0, 1), 1));
}

#[test]
fn prefaulted_ram_is_all_held_before_the_guest_starts() {
    for kind in BackingKind::ALL {
        let ram = HostRam::new(8 * MIB, kind, Prefault::All).expect("8 MiB");
        assert_eq!(resident(&ram), 8 * MIB, "{kind}");
    }
}

#[test]
fn memory_the_host_cannot_give_is_an_error_with_the_figures() {
    let Some(host) = HostMemory::read() else {
        eprintln!("SKIPPED: no /proc/meminfo");
        return;
    };
    let bytes = abi::platform::MAX_RAM_BYTES;
    if host.available >= bytes {
        eprintln!("SKIPPED: this host has {} B available", host.available);
        return;
    }
    let error = HostRam::new(bytes, BackingKind::Anon, Prefault::All).expect_err("too much");
    assert!(error.to_string().contains(&bytes.to_string()), "{error}");
}

#[test]
fn largest_guest_can_be_promised_on_demand() {
    for kind in BackingKind::ALL {
        let ram = HostRam::new(64 << 30, kind, Prefault::OnDemand).expect("64 GiB, lazily backed");
        assert_eq!(ram.pages().get(), 16 << 20);
        let top = frames((65 << 18) - 1, 1);
        fill(&ram, top, 3);
        assert_eq!(resident(&ram), 4096, "{kind}");
        ram.discard(&[top]).expect("the host releases");
        assert_eq!(resident(&ram), 0, "{kind}");
    }
}

#[test]
fn memory_outlives_the_owner_while_someone_refers_to_it() {
    let ram = HostRam::new(MIB, BackingKind::Anon, Prefault::OnDemand).expect("1 MiB");
    let memory = ram.memory().clone();
    fill(&ram, frames(0, 1), 5);
    drop(ram);
    let byte: u8 = memory.read_obj(GuestAddress(0)).expect("still mapped");
    assert_eq!(byte, 5);
}

#[test]
fn every_release_method_frees_the_same_whatever_the_kernel_takes() {
    for kind in BackingKind::ALL {
        let pidfd = Method::open_pidfd().unwrap_or(Method::PerPiece);
        for method in [Method::BatchedSelf, pidfd, Method::PerPiece] {
            let mut ram = HostRam::new(8 * MIB, kind, Prefault::All).expect("8 MiB");
            ram.method = method;
            let scattered: Vec<PfnRange> = (0..1000).map(|n| frames(2 * n, 1)).collect();
            let done = ram.discard(&scattered).expect("the host releases, in some way");
            assert_eq!(done.pages.get(), 1000, "{kind} {}", ram.release_method());
            assert_eq!(resident(&ram), 8 * MIB - 1000 * 4096, "{kind} {}", ram.release_method());
            let is_batched = !matches!(ram.method, Method::PerPiece);
            // A kernel that refuses the batch costs a call more for each piece.
            assert!(done.calls == 1000 || (is_batched && [1, 1999].contains(&done.calls)));
        }
    }
}
