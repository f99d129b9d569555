//! What L1 reports while it runs a plan.

use std::collections::HashMap;

/// How one item of a plan ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The command's exit status as a shell sees it.
    pub status: i32,
    /// How long it took by L1's clock, in tenths of a second.
    pub tenths: u64,
    /// What it printed, in all its attempts.
    pub output: String,
    /// How often it failed before by the emulated CPU's fault.
    pub excused: u32,
}

/// An item that has begun and not ended.
#[derive(Debug)]
struct Running {
    name: String,
    output: String,
    excused: u32,
}

/// What L1 writes between and within lines, only to say that it is alive.
const BEAT: u8 = 0x05;

impl Running {
    fn line(&mut self, line: &str) {
        if let Some(text) = line.strip_prefix('|') {
            self.output.push_str(text);
            self.output.push('\n');
        } else if line.strip_prefix("@again ").is_some_and(|name| name == self.name) {
            self.excused += 1;
        }
    }
}

/// The lines of `run-plan.sh`, as far as they have come.
#[derive(Debug, Default)]
pub struct Report {
    ended: HashMap<String, Ended>,
    running: Option<Running>,
    /// A line whose end has not come yet.
    partial: Vec<u8>,
}

impl Report {
    /// Takes in what came next.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                self.line(&String::from_utf8_lossy(&line));
            } else if byte != BEAT {
                self.partial.push(byte);
            }
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("@begin ") {
            self.running =
                Some(Running { name: name.to_owned(), output: String::new(), excused: 0 });
        } else if let Some(words) = line.strip_prefix("@end ") {
            self.end(words);
        } else if let Some(running) = &mut self.running {
            running.line(line);
        }
    }

    fn end(&mut self, words: &str) {
        let mut words = words.split(' ');
        let (Some(name), Some(Ok(status)), Some(Ok(tenths))) =
            (words.next(), words.next().map(str::parse), words.next().map(str::parse))
        else {
            return;
        };
        let Some(Running { output, excused, .. }) =
            self.running.take_if(|running| running.name == name)
        else {
            return;
        };
        self.ended.insert(name.to_owned(), Ended { status, tenths, output, excused });
    }

    /// How item `name` ended, if it has.
    pub fn ended(&self, name: &str) -> Option<&Ended> {
        self.ended.get(name)
    }

    /// Every item that has ended.
    pub fn all_ended(&self) -> impl Iterator<Item = (&str, &Ended)> {
        self.ended.iter().map(|(name, ended)| (name.as_str(), ended))
    }

    /// The item that has begun and not ended.
    pub fn running(&self) -> Option<&str> {
        self.running.as_ref().map(|running| running.name.as_str())
    }

    /// Forgets what has not ended: a new boot of L1 reports from here on.
    pub fn begin_boot(&mut self) {
        self.running = None;
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        // However the bytes are cut.
        for byte in text.as_bytes().chunks(3) {
            report.feed(byte);
        }
        report
    }

    #[test]
    fn an_item_has_its_status_time_and_output() {
        let report =
            report("@begin a::b\n|one\n|@end a::b 0 1\n\n@end a::b 101 25\n@begin c\n|x\n");
        let ended = report.ended("a::b").unwrap();
        assert_eq!((ended.status, ended.tenths), (101, 25));
        assert_eq!(ended.output, "one\n@end a::b 0 1\n");
        assert_eq!((report.ended("c"), report.running()), (None, Some("c")));
    }

    #[test]
    fn signs_of_life_are_no_part_of_a_line() {
        let report = report("\x05@be\x05gin a\n|o\x05ne\n\n\x05@end a 0 1\x05\n");
        assert_eq!(report.ended("a").unwrap().output, "one\n");
    }

    #[test]
    fn a_new_boot_runs_again_what_had_not_ended() {
        let mut report = report("@begin a\n|one\n\n@end a 0 1\n@begin b\n|half\n|a li");
        report.begin_boot();
        assert_eq!(report.running(), None);
        report.feed(b"@begin b\n|whole\n\n@end b 0 2\n");
        assert_eq!(report.ended("a").unwrap().output, "one\n");
        assert_eq!(report.ended("b").unwrap().output, "whole\n");
    }

    #[test]
    fn an_item_that_is_run_again_has_the_status_of_its_last_attempt_and_the_output_of_all() {
        let report = report("@begin a\n|one\n\n@again b\n@again a\n|two\n\n@end a 0 7\n");
        let ended = report.ended("a").unwrap();
        assert_eq!((ended.status, ended.tenths, ended.excused), (0, 7, 1));
        assert_eq!(ended.output, "one\ntwo\n");
    }

    #[test]
    fn an_end_without_its_beginning_is_nothing() {
        let report = report("@end a 0 1\n@begin b\n@end a 0 1\n@end b zero 1\n");
        assert_eq!(report.all_ended().count(), 0);
        assert_eq!(report.running(), Some("b"));
    }
}
