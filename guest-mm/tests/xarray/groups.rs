//! The groups of behaviour that Linux's XArray test names, with nodes from the heap:
//! memory that the sanitisers know. In the guest they are the scenario `xarray`.

use guest_mm::scenario::xarray::groups;

use super::support::HeapNodes;

fn run(name: &str) {
    let nodes = HeapNodes::new();
    let all = groups::<&HeapNodes>();
    let (_, case) = all.iter().find(|(case, _)| *case == name).expect("a case of this name");
    if let Err(failure) = case(&nodes) {
        panic!("{failure}");
    }
    assert_eq!(nodes.live(), 0);
}

macro_rules! tests {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
    };
}

tests! {
    xa_alloc_takes_the_lowest_free_index
    xa_alloc_skips_multi_index_entries
    xa_alloc_cyclic_goes_on_where_it_was_and_wraps_once
    xa_err_failures_are_errors_and_never_entries
    xas_retry_a_cursor_in_a_node_that_died_starts_again
    xas_retry_nodes_wait_for_the_readers_that_may_see_them
    xa_load_finds_exactly_what_was_stored
    xa_load_works_at_the_last_index
    xa_shrink_lowers_the_tree_as_far_as_the_entries_allow
    xas_erase_takes_the_whole_entry_wherever_it_is_hit
    insert_refuses_any_overlap
    cmpxchg_stores_on_a_match_only
    reserve_holds_a_place_that_reads_as_empty
    reserve_is_passed_over_by_allocation
    destroy_frees_every_node_of_any_tree
    find_includes_the_entry_around_the_start
    find_entry_meets_every_distance
    pause_goes_on_behind_the_entry_in_another_read_section
    pause_of_an_iteration_names_the_next_index
    move_steps_over_every_index_both_ways
    store_iter_sees_each_block_of_a_range_once
    xa_mark_stands_on_entries_only_and_sums_up_to_the_head
    xa_mark_of_a_multi_index_entry_is_seen_at_every_index
    xa_mark_iteration_visits_the_marked_only
    cmpxchg_order_replaces_a_multi_index_entry_as_a_whole
    multi_store_covers_its_block_and_nothing_else
    multi_store_over_smaller_and_larger_entries_replaces_them_whole
    multi_store_counts_values_and_pointers_apart
    multi_store_advanced_ranges_and_entries_mix_freely
    get_order_is_the_same_at_every_index_of_an_entry
    xas_get_order_comes_with_every_entry_found
    xas_conflict_get_order_names_what_is_in_the_way
    align_iteration_gives_aligned_blocks_of_every_order
    split_leaves_the_entry_and_its_marks_in_every_piece
    split_to_the_same_or_a_higher_order_does_nothing
    split_isolating_one_index_keeps_the_rest_large
    create_range_makes_room_for_stores_that_cannot_fail
    create_range_leaves_multi_index_entries_alone
    store_range_covers_exactly_its_indices
    store_range_refuses_to_cut_an_entry
}

#[test]
fn every_case_and_every_group_of_linux_is_tested() {
    let all = groups::<&HeapNodes>().map(|(name, _)| name);
    assert_eq!(all, TESTED);
    for group in [
        "xa_err",
        "xas_retry",
        "xa_load",
        "xa_mark",
        "xa_shrink",
        "xas_erase",
        "insert",
        "cmpxchg",
        "cmpxchg_order",
        "reserve",
        "multi_store",
        "multi_store_advanced",
        "get_order",
        "xas_get_order",
        "xas_conflict_get_order",
        "xa_alloc",
        "find",
        "find_entry",
        "pause",
        "destroy",
        "move",
        "create_range",
        "store_range",
        "store_iter",
        "align",
        "split",
    ] {
        assert!(all.iter().any(|name| name.starts_with(&format!("{group}_"))), "{group}");
    }
}
