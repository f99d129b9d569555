//! The agent protocol, guest side: `docs/agent-protocol.md`.
//!
//! The host's bytes are checked like anybody's. Strings stay as they are in
//! the line: no scenario or argument of ours holds an escape, so one that does
//! simply matches nothing.

use core::fmt;

use serde_no_std::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};

/// Longest line of either side, newline included.
pub const MAX_LINE_BYTES: usize = 4096;
/// Arguments that a request may have.
pub const MAX_ARGS: usize = 16;

/// A request of the host.
#[derive(Debug, PartialEq, Eq, serde_no_std::Deserialize)]
#[serde(crate = "serde_no_std")]
pub struct Request<'a> {
    /// The host's number for it.
    pub id: u64,
    /// Name of the scenario.
    #[serde(borrow)]
    pub exec: &'a str,
    /// Its arguments.
    #[serde(borrow)]
    args: Args<'a>,
}

impl<'a> Request<'a> {
    /// Reads one line; `None` if it is no request.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        serde_json_core::from_slice(line).ok().map(|(request, _)| request)
    }

    /// The arguments; `None` if there were more than [`MAX_ARGS`].
    pub fn args(&self) -> Option<&[&'a str]> {
        self.args.list.get(..self.args.len)
    }
}

/// Arguments in place; `len` beyond the list means that some did not fit.
#[derive(Debug, PartialEq, Eq)]
struct Args<'a> {
    list: [&'a str; MAX_ARGS],
    len: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Args<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ArgsVisitor)
    }
}

struct ArgsVisitor;

impl<'de> Visitor<'de> for ArgsVisitor {
    type Value = Args<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut args = Args { list: [""; MAX_ARGS], len: 0 };
        while let Some(slot) = args.list.get_mut(args.len) {
            match seq.next_element()? {
                Some(arg) => *slot = arg,
                None => return Ok(args),
            }
            args.len += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            args.len += 1;
        }
        Ok(args)
    }
}

/// An object for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The guest serves.
    Ready {
        /// Free pages.
        free_pages: u64,
        /// Names of all scenarios.
        scenarios: &'a [&'a str],
    },
    /// Output of a request.
    Line {
        /// The request.
        id: u64,
        /// One line, without the newline.
        text: &'a str,
    },
    /// A request has ended.
    Exit {
        /// The request.
        id: u64,
        /// Its exit code.
        code: u8,
    },
}

#[derive(serde_no_std::Serialize)]
#[serde(crate = "serde_no_std")]
struct ReadyObject<'a> {
    event: &'a str,
    protocol: u32,
    free_pages: u64,
    scenarios: &'a [&'a str],
}

#[derive(serde_no_std::Serialize)]
#[serde(crate = "serde_no_std")]
struct LineObject<'a> {
    id: u64,
    line: &'a str,
}

#[derive(serde_no_std::Serialize)]
#[serde(crate = "serde_no_std")]
struct ExitObject {
    id: u64,
    exit: u8,
}

impl Event<'_> {
    /// Writes the object and its newline to `out`; returns the bytes used, or `None` if they do not fit.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let (newline_at, written) = {
            let room = out.len().checked_sub(1)?;
            let body = out.get_mut(..room)?;
            let written = match *self {
                Self::Ready { free_pages, scenarios } => {
                    let object = ReadyObject { event: "ready", protocol: 1, free_pages, scenarios };
                    serde_json_core::to_slice(&object, body)
                }
                Self::Line { id, text } => {
                    serde_json_core::to_slice(&LineObject { id, line: text }, body)
                }
                Self::Exit { id, code } => {
                    serde_json_core::to_slice(&ExitObject { id, exit: code }, body)
                }
            }
            .ok()?;
            (written, written + 1)
        };
        *out.get_mut(newline_at)? = b'\n';
        Some(written)
    }
}

/// Cuts lines out of a stream of bytes in bounded memory; a line that is too long is dropped and counted.
#[derive(Debug)]
pub struct LineReader {
    line: [u8; MAX_LINE_BYTES],
    len: usize,
    /// The line under way is too long already.
    overlong: bool,
    dropped: u64,
}

impl LineReader {
    /// No bytes yet.
    pub const fn new() -> Self {
        Self { line: [0; MAX_LINE_BYTES], len: 0, overlong: false, dropped: 0 }
    }

    /// Takes one byte; returns the line that it completes, without the newline.
    pub fn push(&mut self, byte: u8) -> Option<&[u8]> {
        if byte != b'\n' {
            match self.line.get_mut(self.len) {
                // The last byte of a full buffer is the newline's.
                Some(slot) if self.len + 1 < MAX_LINE_BYTES => {
                    *slot = byte;
                    self.len += 1;
                }
                Some(_) | None => self.overlong = true,
            }
            return None;
        }
        let len = core::mem::take(&mut self.len);
        if core::mem::take(&mut self.overlong) {
            self.dropped += 1;
            return None;
        }
        self.line.get(..len)
    }

    /// Lines dropped as too long.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Default for LineReader {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_read_whatever_the_order_and_extra_fields() {
        let line = br#" {"args":["all","64M"], "extra":{"a":[1,null]}, "exec":"touch","id":18446744073709551615}"#;
        let request = Request::parse(line).unwrap();
        assert_eq!((request.id, request.exec), (u64::MAX, "touch"));
        assert_eq!(request.args(), Some(&["all", "64M"][..]));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for line in [
            "",
            "x",
            "{}",
            "[]",
            r#"{"id":1}"#,
            r#"{"id":-1,"exec":"touch","args":[]}"#,
            r#"{"id":1,"exec":"touch","args":[1]}"#,
            r#"{"id":1,"exec":"touch","args":[]"#,
            r#"{"id":1,"exec":"touch","args":[]} x"#,
        ] {
            assert_eq!(Request::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn too_many_arguments_are_told_apart_from_none() {
        let line =
            format!(r#"{{"id":1,"exec":"x","args":[{}]}}"#, vec!["\"a\""; MAX_ARGS + 1].join(","));
        assert_eq!(Request::parse(line.as_bytes()).unwrap().args(), None);
    }

    #[test]
    fn events_are_what_the_protocol_says() {
        let mut out = [0; 256];
        let mut encode = |event: Event<'_>| {
            let len = event.encode(&mut out).unwrap();
            String::from_utf8(out[..len].to_vec()).unwrap()
        };
        assert_eq!(
            encode(Event::Ready { free_pages: 5, scenarios: &["touch", "verify"] }),
            "{\"event\":\"ready\",\"protocol\":1,\"free_pages\":5,\"scenarios\":[\"touch\",\"verify\"]}\n"
        );
        assert_eq!(
            encode(Event::Line { id: 7, text: "a \"b\"\\" }),
            "{\"id\":7,\"line\":\"a \\\"b\\\"\\\\\"}\n"
        );
        assert_eq!(encode(Event::Exit { id: 7, code: 127 }), "{\"id\":7,\"exit\":127}\n");
    }

    #[test]
    fn an_event_that_does_not_fit_is_refused() {
        for room in 0..20 {
            assert_eq!(
                Event::Exit { id: 1234, code: 1 }.encode(&mut vec![0; room]),
                None,
                "{room}"
            );
        }
        assert_eq!(Event::Exit { id: 1234, code: 1 }.encode(&mut [0; 21]), Some(21));
    }

    #[test]
    fn an_overlong_line_is_dropped_and_the_next_one_read() {
        let mut reader = LineReader::new();
        let fits = [b'x'; MAX_LINE_BYTES - 1];
        for byte in fits.iter().chain(b"y\n") {
            assert_eq!(reader.push(*byte), None);
        }
        assert_eq!(reader.dropped(), 1);
        assert!(fits.iter().all(|byte| reader.push(*byte).is_none()));
        assert_eq!(reader.push(b'\n'), Some(&fits[..]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            Request::parse(&bytes);
            let mut reader = LineReader::new();
            let lines = bytes.iter().filter(|byte| reader.push(**byte).is_some()).count();
            prop_assert_eq!(lines, bytes.iter().filter(|byte| **byte == b'\n').count());
        }

        #[test]
        fn any_line_survives_as_json(text in "\\PC{0,100}", id: u64) {
            let mut out = [0; 4096];
            let len = Event::Line { id, text: &text }.encode(&mut out).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&out[..len]).unwrap();
            prop_assert_eq!(value["line"].as_str(), Some(&*text));
            prop_assert_eq!(value["id"].as_u64(), Some(id));
        }
    }
}
