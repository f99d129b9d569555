//! What memory the host has, to judge a size before asking for it.

use std::fs;
use std::path::Path;

use crate::error::HostRamError;

const MEMINFO: &str = "MemAvailable + SwapFree of /proc/meminfo";
const CGROUP: &str = "the memory limit of this control group";

/// Memory and swap of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct HostMemory {
    /// All there is.
    pub(crate) total: u64,
    /// What could be had now without pushing anything out.
    pub(crate) available: u64,
    /// The most that this process's control group may hold, if it is limited.
    ///
    /// How much of it is in use is not asked: usage counts caches that would make way.
    pub(crate) cgroup_limit: Option<u64>,
}

impl HostMemory {
    /// The host's figures, or `None` if it does not give them.
    pub(crate) fn read() -> Option<Self> {
        let mut memory = Self::parse(&fs::read_to_string("/proc/meminfo").ok()?)?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        memory.cgroup_limit = cgroup_limit(&groups, Path::new("/sys/fs/cgroup"));
        Some(memory)
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
            cgroup_limit: None,
        })
    }

    /// What can be had at most now, and what says so.
    fn can_give(self) -> (u64, &'static str) {
        match self.cgroup_limit {
            Some(limit) if limit < self.available => (limit, CGROUP),
            Some(_) | None => (self.available, MEMINFO),
        }
    }
}

/// The smallest limit of the memory groups in `groups` (`/proc/self/cgroup`) and of those above
/// them, version 1 or 2, mounted below `root` in one of the usual ways.
fn cgroup_limit(groups: &str, root: &Path) -> Option<u64> {
    let mut smallest = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let mounts: &[&str] = match controllers {
            "" => &["", "unified"],
            _ if controllers.split(',').any(|name| name == "memory") => &["memory"],
            _ => continue,
        };
        for mount in mounts {
            for above in Path::new(group.trim_start_matches('/')).ancestors() {
                let directory = root.join(mount).join(above);
                // "max" and a missing file mean no limit.
                let limit = ["memory.max", "memory.limit_in_bytes"].into_iter().find_map(|file| {
                    fs::read_to_string(directory.join(file)).ok()?.trim().parse::<u64>().ok()
                });
                smallest = smallest.into_iter().chain(limit).min();
            }
        }
    }
    smallest
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
    let (available_bytes, limited_by) = host.can_give();
    if prefault && bytes > available_bytes {
        return Err(HostRamError::NotEnoughMemory { bytes, available_bytes, limited_by });
    }
    let most = host.cgroup_limit.map_or(host.total, |limit| limit.min(host.total));
    if bytes > most {
        log::warn!(
            "guest RAM of {bytes} B is more than the {most} B that this process can ever have: a guest that uses all of it will be killed"
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
        assert_eq!((host.total, host.available), (1010 << 10, 605 << 10));
        assert_eq!(HostMemory::parse("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn prefault_beyond_what_is_available_is_refused() {
        let host = Some(HostMemory { total: 100, available: 50, cgroup_limit: None });
        assert!(matches!(
            judge(51, true, host),
            Err(HostRamError::NotEnoughMemory { bytes: 51, available_bytes: 50, .. })
        ));
        assert!(judge(50, true, host).is_ok());
        assert!(judge(1000, false, host).is_ok());
        assert!(judge(1000, true, None).is_ok());
    }

    #[test]
    fn prefault_beyond_the_control_group_is_refused_and_says_so() {
        let host = Some(HostMemory { total: 100, available: 50, cgroup_limit: Some(20) });
        let error = judge(21, true, host).expect_err("the group may hold 20");
        assert!(error.to_string().contains(CGROUP), "{error}");
        assert!(judge(20, true, host).is_ok());
    }

    #[test]
    fn smallest_limit_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("guest-ram-cgroup-{}", std::process::id()));
        let file = |path: &str, content: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a scratch directory");
            fs::write(path, content).expect("a scratch file");
        };
        file("memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
        file("memory/a/memory.limit_in_bytes", "4096\n");
        file("unified/x/memory.max", "max\n");
        file("y/memory.max", "8192\n");
        let limit = |groups: &str| cgroup_limit(groups, &root);
        assert_eq!(limit("4:cpu,memory:/a/b\n3:cpu:/z\n"), Some(4096));
        assert_eq!(limit("0::/x\n"), None);
        assert_eq!(limit("0::/y\n"), Some(8192));
        assert_eq!(limit("nonsense\n\n0:\n"), None);
        fs::remove_dir_all(&root).expect("our own directory");
    }
}
