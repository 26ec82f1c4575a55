"""What the verbs about datasets print, for people and for scripts, and what they say to a wrong call."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from producer.cli.exit_codes import Exit
from producer.projects.exported import export
from tests.estate import make_dataset, snapshot_tree
from tests.producer.cli.calls import Call, lines
from tests.support.runs import gc, migrate_all, open_run, run, run_one, tools_of, verify_datasets
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.db import blob_index
from worker.jobs.tools import Tools
from worker.messages import Outcome, Verb
from worker.runtime import log
from worker.store.digest import digest_of


@pytest.fixture(autouse=True)
def _jobs_log_to_standard_error(_logging_as_it_was: None) -> None:
    """As in a worker; standard output is the program's."""
    log.configure(log_format="json", level="error")


def three_of_two(site: Site, tools: Tools) -> list[Outcome]:
    """Three migrated projects: two that are equal, and one that shares one of its two sessions with them."""
    for name, seeds in (("one", (1, 2)), ("two", (1, 2)), ("three", (2, 3))):
        plain_study(site, name, *seeds)
    return migrate_all(site, tools)


def say(call: Call, *words: str) -> Any:
    """What a call prints for scripts; it must be well."""
    done = call(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_list_counts_projects_sessions_and_legacy_directories(site: Site, call: Call):
    with tools_of(site) as tools:
        one, two, three = three_of_two(site, tools)
        verify_datasets(tools, only=[one.dataset_id or 0])
        run_one(tools, Verb.RECLAIM, two.project_id or 0)
        run_one(tools, Verb.RECLAIM, three.project_id or 0)

    first, second = say(call, "datasets", "list")

    assert first["dataset_id"] == one.dataset_id
    assert (first["sessions"], first["projects"]) == (2, 2)
    assert first["legacy_directories"] == {"in_place": 1, "moved_away": 1, "purged": 0}
    assert second["legacy_directories"] == {"in_place": 0, "moved_away": 1, "purged": 0}
    assert (first["verified_at"] is None, second["verified_at"] is None) == (False, True)
    (heading, row, _, summary) = lines(call("datasets", "list"))
    assert heading.split() == ["id", "hash", "size", "sessions", "projects", "verified", "name", "legacy"]
    assert one.dataset_hash[:12] in row
    assert "1 in place, 1 moved away" in row
    assert summary.startswith("2 datasets, ")
    assert summary.endswith(", 1 not read in full since stored")


def test_the_list_keeps_what_is_asked_for_in_the_order_that_is_asked_for(site: Site, call: Call):
    with tools_of(site) as tools:
        one, _, three = three_of_two(site, tools)
        verify_datasets(tools, only=[one.dataset_id or 0])
        run_one(tools, Verb.ROLLBACK, three.project_id or 0)
    with site.engine.begin() as conn:
        by_label = make_dataset(conn, site.legacy_root, "e" * 64)

    def ids(*words: str) -> list[int]:
        return [found["dataset_id"] for found in say(call, "datasets", "list", *words)]

    stored = [one.dataset_id, three.dataset_id]
    assert ids("--sort", "size", "--limit", "2", "--reverse")[0] == by_label
    assert ids("--unreferenced") == [three.dataset_id, by_label]
    assert ids("--not-verified", "1") == [three.dataset_id, by_label]
    assert ids("--not-verified", "0") == [*stored, by_label]
    assert ids("--project-id", str(one.project_id)) == [one.dataset_id]
    assert ids("--project-id", str(three.project_id)) == []
    assert ids("--sort", "projects") == [*stored, by_label]
    assert ids("--limit", "1") == [one.dataset_id]


def test_a_dataset_is_shown_with_what_is_its_own_and_who_stored_it(site: Site, call: Call):
    with tools_of(site) as tools:
        one, two, three = three_of_two(site, tools)

    seen = say(call, "datasets", "show", str(one.dataset_id))

    assert [(of["project_id"], of["stored"], of["legacy"]) for of in seen["project_list"]] == [
        (one.project_id, True, "in_place"),
        (two.project_id, False, "in_place"),
    ]
    assert [(of["session_name"], of["readers"]) for of in seen["session_list"]] == [
        ("day 1", 2),
        ("day 2", 2),
    ]
    content = seen["content"]
    assert content["blobs"] == 2
    assert 0 < content["own_bytes"] < content["size_bytes"] == seen["size_bytes"]
    assert content["shared_with"] == [three.dataset_id]
    assert seen["gc"]["references"] == ["projects", "sessions", "rollbacks", "paths"]
    words = "\n".join(lines(call("datasets", "show", str(one.dataset_id))))
    assert f"hash      {one.dataset_hash}" in words
    assert f"stored    by project {one.project_id}, " in words
    assert f"shared with dataset {three.dataset_id}" in words
    assert "gc        leaves it, needed by: projects, sessions, " in words


def test_labels_hash_is_shown_where_it_is_remembered(site: Site, call: Call):
    plain_study(site, "study", 1)
    with tools_of(site) as tools:
        (one,) = migrate_all(site, tools)
    show = ("datasets", "show", str(one.dataset_id))

    seen = say(call, *show)
    assert (seen["label_hash"], seen["label_hash_computed"]) == (None, False)
    assert "label     Label's own hash was not computed yet" in call(*show).stderr
    export(site.engine, one.project_id or 0)
    seen = say(call, *show)
    assert seen["label_hash_computed"]
    assert f"label     {seen['label_hash']}" in call(*show).stderr
    with site.engine.begin() as conn:
        conn.execute(text("update migration_label_hashes set label_hash = null"))
    assert "label     no hash of Label's: a name is not UTF-8" in call(*show).stderr


def test_a_dataset_goes_to_a_disk_and_is_recognised_when_it_comes_back(
    site: Site, call: Call, tmp_path: Path
):
    plain_study(site, "study", 1)
    with tools_of(site) as tools:
        (one,) = migrate_all(site, tools)
    bag = tmp_path / "bag"
    export_it = ("datasets", "export", str(one.dataset_id), "--output", str(bag))

    seen = say(call, *export_it)
    assert (seen["dataset_hash"], seen["bag"], seen["files"]) == (one.dataset_hash, str(bag), 3)
    taken = call(*export_it)
    assert taken.returncode == Exit.USAGE
    assert f"{bag} is there already" in taken.stderr
    back = call("datasets", "import", str(bag))
    assert back.returncode == Exit.WELL
    assert f"Already here as {one.dataset_id} study; nothing was written" in back.stderr
    (bag / "bagit.txt").unlink()
    bad = call("datasets", "import", str(bag))
    assert bad.returncode == Exit.USAGE
    assert "is not a BagIt bag" in bad.stderr
    assert "docs/sharing.md says which bags can be imported" in bad.stderr


def test_an_unreferenced_dataset_says_since_when_and_what_gc_does(site: Site, call: Call):
    with tools_of(site) as tools:
        *_, three = three_of_two(site, tools)
        run_one(tools, Verb.ROLLBACK, three.project_id or 0)
    show = ("datasets", "show", str(three.dataset_id))

    assert "leaves it until the grace time is over" in call(*show).stderr
    with site.engine.begin() as conn:
        conn.execute(
            text("update project_conversions set rolled_back_at = rolled_back_at - interval '2 days'")
        )

    assert "would put it into quarantine: nothing has referred to it since" in call(*show).stderr
    assert say(call, *show)["gc"]["is_due"] is True


def test_the_report_counts_what_is_shared_and_where_it_lies(site: Site, call: Call):
    with tools_of(site) as tools:
        one, two, three = three_of_two(site, tools)
        plain_study(site, "four", 4)
        (four,) = migrate_all(site, tools)
        verify_datasets(tools, only=[one.dataset_id or 0])
        run_one(tools, Verb.RECLAIM, one.project_id or 0)
        run_one(tools, Verb.ROLLBACK, four.project_id or 0)
    with site.engine.begin() as conn:
        conn.execute(
            text("update project_conversions set rolled_back_at = rolled_back_at - interval '2 days'")
        )
        _note_sharing(conn, two.project_id or 0, freed=4096)

    seen = say(call, "datasets", "report", "--html", "lab.html")

    stored = {found["dataset_id"]: found for found in say(call, "datasets", "list")}
    size = {number: found["size_bytes"] for number, found in stored.items()}
    had = 2 * size[one.dataset_id] + size[three.dataset_id]
    sharing = say(call, "explain", str(three.project_id))["sharing"]
    by_id = {project["project_id"]: project for project in seen["project_list"]}
    assert {key: by_id[three.project_id][key] for key in ("size_bytes", "own_bytes")} == {
        key: sharing[key] for key in ("size_bytes", "own_bytes")
    }
    assert by_id[four.project_id]["is_legacy"]
    assert by_id[four.project_id]["dataset_ids"] == []
    assert seen["content"] == {
        "had": had,
        "stored": size[one.dataset_id] + sharing["own_bytes"],
        "saved": had - size[one.dataset_id] - sharing["own_bytes"],
    }
    assert seen["gc"] == {"unreferenced": 1, "due": 1, "bytes": size[four.dataset_id], "refuses": False}
    space = seen["space"]
    assert space["store"] == seen["content"]["stored"] + size[four.dataset_id]
    assert space["legacy"] == two.disk.legacy + three.disk.legacy
    assert (space["directories"], space["directories_not_measured"]) == (2, 0)
    assert space["shared"] == two.disk.shared + three.disk.shared + 4096
    assert space["reclaimable"] == space["legacy"] - space["shared"]
    assert space["moved_away"] > 0
    assert {(group["from_days"], group["datasets"]) for group in seen["verified"] if group["datasets"]} == {
        (0, 1),
        (None, 2),
    }
    assert [(group["from"], group["datasets"]) for group in seen["sharing"]][:3] == [(0, 1), (1, 1), (2, 1)]
    assert seen["dataset_list"][0]["project_ids"] == [one.project_id, two.project_id]
    assert f'href="#p{two.project_id}"' in (site.folder / "lab.html").read_text()


def _note_sharing(conn: Connection, project_id: int, *, freed: int) -> None:
    """As after a `reclaim --share`, which few file systems can."""
    conn.execute(text("set local session_replication_role = replica"))
    run_id = conn.execute(
        text("""
            insert into migration_runs (run_id, verb, dry_run, state, finished_at)
            values (gen_random_uuid(), 'reclaim', false, 'finished', now()) returning run_id""")
    ).scalar_one()
    conn.execute(
        text("""
            insert into migration_jobs (run_id, subject_id, state, finished_at, outcome)
            values (:run, :project, 'done', clock_timestamp(),
                    jsonb_build_object('status', 'shared', 'disk', jsonb_build_object('freed', cast(:freed as bigint))))"""),
        {"run": run_id, "project": project_id, "freed": freed},
    )


def test_the_report_is_a_new_file_and_never_another_one(site: Site, call: Call):
    (site.folder / "lab.html").symlink_to("elsewhere")

    taken, nowhere, unnamed = (
        call("datasets", "report", *words)
        for words in (("--html", "lab.html"), ("--html", "missing/lab.html"), ())
    )

    assert [taken.returncode, nowhere.returncode, unnamed.returncode] == [2, 2, 2]
    assert "lab.html is there already" in taken.stderr
    assert "Cannot write missing/lab.html: No such file or directory" in nowhere.stderr
    assert not (site.folder / "elsewhere").exists()
    done = call("datasets", "report", "--html", "empty.html")
    assert done.returncode == 0
    assert "Page: empty.html" in done.stderr


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_list_fits_a_terminal(site: Site, call: Call, columns: str):
    with tools_of(site) as tools:
        plain_study(site, "N" * 200, 1)
        migrate_all(site, tools)

    shown = call("datasets", "list", FORCE_COLOR="1", COLUMNS=columns).stderr

    words = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert words.count("N") == 200
    assert max(map(len, words.splitlines())) <= int(columns)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("datasets", "show", "99"), "There is no dataset 99. See all: producer datasets list"),
        (("datasets", "show", str(2**40)), f"There is no dataset {2**40}"),
        (("datasets", "list", "--project-id", "99"), "There is no project 99"),
        (("datasets", "list", "--sort", "colour"), "'colour' is not one of"),
        (("datasets", "list", "--not-verified", "many"), "Invalid value for '--not-verified'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_with_it(call: Call, words: tuple[str, ...], expected: str):
    done = call(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr


# whereis ----------------------------------------------------------------------------------------------------


def test_a_file_is_found_by_its_bytes_with_all_who_read_it(site: Site, call: Call):
    with tools_of(site) as tools:
        one, two, three = three_of_two(site, tools)
    copy = site.folder / "copy.csv"
    recording = next(site.settings.datasets_dir.glob("three*/day 2/accelerometer_data.csv"))
    copy.write_bytes(recording.read_bytes())

    seen = say(call, "whereis", str(copy))

    assert seen["digest"] == digest_of("blake3", copy.read_bytes())
    blob = seen["blob"]
    assert (blob["file"]["path"].endswith(seen["digest"]), blob["file"]["names"]) == (True, 3)
    assert blob["checked_at"] is not None
    assert [(use["dataset_id"], use["paths"], use["project_ids"]) for use in blob["datasets"]] == [
        (one.dataset_id, ["day 2/accelerometer_data.csv"], [one.project_id, two.project_id]),
        (three.dataset_id, ["day 2/accelerometer_data.csv"], [three.project_id]),
    ]
    assert [reader["project_id"] for use in blob["datasets"] for reader in use["sessions"]] == [1, 2, 3]
    words = call("whereis", seen["digest"][:20].upper()).stderr
    assert f"blob {seen['digest']}" in words
    assert f"{one.project_id}: day 2, {two.project_id}: day 2" in words


def test_a_dataset_is_found_by_the_beginning_of_its_digest(site: Site, call: Call):
    with tools_of(site) as tools:
        one, *_ = three_of_two(site, tools)
    digest = one.dataset_hash or ""

    seen = say(call, "whereis", digest[:12])

    assert (seen["digest"], seen["blob"], seen["dataset"]["dataset_id"]) == (digest, None, one.dataset_id)
    assert seen["manifest"]["path"] == str(site.settings.store_dir / "manifests" / f"{digest}.json")
    assert f"producer datasets show {one.dataset_id}" in call("whereis", digest).stderr


def test_a_beginning_that_several_digests_have_names_how_many(site: Site, call: Call):
    with site.engine.begin() as conn:
        blob_index.add(conn, "d" * 64, {f"abcd{number:060}": 1 for number in range(8)})

    done = call("whereis", "abcd")

    assert done.returncode == 2
    first = ", ".join(f"abcd{number:060}" for number in range(5))
    assert f"8 digests begin with abcd: {first} and 3 more; give more of it" in done.stderr


def test_the_oldest_check_of_a_blob_and_its_copies_counts(site: Site, call: Call):
    with tools_of(site) as tools:
        plain_study(site, "one", 1)
        migrate_all(site, tools)
    (blob,) = site.settings.store_dir.glob("blobs/*/*")
    with site.engine.begin() as conn:
        conn.execute(
            text("""
                insert into migration_blob_checks (digest, inode, mtime_ns, checked_at)
                values (:key, 7, 7, now() - interval '50 hours')"""),
            {"key": f"{blob.name}:7"},
        )

    assert "verified  2 d ago, the oldest check of 2 copies" in call("whereis", blob.name).stderr


def test_a_loose_blob_and_a_missing_one_are_told_apart(site: Site, call: Call):
    with tools_of(site) as tools:
        plain_study(site, "one", 1)
        migrate_all(site, tools)
    (blob,) = site.settings.store_dir.glob("blobs/*/*")
    with site.engine.begin() as conn:
        needed = conn.execute(
            text("delete from migration_dataset_blobs returning dataset_hash, digest")
        ).one()

    assert "datasets  none needs it: a gc takes it" in call("whereis", blob.name[:8]).stderr
    with site.engine.begin() as conn:
        blob_index.add(conn, needed.dataset_hash, {needed.digest: 1})
    blob.unlink()

    assert "file      missing: producer verify --store --repair" in call("whereis", blob.name).stderr


def test_what_a_gc_took_says_who_had_stored_it(site: Site, call: Call):
    with tools_of(site) as tools:
        plain_study(site, "one", 1)
        (one,) = migrate_all(site, tools)
        run_one(tools, Verb.ROLLBACK, one.project_id or 0)
        gc(tools)

    done = call("whereis", one.dataset_hash or "")

    assert done.returncode == 2
    assert f"is gone; project {one.project_id} had stored it" in done.stderr


def test_whereis_says_why_a_file_or_digest_cannot_be_looked_for(site: Site, call: Call):
    (site.folder / "secret").write_text("not stored")
    os.mkfifo(site.folder / "pipe")
    (site.folder / "loop").symlink_to("loop")

    for asked, expected in (
        (
            "0123456789abcdeg",
            "Cannot read 0123456789abcdeg: No such file or directory; a digest has 64 digits, 0-9 and a-f",
        ),
        ("abc", "No such file or directory; a digest has 64 digits"),
        ("f" * 65, "No such file or directory; a digest has 64 digits"),
        ("beef", "No digest begins with beef; a file of this name: ./beef"),
        ("f" * 64, "No blob and no dataset has the digest ffff"),
        ("./secret", "./secret is not stored: no blob and no dataset has the digest"),
        (".", "Cannot read .: it is a directory"),
        ("pipe", "Cannot read pipe: it is no regular file"),
        ("loop", "Cannot read loop: Too many levels of symbolic links"),
    ):
        done = call("whereis", asked)
        assert (done.returncode, done.stdout) == (2, ""), asked
        assert expected in done.stderr


# explain ----------------------------------------------------------------------------------------------------


def test_a_project_s_story_is_told_in_the_order_of_time(site: Site, call: Call):
    with tools_of(site) as tools:
        one, two, three = three_of_two(site, tools)
        verify_datasets(tools, only=[one.dataset_id or 0])
        run_one(tools, Verb.ROLLBACK, two.project_id or 0)
        run(tools, Verb.MIGRATE, only=[two.project_id or 0], dry_run=True)
        run(tools, Verb.MIGRATE, only=[two.project_id or 0])
    number = str(two.project_id)

    seen = say(call, "explain", number)

    assert [(job["verb"], job["dry_run"], job["subject"]) for job in seen["events"]] == [
        ("migrate", False, "project"),
        ("verify", False, "dataset"),
        ("rollback", False, "project"),
        ("migrate", True, "project"),
        ("migrate", False, "project"),
    ]
    (had,) = seen["datasets"]
    assert (had["stored_by_project"], had["projects"]) == (one.project_id, [one.project_id, two.project_id])
    sharing = seen["sharing"]
    assert [other["project_id"] for other in sharing["others"]] == [one.project_id, three.project_id]
    assert sharing["others"][0]["size_bytes"] == sharing["size_bytes"] == two.bytes.read
    assert 0 < sharing["others"][1]["size_bytes"] < sharing["size_bytes"]
    assert sharing["own_bytes"] == 0
    assert (seen["rollback"]["status"], seen["reclaim"]["status"]) == ("would_roll_back", "skipped")
    open_run(site.engine, Verb.RECLAIM, only=[two.project_id or 0])
    words = call("explain", number).stderr
    assert " reclaim: queued" in words
    assert f"stored by project {one.project_id}; reused by project {two.project_id}" in words
    assert f"migrate: migrated: 2 sessions, {sharing['size_bytes'] / 1000:.3g} kB reused" in words
    assert "rollback  would be rolled back: to " in words
    assert "reclaim   would be skipped: project 2 was migrated 0.0 days ago, less than 7" in words
    assert f"gc        dataset {one.dataset_id}: leaves it, needed by: projects" in words


def test_a_story_has_warnings_failures_and_what_a_gc_did(site: Site, call: Call):
    (plain_study(site, "one", 1) / "day 1" / "labels.json").write_bytes(b"\xff")
    with tools_of(site) as tools:
        (one,) = migrate_all(site, tools)
        run_one(tools, Verb.ROLLBACK, 1)
        gc(tools)
        with site.engine.begin() as conn:
            conn.execute(text("update projects set path = '/gone' where project_id = 1"))
        run_one(tools, Verb.MIGRATE, 1)
        with site.engine.begin() as conn:
            conn.execute(text("delete from projects where project_id = 1"))

    words = call("explain", "1").stderr

    assert one.warnings
    for expected in (
        "project 1 one: deleted in Label",
        "      warning ",
        f"gc the store: dataset {one.dataset_id} quarantined as ",
        "migrate: failed: ",
        "gc        has nothing of it",
    ):
        assert expected in words


def test_a_gc_that_would_refuse_is_named(site: Site, call: Call):
    with tools_of(site) as tools:
        for number in range(11):
            plain_study(site, f"study {number}", number)
        (first, *_) = migrate_all(site, tools)
        run(tools, Verb.ROLLBACK)
    with site.engine.begin() as conn:
        conn.execute(
            text("update project_conversions set rolled_back_at = rolled_back_at - interval '2 days'")
        )

    words = call("explain", "1").stderr

    assert f"gc        dataset {first.dataset_id}: would put it into quarantine" in words
    assert "it would refuse: 11 of 11 datasets would go; --expect" in words


def test_an_unknown_project_has_no_story(call: Call):
    done = call("explain", "99")

    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no project 99, and no run ever had one" in done.stderr


def test_asking_changes_neither_rows_nor_files(site: Site, call: Call):
    with tools_of(site) as tools:
        one, *_ = three_of_two(site, tools)
        run_one(tools, Verb.RECLAIM, 3)
    before = snapshot_tree(site.data_dir), snapshot_tree(site.legacy_root)
    read_only = {"PGOPTIONS": "-c default_transaction_read_only=on"}

    for words in (
        ("datasets", "list"),
        ("datasets", "show", str(one.dataset_id)),
        ("whereis", one.dataset_hash or ""),
        ("whereis", str(next(site.settings.store_dir.glob("blobs/*/*")))),
        *(("explain", str(number)) for number in (1, 2, 3)),
    ):
        done = call(*words, **read_only)
        assert done.returncode == 0, done.stderr

    assert (snapshot_tree(site.data_dir), snapshot_tree(site.legacy_root)) == before


# Lost rows --------------------------------------------------------------------------------------------------


def test_a_rebuild_says_what_came_back_and_what_is_not_settled(site: Site, call: Call):
    with tools_of(site) as tools:
        (outcome,) = migrate_one(site, tools)
    do = "delete from project_dataset_refs; update sessions set dataset_id = null; delete from raw_datasets"
    with site.engine.begin() as conn:
        conn.execute(text(do))
    path = f"{site.settings.datasets_dir}/nobody knows"
    os.mkdir(path)

    dry = call("datasets", "rebuild", "--dry-run")
    foretold, done = call("datasets", "rebuild", "--dry-run", "--json"), call("datasets", "rebuild", "--json")
    again = call("datasets", "rebuild")

    assert {one.returncode for one in (dry, foretold, done, again)} == {Exit.SOME_FAILED}
    assert lines(dry)[:2] == [
        "Would rebuild the rows of 1 dataset; 0 had theirs; 1 thing not settled",
        f"  dataset {outcome.dataset_id}  one, 2 sessions: {outcome.dataset_path}",
    ]
    assert lines(again)[:2] == [
        "Rebuilt the rows of 0 datasets; 1 had theirs; 1 thing not settled",
        f"{path}: no manifest says what it is",
    ]
    answer = json.loads(done.stdout)
    assert answer == json.loads(foretold.stdout) | {"dry_run": False}
    assert answer["rebuilt"] == [
        {
            "dataset_id": outcome.dataset_id,
            "dataset_name": "one",
            "dataset_hash": outcome.dataset_hash,
            "file_path": outcome.dataset_path,
            "sessions": 2,
            "notes": [],
        }
    ]
    (drift,) = answer["drift"]
    assert (drift["kind"], drift["path"], drift["dataset_id"]) == ("tree_without_row", path, None)
    os.rmdir(path)
    assert call("datasets", "rebuild").returncode == Exit.WELL


def migrate_one(site: Site, tools: Tools) -> list[Outcome]:
    plain_study(site, "one", 1, 2)
    return migrate_all(site, tools)


def test_a_rebuild_without_a_store_says_so(call: Call):
    done = call("datasets", "rebuild")

    assert done.returncode == Exit.NOT_READY
    assert "There is no store at" in done.stderr
