//! `guest`: the embedded guest as a file.

use std::fs;

use super::args::GuestOptions;
use super::failure::Failure;
use super::output;
use crate::exit_code;
use crate::guest_image::GUEST_ELF;

/// Writes the embedded guest's ELF image.
pub(super) fn write(options: &GuestOptions) -> Result<u8, Failure> {
    let path = options.write.display();
    fs::write(&options.write, GUEST_ELF)
        .map_err(|error| Failure::other(format!("Cannot write {path}: {error}")))?;
    let size = output::size(GUEST_ELF.len() as u64);
    output::line(format!("{path}: {size}, an ELF file with a PVH note"))?;
    Ok(exit_code::SUCCESS)
}
