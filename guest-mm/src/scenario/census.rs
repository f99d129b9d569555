//! What every scenario ends with: nothing is kept, and all books agree.

use abi::PageCount;

use super::{Ctx, Machine, Outcome, check_eq};
use crate::census::CensusScope;
use crate::memdesc::Kind;
use crate::mm::Mm;

/// Free pages once nothing waits for a grace period and the caches hold no empty slab.
pub(super) fn settled_free_pages<M: Machine>(mm: &Mm<'_, M>) -> PageCount {
    let base = mm.base();
    base.rcu.synchronize(base.platform());
    mm.reap_spaces();
    base.settle();
    base.memory.free_pages()
}

/// Counts everything; prints what does not agree, and for the scenario `census` all figures.
pub(super) fn take<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let base = ctx.mm.base();
    let scope = CensusScope { caches: &base.caches.all(), ..CensusScope::default() };
    let census = base.memory.census_of(&scope);
    for kind in Kind::ALL {
        let (pages, blocks) = (census.pages(kind).get(), census.blocks(kind));
        if pages != 0 {
            ctx.print(format_args!("{:<8} {pages:>10} pages {blocks:>8} blocks", kind.name()));
        }
    }
    let discrepancies = census.discrepancies();
    for discrepancy in discrepancies.iter() {
        ctx.print(format_args!("DISCREPANCY: {discrepancy}"));
    }
    check_eq(discrepancies.total(), 0, "discrepancies")
}
