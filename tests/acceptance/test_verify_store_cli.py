"""`producer verify` of the store as an operator calls it: refusals, reports and exit codes, with a worker."""

import os
import shutil

import jsonschema
import pytest
from sqlalchemy import text

from producer.report import document as report
from tests.acceptance.story import Call, call
from tests.estate import make_dataset, make_project, write_recording
from tests.support.damages import Twins, flip, twins
from tests.support.runs import tools_of
from tests.support.sites import Site


@pytest.fixture
def stored(shared_site: Site) -> Twins:
    with tools_of(shared_site) as tools:
        return twins(shared_site, tools)


def check_report(made: Call) -> None:
    """It obeys the schema, adds up, has its name, and stands beside an HTML file."""
    assert made.report_path.name.startswith("verification_report_")
    assert made.report_path.with_suffix(".html").exists()
    jsonschema.validate(made.report, report.schema_document(), format_checker=jsonschema.FormatChecker())
    report.check_totals(made.report)


def statuses(made: Call) -> dict[tuple[str, int], str]:
    return {(one["subject"], one[f"{one['subject']}_id"]): one["status"] for one in made.report["details"]}


def fails_with_usage(site: Site, *args: str) -> str:
    done = site.run_producer(*args)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    with site.engine.connect() as conn:
        assert conn.scalar(text("select count(*) from migration_runs where verb = 'verify'")) == 0
    return " ".join(done.stderr.split())


def test_without_a_choice_store_and_sessions_are_verified_in_one_run(stored: Twins):
    made = call(stored.site, "verify")

    check_report(made)
    assert made.exit_code == 0
    assert set(statuses(made).values()) == {"verified"}
    assert {subject for subject, _ in statuses(made)} == {"project", "dataset"}
    assert made.report["damaged"] == []
    blobs = [path.stat().st_size for path in stored.site.settings.store_dir.glob("blobs/*/*")]
    assert made.report["coverage"] | {"oldest_check": None} == {
        "datasets": 2,
        "files": len(blobs),
        "bytes_total": sum(blobs),
        "bytes_verified": sum(blobs),
        "oldest_check": None,
    }
    assert made.report["start_time"] <= made.report["coverage"]["oldest_check"]
    assert "2 of 2 datasets verified" in made.words
    assert "all of the store was read since" in made.words
    again = call(stored.site, "collect")
    assert again.report == made.report


def test_damage_is_named_with_all_that_it_concerns_and_exits_4(stored: Twins):
    flip(stored.blob)

    made = call(stored.site, "verify", "--store")

    check_report(made)
    assert made.exit_code == 4
    (damage,) = made.report["damaged"]
    first, second = stored.first, stored.second
    assert damage == {
        "digest": stored.blob.name,
        "what": "wrong_bytes",
        "path": str(stored.blob),
        "dataset_ids": [first.dataset_id, second.dataset_id],
        "project_ids": [first.project_id, second.project_id],
        "sessions": [f"{first.project_id}: day 2", f"{second.project_id}: day 2"],
        "repaired": False,
        "from": None,
    }
    # Each of the two has it, whichever of their jobs read it.
    assert set(statuses(made).values()) == {"failed"}
    assert str(stored.blob) in made.words
    assert "from" not in made.report["coverage"]
    page = made.report_path.with_suffix(".html").read_text()
    assert str(stored.blob) in page


def test_a_repair_exits_0_and_the_next_verification_finds_nothing(stored: Twins):
    shutil.rmtree(str(stored.first.original_path))
    shutil.rmtree(str(stored.second.original_path))
    backup = stored.site.folder / "backup"
    backup.mkdir(exist_ok=True)
    (backup / "a file").write_bytes(stored.content)
    flip(stored.blob)

    made = call(stored.site, "verify", "--store", "--repair", "--from", "backup")

    check_report(made)
    assert made.exit_code == 0, made.words
    (damage,) = made.report["damaged"]
    assert (damage["repaired"], damage["from"]) == (True, str(backup / "a file"))
    assert set(statuses(made).values()) == {"repaired"}
    assert "repaired" in made.words
    stored.check_whole()
    after = call(stored.site, "verify", "--store")
    assert (after.exit_code, after.report["damaged"]) == (0, [])


def test_what_label_registered_itself_is_left_out_with_the_reason(stored: Twins):
    tree = stored.site.data_dir / "raw_datasets" / "others"
    write_recording(tree / "s", rows=10)
    with stored.site.engine.begin() as conn:
        project = make_project(conn, stored.site.legacy_root, "own", path=None, project_type="dataset_based")
        theirs = make_dataset(conn, tree, "d" * 64, project_id=project.project_id)

    made = call(stored.site, "verify", "--store")

    assert made.exit_code == 0
    assert ("dataset", theirs) not in statuses(made)
    assert {
        "subject": "dataset",
        "dataset_id": theirs,
        "dataset_name": "others",
        "reason": "registered by Label itself: nothing promises its bytes",
    } in made.report["selection"]["left_out"]


def test_what_was_read_lately_is_not_due_which_exits_0(stored: Twins):
    call(stored.site, "verify", "--store")

    made = call(stored.site, "verify", "--store", "--older-than", "1")

    check_report(made)
    assert (made.exit_code, made.report["details"]) == (0, [])
    assert made.report["coverage"]["bytes_verified"] == 0
    assert made.report["coverage"]["oldest_check"] is not None
    assert "Nothing to do" in made.words


def test_named_datasets_and_projects_are_verified_alone(stored: Twins):
    first, second = stored.first, stored.second

    by_dataset = call(stored.site, "verify", "--store", "--dataset", str(first.dataset_id))
    by_project = call(stored.site, "verify", "--project-id", str(second.project_id))

    assert statuses(by_dataset) == {("dataset", first.dataset_id): "verified"}
    assert statuses(by_project) == {
        ("dataset", second.dataset_id): "verified",
        ("project", second.project_id): "verified",
    }


def test_what_cannot_be_verified_is_named_and_nothing_begins(shared_site: Site):
    for args, words in {
        ("--dataset", "4711"): "4711 (no such dataset)",
        ("--dataset", "0"): "0 (ids begin at 1)",
        ("--store", "--project-id", "4711"): "4711 (no such project)",
        ("--repair", "--from", "nowhere"): "--from nowhere: there is no such directory",
        ("--repair", "--from", str(shared_site.data_dir)): "overlaps the store's own directory",
        ("--from", str(shared_site.folder)): "add --repair",
        ("--sessions", "--repair"): "--repair is about the store",
        ("--sessions", "--older-than", "3"): "--older-than is about the store",
        ("--older-than", "-1"): "should be greater than or equal to 0",
        ("--sample", "101"): "should be less than or equal to 100",
    }.items():
        os.makedirs(shared_site.settings.datasets_dir, exist_ok=True)
        assert words in fails_with_usage(shared_site, "verify", *args), args


def test_an_empty_store_has_nothing_to_verify(shared_site: Site):
    made = call(shared_site, "verify")

    check_report(made)
    assert (made.exit_code, made.report["details"]) == (0, [])
