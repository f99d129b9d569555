//! Size classes: which sizes share zspages, and how long those are.
//!
//! Sizes from 32 to 4096 bytes in steps of 16. A zspage of a class is as many
//! pages as waste least behind its last whole object; classes whose zspages have
//! as many pages and as many objects as each other are one, of the largest size
//! among them. The table is made at compile time.

/// Most pages of a zspage.
pub const MAX_CHAIN: usize = 4;
/// Largest object, in bytes.
pub const MAX_OBJECT_BYTES: usize = PAGE;
/// Bytes in front of each object: its handle, or the next free object.
pub(super) const HEADER_BYTES: usize = size_of::<u32>();

const PAGE: usize = 4096;
/// Smallest place for an object, header included.
const SMALLEST: usize = 32;
/// From one size to the next.
const STEP: usize = 16;
/// Sizes before merging.
const SIZES: usize = (PAGE - SMALLEST) / STEP + 1;

/// A class of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeClass {
    /// From one object to the next, in bytes: header and payload.
    pub stride: usize,
    /// Pages of a zspage.
    pub pages: usize,
    /// Objects of a zspage.
    pub objects: usize,
}

impl SizeClass {
    /// Bytes that an object can hold.
    pub const fn capacity(&self) -> usize {
        if self.is_huge() { PAGE } else { self.stride - HEADER_BYTES }
    }

    /// Whether an object is a page of its own, whose header has no place there:
    /// it is in the page's descriptor.
    pub const fn is_huge(&self) -> bool {
        self.stride == PAGE
    }
}

/// Number of classes.
pub const CLASSES: usize = count();
/// The classes, by size.
pub const ALL: [SizeClass; CLASSES] = merged().0;
/// The class of each size, before merging.
const CLASS_OF_SIZE: [u8; SIZES] = merged().1;

/// The class for objects of `bytes` bytes; `None` for 0 and more than a page.
pub fn class_of(bytes: usize) -> Option<usize> {
    if bytes == 0 || bytes > MAX_OBJECT_BYTES {
        return None;
    }
    let place = (bytes + HEADER_BYTES).clamp(SMALLEST, PAGE);
    Some(usize::from(CLASS_OF_SIZE[(place - SMALLEST).div_ceil(STEP)]))
}

/// The class of one size alone.
const fn single(stride: usize) -> SizeClass {
    let mut best = SizeClass { stride, pages: 1, objects: PAGE / stride };
    let mut pages = 2;
    while pages <= MAX_CHAIN {
        let bytes = pages * PAGE;
        // Waste per page, compared without division.
        if (bytes % stride) * best.pages < (best.pages * PAGE % stride) * pages {
            best = SizeClass { stride, pages, objects: bytes / stride };
        }
        pages += 1;
    }
    best
}

const fn is_same(a: SizeClass, b: SizeClass) -> bool {
    a.pages == b.pages && a.objects == b.objects
}

const fn count() -> usize {
    let mut classes = 1;
    let mut at = 1;
    while at < SIZES {
        let (size, smaller) = (SMALLEST + at * STEP, SMALLEST + (at - 1) * STEP);
        if !is_same(single(size), single(smaller)) {
            classes += 1;
        }
        at += 1;
    }
    classes
}

const fn merged() -> ([SizeClass; CLASSES], [u8; SIZES]) {
    let mut classes = [single(SMALLEST); CLASSES];
    let mut of_size = [0; SIZES];
    let (mut class, mut at) = (0, 1);
    while at < SIZES {
        let next = single(SMALLEST + at * STEP);
        if !is_same(next, classes[class]) {
            class += 1;
        }
        classes[class] = next;
        #[expect(clippy::cast_possible_truncation, reason = "asserted below")]
        {
            of_size[at] = class as u8;
        }
        at += 1;
    }
    (classes, of_size)
}

const _: () = assert!(CLASSES <= u8::MAX as usize, "a class's number is a byte");
const _: () = assert!(ALL[CLASSES - 1].is_huge() && ALL[CLASSES - 1].objects == 1);
const _: () = assert!(ALL[0].objects <= super::handle::MAX_OBJECTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_the_smallest_class_that_holds_it() {
        for bytes in 1..=MAX_OBJECT_BYTES {
            let class = class_of(bytes).unwrap();
            assert!(ALL[class].capacity() >= bytes, "{bytes}: {:?}", ALL[class]);
            if class > 0 {
                assert!(ALL[class - 1].capacity() < bytes, "{bytes} would fit a smaller class");
            }
        }
        assert_eq!((class_of(0), class_of(MAX_OBJECT_BYTES + 1)), (None, None));
    }

    #[test]
    fn objects_fit_their_zspages_and_headers_never_straddle_pages() {
        for class in &ALL {
            assert!(class.objects * class.stride <= class.pages * PAGE, "{class:?}");
            assert!((class.objects + 1) * class.stride > class.pages * PAGE, "{class:?}");
            assert!(class.stride.is_multiple_of(STEP) && PAGE.is_multiple_of(STEP));
            assert!((1..=MAX_CHAIN).contains(&class.pages));
        }
    }

    #[test]
    fn classes_differ_in_what_decides_and_waste_little() {
        for pair in ALL.windows(2) {
            assert!(!is_same(pair[0], pair[1]), "{pair:?}");
            assert!(pair[0].stride < pair[1].stride);
        }
        // What is left behind the last object, over what a zspage has.
        let worst = ALL.iter().map(|c| (c.pages * PAGE) % c.stride * 100 / (c.pages * PAGE)).max();
        assert!(worst.unwrap() <= 12, "{worst:?} %");
    }
}
