//! Control messages: le32 port, le16 event, le16 value, then a name after PORT_NAME.

use abi::console::{CONTROL_BYTES, event};

/// What the device says about a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// The port exists.
    Add,
    /// The port is gone.
    Remove,
    /// The port's name.
    Name(&'a [u8]),
    /// The host has opened (or closed) its side.
    Open(bool),
    /// An event that means nothing to us: console port, resize.
    Other,
}

/// A message from the device: the port it is about, and what happened.
pub(super) fn parse(message: &[u8]) -> Option<(u32, Event<'_>)> {
    let (head, name) = message.split_first_chunk::<CONTROL_BYTES>()?;
    let [p0, p1, p2, p3, e0, e1, v0, v1] = *head;
    let port = u32::from_le_bytes([p0, p1, p2, p3]);
    let value = u16::from_le_bytes([v0, v1]);
    let event = match u16::from_le_bytes([e0, e1]) {
        event::PORT_ADD => Event::Add,
        event::PORT_REMOVE => Event::Remove,
        event::PORT_OPEN => Event::Open(value != 0),
        // Some devices count a terminating zero as part of the name.
        event::PORT_NAME => Event::Name(name.strip_suffix(&[0]).unwrap_or(name)),
        event::CONSOLE_PORT | event::RESIZE => Event::Other,
        _ => return None,
    };
    Some((port, event))
}

/// A message to the device.
pub(super) fn encode(port: u32, event: u16, value: u16) -> [u8; CONTROL_BYTES] {
    let [p0, p1, p2, p3] = port.to_le_bytes();
    let [e0, e1] = event.to_le_bytes();
    let [v0, v1] = value.to_le_bytes();
    [p0, p1, p2, p3, e0, e1, v0, v1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_the_specification_lays_them_out() {
        let add = encode(3, event::PORT_ADD, 0);
        assert_eq!(add, [3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(parse(&add), Some((3, Event::Add)));
        assert_eq!(parse(&encode(1, event::PORT_OPEN, 1)), Some((1, Event::Open(true))));
        let mut named = std::vec::Vec::from(encode(1, event::PORT_NAME, 1));
        named.extend(b"org.x\0");
        assert_eq!(parse(&named), Some((1, Event::Name(b"org.x"))));
    }

    #[test]
    fn short_and_unknown_messages_are_refused() {
        assert_eq!(parse(&[0; 7]), None);
        assert_eq!(parse(&encode(0, 99, 0)), None);
        assert_eq!(parse(&encode(0, event::DEVICE_READY, 1)), None);
    }
}
