//! The notes of an ELF kernel, as hostile input.
//!
//! Sources: System V ABI, chapter "Note section"; Xen's public/elfnote.h; Linux's include/linux/elfnote.h.

use super::error::FormError;
use super::le64;

/// Bytes of notes that are read of a kernel; Linux has a few hundred.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// Name size, descriptor size, type.
const HEAD_BYTES: usize = 12;
const XEN: &[u8] = b"Xen\0";
/// The note that makes a kernel a PVH kernel: a 32-bit physical entry.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Linux says by such notes how it was built.
const LINUX: &[u8] = b"Linux\0";

/// What a kernel's notes say.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Of the first PVH note.
    pub(super) pvh_entry: Option<Result<u64, FormError>>,
    pub(super) is_linux: bool,
}

impl Notes {
    /// Takes in the notes of one segment, up to the first that does not fit in.
    ///
    /// `alignment`: what names and descriptors are padded to, p_align; 4 unless it is 8.
    pub(super) fn read(&mut self, mut notes: &[u8], alignment: u64) {
        let padding = if alignment == 8 { 8 } else { 4 };
        while let Some((note, rest)) = Note::split_first(notes, padding) {
            self.take(note);
            notes = rest;
        }
    }

    fn take(&mut self, note: Note<'_>) {
        self.is_linux |= note.name == LINUX;
        if note.name == XEN && note.kind == XEN_ELFNOTE_PHYS32_ENTRY {
            self.pvh_entry.get_or_insert(match note.desc.len() {
                4 | 8 => Ok(le64(note.desc)),
                bytes => Err(FormError::BadPvhNote { bytes }),
            });
        }
    }
}

struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    desc: &'a [u8],
}

impl<'a> Note<'a> {
    /// The first note and what follows it.
    fn split_first(notes: &'a [u8], padding: usize) -> Option<(Self, &'a [u8])> {
        let (head, _) = notes.split_at_checked(HEAD_BYTES)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| head[at + i]));
        let name_end = HEAD_BYTES.checked_add(usize::try_from(word(0)).ok()?)?;
        let desc = name_end.checked_next_multiple_of(padding)?;
        let desc_end = desc.checked_add(usize::try_from(word(4)).ok()?)?;
        let note = Self {
            name: notes.get(HEAD_BYTES..name_end)?,
            kind: word(8),
            desc: notes.get(desc..desc_end)?,
        };
        // The last one need not be padded.
        let rest = notes.get(desc_end.checked_next_multiple_of(padding)?..).unwrap_or_default();
        Some((note, rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(name: &[u8], kind: u32, desc: &[u8], padding: usize) -> Vec<u8> {
        let sizes = [name.len(), desc.len()].map(|len| u32::try_from(len).expect("short"));
        let words = [sizes[0], sizes[1], kind];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        for part in [name, desc] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(padding), 0);
        }
        bytes
    }

    fn read(bytes: &[u8], alignment: u64) -> Notes {
        let mut notes = Notes::default();
        notes.read(bytes, alignment);
        notes
    }

    #[test]
    fn the_pvh_entry_is_found_among_other_notes_with_either_padding() {
        for padding in [4, 8] {
            let entry = 0x0100_0850u32.to_le_bytes();
            let bytes = [
                note(b"GNU\0", 3, &[7; 20], padding),
                note(LINUX, 0x101, &[0; 4], padding),
                note(XEN, XEN_ELFNOTE_PHYS32_ENTRY, &entry, padding),
                note(XEN, XEN_ELFNOTE_PHYS32_ENTRY, &[0xff; 8], padding),
            ];
            let notes = read(&bytes.concat(), padding as u64);
            assert!(matches!(notes.pvh_entry, Some(Ok(0x0100_0850))), "{padding}: {notes:?}");
            assert!(notes.is_linux);
        }
    }

    #[test]
    fn a_pvh_note_of_another_size_is_named_with_it() {
        let notes = read(&note(XEN, XEN_ELFNOTE_PHYS32_ENTRY, &[0; 6], 4), 4);
        assert!(matches!(notes.pvh_entry, Some(Err(FormError::BadPvhNote { bytes: 6 }))));
    }

    #[test]
    fn notes_that_do_not_fit_end_the_search() {
        let good = note(XEN, XEN_ELFNOTE_PHYS32_ENTRY, &[1; 4], 4);
        for cut in 0..good.len() {
            assert!(read(&good[..cut], 4).pvh_entry.is_none(), "{cut}");
        }
        let huge = [u32::MAX, u32::MAX, 18].map(u32::to_le_bytes).concat();
        assert!(read(&[huge, good].concat(), 4).pvh_entry.is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), align in 0u64..9) {
            let notes = read(&bytes, align);
            prop_assert!(notes.pvh_entry.is_none() || bytes.len() >= 16);
        }
    }
}
