//! A sealed memory file, mapped shared.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;

use crate::backing::{self, Backing, BackingKind};
use crate::error::{HostRamError, TruthError};
use crate::mapping::{HostRange, Mapping, Source};

/// Never executable, and never to be made so (Linux 6.3).
const MFD_NOEXEC_SEAL: libc::c_uint = 8;

/// Released by `MADV_REMOVE`; measured by the file's blocks.
///
/// The mapping must be shared: a private one of a written file holds every
/// page twice, and `MADV_DONTNEED` on a shared one succeeds and frees nothing.
#[derive(Debug)]
pub(crate) struct Memfd {
    file: File,
}

/// Makes one file for all lengths and maps its parts.
pub(crate) fn map(lens: &[usize]) -> Result<(Box<dyn Backing>, Vec<Mapping>), HostRamError> {
    let total = lens.iter().map(|&len| len as u64).sum::<u64>();
    let failed = |what| {
        move |source| HostRamError::File { what, bytes: total, backing: BackingKind::Memfd, source }
    };
    let file = create().map_err(failed("memfd_create"))?;
    refuse_above_file_size_limit(total).map_err(failed("Sizing the memory file"))?;
    file.set_len(total).map_err(failed("Sizing the memory file"))?;
    seal(&file).map_err(failed("Sealing the memory file"))?;
    let mut mappings = Vec::with_capacity(lens.len());
    let mut offset = 0;
    for &len in lens {
        let source = Source::SharedFile(&file, offset);
        let mapping = Mapping::new(len, source).map_err(|source| HostRamError::Map {
            bytes: total,
            backing: BackingKind::Memfd,
            hint: "an address-space limit (ulimit -v), or strict accounting (vm.overcommit_memory=2)",
            source,
        })?;
        mapping.hint(libc::MADV_NOHUGEPAGE);
        mapping.hint(libc::MADV_DONTDUMP);
        mappings.push(mapping);
        offset += len as u64;
    }
    Ok((Box::new(Memfd { file }), mappings))
}

/// An empty, sealable file; not executable where the kernel can promise that.
fn create() -> io::Result<File> {
    let base = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let unknown_flag = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match create_with(base | MFD_NOEXEC_SEAL) {
        Err(error) if unknown_flag(&error) => create_with(base),
        other => other,
    }
}

fn create_with(flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal, which the call only reads.
    let fd = unsafe { libc::memfd_create(c"aerostat-guest-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Growing a file beyond RLIMIT_FSIZE would end the process by SIGXFSZ: refuse first.
fn refuse_above_file_size_limit(bytes: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live `rlimit`, which the call fills in.
    if unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if bytes > limit.rlim_cur {
        let reason = format!("the limit on file sizes (ulimit -f) is {} B", limit.rlim_cur);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(())
}

/// Fixes the size, so that no mapped page can lose its file, and the seals themselves.
/// Not F_SEAL_WRITE: it would forbid the guest's writes and the holes.
fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl with an integer argument on a descriptor that `file` keeps open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Backing for Memfd {
    fn kind(&self) -> BackingKind {
        BackingKind::Memfd
    }

    fn page_bytes(&self) -> usize {
        backing::base_page_bytes()
    }

    fn batch_advice(&self) -> Option<libc::c_int> {
        Some(libc::MADV_REMOVE)
    }

    unsafe fn release_one(&self, piece: HostRange) -> io::Result<()> {
        // SAFETY: the caller's contract is that of `madvise`.
        unsafe { backing::madvise(piece, libc::MADV_REMOVE) }
    }

    fn truth_name(&self) -> &'static str {
        "blocks of the memory file"
    }

    fn resident_bytes(&self, _mappings: &[HostRange]) -> Result<Option<u64>, TruthError> {
        let metadata = self
            .file
            .metadata()
            .map_err(|source| TruthError::Read { what: "fstat of the memory file", source })?;
        Ok(Some(metadata.blocks() * 512))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_can_neither_shrink_nor_grow_nor_be_unsealed() {
        let file = create().expect("a memory file");
        file.set_len(8192).expect("not sealed yet");
        seal(&file).expect("a fresh file can be sealed");
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(12288).is_err());
        assert!(seal(&file).is_err());
    }
}
