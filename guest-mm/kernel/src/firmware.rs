//! Which CPUs there are, by the firmware's word: ACPI's MADT, else the table of the MultiProcessor Specification.
//!
//! Sources: ACPI 6.5 §5.2.5, §5.2.8, §5.2.12; MultiProcessor Specification 1.4 §4. Everything read is the loader's
//! word: lengths are bounded, checksums compared, unknown entries stepped over, and a table that makes no sense is as
//! good as none. Nothing is ever tried that a table does not list.

use crate::layout::CPUS;

/// A system description table longer than this is not looked at.
const MAX_TABLE_BYTES: u64 = 16 << 10;
/// Bytes of the header that every system description table begins with.
const HEADER_BYTES: usize = 36;
/// Where a root pointer lies that the loader does not name.
const ROM: (u64, u64) = (0xe_0000, 0x2_0000);
/// Last KiB of conventional memory, where firmware without a ROM puts the MP table's pointer.
const LAST_KIB: (u64, u64) = (0x9_fc00, 0x400);
/// Root pointers lie at multiples of this.
const ROOT_ALIGNMENT: usize = 16;

/// How a local APIC was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// ACPI's Multiple APIC Description Table.
    Madt,
    /// The MultiProcessor Specification's table.
    MpTable,
    /// `cpus=N` on the command line: APIC ids 0 to N - 1.
    CommandLine,
    /// Nothing says anything: the CPU that we run on.
    Nothing,
}

/// The local APICs that this kernel may start: at most [`CPUS`], enabled, each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicIds {
    ids: [u8; CPUS],
    len: usize,
    /// Enabled CPUs beyond those that this kernel has room for.
    pub left_out: usize,
    /// Who said so.
    pub source: Source,
}

impl ApicIds {
    const fn new(source: Source) -> Self {
        Self { ids: [0; CPUS], len: 0, left_out: 0, source }
    }

    /// Ids in the order of the table.
    pub fn ids(&self) -> &[u8] {
        self.ids.get(..self.len).unwrap_or(&[])
    }

    fn push(&mut self, id: u32) {
        // 0xff is the broadcast; larger ones need x2APIC mode.
        let Ok(id @ 0..=0xfe) = u8::try_from(id) else {
            self.left_out += 1;
            return;
        };
        if self.ids().contains(&id) {
            return;
        }
        match self.ids.get_mut(self.len) {
            Some(slot) => {
                *slot = id;
                self.len += 1;
            }
            None => self.left_out += 1,
        }
    }

    /// The CPUs to start besides the one with the id `boot`, of which `limit` in all are wanted.
    pub fn others(&self, boot: u32, limit: usize) -> impl Iterator<Item = u8> {
        self.ids.into_iter().take(self.len).filter(move |id| u32::from(*id) != boot).take(
            // The boot CPU is one of them, listed or not.
            limit.clamp(1, CPUS) - 1,
        )
    }
}

/// Guest memory as the loader left it: `None` where nothing may be read.
pub trait LoaderMemory {
    /// The bytes `gpa..gpa + len`.
    fn bytes(&self, gpa: u64, len: u64) -> Option<&[u8]>;
}

/// Finds the CPUs. `rsdp`: where the loader says that ACPI's root pointer is, 0 if it does not; `cpus`: the command
/// line's word, which counts only if no table does.
pub fn find_cpus(memory: &impl LoaderMemory, rsdp: u64, cpus: Option<usize>) -> ApicIds {
    let from_acpi = if rsdp == 0 { search_rsdp(memory) } else { Some(rsdp) }
        .and_then(|rsdp| madt_of(memory, rsdp))
        .map(local_apics);
    let found = from_acpi.or_else(|| {
        // A loader that names a root pointer has no other table worth a search.
        if rsdp == 0 { mp_table(memory) } else { None }
    });
    if let Some(found) = found.filter(|found| found.len > 0) {
        return found;
    }
    let mut ids = ApicIds::new(if cpus.is_some() { Source::CommandLine } else { Source::Nothing });
    for id in 0..cpus.unwrap_or(0).min(CPUS) {
        ids.push(u32::try_from(id).unwrap_or(u32::MAX));
    }
    ids
}

/// Whether bytes add up to 0.
fn adds_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// The offset of a structure that begins with `signature` and whose first `len` bytes add up, at a root's alignment.
fn search(area: &[u8], signature: &[u8], len: usize) -> Option<usize> {
    (0..area.len()).step_by(ROOT_ALIGNMENT).find(|at| {
        let here = area.get(*at..).unwrap_or(&[]);
        here.starts_with(signature) && here.get(..len).is_some_and(adds_up)
    })
}

const RSDP_SIGNATURE: &[u8; 8] = b"RSD PTR ";
/// Bytes of a root pointer of revision 0, which the first checksum covers.
const RSDP_BYTES: usize = 20;

fn search_rsdp(memory: &impl LoaderMemory) -> Option<u64> {
    let area = memory.bytes(ROM.0, ROM.1)?;
    Some(ROM.0 + search(area, RSDP_SIGNATURE, RSDP_BYTES)? as u64)
}

/// A system description table with this signature whose bytes add up.
fn table<'m>(memory: &'m impl LoaderMemory, gpa: u64, signature: &[u8; 4]) -> Option<&'m [u8]> {
    let header = memory.bytes(gpa, HEADER_BYTES as u64)?;
    let len = u64::from(u32_at(header, 4)?);
    if !header.starts_with(signature) || !(HEADER_BYTES as u64..=MAX_TABLE_BYTES).contains(&len) {
        return None;
    }
    memory.bytes(gpa, len).filter(|bytes| adds_up(bytes))
}

/// The MADT that a root pointer leads to.
fn madt_of(memory: &impl LoaderMemory, rsdp: u64) -> Option<&[u8]> {
    let root = memory.bytes(rsdp, RSDP_BYTES as u64)?;
    if !root.starts_with(RSDP_SIGNATURE) || !adds_up(root) {
        return None;
    }
    let madt = |gpa: u64| table(memory, gpa, b"APIC");
    let revision = root.get(15).copied()?;
    if revision >= 2
        && let Some(xsdt) =
            memory.bytes(rsdp, 36).and_then(|root| table(memory, u64_at(root, 24)?, b"XSDT"))
    {
        let entries = xsdt.get(HEADER_BYTES..)?.chunks_exact(8);
        return entries.filter_map(|entry| u64_at(entry, 0)).find_map(madt);
    }
    let rsdt = table(memory, u64::from(u32_at(root, 16)?), b"RSDT")?;
    let entries = rsdt.get(HEADER_BYTES..)?.chunks_exact(4);
    entries.filter_map(|entry| u32_at(entry, 0)).map(u64::from).find_map(madt)
}

/// The enabled CPUs of a MADT. One that is only "online capable" may not exist yet and is not touched.
fn local_apics(madt: &[u8]) -> ApicIds {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_X2APIC: u8 = 9;
    const ENABLED: u32 = 1;
    let mut ids = ApicIds::new(Source::Madt);
    // After the header: address of the local APICs, flags.
    let mut rest = madt.get(HEADER_BYTES + 8..).unwrap_or(&[]);
    while let [kind, len, ..] = *rest {
        let Some((entry, after)) = rest.split_at_checked(usize::from(len)) else { break };
        if len < 2 {
            break;
        }
        rest = after;
        let (id, flags) = match kind {
            LOCAL_APIC => (entry.get(3).map(|id| u32::from(*id)), u32_at(entry, 4)),
            LOCAL_X2APIC => (u32_at(entry, 4), u32_at(entry, 8)),
            _ => continue,
        };
        if let (Some(id), Some(flags)) = (id, flags)
            && flags & ENABLED != 0
        {
            ids.push(id);
        }
    }
    ids
}

/// The enabled CPUs of an MP configuration table.
fn mp_table(memory: &impl LoaderMemory) -> Option<ApicIds> {
    const POINTER_BYTES: usize = 16;
    const HEADER: usize = 44;
    const PROCESSOR: u8 = 0;
    const PROCESSOR_BYTES: usize = 20;
    const OTHER_BYTES: usize = 8;
    const ENABLED: u8 = 1;
    let gpa = [LAST_KIB, ROM].into_iter().find_map(|(start, len)| {
        let area = memory.bytes(start, len)?;
        let pointer = area.get(search(area, b"_MP_", POINTER_BYTES)?..)?;
        u32_at(pointer, 4).filter(|gpa| *gpa != 0)
    })?;
    let header = memory.bytes(u64::from(gpa), HEADER as u64)?;
    let len = u16_at(header, 4)?;
    if !header.starts_with(b"PCMP") || usize::from(len) < HEADER {
        return None;
    }
    let config = memory.bytes(u64::from(gpa), u64::from(len)).filter(|bytes| adds_up(bytes))?;
    let mut ids = ApicIds::new(Source::MpTable);
    let mut rest = config.get(HEADER..)?;
    for _ in 0..u16_at(header, 34)? {
        let bytes = if rest.first() == Some(&PROCESSOR) { PROCESSOR_BYTES } else { OTHER_BYTES };
        let Some((entry, after)) = rest.split_at_checked(bytes) else { break };
        rest = after;
        if let [PROCESSOR, id, _, flags, ..] = entry
            && flags & ENABLED != 0
        {
            ids.push(u32::from(*id));
        }
    }
    Some(ids)
}

#[cfg(test)]
mod tests;
