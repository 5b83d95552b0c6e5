//! Journeys: a sentence each, against the real processes that the sandbox starts.

mod by_hand;
mod sandboxes;

mod a_bad_message_is_quarantined_with_its_reason;
mod a_breakdown_breaks_the_promise;
mod a_changed_receipt_is_refused;
mod a_device_comes_by_a_code_and_goes_by_a_revocation;
mod a_device_without_a_clock_has_times;
mod a_gap_is_named_until_it_is_closed;
mod a_hot_device_slows_nobody;
mod a_killed_fog_node_catches_up;
mod a_killed_gateway_loses_nothing;
mod a_lost_disk_is_rebuilt_from_the_peers;
mod a_reading_reaches_the_hospital;
mod a_repeated_bundle_is_one_commitment;
mod a_sandbox_leaves_nothing_running;
mod a_stranger_reads_nothing;
mod an_observer_reads_what_it_was_granted;
mod nothing_readable_is_on_disk;
mod the_benchmark_measures_what_it_says;
