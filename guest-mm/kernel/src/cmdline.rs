//! The kernel command line.
//!
//! Words are separated by white space; what follows `--` is not ours. Words of
//! other kernels (`console=`, `reboot=`, `panic=`) are ignored, since VMMs add
//! them unasked; a word of ours with a bad value is kept as a complaint and its
//! default stays. Device windows are read by `guest_mm::virtio`.

use crate::layout::CPUS;
use crate::level::Level;
use crate::size;

/// Scenarios that can be asked for on the command line.
pub const MAX_EXEC: usize = 8;
/// Complaints kept.
pub const MAX_COMPLAINTS: usize = 8;
/// Largest order that `balloon.order=` takes.
pub const MAX_ORDER: u8 = 10;

/// Which PFN store the balloon uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreKind {
    /// XArray with multi-index entries.
    #[default]
    XArray,
    /// Preallocated bitmap.
    Bitmap,
}

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options<'a> {
    /// `loglevel=off|error|warn|info|debug|trace`; `None` is `off`.
    pub log_level: Option<Level>,
    /// `balloon.order=N`: the largest block that the balloon takes at once.
    pub balloon_order: u8,
    /// `balloon.store=xarray|bitmap`.
    pub balloon_store: StoreKind,
    /// `cpus=1..4`: how many CPUs to use at most; how many there are, where no table says it.
    pub cpus: Option<usize>,
    /// `spare=SIZE`: RAM, in bytes, that is not used but kept to be added and removed by the scenario `come-to-life`.
    pub spare: u64,
    /// `exec=NAME[,ARG]…`: scenarios to run at boot, in order, without an agent.
    exec: List<'a, MAX_EXEC>,
    /// Words of ours that were not understood.
    complaints: List<'a, MAX_COMPLAINTS>,
}

impl<'a> Options<'a> {
    /// Reads a command line.
    pub fn parse(cmdline: &'a str) -> Self {
        let mut options = Self {
            log_level: Some(Level::Info),
            balloon_order: MAX_ORDER,
            balloon_store: StoreKind::default(),
            cpus: None,
            spare: 0,
            exec: List::default(),
            complaints: List::default(),
        };
        for word in cmdline.split_ascii_whitespace().take_while(|word| *word != "--") {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if !options.apply(key, value) {
                options.complaints.push(word);
            }
        }
        options
    }

    /// Scenarios to run at boot: `NAME[,ARG]…`.
    pub fn exec(&self) -> impl Iterator<Item = &'a str> {
        self.exec.iter()
    }

    /// Words of ours that were not understood.
    pub fn complaints(&self) -> impl Iterator<Item = &'a str> {
        self.complaints.iter()
    }

    /// Applies one word; `false` if it is ours and makes no sense.
    fn apply(&mut self, key: &str, value: &'a str) -> bool {
        match key {
            "loglevel" => match Level::parse(value) {
                Some(level) => self.log_level = level,
                None => return false,
            },
            "balloon.order" => match value.parse() {
                Ok(order) if order <= MAX_ORDER && !value.starts_with('+') => {
                    self.balloon_order = order
                }
                Ok(_) | Err(_) => return false,
            },
            "balloon.store" => match value {
                "xarray" => self.balloon_store = StoreKind::XArray,
                "bitmap" => self.balloon_store = StoreKind::Bitmap,
                _ => return false,
            },
            "cpus" => match value.parse() {
                Ok(cpus) if (1..=CPUS).contains(&cpus) && !value.starts_with('+') => {
                    self.cpus = Some(cpus)
                }
                Ok(_) | Err(_) => return false,
            },
            "spare" => match size::parse(value) {
                Some(bytes) => self.spare = bytes,
                None => return false,
            },
            "exec" => return !value.is_empty() && self.exec.push(value),
            _ => {}
        }
        true
    }
}

/// A few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct List<'a, const N: usize> {
    words: [&'a str; N],
    len: usize,
}

impl<const N: usize> Default for List<'_, N> {
    fn default() -> Self {
        Self { words: [""; N], len: 0 }
    }
}

impl<'a, const N: usize> List<'a, N> {
    /// Appends; `false` if the list is full.
    fn push(&mut self, word: &'a str) -> bool {
        match self.words.get_mut(self.len) {
            Some(slot) => *slot = word,
            None => return false,
        }
        self.len += 1;
        true
    }

    fn iter(&self) -> impl Iterator<Item = &'a str> {
        self.words.into_iter().take(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_line_gives_the_defaults() {
        let options = Options::parse("");
        assert_eq!(options.log_level, Some(Level::Info));
        assert_eq!(options.balloon_order, MAX_ORDER);
        assert_eq!(options.balloon_store, StoreKind::XArray);
        assert_eq!(options.exec().count() + options.complaints().count(), 0);
    }

    #[test]
    fn our_words_are_read_and_those_of_others_ignored() {
        let options = Options::parse(
            "console=ttyS0 reboot=k panic=1 quiet loglevel=debug balloon.order=0 \
             balloon.store=bitmap cpus=3 spare=16M exec=touch,64M exec=poweroff virtio_mmio.device=4K@0xd0000000:5",
        );
        assert_eq!(options.log_level, Some(Level::Debug));
        assert_eq!(options.balloon_order, 0);
        assert_eq!(options.balloon_store, StoreKind::Bitmap);
        assert_eq!((options.cpus, options.spare), (Some(3), 16 << 20));
        assert_eq!(options.exec().collect::<Vec<_>>(), ["touch,64M", "poweroff"]);
        assert_eq!(options.complaints().count(), 0);
    }

    #[test]
    fn bad_values_keep_the_default_and_are_complained_about() {
        let words = [
            "loglevel=loud",
            "balloon.order=11",
            "balloon.order=-1",
            "balloon.store=list",
            "cpus=0",
            "cpus=5",
            "spare=much",
            "exec=",
        ];
        let line = words.join(" ");
        let options = Options::parse(&line);
        assert_eq!(options.complaints().collect::<Vec<_>>(), words);
        assert_eq!(options.balloon_order, MAX_ORDER);
        assert_eq!(options.log_level, Some(Level::Info));
    }

    #[test]
    fn what_follows_a_double_dash_is_not_ours() {
        assert_eq!(Options::parse("-- loglevel=off").log_level, Some(Level::Info));
    }

    proptest! {
        #[test]
        fn no_text_panics(line in "\\PC{0,200}") {
            let options = Options::parse(&line);
            prop_assert!(options.balloon_order <= MAX_ORDER);
        }
    }
}
