//! Why a kernel cannot be booted.

use std::fmt;
use std::io;

use super::cmdline::CmdlineError;
use super::form::Form;
use super::initrd::InitrdError;
use super::layout::ENTRY_END;

/// The kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be opened.
    #[error("Cannot open kernel {path}")]
    Open {
        /// Its path.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The file is no kernel that this machine can start.
    #[error("The kernel cannot be booted: {}", list(.tried))]
    NoForm {
        /// Every form that was tried, in order.
        tried: Vec<Attempt>,
    },
    /// A Linux kernel on a KVM that cannot run one.
    #[error(
        "This host's KVM cannot run a Linux kernel ({form}): it is a software KVM (no vmx or svm among the CPU's \
         flags), which interprets ring 0 instruction by instruction and lacks some, XRSTOR among them; the kernel \
         would be silent for minutes and then end with KVM_EXIT_INTERNAL_ERROR. Use a host with hardware \
         virtualisation, or see it happen with --allow-software-kvm"
    )]
    SoftwareKvm {
        /// What the kernel is.
        form: Form,
    },
    /// The command line cannot be passed.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The initrd cannot be loaded.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The kernel's file ended or failed while it was copied.
    #[error("Copying the kernel to guest RAM failed")]
    Copy(#[source] vm_memory::GuestMemoryError),
    /// The kernel's file cannot be read any more.
    #[error("Reading the kernel failed")]
    Seek(#[source] io::Error),
    /// linux-loader could not write the boot structures.
    #[error("Writing boot data to guest RAM failed")]
    Data(#[from] linux_loader::configurator::Error),
    /// Guest memory could not be written.
    #[error("Writing boot data to guest RAM failed")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A form that a kernel does not have.
#[derive(Debug)]
pub struct Attempt {
    /// What was tried.
    pub form: Form,
    /// Why it failed.
    pub error: FormError,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.form, self.error)
    }
}

fn beginning(found: &[u8]) -> String {
    if found.is_empty() {
        return String::from("it is empty");
    }
    format!("it begins with {found:02x?}")
}

fn list(tried: &[Attempt]) -> String {
    let texts: Vec<_> = tried.iter().map(Attempt::to_string).collect();
    texts.join("; ")
}

/// Why a file cannot be booted in a certain form.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The file cannot be read.
    #[error("reading failed: {0}")]
    Read(#[from] io::Error),
    /// The file does not begin like an ELF file.
    #[error("no ELF file, {}", beginning(.found))]
    NotElf {
        /// Its first bytes, at most 4.
        found: Vec<u8>,
    },
    /// An ELF file for another machine.
    #[error("no executable 64-bit little-endian x86-64 ELF file, {what} is {found}")]
    WrongElf {
        /// Field of the ELF header.
        what: &'static str,
        /// Its value.
        found: u16,
    },
    /// The file ends before what its headers speak of.
    #[error("truncated, {what} ends at byte {end} but there are {len} B")]
    Truncated {
        /// What is cut.
        what: &'static str,
        /// Where it would end.
        end: u128,
        /// Bytes of the file.
        len: u64,
    },
    /// A loadable segment is larger in the file than in memory.
    #[error("a segment has {file_bytes} B in the file but {memory_bytes} B in memory")]
    BadSegment {
        /// p_filesz.
        file_bytes: u64,
        /// p_memsz.
        memory_bytes: u64,
    },
    /// A part of the kernel does not fit.
    #[error("does not fit, {what} needs {start:#x}..{end:#x} but RAM for kernels is {ram}")]
    DoesNotFit {
        /// What does not fit.
        what: &'static str,
        /// Guest-physical start.
        start: u64,
        /// Guest-physical end.
        end: u128,
        /// The ranges that there are.
        ram: String,
    },
    /// Loadable segments share memory.
    #[error("its segments {segments} overlap")]
    Overlap {
        /// Two of them.
        segments: String,
    },
    /// Notes beyond reason.
    #[error("its notes have {bytes} B, at most {max} B are read")]
    NotesTooLarge {
        /// Sum of p_filesz.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// No note says where a PVH loader enters.
    #[error("no PVH note (Xen ELF note 18, PHYS32_ENTRY; Linux has one with CONFIG_PVH)")]
    NoPvhNote,
    /// The PVH note has a value of a size that means nothing.
    #[error("the PVH note has {bytes} B, possible are 4 and 8")]
    BadPvhNote {
        /// n_descsz.
        bytes: usize,
    },
    /// The kernel would be entered where it is not.
    #[error("the entry {entry:#x} lies outside the loaded segments {segments}")]
    EntryOutsideKernel {
        /// Where.
        entry: u64,
        /// The segments.
        segments: String,
    },
    /// The kernel would be entered where nothing is mapped yet.
    #[error("the entry {entry:#x} is beyond the {ENTRY_END:#x} that a kernel is entered below")]
    EntryTooHigh {
        /// Where.
        entry: u64,
    },
    /// The file is no bzImage.
    #[error("no bzImage, {what} at {offset:#x} is {found:02x?}, not {wanted:02x?}")]
    NotBzImage {
        /// Field of the setup header.
        what: &'static str,
        /// Where it is.
        offset: u64,
        /// What there is.
        found: Vec<u8>,
        /// What there would be.
        wanted: &'static [u8],
    },
    /// A setup header older than what is needed.
    #[error(
        "boot protocol {}.{:02} is too old, needed is {}.{:02}",
        .version >> 8, .version & 0xff, .needed >> 8, .needed & 0xff
    )]
    OldProtocol {
        /// What it is.
        version: u16,
        /// What it would have to be.
        needed: u16,
    },
    /// The kernel has no 64-bit entry.
    #[error("no 64-bit entry, xloadflags is {xloadflags:#x} without XLF_KERNEL_64 (bit 0)")]
    No64BitEntry {
        /// The field.
        xloadflags: u16,
    },
    /// The kernel's own decompressor has to deal with the payload.
    #[error("the payload is left to the kernel's own decompressor: {reason}")]
    LeftToKernel {
        /// Why.
        reason: &'static str,
    },
    /// The payload says that it becomes more than there can be.
    #[error("the payload claims to become {bytes} B, possible are 1 to {limit} B")]
    BadPayloadSize {
        /// Its claim.
        bytes: u64,
        /// The limit by the header and by RAM.
        limit: u64,
    },
    /// The payload is longer than what it may become.
    #[error("the payload has {bytes} B, more than the {limit} B that it may become")]
    LongPayload {
        /// Its length.
        bytes: u64,
        /// The limit by the header and by RAM.
        limit: u64,
    },
    /// The payload does not decompress.
    #[error("the payload is corrupt: {0}")]
    CorruptPayload(String),
    /// The host has no memory for the decompressed kernel.
    #[error("no memory for {bytes} B of decompressed kernel")]
    NoMemory {
        /// How much.
        bytes: u64,
    },
}
