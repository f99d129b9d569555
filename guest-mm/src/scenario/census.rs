//! What every scenario ends with: nothing is kept, and all books agree.

use abi::PageCount;

use super::{Ctx, Machine, Outcome, check_eq};
use crate::memdesc::Kind;
use crate::mm::Mm;

/// Free pages once nothing waits for a grace period and the caches hold no empty slab.
pub(super) fn settled_free_pages<M: Machine>(mm: &Mm<'_, M>) -> PageCount {
    let base = mm.base();
    // Spaces that ended wait for a grace period themselves, and what they free may too.
    base.settle();
    mm.reap_spaces();
    base.settle();
    base.memory.free_pages()
}

/// Counts everything; prints what there is, and what does not agree.
pub(super) fn take<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    ctx.mm.base().settle();
    let census = ctx.mm.census(&[]);
    for kind in Kind::ALL {
        let (pages, blocks) = (census.memory.pages(kind).get(), census.memory.blocks(kind));
        if pages != 0 {
            ctx.print(format_args!("{:<8} {pages:>10} pages {blocks:>8} blocks", kind.name()));
        }
    }
    ctx.print(format_args!(
        "{} spaces, {} tables, {} leaves, {} folios of which {} cached, {} swap slots in use",
        census.spaces,
        census.tables,
        census.leaves,
        census.folios,
        census.cached,
        census.swap.used + census.swap.cached,
    ));
    for discrepancy in census.discrepancies().iter() {
        ctx.print(format_args!("DISCREPANCY: {discrepancy}"));
    }
    check_eq(census.discrepancies().total(), 0, "discrepancies")?;
    check_eq(census.pins, 0, "pins")
}
