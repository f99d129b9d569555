//! Red zones and poison, in debug builds only.

use core::ptr::NonNull;

/// Least bytes behind each object that nobody may write.
pub(super) const RED_ZONE_BYTES: usize = if cfg!(debug_assertions) { 16 } else { 0 };

const RED: u8 = 0xbb;
const POISON: u8 = 0x6b;

/// Paints the red zone behind an object, up to the next one.
///
/// # Safety
/// `object` starts `stride` writable bytes that nobody else uses.
pub(super) unsafe fn paint_red(object: NonNull<u8>, size: usize, stride: usize) {
    if cfg!(debug_assertions) {
        // SAFETY: inside the bytes that the caller vouches for.
        let zone = unsafe { object.add(size) };
        // SAFETY: as above.
        unsafe { zone.write_bytes(RED, stride - size) };
    }
}

/// Whether the red zone behind an object is intact.
///
/// # Safety
/// As for [`paint_red`]; readable suffices.
pub(super) unsafe fn red_is_intact(object: NonNull<u8>, size: usize, stride: usize) -> bool {
    RED_ZONE_BYTES == 0
        || (size..stride).all(|at| {
            // SAFETY: inside the bytes that the caller vouches for.
            let byte = unsafe { object.add(at) };
            // SAFETY: as above.
            unsafe { byte.read() == RED }
        })
}

/// Fills a free object with poison.
///
/// # Safety
/// `object` starts `size` writable bytes that nobody else uses.
pub(super) unsafe fn poison(object: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { object.write_bytes(POISON, size) };
}

/// Offset of the first byte that was written after the object was freed.
///
/// # Safety
/// As for [`poison`]; readable suffices.
pub(super) unsafe fn written_after_free(object: NonNull<u8>, size: usize) -> Option<usize> {
    (0..size).find(|&at| {
        // SAFETY: inside the bytes that the caller vouches for.
        let byte = unsafe { object.add(at) };
        // SAFETY: as above.
        unsafe { byte.read() != POISON }
    })
}
