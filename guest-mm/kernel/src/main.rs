//! The guest kernel image; built as an ordinary program it only says what it is.
fn main() {
    eprintln!("guest-kernel is an image for a virtual machine: `aerostat guest --write PATH`");
}
