//! vCPUs stay where they are: a migration of their threads would be part of a figure.

use std::{fs, io};

/// Binds each vCPU thread of process `pid` to one of the CPUs that this process
/// may use, in turns; returns how many it bound.
pub(super) fn pin_vcpus(pid: u32) -> io::Result<usize> {
    let cpus = allowed_cpus()?;
    let mut bound = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let name = fs::read_to_string(task.path().join("comm"))?;
        let Some(index) = name.trim().strip_prefix("vcpu").and_then(|id| id.parse::<usize>().ok())
        else {
            continue;
        };
        let thread = task.file_name().to_str().and_then(|id| id.parse().ok());
        let thread = thread.ok_or_else(|| io::Error::other("a thread without a number"))?;
        bind(thread, cpus[index % cpus.len()])?;
        bound += 1;
    }
    Ok(bound)
}

/// At least one CPU.
fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = affinity(0)?;
    let is_allowed = |cpu: &usize| {
        // SAFETY: reads a bit of `set`; `cpu` is below CPU_SETSIZE, which is its number of bits (CPU_SET(3)).
        unsafe { libc::CPU_ISSET(*cpu, &set) }
    };
    let cpus: Vec<usize> = (0..set_bits()).filter(is_allowed).collect();
    if cpus.is_empty() { Err(io::Error::other("no CPU is allowed")) } else { Ok(cpus) }
}

/// The CPUs of a thread, the calling one if `thread` is 0.
fn affinity(thread: libc::pid_t) -> io::Result<libc::cpu_set_t> {
    let mut set = empty_set();
    // SAFETY: `set` is a live cpu_set_t of exactly the size that is passed (sched_getaffinity(2)).
    let result =
        unsafe { libc::sched_getaffinity(thread, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result == 0 { Ok(set) } else { Err(io::Error::last_os_error()) }
}

fn bind(thread: libc::pid_t, cpu: usize) -> io::Result<()> {
    let mut set = empty_set();
    // SAFETY: sets a bit of `set`; `cpu` came from `allowed_cpus` and is below CPU_SETSIZE (CPU_SET(3)).
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a live cpu_set_t of exactly the size that is passed (sched_setaffinity(2)).
    let result =
        unsafe { libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn empty_set() -> libc::cpu_set_t {
    // SAFETY: a cpu_set_t is an array of integers, for which zeroes are the empty set (CPU_SET(3)).
    unsafe { std::mem::zeroed() }
}

const fn set_bits() -> usize {
    libc::CPU_SETSIZE as usize
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn only_vcpu_threads_are_bound_and_each_to_one_cpu() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let wait = move || {
            // SAFETY: gettid takes nothing and cannot fail (gettid(2)).
            tell.send(unsafe { libc::gettid() }).unwrap();
            ended.recv().ok();
        };
        let waiting = thread::Builder::new().name("vcpu1".into()).spawn(wait).unwrap();
        let vcpu = told.recv().unwrap();
        let before = allowed_cpus().unwrap();
        assert_eq!(pin_vcpus(std::process::id()).unwrap(), 1);
        assert_eq!(allowed_cpus().unwrap(), before, "the test's own thread may go anywhere still");
        let bound = affinity(vcpu).unwrap();
        // SAFETY: counts the bits of a live set (CPU_SET(3)).
        assert_eq!(unsafe { libc::CPU_COUNT(&bound) }, 1);
        drop(end);
        waiting.join().unwrap();
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(pin_vcpus(u32::MAX).is_err());
    }
}
