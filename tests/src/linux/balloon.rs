//! What both sides say of a Linux guest's balloon, page by page and in counters.

use std::collections::BTreeSet;

use super::LinuxGuest;
use crate::host_memory::{mappings, populated_pages};

/// Guest page frame numbers.
pub type PageSet = BTreeSet<u64>;

/// Prints `FIRST-LAST` for each run of pages whose flags, as `od` prints them, say KPF_OFFLINE, which is bit 23 and in a guest
/// without memory hotplug means the balloon (Linux, include/uapi/linux/kernel-page-flags.h).
const OFFLINE_RUNS: &str = "od -An -v -tx8 -w8 /proc/kpageflags | grep -n '^ *[0-9a-f]\\{10\\}[89a-f]' | cut -d: -f1 | \
     awk 'NR==1{s=$1;p=$1;next} $1==p+1{p=$1;next} {print s-1\"-\"p-1; s=$1;p=$1} END{if(NR)print s-1\"-\"p-1}'";

/// The kernel's counters of a balloon, in pages of 4 KiB. Each is exact: the sum of per-CPU counters that the driver steps by
/// one a page, and a total that it changes by one a page (Linux, mm/balloon_compaction.c, drivers/virtio/virtio_balloon.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonCounters {
    /// `balloon_inflate` of /proc/vmstat since the kernel booted.
    pub inflated: u64,
    /// `balloon_deflate` of /proc/vmstat since the kernel booted.
    pub deflated: u64,
    /// `balloon_migrate` of /proc/vmstat: ballooned pages that compaction has replaced by others.
    pub migrated: u64,
    /// MemTotal of /proc/meminfo.
    pub total: u64,
}

impl LinuxGuest {
    /// Reads the guest kernel's counters of its balloon.
    ///
    /// # Panics
    /// If the guest does not answer.
    pub fn balloon_counters(&self) -> BalloonCounters {
        let text = self.ok("grep -E 'balloon_|MemTotal' /proc/vmstat /proc/meminfo");
        let number = |key: &str| {
            let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key} in {text:?}"));
            let word = rest.split_whitespace().next().expect("a value");
            word.parse::<u64>().expect("a number")
        };
        BalloonCounters {
            inflated: number("balloon_inflate"),
            deflated: number("balloon_deflate"),
            migrated: number("balloon_migrate"),
            total: number("MemTotal:") / 4,
        }
    }

    /// The pages that the guest kernel has marked as the balloon's.
    ///
    /// # Panics
    /// If the guest does not answer.
    pub fn offline_pages(&self) -> PageSet {
        let runs = self.ok(OFFLINE_RUNS);
        let run = |line: &str| {
            let (first, last) = line.split_once('-')?;
            Some(first.parse::<u64>().ok()?..=last.parse::<u64>().ok()?)
        };
        runs.lines().flat_map(|l| run(l).unwrap_or_else(|| panic!("no run: {l:?}"))).collect()
    }

    /// The guest pages, of RAM below 3 GiB on anonymous memory, that the host has no memory behind.
    ///
    /// # Panics
    /// If `/proc` cannot be read, or guest RAM is not one mapping.
    pub fn absent_pages(&self) -> PageSet {
        let ram: Vec<_> = mappings(self.pid())
            .expect("the VMM's smaps")
            .into_iter()
            .filter(|mapping| mapping.is_ram(self.ram_bytes()))
            .collect();
        let [ram] = &ram[..] else { panic!("guest RAM is not one mapping: {ram:?}") };
        let mut absent: PageSet = (0..ram.size / 4096).collect();
        for page in populated_pages(self.pid(), ram).expect("the VMM's pagemap") {
            absent.remove(&page);
        }
        absent
    }
}
