//! Locking one VMA.

use super::*;

#[test]
fn a_reader_gets_the_vma_by_its_own_lock_and_the_writer_waits_for_it() {
    with_space(|mm, space| {
        mm.mmap(space, Args::anonymous(2 * PAGE).fixed(HERE)).unwrap();
        let guard = space.vma_read(va(HERE + PAGE)).unwrap();
        assert!(guard.is_vma_lock());
        assert_eq!(guard.range().start(), va(HERE));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                testing::set_cpu(1);
                mm.munmap(space, HERE, 2 * PAGE).unwrap();
            });
            // The writer holds the space's lock and waits for this reader. A look at the
            // outer lock from here is against the order, so it is another CPU's.
            testing::set_cpu(2);
            while space.try_read().is_some() {
                std::thread::yield_now();
            }
            testing::set_cpu(0);
            assert_eq!((guard.lock.readers(), guard.range().end()), (1, va(HERE + 2 * PAGE)));
            drop(guard);
            writer.join().unwrap();
        });
        assert_eq!(space.vma_read(va(HERE)).err(), Some(Errno::EFAULT));
    });
}

#[test]
fn addresses_outside_every_vma_are_bad() {
    with_space(|mm, space| {
        assert!(matches!(space.vma_read(va(HERE)), Err(Errno::EFAULT)));
        mm.mmap(space, Args::anonymous(PAGE).fixed(HERE)).unwrap();
        for address in [0, HERE - 1, HERE + PAGE, USER_END] {
            assert_eq!(space.vma_read(va(address)).err(), Some(Errno::EFAULT), "{address:#x}");
        }
        assert!(space.vma_read(va(HERE + PAGE - 1)).is_ok());
    });
}

#[test]
fn readers_and_a_writer_that_remaps_agree_on_what_is_mapped() {
    with_space(|mm, space| {
        mm.mmap(space, Args::anonymous(8 * PAGE).fixed(HERE)).unwrap();
        std::thread::scope(|scope| {
            for cpu in 1..3 {
                scope.spawn(move || {
                    testing::set_cpu(cpu);
                    for i in 0..2000 {
                        let address = va(HERE + i % 8 * PAGE);
                        let guard = space.vma_read(address).unwrap();
                        assert!(guard.range().contains(address));
                        assert!(guard.lock.is_attached() || !guard.is_vma_lock());
                        assert_eq!(guard.linear_index(address), address.page());
                    }
                });
            }
            for i in 0..300 {
                let start = HERE + i % 7 * PAGE;
                mm.mmap(space, Args::anonymous(PAGE).fixed(start)).unwrap();
                if i % 5 == 0 {
                    mm.mmap(space, Args::anonymous(8 * PAGE).fixed(HERE)).unwrap();
                }
            }
        });
    });
}
