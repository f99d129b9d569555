//! Changing the ranges of VMAs that are in trees.

use core::ptr::NonNull;

use super::chain::{links, span};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::space::Vma;

impl<'m, P: Platform> Mm<'m, P> {
    /// Puts a file VMA into its file's tree; does nothing for an anonymous one.
    ///
    /// The caller holds the space's lock for writing; the VMA keeps its address
    /// until [`Self::vma_unlink_file`].
    pub fn vma_link_file(&self, vma: &Vma<'m, P>) {
        let Some(file) = vma.file else { return };
        // SAFETY: the VMA holds a reference of its file.
        let tree = unsafe { file.as_ref() }.i_mmap.write(self.platform());
        let (first, last) = span(vma);
        let node = NonNull::from(&vma.rmap.i_mmap);
        // SAFETY: locked for writing; the VMA stays until it is unlinked.
        unsafe { tree.insert(node, NonNull::from(vma), first, last) };
    }

    /// Takes a file VMA out of its file's tree, if it is in it.
    pub fn vma_unlink_file(&self, vma: &Vma<'m, P>) {
        let Some(file) = vma.file else { return };
        // SAFETY: the VMA holds a reference of its file.
        let tree = unsafe { file.as_ref() }.i_mmap.write(self.platform());
        if vma.rmap.i_mmap.is_linked() {
            // SAFETY: locked for writing, and in this tree since `vma_link_file`.
            unsafe { tree.remove(NonNull::from(&vma.rmap.i_mmap)) };
        }
    }

    /// Runs `change`, which may set the ranges and offsets of `vmas` anew, while
    /// reverse maps cannot look at them: all trees that they are in are locked, and
    /// have the new ranges afterwards.
    ///
    /// The VMAs map one file, or none, and their `AnonVma`s are of one family: true
    /// of the pieces of a split, of those of a merge, and of a VMA alone. The
    /// caller holds the space's lock for writing. `change` may call neither this
    /// nor anything that walks reverse maps.
    pub fn adjust_vmas<R>(&self, vmas: &[&Vma<'m, P>], change: impl FnOnce() -> R) -> R {
        let file = vmas.iter().find_map(|vma| vma.file);
        debug_assert!(vmas.iter().all(|vma| vma.file == file), "VMAs of several files");
        debug_assert!(vmas.len() <= 64, "a call changes a handful");
        // SAFETY: the VMAs hold references of their file.
        let i_mmap = file.map(|file| unsafe { &*file.as_ptr() }.i_mmap.write(self.platform()));
        let family = vmas.iter().find_map(|vma| links(vma).next()).map(|link| link.anon_vma());
        let anon = family.map(|anon_vma| match &i_mmap {
            Some(_) => anon_vma.write_nested(self.platform()),
            None => anon_vma.write(self.platform()),
        });
        // Bit i: VMA i was in the file's tree.
        let mut linked = 0u64;
        for (i, vma) in vmas.iter().enumerate() {
            if let Some(tree) = i_mmap.as_ref().filter(|_| vma.rmap.i_mmap.is_linked()) {
                linked |= 1 << i;
                // SAFETY: locked for writing, and in this tree.
                unsafe { tree.remove(NonNull::from(&vma.rmap.i_mmap)) };
            }
            for link in links(vma) {
                debug_assert!(
                    family.is_some_and(|kin| kin.is_kin(link.anon_vma())),
                    "two families"
                );
                // SAFETY: as above.
                unsafe { link.anon_vma().tree.remove(NonNull::from(&link.node)) };
            }
        }
        let result = change();
        for (i, vma) in vmas.iter().enumerate() {
            let (first, last) = span(vma);
            let item = NonNull::from(*vma);
            if let Some(tree) = i_mmap.as_ref().filter(|_| linked >> i & 1 == 1) {
                // SAFETY: locked for writing; the VMA stays until it is unlinked.
                unsafe { tree.insert(NonNull::from(&vma.rmap.i_mmap), item, first, last) };
            }
            for link in links(vma) {
                // SAFETY: as above, for the link.
                unsafe {
                    link.anon_vma().tree.insert(NonNull::from(&link.node), item, first, last)
                };
            }
        }
        // The inner lock first.
        drop(anon);
        drop(i_mmap);
        result
    }
}
