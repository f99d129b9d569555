//! The experiments that there are, and what their VMs need.

use abi::platform::MAX_VCPUS;

/// What one command runs.
#[derive(Debug)]
pub(super) struct Catalogued {
    /// The command's name: `aerostat bench NAME`.
    pub(super) name: &'static str,
    /// Its experiments, one after the other.
    pub(super) parts: &'static [Part],
}

/// One experiment.
#[derive(Debug)]
pub(super) struct Part {
    /// Its name in samples.
    pub(super) id: &'static str,
    /// What is compared, in a line.
    pub(super) title: &'static str,
    /// The guest's scenario.
    pub(super) scenario: &'static str,
    /// What else its VM is started with: further arguments of `run`.
    pub(super) run: &'static [&'static str],
    /// Shares of guest RAM, in percent, to which the balloon is inflated before the scenario: a VM
    /// for each. Empty: the balloon stays as it is.
    pub(super) inflate: &'static [u8],
    /// Guest RAM unless asked for otherwise, in bytes.
    pub(super) memory: u64,
    /// Numbers of vCPUs unless asked for otherwise.
    pub(super) vcpus: &'static [u8],
    /// The scenario's rounds unless asked for otherwise.
    pub(super) rounds: u64,
}

impl Part {
    /// The balloons to run it with.
    pub(super) fn inflations(&self) -> impl Iterator<Item = Option<u8>> {
        let as_it_is = self.inflate.is_empty().then_some(None);
        self.inflate.iter().map(|percent| Some(*percent)).chain(as_it_is)
    }
}

const MIB: u64 = 1 << 20;

/// E3.
pub(super) const STORES: Catalogued = Catalogued {
    name: "stores",
    parts: &[Part {
        id: "e3",
        title: "PFN stores of the balloon: list, XArray, IDA, bitmap",
        scenario: "exp-e3",
        run: &[],
        inflate: &[],
        memory: 512 * MIB,
        vcpus: &[1],
        rounds: 15,
    }],
};

/// E10.
pub(super) const HOTPLUG: Catalogued = Catalogued {
    name: "hotplug",
    parts: &[Part {
        id: "e10",
        title: "memory that comes to life when nothing is free",
        scenario: "exp-e10",
        run: &["--cmdline", "spare=128M"],
        inflate: &[],
        memory: 256 * MIB,
        vcpus: &[1],
        rounds: 5,
    }],
};

/// E2 and E5.
pub(super) const MIGRATE: Catalogued = Catalogued {
    name: "migrate",
    parts: &[
        Part {
            id: "e2",
            title: "pages that migrate, in arrays of frame numbers and on lists",
            scenario: "exp-e2",
            run: &[],
            inflate: &[],
            memory: 512 * MIB,
            vcpus: &[1],
            rounds: 20,
        },
        Part {
            id: "e5",
            title: "isolation by one swap of the word, and by lock, reference and list",
            scenario: "exp-e5",
            run: &[],
            inflate: &[],
            memory: 256 * MIB,
            vcpus: &[1, 2, 4],
            rounds: 12,
        },
    ],
};

/// E9.
pub(super) const COMPACTION: Catalogued = Catalogued {
    name: "compaction",
    parts: &[Part {
        id: "e9",
        title: "huge pages among ballooned pages, movable and pinned",
        scenario: "exp-e9",
        // Page by page: blocks of the largest order would leave nothing to compact.
        run: &["--cmdline", "balloon.order=0"],
        inflate: &[50, 80, 95],
        // A twentieth of it is several huge pages above the watermarks.
        memory: 512 * MIB,
        vcpus: &[1],
        rounds: 1,
    }],
};

/// All of them.
const ALL: &[&Catalogued] = &[&MIGRATE, &STORES, &COMPACTION, &HOTPLUG];

/// Their commands.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|catalogued| catalogued.name)
}

const _: () = {
    let mut at = 0;
    while at < ALL.len() {
        let mut part = 0;
        while part < ALL[at].parts.len() {
            let vcpus = ALL[at].parts[part].vcpus;
            assert!(!vcpus.is_empty() && vcpus[vcpus.len() - 1] <= MAX_VCPUS);
            part += 1;
        }
        at += 1;
    }
};
