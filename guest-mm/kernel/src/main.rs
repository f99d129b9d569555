//! The guest kernel image; built as an ordinary program it only says what it is.
#![cfg_attr(guest_image, no_std, no_main)]

#[cfg(guest_image)]
mod image;

#[cfg(not(guest_image))]
fn main() {
    eprintln!("guest-kernel is an image for a virtual machine: `aerostat guest --write PATH`");
}
