"""What broke when others tried release 0.1, by kind, and for each the tests that fail without its mending.

The table is checked: every test that it names must be there.
"""

import pytest

from tests.defects import Defect

DEFECTS = (
    Defect(
        number=1,
        was="a rollback needed the store that it was to escape from",
        guards=(
            "fidelity/test_way_back.py::test_a_rollback_needs_no_store_while_the_legacy_directory_is_there",
            "fidelity/test_way_back.py::test_conversions_that_did_not_note_their_digest_go_back_without_a_store",
            "fidelity/test_way_back.py::test_a_changed_directory_is_refused_without_a_store_too",
        ),
    ),
    Defect(
        number=2,
        was="tables were checked by name and never by type, and a rehearsal wrote nothing, so it proved nothing about writing",
        guards=(
            "acceptance/test_from_mysql.py::test_a_database_converted_from_mysql_goes_there_and_back_exactly",
            "worker/conversion/test_rehearsal.py::test_a_dry_run_predicts_what_the_database_refuses",
            "worker/conversion/test_rehearsal.py::test_a_dry_rollback_predicts_what_the_database_refuses",
            "worker/conversion/test_rehearsal.py::test_dry_runs_leave_no_row_and_report_what_the_real_runs_report",
            "worker/conversion/test_rehearsal.py::test_columns_that_do_not_fit_are_named_with_the_statement_that_changes_them",
            "worker/conversion/test_rehearsal.py::test_every_verb_that_writes_says_at_its_start_which_columns_do_not_fit",
        ),
    ),
    Defect(
        number=3,
        was="a restore failed for good when a blob got one more link meanwhile, and leftovers were removed through links",
        guards=(
            "fidelity/test_restore.py::test_a_blob_that_gets_another_link_while_it_is_restored_has_not_changed",
            "fidelity/test_restore.py::test_a_link_that_is_called_like_a_leftover_is_not_followed",
            "worker/store/test_removal.py::test_a_link_that_is_swapped_in_between_the_look_and_the_opening_is_not_followed",
        ),
    ),
    Defect(
        number=4,
        was="projects that another program took back ended in a unique key's violation",
        guards=(
            "fidelity/test_taken_back.py::test_a_project_taken_back_by_other_means_is_migrated_again_and_rolled_back",
            "fidelity/test_taken_back.py::test_a_rollback_removes_what_the_other_program_left",
            "fidelity/test_taken_back.py::test_a_project_whose_directory_changed_since_keeps_what_its_sessions_read",
        ),
    ),
    Defect(
        number=5,
        was="the guide listed directories that sessions still read, and a verification of nothing was called good",
        guards=(
            "fidelity/test_space.py::test_directories_that_sessions_read_are_not_reclaimed",
            "acceptance/test_verify_and_rollback_cli.py::test_a_verification_that_verified_nothing_does_not_exit_with_0",
        ),
    ),
    Defect(
        number=6,
        was="rows were committed that relied on what another job had not made durable yet",
        guards=(
            "powercut/test_power_cut.py::test_after_a_power_cut_all_that_rows_refer_to_is_there",
            "powercut/test_power_cut.py::test_without_syncs_a_power_cut_is_seen_to_break_what_rows_refer_to",
            "worker/store/test_durability.py::test_a_legacy_directory_that_is_found_is_on_the_disk_before_a_row_relies_on_it",
            "worker/store/test_durability.py::test_a_restored_tree_is_flushed_by_a_descriptor_opened_before_any_write",
            "worker/store/test_durability.py::test_where_syncfs_reports_no_errors_each_file_is_flushed",
            "worker/store/test_durability.py::test_what_a_power_failure_brings_back_into_staging_goes_with_the_next_job",
            "faults/test_order.py::test_a_reused_dataset_costs_one_sync_before_its_row_and_changes_no_file",
        ),
    ),
    Defect(
        number=7,
        was="a worker without the mount of DATA_DIR made a second store and committed rows to it",
        guards=(
            "worker/jobs/test_one_store.py::test_a_worker_without_the_store_does_no_job_and_pauses_the_run",
            "worker/jobs/test_one_store.py::test_of_several_first_migrations_one_makes_the_store",
            "worker/jobs/test_one_store.py::test_opening_a_store_for_reading_creates_and_names_nothing",
            "worker/jobs/test_one_store.py::test_doctor_and_metrics_say_that_another_store_is_there",
        ),
    ),
    Defect(
        number=8,
        was="a machine without the legacy mount failed every project of the queue",
        guards=(
            "worker/legacy/test_mounts.py::test_a_missing_legacy_root_fails_no_project",
            "worker/legacy/test_mounts.py::test_the_worker_that_has_the_root_does_all_the_work",
            "worker/legacy/test_mounts.py::test_a_run_whose_root_no_worker_has_is_paused_with_the_reason_and_resumes",
        ),
    ),
    Defect(
        number=9,
        was="a failed conversion left trees that Label's scan turned into rows in the way",
        guards=(
            "worker/jobs/test_left_behind.py::test_sessions_are_judged_before_anything_is_stored",
            "worker/jobs/test_left_behind.py::test_a_failed_job_counts_what_it_stored",
            "worker/jobs/test_left_behind.py::test_a_tree_that_label_registered_meanwhile_is_left_to_it",
        ),
    ),
    Defect(
        number=10,
        was="a job that was handed back while its run was cancelled waited for ever, and reports omitted it",
        guards=(
            "worker/jobs/test_runner.py::test_a_cancellation_waits_for_a_job_that_is_being_handed_back",
            "worker/jobs/test_reaper.py::test_a_job_that_waits_in_a_cancelled_run_is_named_by_the_collector_and_ended",
        ),
    ),
    Defect(
        number=11,
        was="a sleeping worker moved away the good tree of its successor",
        guards=(
            "worker/store/test_fencing.py::test_a_sleeper_does_not_move_away_the_tree_that_its_successor_completed",
            "worker/store/test_fencing.py::test_a_job_that_lost_its_claim_replaces_nothing",
            "chaos/test_sleep_anywhere.py::test_a_migration_that_rebuilds_a_damaged_dataset_may_sleep_anywhere",
        ),
    ),
    Defect(
        number=12,
        was="what close(2) said of a full disk failed projects",
        guards=(
            "faults/test_network_files.py::test_an_error_that_close_returns_counts_as_an_error_of_the_store",
        ),
    ),
    Defect(
        number=13,
        was="one project's lack of room paused the whole run, by a stale count, and holes counted as bytes",
        guards=(
            "worker/jobs/test_room.py::test_what_another_job_is_storing_is_not_counted_twice",
            "worker/jobs/test_room.py::test_a_project_that_can_never_fit_fails_alone_with_figures",
            "worker/jobs/test_room.py::test_a_project_that_does_not_fit_now_waits_and_the_others_go_on",
            "worker/jobs/test_room.py::test_holes_of_sparse_files_take_no_room_and_stay_holes",
        ),
    ),
    Defect(
        number=14,
        was="outages of PostgreSQL failed healthy jobs and ended those that follow a run, and locks were waited for without giving way",
        guards=(
            "worker/jobs/test_reaper.py::test_a_lease_that_ran_out_while_the_server_was_away_is_no_crash",
            "producer/runs/test_outages.py::test_commands_that_follow_a_run_wait_for_the_database",
            "producer/runs/test_outages.py::test_two_retries_at_once_queue_every_failed_job_once",
            "sql/test_places.py::test_applying_the_schema_never_ends_a_person_s_transaction",
            "worker/jobs/test_listening.py::test_a_job_that_waits_for_others_stops_with_its_worker",
        ),
    ),
    Defect(
        number=15,
        was="stop, pause, cancel and throttle were not heard in many loops and waits",
        guards=(
            "worker/jobs/test_listening.py::test_a_job_that_waits_for_others_stops_with_its_worker",
            "worker/jobs/test_listening.py::test_stored_bytes_that_are_read_again_count_as_progress",
            "worker/legacy/test_ingest.py::test_every_pass_over_a_tree_ends_when_the_worker_stops",
            "worker/legacy/test_scan.py::test_a_listing_ends_at_the_next_entry_when_the_work_is_to_stop",
            "worker/test_sessions_csv.py::test_reading_and_counting_can_be_stopped_at_each_block",
            "worker/runtime/test_throttle.py::test_a_limit_that_is_lifted_or_raised_ends_the_waits_for_what_was_booked",
        ),
    ),
    Defect(
        number=16,
        was="the reaper removed staging inside its transaction",
        guards=("worker/jobs/test_reaper.py::test_leftovers_are_removed_when_the_job_waits_again_already",),
    ),
    Defect(
        number=17,
        was="servers that answer but refuse ended workers or gave traces, and settings of roles leaked in",
        guards=(
            "worker/broker/test_broker_refuses.py::test_a_refusing_broker_ends_no_worker_and_status_says_what_they_wait_for",
            "worker/broker/test_broker_refuses.py::test_the_doctor_and_every_command_say_why_the_server_refuses",
            "worker/db/test_engine.py::test_a_server_that_answers_that_it_cannot_work_is_a_transient_error",
            "worker/db/test_engine.py::test_a_database_closed_for_writing_takes_no_work_and_may_be_read",
            "worker/db/test_engine.py::test_settings_of_a_role_or_a_database_do_not_leak_in",
            "worker/db/test_engine.py::test_nothing_that_is_set_stays_on_a_connection",
        ),
    ),
    Defect(
        number=18,
        was="options in DATABASE_URL and PGOPTIONS were dropped, so the wrong copy of the tables was changed",
        guards=(
            "worker/db/test_engine.py::test_the_operators_options_count_and_ours_where_they_must",
            "sql/test_places.py::test_of_two_copies_of_label_the_one_in_the_url_is_changed",
        ),
    ),
    Defect(
        number=19,
        was="tables were made in the first schema of the search path, not beside Label's",
        guards=(
            "sql/test_places.py::test_all_tables_are_made_in_the_schema_of_label",
            "sql/test_places.py::test_tables_that_were_made_in_another_schema_are_named_with_the_way_to_label",
        ),
    ),
    Defect(
        number=20,
        was="what row-level security hides was taken for absent",
        guards=(
            "worker/db/test_engine.py::test_rows_that_a_policy_hides_are_refused_and_not_taken_for_absent",
            "sql/test_places.py::test_policies_that_would_hide_rows_are_refused_before_anything_is_done",
        ),
    ),
    Defect(
        number=21,
        was="variables of another Celery application led messages into its Redis",
        guards=(
            "worker/test_app.py::test_variables_of_another_celery_application_change_nothing",
            "worker/test_app.py::test_a_run_goes_its_way_beside_another_celery_application",
            "worker/test_app.py::test_another_broker_on_the_command_line_is_refused",
        ),
    ),
    Defect(
        number=22,
        was="misspelt settings and options without effect were ignored, and addresses that libpq reads were refused",
        guards=(
            "worker/test_settings.py::test_a_misspelt_setting_in_env_is_refused_with_the_one_that_was_meant",
            "worker/test_settings.py::test_settings_of_other_applications_are_ignored",
            "worker/test_settings.py::test_a_database_is_named_as_libpq_allows",
            "producer/cli/test_follow.py::test_options_that_do_nothing_without_wait_are_named",
        ),
    ),
    Defect(
        number=23,
        was="other sequences, encodings, inodes, times, paths and sizes than usual broke runs",
        guards=(
            "producer/doctor/test_database_checks.py::test_a_sequence_behind_its_table_fails_with_the_statement_that_corrects_it",
            "fidelity/test_encodings.py::test_names_that_the_database_holds_are_migrated_and_come_back",
            "fidelity/test_encodings.py::test_a_name_that_the_database_cannot_hold_is_refused_and_named",
            "worker/legacy/test_odd_projects.py::test_checks_of_files_with_any_inode_and_any_time_come_back_as_they_were",
            "worker/legacy/test_scan.py::test_any_time_that_a_file_system_can_hold_is_kept_to_the_nanosecond",
            "worker/legacy/test_odd_projects.py::test_a_path_too_long_for_label_in_the_store_fails_before_anything_is_stored",
            "worker/legacy/test_odd_projects.py::test_labels_of_hundreds_of_megabytes_stay_a_file_with_a_warning_in_both_runs",
            "worker/test_sessions_csv.py::test_a_field_as_long_as_the_file_takes_no_more_memory",
            "worker/db/test_engine.py::test_times_come_in_utc_and_are_written_in_the_databases_own_zone",
        ),
    ),
    Defect(
        number=24,
        was="a directory that became a link meanwhile led a scan out of LEGACY_ROOTS",
        guards=(
            "worker/legacy/test_scan.py::test_a_directory_that_becomes_a_link_before_it_is_listed_leads_nowhere",
            "worker/legacy/test_scan.py::test_bytes_are_not_read_through_a_directory_that_became_a_link_since",
            "worker/store/test_beneath.py::test_a_link_at_any_place_of_the_way_is_not_followed",
        ),
    ),
    Defect(
        number=25,
        was="SQL text and its parameters stood in reports, errors and logs",
        guards=("worker/db/test_engine.py::test_a_refusal_is_reported_without_the_statement_and_its_values",),
    ),
    Defect(
        number=26,
        was="messages, remedies and figures said what was not so",
        guards=(
            "worker/test_errors.py::test_a_command_that_a_remedy_names_is_no_usage_error",
            "sql/test_require.py::test_a_table_that_is_gone_comes_back_by_applying_again",
            "producer/test_metrics.py::test_a_project_that_failed_counts_until_its_next_real_run_says_otherwise",
            "producer/runs/test_status.py::test_idle_time_counts_neither_for_the_speed_nor_for_the_time_that_is_left",
            "worker/legacy/test_odd_projects.py::test_sessions_unreadable_before_and_after_are_counted_apart_and_named",
            "worker/legacy/test_odd_projects.py::test_what_other_programs_left_is_named_by_the_dry_run_and_by_the_real_one",
            "producer/doctor/test_diagnose.py::test_a_check_that_did_not_run_has_not_passed",
        ),
    ),
    Defect(
        number=27,
        was="a call that failed was silent in JSON, nothing asked before what is hard to undo, and options were missing",
        guards=(
            "producer/cli/test_app.py::test_a_call_that_fails_is_one_object_with_json",
            "producer/cli/test_app.py::test_the_version_option_prints_the_version",
            "producer/cli/test_run_commands.py::test_a_person_is_asked_before_everything_is_rolled_back",
            "producer/cli/test_control_commands.py::test_a_person_is_asked_before_a_run_is_cancelled",
            "producer/cli/test_run_commands.py::test_with_a_limit_what_failed_last_time_is_not_in_the_way",
        ),
    ),
    Defect(
        number=28,
        was="Compose could not run Label's own layout, a restricted role, a backup or a restore",
        guards=(
            "test_compose.py::test_tables_are_applied_by_an_address_of_their_own",
            "test_compose.py::test_services_on_the_bundled_database_have_its_version_and_its_password",
            "test_compose.py::test_no_service_uses_the_bundled_database_when_another_one_is_named",
        ),
    ),
    Defect(
        number=29,
        was="a restart of the file server, or an error of it, failed projects",
        guards=(
            "faults/test_network_files.py::test_a_staged_file_can_be_written_until_it_is_complete",
            "faults/test_network_files.py::test_a_server_that_does_not_answer_pauses_the_run",
            "worker/store/test_durability.py::test_bytes_that_may_be_lost_are_stored_once_more_before_the_run_is_paused",
        ),
    ),
    Defect(
        number=30,
        was="stale names and attributes condemned good files and hid changed ones",
        guards=(
            "worker/jobs/test_integrity.py::test_of_two_that_repair_a_blob_the_second_keeps_what_the_first_put_there",
            "faults/test_network_files.py::test_what_another_worker_published_is_found_behind_a_stale_name_cache",
            "worker/store/test_digest.py::test_a_network_file_systems_server_is_asked_whether_a_file_changed_meanwhile",
        ),
    ),
    Defect(
        number=31,
        was="files that NFS keeps stood in the way, blocks were reserved by writing, and no mount's options were read",
        guards=(
            "worker/store/test_removal.py::test_on_nfs_an_open_file_stays_with_its_directory_and_everything_else_goes",
            "faults/test_network_files.py::test_blocks_are_reserved_where_the_file_system_can_and_not_written_otherwise",
            "worker/doctor/test_mount_options.py::test_mount_options_are_judged_by_what_they_cost",
            "worker/doctor/test_mount_options.py::test_two_machines_of_one_name_fail_and_two_workers_of_one_machine_pass",
            "producer/runs/test_survey.py::test_a_directory_that_does_not_answer_is_named_while_it_is_waited_for",
        ),
    ),
)


def test_every_defect_is_in_the_table_once():
    assert [defect.number for defect in DEFECTS] == list(range(1, 32))


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: str(defect.number))
def test_every_defect_has_a_guard_that_exists(defect: Defect):
    assert defect.guards
    assert defect.missing_guards() == []
