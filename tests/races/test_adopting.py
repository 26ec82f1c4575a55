"""Adoptions that meet each other, a migration of the same content, and a gc."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate import make_project, make_session
from tests.support.registered import Registered, register
from tests.support.runs import at_once, gc, open_run, tools_of, verify_datasets
from tests.support.sites import Site
from worker.messages import THE_STORE, JobRef, Status, Subject, Verb


def jobs(site: Site, *datasets: Registered, **options: object) -> list[tuple[Verb, JobRef]]:
    ids = [one.dataset_id for one in datasets]
    return [
        (Verb.ADOPT, ref)
        for ref in open_run(site.engine, Verb.ADOPT, only=ids, subject=Subject.DATASET, **options)
    ]


def legacy_copy(site: Site, one: Registered, name: str) -> list[tuple[Verb, JobRef]]:
    """A legacy project with the content of a dataset, and the job of its migration."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        directory = Path(project.path)
        shutil.copytree(one.tree, directory, dirs_exist_ok=True)
        for session in directory.iterdir():
            if session.is_dir():
                make_session(conn, project.project_id, session.name)
    return [(Verb.MIGRATE, ref) for ref in open_run(site.engine, Verb.MIGRATE, only=[project.project_id])]


@pytest.mark.parametrize("number", range(3))
def test_two_runs_adopt_a_dataset_once(site: Site, number: int):
    one = register(site, f"walk {number}", 1, 2)

    ends = at_once(site, [job for _ in range(3) for job in jobs(site, one)])

    counts = Counter(end.status for end in ends if end is not None)
    assert (counts[Status.ADOPTED], counts[Status.FAILED]) == (1, 0), ends
    one.check_adopted()


@pytest.mark.parametrize("number", range(3))
def test_a_migration_of_equal_content_meets_an_adoption(site: Site, number: int):
    """Whichever comes first has the content; the other one reuses it, or is left as it is."""
    one = register(site, f"walk {number}", 1, 2)

    adopted, migrated = at_once(site, [*jobs(site, one), *legacy_copy(site, one, "study")])

    assert adopted is not None
    assert migrated is not None
    assert migrated.status is Status.MIGRATED, migrated
    if adopted.status is Status.ADOPTED:
        assert migrated.dataset_id == one.dataset_id
        one.check_adopted()
    else:
        assert adopted.status is Status.SKIPPED, adopted
        one.check_untouched()
    with tools_of(site) as tools:
        (verified,) = verify_datasets(tools, only=[migrated.dataset_id or 0])
    assert verified.status is Status.VERIFIED


@pytest.mark.parametrize("number", range(3))
def test_a_gc_takes_nothing_that_an_adoption_is_to_use(site: Site, number: int):
    """Its blobs were stored before, and nothing has needed them since."""
    one = register(site, f"walk {number}", 1, 2)
    with tools_of(site) as tools:
        at_once(site, jobs(site, one))
        at_once(site, jobs(site, one, undo=True))
        one.check_untouched()
        gc(tools, grace_hours=24)
        with site.engine.begin() as conn:
            conn.execute(text("update migration_unreferenced set marked_at = marked_at - interval '2 days'"))
        (collect,) = open_run(site.engine, Verb.GC, only=[THE_STORE], subject=Subject.STORE, grace_hours=24)

        adopted, collected = at_once(site, [*jobs(site, one), (Verb.GC, collect)])

        assert adopted is not None
        assert collected is not None
        assert (adopted.status, collected.status) == (Status.ADOPTED, Status.COLLECTED), (adopted, collected)
        one.check_adopted()
        (verified,) = verify_datasets(tools, only=[one.dataset_id])
        assert verified.status is Status.VERIFIED, verified


def test_an_undo_and_a_migration_to_the_dataset_do_not_both_happen(site: Site):
    one = register(site, "walk", 1, 2)
    at_once(site, jobs(site, one))

    undone, migrated = at_once(site, [*jobs(site, one, undo=True), *legacy_copy(site, one, "study")])

    assert undone is not None
    assert migrated is not None
    assert migrated.status is Status.MIGRATED, migrated
    if undone.status is Status.UNDONE:
        assert migrated.dataset_id != one.dataset_id
        one.check_untouched()
    else:
        assert undone.error_class == "AdoptionNotUndoneError", undone
        one.check_adopted()
