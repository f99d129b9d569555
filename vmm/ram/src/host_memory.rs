//! What memory the host has, to judge a size before asking for it.

use std::fs;

use crate::error::HostRamError;

/// Memory and swap of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct HostMemory {
    /// All there is.
    pub(crate) total: u64,
    /// What could be had now without pushing anything out.
    pub(crate) available: u64,
}

impl HostMemory {
    /// The host's figures, or `None` if it does not give them.
    pub(crate) fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(meminfo: &str) -> Option<Self> {
        let bytes_of = |name: &str| {
            let line =
                meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self {
            total: bytes_of("MemTotal")?.saturating_add(bytes_of("SwapTotal")?),
            available: bytes_of("MemAvailable")?.saturating_add(bytes_of("SwapFree")?),
        })
    }
}

/// Refuses to prefault more than the host can give, and warns of a guest larger than the host.
///
/// A guest larger than the host is allowed when it is populated on demand:
/// promising more than there is is what a balloon is for. Prefaulting it would
/// end in the OOM killer, so it is refused before the first page.
pub(crate) fn judge(
    bytes: u64,
    prefault: bool,
    host: Option<HostMemory>,
) -> Result<(), HostRamError> {
    let Some(host) = host else { return Ok(()) };
    if prefault && bytes > host.available {
        return Err(HostRamError::NotEnoughMemory {
            bytes,
            available_bytes: host.available,
            limited_by: "MemAvailable + SwapFree of /proc/meminfo",
        });
    }
    if bytes > host.total {
        log::warn!(
            "guest RAM of {bytes} B is more than the host's memory and swap of {} B: a guest that uses all of it will be killed",
            host.total
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_gives_totals_with_swap() {
        let text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\nSwapTotal: 10 kB\nSwapFree: 5 kB\n";
        let host = HostMemory::parse(text).expect("all fields are there");
        assert_eq!(host, HostMemory { total: 1010 << 10, available: 605 << 10 });
        assert_eq!(HostMemory::parse("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn prefault_beyond_what_is_available_is_refused() {
        let host = Some(HostMemory { total: 100, available: 50 });
        assert!(matches!(
            judge(51, true, host),
            Err(HostRamError::NotEnoughMemory { bytes: 51, available_bytes: 50, .. })
        ));
        assert!(judge(50, true, host).is_ok());
        assert!(judge(1000, false, host).is_ok());
        assert!(judge(1000, true, None).is_ok());
    }
}
