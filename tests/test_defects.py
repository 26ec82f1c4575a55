"""The 48 known defects of the sequential predecessor, and for each the tests that keep this system from
having it.

The numbers are those of the study of Label's own migration scripts (commit 6d54199) that this project began
with. The table is checked: every test that it names must be there.
"""

import pytest
from sqlalchemy import event, text

from tests.defects import Defect
from tests.estate import make_project, record_session
from tests.support.runs import run, tools_of
from tests.support.sites import Site
from worker.errors import DatabaseRefusedError
from worker.messages import Verb

CONVERSION = "fidelity/test_conversion.py::"
ROLLBACK = "fidelity/test_rollback.py::"
MEANWHILE = "fidelity/test_people_meanwhile.py::"
KILL = "fidelity/test_kill_at_every_statement.py::"
EQUAL = "races/test_equal_content.py::"
TWO_RUNS = "races/test_two_runs.py::"
WHOLE = "acceptance/test_whole_path.py::"
REPORT = "producer/report/test_document.py::"
STORE = "worker/store/test_store.py::"
AFTER_EDITS = "fidelity/test_rollback_after_edits.py::"
CONFIGS = "fidelity/test_rollback_of_configs.py::"
REFUSED = "fidelity/test_rollback_refused.py::"
DAMAGE = "worker/store/test_damage.py::"
MANIFEST = "worker/store/test_manifest.py::"
SCAN = "worker/legacy/test_scan.py::"
HASH = "worker/legacy/test_hash.py::"
INGEST = "worker/legacy/test_ingest.py::"
ROOTS = "worker/legacy/test_roots.py::"
TRUST = "worker/jobs/test_integrity.py::"

DEFECTS = (
    Defect(
        number=1,
        was="sessions were never re-pointed: plots, scoring and exports broke",
        guards=(
            CONVERSION + "test_items_4_and_5_every_session_is_pointed_at_the_store",
            CONVERSION + "test_every_session_reads_as_before_with_and_without_legacy_directories",
            WHOLE + "test_every_session_reads_as_before_also_without_the_legacy_directories",
        ),
    ),
    Defect(
        number=2,
        was="of two runs in one second the loser deleted the winner's store",
        guards=(
            EQUAL + "test_eight_projects_of_equal_content_at_once_are_one_dataset_stored_once",
            STORE + "test_two_attempts_of_one_name_are_refused",
            DAMAGE + "test_a_job_that_unknowingly_lost_its_claim_leaves_the_published_tree_alone",
        ),
    ),
    Defect(
        number=3,
        was="the dataset's row was committed before its sessions', and stayed when one of them failed",
        guards=(
            KILL + "test_a_migration_may_be_killed_at_every_statement",
            WHOLE + "test_labels_are_kept_in_the_rows_as_they_were_read",
            "sql/test_rules.py::test_directories_that_differ_in_case_only_are_two_sessions",
            "sql/test_rules.py::test_a_path_may_be_longer_than_500_characters",
        ),
    ),
    Defect(
        number=4,
        was="a known hash was trusted without a look at its files",
        guards=(
            TRUST + "test_a_damaged_dataset_is_repaired_before_an_equal_project_refers_to_it",
            DAMAGE + "test_a_damaged_tree_is_replaced_and_the_old_one_kept_with_the_reason",
        ),
    ),
    Defect(
        number=5,
        was="the reference was committed before the project's update, and a failure between stopped every later run",
        guards=(
            KILL + "test_a_migration_may_be_killed_at_every_statement",
            KILL + "test_a_migration_onto_a_dataset_that_is_there_may_be_killed_at_every_statement",
            CONVERSION + "test_every_project_that_can_be_migrated_is_migrated",
        ),
    ),
    Defect(
        number=6,
        was="the hash had no lengths, so that different trees were merged",
        guards=(
            MANIFEST + "test_different_trees_never_have_one_digest",
            MANIFEST + "test_two_manifests_have_one_form_and_one_digest_only_if_they_are_equal",
        ),
    ),
    Defect(
        number=7,
        was="unreadable directories were skipped silently",
        guards=(SCAN + "test_a_directory_that_may_not_be_read_fails_the_project",),
    ),
    Defect(
        number=8,
        was="an unreadable file counted as an empty one",
        guards=(HASH + "test_a_file_that_cannot_be_read_fails_the_tree_and_is_named",),
    ),
    Defect(
        number=9,
        was="linked directories were not hashed, but copied",
        guards=(
            HASH + "test_links_are_hashed_as_what_they_point_to",
            SCAN + "test_a_link_to_a_directory_inside_the_roots_is_all_that_is_in_it",
            SCAN + "test_a_link_that_may_not_be_followed_is_named",
        ),
    ),
    Defect(
        number=10,
        was="empty directories did not count",
        guards=(
            MANIFEST + "test_an_empty_directory_counts_in_a_manifest",
            "test_estate.py::test_equal_projects_have_equal_trees_and_others_differ",
        ),
    ),
    Defect(
        number=11,
        was="opening a project without visible sessions rewrote the shared store in place",
        guards=(
            CONVERSION + "test_item_9_the_store_is_read_only_and_shares_no_file_with_a_legacy_directory",
            STORE + "test_blobs_and_files_are_read_only_and_directories_cannot_be_written",
            STORE + "test_a_project_rewritten_in_place_later_does_not_change_the_tree",
        ),
        note="Label's user must be another one than the migrator's: a mode alone stops neither root nor an owner who means it.",
    ),
    Defect(
        number=12,
        was="each such rewrite dropped the last row again",
        guards=(
            STORE + "test_a_project_rewritten_in_place_later_does_not_change_the_tree",
            "fidelity/test_restore.py::test_restored_files_are_copies_that_the_application_may_rewrite",
        ),
        note="Follows from 11.",
    ),
    Defect(
        number=13,
        was="projects were merged onto a store whose bytes did not fit its hash any more",
        guards=(
            TRUST + "test_a_damaged_dataset_is_repaired_before_an_equal_project_refers_to_it",
            TRUST + "test_damage_without_a_trace_in_the_times_is_found_when_the_last_check_is_old",
            "acceptance/test_verify_and_rollback_cli.py::test_a_session_that_differs_gives_exit_code_4_and_is_named",
        ),
    ),
    Defect(
        number=14,
        was="a scan registered a rewritten store a second time under one path, and deleting the twin removed the files",
        guards=(
            CONVERSION + "test_item_2_every_dataset_has_a_directory_of_its_own_where_the_plot_looks",
            "test_defects.py::test_14_one_directory_is_not_registered_as_two_datasets",
        ),
    ),
    Defect(
        number=15,
        was="the project's name went into a path unchecked",
        guards=(
            STORE + "test_any_text_makes_a_name_for_one_directory_right_below_the_trees",
            CONVERSION + "test_item_2_every_dataset_has_a_directory_of_its_own_where_the_plot_looks",
        ),
    ),
    Defect(
        number=16,
        was="stores landed where neither scan nor plot looks for them",
        guards=(CONVERSION + "test_item_2_every_dataset_has_a_directory_of_its_own_where_the_plot_looks",),
    ),
    Defect(
        number=17,
        was="the copy went straight to its final name, and a kill left a part of it there",
        guards=(
            STORE + "test_a_tree_appears_under_its_name_in_one_piece",
            INGEST + "test_an_attempt_that_died_after_some_blobs_is_finished_by_the_next",
            KILL + "test_a_migration_may_be_killed_at_every_statement",
        ),
    ),
    Defect(
        number=18,
        was="nothing compared the copy with the hash",
        guards=(
            STORE + "test_a_source_with_other_bytes_behind_an_equal_signature_is_not_stored",
            INGEST + "test_a_change_between_hashing_and_copying_is_noticed_and_nothing_is_published",
        ),
    ),
    Defect(
        number=19,
        was="a project's own analysis_config was overwritten",
        guards=(CONVERSION + "test_item_1_analysis_config_keeps_the_keys_it_had",),
    ),
    Defect(
        number=20,
        was="a rollback deleted every reference of the project",
        guards=(
            AFTER_EDITS + "test_a_rollback_removes_only_its_own_reference_and_split_configs",
            AFTER_EDITS + "test_a_reference_that_was_there_before_the_migration_stays",
        ),
    ),
    Defect(
        number=21,
        was="a rollback emptied analysis_config",
        guards=(
            CONFIGS + "test_any_analysis_config_comes_back_to_the_digit",
            AFTER_EDITS + "test_a_rollback_keeps_what_people_did_meanwhile_and_changes_nothing_else",
            CONFIGS + "test_a_key_that_would_be_lost_refuses_the_rollback",
        ),
    ),
    Defect(
        number=22,
        was="a rollback left sessions that were split since in the store, and split configs where they were",
        guards=(
            AFTER_EDITS + "test_a_rollback_keeps_what_people_did_meanwhile_and_changes_nothing_else",
            AFTER_EDITS + "test_a_rollback_removes_only_its_own_reference_and_split_configs",
        ),
    ),
    Defect(
        number=23,
        was="an emptied directory, or a file, passed as a legacy directory to go back to",
        guards=(REFUSED + "test_a_legacy_directory_that_is_not_what_was_migrated_refuses_the_rollback",),
    ),
    Defect(
        number=24,
        was="a missing project_type came back as `legacy`",
        guards=(
            CONVERSION + "test_a_rollback_gives_every_row_of_label_back_and_every_session_reads_as_before",
        ),
    ),
    Defect(
        number=25,
        was="deleting a migrated project orphaned its directory and its store",
        guards=(
            MEANWHILE + "test_a_migrated_project_that_label_deletes_is_still_in_the_report",
            ROLLBACK + "test_a_project_that_was_deleted_since_is_skipped",
        ),
        note="Deleting is Label's; what it orphans stays on record for whoever cleans up.",
    ),
    Defect(
        number=26,
        was="deleting a dataset raced with new references, and did not ask the sessions",
        guards=(
            "worker/db/test_datasets.py::test_a_locked_dataset_cannot_be_deleted_meanwhile",
            "sql/test_rules.py::test_a_row_that_others_need_is_not_deleted",
        ),
    ),
    Defect(
        number=27,
        was="of two datasets with an equal session name in one project the second session was dropped silently",
        guards=("sql/test_contract_tables.py::test_keys_and_checks_are_those_of_the_contract",),
        note="Cannot occur: a migration gives a project exactly one dataset and adds no session.",
    ),
    Defect(
        number=28,
        was="of two equal projects at once one failed after a full copy",
        guards=(
            EQUAL + "test_eight_projects_of_equal_content_at_once_are_one_dataset_stored_once",
            EQUAL + "test_24_jobs_of_equal_content_over_real_workers_are_one_dataset",
        ),
    ),
    Defect(
        number=29,
        was="two runs over one project did all work twice, and one reported an error",
        guards=(
            EQUAL + "test_of_two_runs_over_one_project_one_migrates_it_and_the_other_says_who_did",
            TWO_RUNS + "test_two_runs_over_the_same_projects_migrate_each_once",
        ),
    ),
    Defect(
        number=30,
        was="rows were read once at the start: what changed since was overwritten, what was deleted was reported as done",
        guards=(
            MEANWHILE + "test_a_project_that_was_converted_after_the_run_was_opened_is_left_alone",
            MEANWHILE + "test_edits_that_are_committed_while_the_files_are_read_are_in_the_result",
            ROLLBACK + "test_a_project_whose_row_another_program_converted_is_not_touched",
        ),
    ),
    Defect(
        number=31,
        was="a project took three commits and one for each session",
        guards=(
            KILL + "test_a_migration_may_be_killed_at_every_statement",
            "test_defects.py::test_31_a_conversion_is_one_commit_however_many_sessions_there_are",
        ),
    ),
    Defect(
        number=32,
        was="project id 0 was taken for all",
        guards=(
            "producer/cli/test_run_commands.py::test_ids_that_cannot_be_migrated_are_each_named_and_no_run_is_opened",
            ROLLBACK + "test_an_id_that_cannot_be_rolled_back_is_refused_and_no_run_is_opened",
        ),
    ),
    Defect(
        number=33,
        was="unknown, negative or migrated ids ended in success",
        guards=(
            "producer/cli/test_run_commands.py::test_ids_that_cannot_be_migrated_are_each_named_and_no_run_is_opened",
            "acceptance/test_verify_and_rollback_cli.py::test_what_cannot_be_rolled_back_is_named_and_nothing_begins",
        ),
    ),
    Defect(
        number=34,
        was="an empty path failed without a message, a missing one was never mentioned",
        guards=(
            WHOLE + "test_projects_without_a_path_are_skipped_with_the_reason_and_get_no_task",
            REPORT + "test_a_failure_without_a_message_is_reported_with_its_reason",
        ),
    ),
    Defect(
        number=35,
        was="errors did not name their project",
        guards=(REPORT + "test_every_selected_project_is_in_the_details_and_every_failed_one_in_the_errors",),
    ),
    Defect(
        number=36,
        was="the report had no original path, no hash and no storage path",
        guards=(
            WHOLE + "test_every_legacy_project_is_in_the_report_with_its_outcome",
            WHOLE + "test_projects_refer_to_their_dataset_and_keep_everything_else",
        ),
    ),
    Defect(
        number=37,
        was="a dataset made for a project that then failed was in no count",
        guards=(REPORT + "test_what_a_failed_project_left_behind_is_reported",),
    ),
    Defect(
        number=38,
        was="a dry run said `migrated`, and foretold neither duplicates nor failures",
        guards=(
            WHOLE + "test_the_dry_run_predicts_the_outcome_of_every_project_and_all_totals",
            WHOLE + "test_of_equal_projects_the_dry_run_lets_the_lowest_id_store_the_content",
        ),
    ),
    Defect(
        number=39,
        was="the report came at the end only, in the working directory, and replaced that of a parallel run",
        guards=(
            WHOLE + "test_collecting_again_writes_an_equal_report_under_another_name",
            "producer/report/test_files.py::test_reports_written_at_once_each_get_their_own_file",
            "producer/cli/test_follow.py::test_a_report_directory_that_cannot_be_written_is_named_before_jobs_are_queued",
        ),
    ),
    Defect(
        number=40,
        was="a JSON null or a list in one analysis_config stopped the rollback of all projects",
        guards=(
            CONFIGS + "test_any_analysis_config_comes_back_to_the_digit",
            CONVERSION + "test_a_rollback_gives_every_row_of_label_back_and_every_session_reads_as_before",
        ),
    ),
    Defect(
        number=41,
        was="connection errors were printed and swallowed",
        guards=(
            "worker/db/test_engine.py::test_a_server_that_is_not_there_is_named_by_host_and_port_and_nothing_else",
            "producer/cli/test_session.py::test_an_unreachable_database_is_named_without_its_password",
        ),
    ),
    Defect(
        number=42,
        was="a pipe in the tree stopped the run for ever",
        guards=(
            SCAN + "test_a_special_file_is_named_with_its_kind",
            SCAN + "test_a_pipe_that_takes_a_files_place_after_the_scan_does_not_block_the_reading",
        ),
    ),
    Defect(
        number=43,
        was="a name that is not UTF-8, or a dangling link, failed the project without a word why",
        guards=(
            SCAN + "test_a_deeper_directory_or_any_file_keeps_its_name_byte_for_byte",
            SCAN + "test_a_link_that_may_not_be_followed_is_named",
            MANIFEST + "test_a_name_of_any_bytes_comes_back_byte_for_byte",
        ),
    ),
    Defect(
        number=44,
        was="a project around the store was copied into itself",
        guards=(
            ROOTS + "test_a_project_path_that_cannot_be_migrated_is_named",
            ROOTS + "test_a_store_that_is_reached_by_a_link_is_recognised",
        ),
    ),
    Defect(
        number=45,
        was="every byte was read three times, one file after the other, without progress or resume",
        guards=(
            TRUST + "test_a_big_file_that_was_not_seen_before_is_read_once",
            HASH + "test_progress_counts_every_file_and_every_byte_once",
            INGEST + "test_an_attempt_that_died_after_some_blobs_is_finished_by_the_next",
        ),
    ),
    Defect(
        number=46,
        was="settings in .env were never read, and the port could not be set",
        guards=(
            "worker/test_settings.py::test_a_dotenv_file_in_the_working_directory_is_read",
            "worker/test_settings.py::test_a_missing_setting_is_named",
        ),
    ),
    Defect(
        number=47,
        was="schema steps could be neither repeated nor undone half way, and lacked columns",
        guards=(
            "sql/test_apply.py::test_applying_twice_changes_nothing",
            "sql/test_apply.py::test_a_step_that_fails_leaves_nothing_and_the_next_call_goes_on",
            "sql/test_contract_tables.py::test_columns_have_type_nullability_and_default_of_the_contract",
        ),
    ),
    Defect(
        number=48,
        was="the application did not start from its own requirements",
        guards=("test_wheel.py::test_the_installed_program_runs_outside_the_checkout_and_finds_its_files",),
    ),
)


def test_every_defect_is_in_the_table_once():
    assert [defect.number for defect in DEFECTS] == list(range(1, 49))


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: str(defect.number))
def test_every_defect_has_a_guard_that_exists(defect: Defect):
    assert defect.guards
    assert defect.missing_guards() == []


# Those that no other test guards ----------------------------------------------------------------------------


def test_14_one_directory_is_not_registered_as_two_datasets(site: Site):
    """Label's scan hashes in its own way, knows no digest of ours, and would register every tree of ours once
    more; whoever then deletes the twin, which nothing refers to, deletes the files of the other.
    """
    with site.engine.begin() as conn:
        record_session(conn, make_project(conn, site.legacy_root, "study"), "s")
    with tools_of(site) as tools:
        run(tools, Verb.MIGRATE)
    register = text(
        "insert into raw_datasets (dataset_name, dataset_hash, file_path)"
        " select 'found by a scan', repeat('0', 64), file_path from raw_datasets"
    )

    with pytest.raises(DatabaseRefusedError), site.engine.begin() as conn:
        conn.execute(register)


@pytest.mark.parametrize("sessions", [1, 40])
def test_31_a_conversion_is_one_commit_however_many_sessions_there_are(site: Site, sessions: int):
    """Everything of Label's and of the before-image is written in one transaction, by one statement a
    table.
    """
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        for number in range(sessions):
            record_session(conn, project, f"s{number}", rows=3, seed=number)
    transactions: list[list[str]] = [[]]
    event.listen(site.engine, "before_cursor_execute", lambda *args: transactions[-1].append(args[2]))
    for end in ("commit", "rollback"):
        event.listen(site.engine, end, lambda _conn: transactions.append([]))

    with tools_of(site) as tools:
        run(tools, Verb.MIGRATE)

    tables = (
        "insert into raw_datasets",
        "insert into raw_dataset_sessions",
        "insert into project_dataset_refs",
        "insert into project_conversions",
        "update sessions",
        "update projects",
    )
    writing = [
        table
        for statements in transactions
        for statement in statements
        for table in tables
        if table in " ".join(statement.split()).lower() + " "
    ]
    together = [
        statements for statements in transactions if any("update projects" in one for one in statements)
    ]
    assert sorted(writing) == sorted(tables)
    assert len(together) == 1
    assert sum(table in " ".join(" ".join(together[0]).split()) for table in tables) == len(tables)
