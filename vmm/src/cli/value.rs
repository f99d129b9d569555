//! Values on the command line: parsed once, refused with the allowed range.

use std::path::PathBuf;
use std::time::Duration;

use abi::PageCount;
use abi::platform::MAX_RAM_BYTES;
use aerostat_api::{Size, SizeError};
use clap::ValueEnum;

use crate::vm::config::hotplug::HotplugConfig;
use crate::vm::config::{BalloonConfig, MIN_RAM_BYTES, OnReset};

/// A size in whole pages.
pub(super) fn pages(text: &str) -> Result<Size, String> {
    parse(text)?.whole_pages().map_err(|e| e.to_string())
}

/// A size in whole pages that is more than nothing.
pub(super) fn some_pages(text: &str) -> Result<Size, String> {
    pages(text)?.nonzero().map_err(|e| e.to_string())
}

/// A size that guest RAM can have.
pub(super) fn memory(text: &str) -> Result<Size, String> {
    let (least, most) = (Size::from_bytes(MIN_RAM_BYTES), Size::from_bytes(MAX_RAM_BYTES));
    let size = parse(text)?;
    if !(least..=most).contains(&size) {
        let (least, most) = (least.human(), most.human());
        return Err(format!("{size} is out of range; allowed: {least} to {most}"));
    }
    size.whole_pages().map_err(|e| e.to_string())
}

/// A VM's name, by Firecracker's rule.
pub(super) fn instance_id(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=64).contains(&text.len()) && text.chars().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name; allowed: 1 to 64 letters, digits and hyphens"))
}

fn parse(text: &str) -> Result<Size, String> {
    text.parse().map_err(|e: SizeError| e.to_string())
}

/// `500ms`, `5s`, `2m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is no duration; write a whole number with ms, s or m: 5s");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refuse())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(refuse)
}

/// A drive as the command line names it; its place there gives it its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DriveArgument {
    pub(super) path: PathBuf,
    pub(super) is_read_only: bool,
}

/// `PATH`, or `PATH,ro`.
pub(super) fn drive(text: &str) -> Result<DriveArgument, String> {
    let (path, is_read_only) = match text.strip_suffix(",ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    if path.is_empty() {
        return Err(format!("{text:?} names no file; write PATH or PATH,ro"));
    }
    Ok(DriveArgument { path: path.into(), is_read_only })
}

/// Options of `--balloon`, separated by commas: `target=SIZE`, `deflate-on-oom`, `stall-after=TIME`.
pub(super) fn balloon_options(text: &str) -> Result<BalloonConfig, String> {
    let mut options = BalloonConfig::default();
    for option in text.split(',') {
        match option.split_once('=') {
            Some(("target", size)) => {
                options.target = PageCount::from_bytes_exact(pages(size)?.bytes())
                    .ok_or_else(|| format!("target={size} is no whole number of pages"))?;
            }
            Some(("stall-after", time)) => options.stall_after = duration(time)?,
            None if option == "deflate-on-oom" => options.deflate_on_oom = true,
            Some(_) | None => {
                let allowed = "target=SIZE, deflate-on-oom, stall-after=TIME";
                return Err(format!("unknown balloon option {option:?}; allowed: {allowed}"));
            }
        }
    }
    Ok(options)
}

/// `SIZE`, and after commas `block=SIZE`, `slot=SIZE`, `stall-after=TIME`.
pub(super) fn hotplug(text: &str) -> Result<HotplugConfig, String> {
    let mut parts = text.split(',');
    let size = parts.next().unwrap_or_default();
    let mut config = HotplugConfig::of_size(parse(size)?.bytes());
    let mut is_slot_said = false;
    for option in parts {
        match option.split_once('=') {
            Some(("block", size)) => config.block_bytes = parse(size)?.bytes(),
            Some(("slot", size)) => {
                (config.slot_bytes, is_slot_said) = (parse(size)?.bytes(), true);
            }
            Some(("stall-after", time)) => config.stall_after = duration(time)?,
            Some(_) | None => {
                let allowed = "block=SIZE, slot=SIZE, stall-after=TIME";
                return Err(format!("unknown hotplug option {option:?}; allowed: {allowed}"));
            }
        }
    }
    if !is_slot_said {
        config.slot_bytes = config.slot_bytes.max(config.block_bytes);
    }
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

/// What `--on-reset` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnResetArgument {
    /// End the VM with exit code 3
    Exit,
    /// Restart the guest in place; the balloon target survives
    Reboot,
}

impl From<OnResetArgument> for OnReset {
    fn from(argument: OnResetArgument) -> Self {
        match argument {
            OnResetArgument::Exit => Self::Exit,
            OnResetArgument::Reboot => Self::Reboot,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_between_pages_are_refused_and_zero_only_where_it_does_nothing() {
        assert_eq!(pages("0").map(Size::bytes), Ok(0));
        assert!(pages("5000").unwrap_err().contains("4096 B or 8192 B"));
        assert!(some_pages("0").unwrap_err().contains("4K or more"));
        assert_eq!(some_pages("4K").map(Size::bytes), Ok(4096));
    }

    #[test]
    fn hotplug_memory_is_a_size_and_options() {
        const MIB: u64 = 1 << 20;
        let config = hotplug("1G").unwrap();
        assert_eq!((config.total_bytes, config.block_bytes), (1 << 30, 2 * MIB));
        assert_eq!(config.slot_bytes, 128 * MIB);
        let config = hotplug("1G,block=4M,slot=4M,stall-after=1s").unwrap();
        assert_eq!((config.block_bytes, config.slot_bytes), (4 * MIB, 4 * MIB));
        assert_eq!(config.stall_after, Duration::from_secs(1));
        assert_eq!(hotplug("1G,block=256M").unwrap().slot_bytes, 256 * MIB);
        for (text, expected) in [
            ("", "is no size"),
            ("0", "multiples of the slot size"),
            ("3M", "multiples of the slot size"),
            ("128G", "64 GiB"),
            ("1G,block=3M", "powers of two"),
            ("1G,block=1M", "powers of two"),
            ("1G,slot=3M", "multiples of the block size"),
            ("1G,slots=2M", "allowed: block=SIZE"),
            ("1G,block", "allowed: block=SIZE"),
            ("1G,stall-after=5", "is no duration"),
        ] {
            let message = hotplug(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn memory_names_value_and_range() {
        for text in ["0", "65G", "1M", "17592186048512"] {
            let message = memory(text).unwrap_err();
            assert!(message.contains("allowed: 2 MiB to 64 GiB"), "{message}");
        }
        assert!(memory("268435457").unwrap_err().contains("4 KiB"));
        assert_eq!(memory("64G").map(Size::bytes), Ok(64 << 30));
    }

    #[test]
    fn a_name_is_short_and_plain() {
        let long = "x".repeat(64);
        for name in ["a", "my-vm-2", &long] {
            assert_eq!(instance_id(name).as_deref(), Ok(name));
        }
        for name in ["", "a b", "../a", "a_b", "\u{e4}", &(long.clone() + "x")] {
            assert!(instance_id(name).unwrap_err().contains("1 to 64"), "{name}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "5", "s", "-1s", "1.5s", "5h", "18446744073709551615m"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn drives_are_paths_and_read_only_if_they_say_so() {
        let drive =
            |path: &str, is_read_only| Ok(DriveArgument { path: path.into(), is_read_only });
        assert_eq!(super::drive("a.img"), drive("a.img", false));
        assert_eq!(super::drive("a.img,ro"), drive("a.img", true));
        assert_eq!(super::drive("a,b,ro"), drive("a,b", true));
        assert_eq!(super::drive("/a,rw"), drive("/a,rw", false));
        for text in ["", ",ro"] {
            assert!(super::drive(text).unwrap_err().contains("PATH,ro"), "{text}");
        }
    }

    #[test]
    fn unknown_balloon_options_are_refused_by_name() {
        let default = BalloonConfig::default();
        let options = |text| balloon_options(text).unwrap();
        assert_eq!(options("target=4K"), BalloonConfig { target: PageCount::ONE, ..default });
        assert_eq!(options("deflate-on-oom"), BalloonConfig { deflate_on_oom: true, ..default });
        let all = options("stall-after=5s,deflate-on-oom,target=4K");
        assert_eq!((all.target, all.deflate_on_oom), (PageCount::ONE, true));
        assert_eq!(all.stall_after, Duration::from_secs(5));
        for text in ["", "target", "reporting", "target=4K,x=1", "deflate-on-oom=1", "stall-after"]
        {
            let message = balloon_options(text).unwrap_err();
            assert!(message.contains("allowed: target=SIZE"), "{message}");
        }
        assert!(balloon_options("target=1").is_err());
        assert!(balloon_options("stall-after=5").is_err());
    }
}
