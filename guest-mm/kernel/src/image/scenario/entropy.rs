//! `entropy`: reads random bytes from the host and looks whether they can be random.

use core::fmt;

use guest_kernel::entropy::Sample;
use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::balloon::Wake;
use guest_mm::entropy::EntropyError;
use guest_mm::store::PfnStore;

use crate::image::devices::Causes;
use crate::image::kernel::Kernel;
use crate::image::smp::idle;
use crate::image::time;

/// Without a byte for so long the source has dried up. A host may ration it, by the second.
const PATIENCE_NS: u64 = 10_000_000_000;
/// Bytes that are shown.
const SHOWN: usize = 32;

/// Why not all bytes came.
enum NoBytes {
    Absent,
    Silent,
    Failed(EntropyError),
}

/// Bytes as hexadecimal digits.
struct Hex<'b>(&'b [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn entropy(&mut self, bytes: u32) -> u8 {
        let start = time::now_ns();
        let mut sample = Sample::default();
        let mut shown = [0; SHOWN];
        let mut at = 0;
        let outcome = self.read_entropy(bytes as usize, &mut |byte| {
            sample.push(byte);
            if let Some(slot) = shown.get_mut(at) {
                *slot = byte;
                at += 1;
            }
        });
        match outcome {
            Ok(()) => {}
            Err(NoBytes::Absent) => {
                self.print(format_args!("no entropy device"));
                return FAILURE;
            }
            Err(NoBytes::Silent) => {
                let got = sample.bits() / 8;
                self.print(format_args!(
                    "{got} of {bytes} bytes came, then none for {} s",
                    PATIENCE_NS / 1_000_000_000
                ));
                return FAILURE;
            }
            Err(NoBytes::Failed(error)) => {
                self.print(format_args!("{}", Causes(&error)));
                return FAILURE;
            }
        }
        let us = (time::now_ns() - start) / 1000;
        self.print(format_args!("{bytes} bytes in {us} us: {}…", Hex(&shown)));
        self.print(format_args!("{} of {} bits are one", sample.ones(), sample.bits()));
        match sample.judge() {
            Ok(()) => SUCCESS,
            Err(flaw) => {
                self.print(format_args!("NOT RANDOM: {flaw}"));
                FAILURE
            }
        }
    }

    /// Reads `wanted` bytes, serving the devices while it waits; a source that fails is given up.
    fn read_entropy(&mut self, wanted: usize, take: &mut dyn FnMut(u8)) -> Result<(), NoBytes> {
        let mut bytes = [0; 512];
        let mut left = wanted;
        let mut deadline = time::now_ns() + PATIENCE_NS;
        while left > 0 {
            let wake = self.serve();
            let Some(entropy) = &mut self.entropy else { return Err(NoBytes::Absent) };
            let room = left.min(bytes.len());
            match entropy.driver.read(bytes.get_mut(..room).unwrap_or(&mut [])) {
                Ok(0) if time::now_ns() >= deadline => return Err(NoBytes::Silent),
                Ok(0) => idle(wake.earlier(Wake::At(deadline))),
                Ok(count) => {
                    bytes.iter().take(count).for_each(|byte| take(*byte));
                    left -= count;
                    deadline = time::now_ns() + PATIENCE_NS;
                }
                Err(error) => {
                    if let Some(entropy) = self.entropy.take() {
                        // A device stuck in reset may still write to the pages: they stay lent.
                        let _stuck = entropy.driver.shut_down(self.memory);
                    }
                    return Err(NoBytes::Failed(error));
                }
            }
        }
        Ok(())
    }
}
