//! `bench`: measurements inside a guest of its own.
//!
//! [`mm`] prints single figures of the memory manager. The experiments of the
//! [catalogue](catalogue) compare designs: each runs in a VM of its own per seed
//! and number of vCPUs ([`vm`]), prints [samples](sample), which are summarised
//! by [nearest rank](summary) and become [tables](table) and [plots](plot).
//! The format of the guest's lines and of the files: docs/experiments/README.md.

mod catalogue;
mod experiment;
mod figure;
mod files;
mod host;
mod mm;
mod pin;
mod plot;
mod sample;
mod summary;
mod table;
mod vm;

use super::args::BenchCommand;
use super::failure::Failure;

/// Measures what the command says.
pub(super) fn bench(command: &BenchCommand) -> Result<u8, Failure> {
    match command {
        BenchCommand::Mm(options) => mm::mm(options),
        BenchCommand::Migrate(options) => experiment::run(&catalogue::MIGRATE, options),
        BenchCommand::Stores(options) => experiment::run(&catalogue::STORES, options),
        BenchCommand::Hotplug(options) => experiment::run(&catalogue::HOTPLUG, options),
        BenchCommand::Compaction(options) => experiment::run(&catalogue::COMPACTION, options),
        BenchCommand::Unknown(words) => {
            let name = words.first().map_or("", String::as_str);
            let known: Vec<&str> = catalogue::names().collect();
            let known = known.join(", ");
            Err(Failure::Usage(format!("There is no experiment {name:?}; there are: mm, {known}")))
        }
    }
}
