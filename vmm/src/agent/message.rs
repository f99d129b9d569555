//! Lines of the agent port; `docs/agent-protocol.md`.

use serde::{Deserialize, Serialize};

/// Longest line, newline included.
pub(super) const MAX_LINE_BYTES: usize = 4096;
/// The protocol version that we speak.
const PROTOCOL: u32 = 1;

/// A line from the guest, checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromGuest {
    /// It serves.
    Ready {
        /// 4 KiB pages free in the guest.
        free_pages: u64,
        /// Names of its scenarios.
        scenarios: Vec<String>,
    },
    /// A line of output of a request.
    Line {
        /// The request.
        id: u64,
        /// Without newline.
        text: String,
    },
    /// The end of a request.
    Exit {
        /// The request.
        id: u64,
        /// Exit code of its scenario.
        code: i32,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Wire {
    Ready(WireReady),
    Line(WireLine),
    Exit(WireExit),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireReady {
    event: String,
    protocol: u32,
    free_pages: u64,
    scenarios: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireLine {
    id: u64,
    line: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireExit {
    id: u64,
    exit: i32,
}

impl FromGuest {
    /// Parses a line without its newline; `None` when it is not one of ours.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        match serde_json::from_slice(line).ok()? {
            Wire::Ready(ready) => {
                (ready.event == "ready" && ready.protocol == PROTOCOL).then_some(Self::Ready {
                    free_pages: ready.free_pages,
                    scenarios: ready.scenarios,
                })
            }
            Wire::Line(WireLine { id, line }) => Some(Self::Line { id, text: line }),
            Wire::Exit(WireExit { id, exit }) => Some(Self::Exit { id, code: exit }),
        }
    }
}

#[derive(Serialize)]
struct Exec<'a> {
    id: u64,
    exec: &'a str,
    args: &'a [String],
}

/// The line that starts a scenario, newline included; `Err` with its length if it is too long.
pub(super) fn exec_line(id: u64, scenario: &str, args: &[String]) -> Result<Vec<u8>, usize> {
    // Strings and numbers always serialise.
    let mut line = serde_json::to_vec(&Exec { id, exec: scenario, args }).unwrap_or_default();
    line.push(b'\n');
    if line.len() > MAX_LINE_BYTES { Err(line.len()) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_shapes_are_understood() {
        assert_eq!(
            FromGuest::parse(
                br#"{"event":"ready","protocol":1,"free_pages":7,"scenarios":["touch"]}"#
            ),
            Some(FromGuest::Ready { free_pages: 7, scenarios: vec!["touch".into()] })
        );
        assert_eq!(
            FromGuest::parse(br#"{"id":3,"line":"hi"}"#),
            Some(FromGuest::Line { id: 3, text: "hi".into() })
        );
        assert_eq!(
            FromGuest::parse(br#"{"id":3,"exit":127}"#),
            Some(FromGuest::Exit { id: 3, code: 127 })
        );
    }

    #[test]
    fn anything_else_is_not() {
        let deep = "[".repeat(2000);
        for line in [
            "",
            "null",
            "{",
            deep.as_str(),
            r#"{"id":-1,"exit":0}"#,
            r#"{"id":1,"exit":99999999999}"#,
            r#"{"id":1,"line":"x","exit":0}"#,
            r#"{"id":1,"line":"x","more":0}"#,
            r#"{"event":"ready","protocol":2,"free_pages":7,"scenarios":[]}"#,
            r#"{"event":"steady","protocol":1,"free_pages":7,"scenarios":[]}"#,
        ] {
            assert_eq!(FromGuest::parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(FromGuest::parse(b"{\"id\":1,\"line\":\"\xff\"}"), None);
    }

    #[test]
    fn a_request_is_one_line_and_bounded() {
        let line = exec_line(9, "touch", &["4M".into(), "a\nb".into()]).expect("short");
        assert_eq!(
            String::from_utf8(line).expect("JSON"),
            "{\"id\":9,\"exec\":\"touch\",\"args\":[\"4M\",\"a\\nb\"]}\n"
        );
        assert!(exec_line(1, &"x".repeat(MAX_LINE_BYTES), &[]).is_err());
    }
}
