//! The PVH start info: what a VMM tells a kernel that it boots.
//!
//! Source: Xen `include/public/arch-x86/hvm/start_info.h`. All of it is the
//! loader's word: read once, checked, copied.

/// Value of the structure's first field.
pub const MAGIC: u32 = 0x336e_c578;
/// Bytes of the structure at version 1, the first that has a memory map.
pub const BYTES: usize = 56;
/// Bytes of a memory map entry: address, size, type, reserved.
pub const MAP_ENTRY_BYTES: usize = 24;
/// Bytes of a module list entry: address, size, command line, reserved.
pub const MODULE_ENTRY_BYTES: usize = 32;
/// Type of a memory map entry that is RAM.
pub const TYPE_RAM: u32 = 1;

/// Start info, version 1 and above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartInfo {
    /// Number of modules (an initrd is one).
    pub modules: u32,
    /// GPA of the module list.
    pub module_list: u64,
    /// GPA of the command line, or 0.
    pub cmdline: u64,
    /// GPA of ACPI's root pointer, or 0.
    pub rsdp: u64,
    /// GPA of the memory map.
    pub map: u64,
    /// Entries of the memory map.
    pub map_entries: u32,
}

/// Why start info cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartInfoError {
    /// Fewer bytes than the structure has.
    Short,
    /// The magic number is wrong: not booted by PVH.
    Magic(u32),
    /// Version 0, which has no memory map.
    NoMemoryMap,
}

impl core::fmt::Display for StartInfoError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Short => f.write_str("PVH start info is out of reach"),
            Self::Magic(found) => write!(f, "PVH start info has magic {found:#x}"),
            Self::NoMemoryMap => f.write_str("PVH start info has no memory map"),
        }
    }
}

impl core::error::Error for StartInfoError {}

/// One entry of the memory map, as the loader wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte.
    pub gpa: u64,
    /// Bytes; the sum with `gpa` may overflow.
    pub bytes: u64,
    /// [`TYPE_RAM`] or something that is not ours to use.
    pub kind: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

impl StartInfo {
    /// Reads the structure.
    ///
    /// # Errors
    /// [`StartInfoError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StartInfoError> {
        let word = |at| u32_at(bytes, at).ok_or(StartInfoError::Short);
        let quad = |at| u64_at(bytes, at).ok_or(StartInfoError::Short);
        let magic = word(0)?;
        if magic != MAGIC {
            return Err(StartInfoError::Magic(magic));
        }
        if word(4)? == 0 {
            return Err(StartInfoError::NoMemoryMap);
        }
        let info = Self {
            modules: word(12)?,
            module_list: quad(16)?,
            cmdline: quad(24)?,
            rsdp: quad(32)?,
            map: quad(40)?,
            map_entries: word(48)?,
        };
        if info.map == 0 || info.map_entries == 0 {
            return Err(StartInfoError::NoMemoryMap);
        }
        Ok(info)
    }
}

/// The entries of a memory map; a trailing fragment is ignored.
pub fn map_entries(bytes: &[u8]) -> impl Iterator<Item = MapEntry> {
    bytes.chunks_exact(MAP_ENTRY_BYTES).filter_map(|entry| {
        Some(MapEntry {
            gpa: u64_at(entry, 0)?,
            bytes: u64_at(entry, 8)?,
            kind: u32_at(entry, 16)?,
        })
    })
}

/// Address and size of the modules in a list.
pub fn module_entries(bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    bytes
        .chunks_exact(MODULE_ENTRY_BYTES)
        .filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn valid() -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = 1;
        bytes[24..32].copy_from_slice(&0x2_0000u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&0xe_0000u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&0x7000u64.to_le_bytes());
        bytes[48] = 3;
        bytes
    }

    #[test]
    fn version_1_is_read() {
        let info = StartInfo::parse(&valid()).unwrap();
        assert_eq!(
            info,
            StartInfo {
                modules: 0,
                module_list: 0,
                cmdline: 0x2_0000,
                rsdp: 0xe_0000,
                map: 0x7000,
                map_entries: 3
            }
        );
    }

    #[test]
    fn wrong_magic_version_0_and_a_short_structure_are_refused() {
        let mut bytes = valid();
        bytes[0] = 0;
        assert!(matches!(StartInfo::parse(&bytes), Err(StartInfoError::Magic(_))));
        let mut bytes = valid();
        bytes[4] = 0;
        assert_eq!(StartInfo::parse(&bytes), Err(StartInfoError::NoMemoryMap));
        let mut bytes = valid();
        bytes[48] = 0;
        assert_eq!(StartInfo::parse(&bytes), Err(StartInfoError::NoMemoryMap));
        assert_eq!(StartInfo::parse(&valid()[..51]), Err(StartInfoError::Short));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            prop_assert!(StartInfo::parse(&bytes).is_err());
            prop_assert_eq!(map_entries(&bytes).count(), bytes.len() / MAP_ENTRY_BYTES);
            prop_assert_eq!(module_entries(&bytes).count(), bytes.len() / MODULE_ENTRY_BYTES);
        }
    }
}
