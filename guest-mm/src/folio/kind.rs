//! What a folio holds, and the words that say so.

use core::ptr::NonNull;

use super::{Folio, FolioFlags};
use crate::memdesc::{Descriptor, DescriptorKind, Hold, Memdesc, Word};

/// What a folio holds: the tag of its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FolioKind {
    /// Pages of a file.
    File,
    /// A process's own memory.
    Anon,
    /// Memory of a device that the CPU can reach.
    Device,
}

impl FolioKind {
    /// The flags that say the same.
    pub(super) const fn flags(self) -> FolioFlags {
        match self {
            Self::File => FolioFlags::empty(),
            Self::Anon => FolioFlags::ANON,
            Self::Device => FolioFlags::DEVICE,
        }
    }

    /// The tag of its words.
    pub const fn descriptor_kind(self) -> DescriptorKind {
        match self {
            Self::File => DescriptorKind::File,
            Self::Anon => DescriptorKind::Anon,
            Self::Device => DescriptorKind::DevFolio,
        }
    }

    /// The word of all frames of the folio that `folio` describes.
    ///
    /// # Panics
    /// If the address does not fit a word: no allocator hands out such.
    pub fn word_of(self, folio: NonNull<Folio>) -> Word {
        self.held_word_of(folio, Hold::Held)
    }

    /// The word of frames that the folio has left, until no leaf names them any
    /// more: no reader takes them for the folio's, but leaves that do are counted
    /// by its tag.
    ///
    /// # Panics
    /// As [`Self::word_of`].
    pub fn left_word_of(self, folio: NonNull<Folio>) -> Word {
        self.held_word_of(folio, Hold::Isolated)
    }

    fn held_word_of(self, folio: NonNull<Folio>, hold: Hold) -> Word {
        let address = folio.as_ptr().expose_provenance() as u64;
        let descriptor = Descriptor::new(self.descriptor_kind(), address)
            .unwrap_or_else(|| unreachable!("descriptors are aligned to 16 bytes"));
        Memdesc::Descriptor(descriptor.with_hold(hold)).encode()
    }
}

/// The descriptor that `word` names, if it is a folio's, and the frame the folio's.
pub(super) fn descriptor_of(word: Word) -> Option<NonNull<Folio>> {
    let Ok(Memdesc::Descriptor(descriptor)) = word.decode() else { return None };
    if descriptor.hold == Hold::Isolated {
        // The folio has moved away.
        return None;
    }
    match descriptor.kind {
        DescriptorKind::File | DescriptorKind::Anon | DescriptorKind::DevFolio => {
            let address = usize::try_from(descriptor.address()).ok()?;
            NonNull::new(core::ptr::with_exposed_provenance_mut(address))
        }
        DescriptorKind::Ksm
        | DescriptorKind::Slab
        | DescriptorKind::Movable
        | DescriptorKind::PtDesc
        | DescriptorKind::HwPoison
        | DescriptorKind::ZpDesc => None,
    }
}
