//! `xarray`: the groups of behaviour that Linux's XArray test names, tested anew.
//!
//! A case's name begins with its group. Absent: `workingset` and `account`,
//! which are about users of the array. In the guest the nodes come from the
//! slab, on the host from the heap as well (`tests/xarray`).

mod alloc;
mod basic;
mod find;
mod marks;
mod multi;
mod nodes;
mod range;

pub use nodes::{CountedNodes, SlabCounted};

use super::failure::{OrFail, ensure, ensure_eq};
use super::{Ctx, Machine, Outcome};
use crate::rcu::Rcu;
use crate::xarray::{Entry, XArray};

type Array<'d, N> = XArray<'d, N>;

/// A case: its name and what it does with nodes of `N`.
pub type Group<N> = (&'static str, fn(N) -> Outcome);

macro_rules! case {
    ($module:ident::$name:ident) => {
        (stringify!($name), $module::$name)
    };
}

/// All cases.
pub const fn groups<N: CountedNodes>() -> [Group<N>; 40] {
    [
        case!(alloc::xa_alloc_takes_the_lowest_free_index),
        case!(alloc::xa_alloc_skips_multi_index_entries),
        case!(alloc::xa_alloc_cyclic_goes_on_where_it_was_and_wraps_once),
        case!(basic::xa_err_failures_are_errors_and_never_entries),
        case!(basic::xas_retry_a_cursor_in_a_node_that_died_starts_again),
        case!(basic::xas_retry_nodes_wait_for_the_readers_that_may_see_them),
        case!(basic::xa_load_finds_exactly_what_was_stored),
        case!(basic::xa_load_works_at_the_last_index),
        case!(basic::xa_shrink_lowers_the_tree_as_far_as_the_entries_allow),
        case!(basic::xas_erase_takes_the_whole_entry_wherever_it_is_hit),
        case!(basic::insert_refuses_any_overlap),
        case!(basic::cmpxchg_stores_on_a_match_only),
        case!(basic::reserve_holds_a_place_that_reads_as_empty),
        case!(basic::reserve_is_passed_over_by_allocation),
        case!(basic::destroy_frees_every_node_of_any_tree),
        case!(find::find_includes_the_entry_around_the_start),
        case!(find::find_entry_meets_every_distance),
        case!(find::pause_goes_on_behind_the_entry_in_another_read_section),
        case!(find::pause_of_an_iteration_names_the_next_index),
        case!(find::move_steps_over_every_index_both_ways),
        case!(find::store_iter_sees_each_block_of_a_range_once),
        case!(marks::xa_mark_stands_on_entries_only_and_sums_up_to_the_head),
        case!(marks::xa_mark_of_a_multi_index_entry_is_seen_at_every_index),
        case!(marks::xa_mark_iteration_visits_the_marked_only),
        case!(multi::cmpxchg_order_replaces_a_multi_index_entry_as_a_whole),
        case!(multi::multi_store_covers_its_block_and_nothing_else),
        case!(multi::multi_store_over_smaller_and_larger_entries_replaces_them_whole),
        case!(multi::multi_store_counts_values_and_pointers_apart),
        case!(multi::multi_store_advanced_ranges_and_entries_mix_freely),
        case!(multi::get_order_is_the_same_at_every_index_of_an_entry),
        case!(multi::xas_get_order_comes_with_every_entry_found),
        case!(multi::xas_conflict_get_order_names_what_is_in_the_way),
        case!(multi::align_iteration_gives_aligned_blocks_of_every_order),
        case!(multi::split_leaves_the_entry_and_its_marks_in_every_piece),
        case!(multi::split_to_the_same_or_a_higher_order_does_nothing),
        case!(multi::split_isolating_one_index_keeps_the_rest_large),
        case!(range::create_range_makes_room_for_stores_that_cannot_fail),
        case!(range::create_range_leaves_multi_index_entries_alone),
        case!(range::store_range_covers_exactly_its_indices),
        case!(range::store_range_refuses_to_cut_an_entry),
    ]
}

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let nodes = SlabCounted::new(ctx.mm.base().xa_nodes());
    let mut outcome = Ok(());
    for (name, group) in groups() {
        let ended = group(&nodes);
        // A case that failed half-way may have left its nodes starved.
        (&nodes).succeed();
        outcome = outcome.and(ctx.report(name, ended));
    }
    ensure_eq!(nodes.live(), 0);
    outcome
}

/// Runs `test` on an empty array; checks the invariants and the nodes afterwards.
fn with_array<N: CountedNodes>(
    nodes: N,
    test: impl FnOnce(&Array<'_, N>, N) -> Outcome,
) -> Outcome {
    let rcu = Rcu::new();
    let array = Array::new(&rcu, nodes);
    test(&array, nodes)?;
    array.validate().or_fail()?;
    array.clear();
    array.reclaim();
    ensure!(array.is_empty());
    ensure_eq!(nodes.live(), 0);
    Ok(())
}

/// Whether the entries of `array` are those at `indices`, ascending.
fn holds_only<N: CountedNodes>(array: &Array<'_, N>, indices: &[u64]) -> bool {
    let guard = array.rcu().read(0);
    array.entries(&guard, 0..=u64::MAX).map(|found| found.index).eq(indices.iter().copied())
}

/// The value entry that the cases store at `n`.
fn value(n: u64) -> Entry<usize> {
    usize::try_from(n & (u64::MAX >> 1))
        .ok()
        .and_then(Entry::value)
        .unwrap_or_else(|| unreachable!("63 bits are a value"))
}
