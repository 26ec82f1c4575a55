"""A project may be as big as it likes: a worker's memory and its number of statements stay what they are."""

import os
from pathlib import Path

import pytest

from tests.estate import make_project, make_session, record_session
from tests.faults.child import Children
from tests.support.runs import open_run
from tests.support.sites import Site
from tests.support.studies import check_tree, folder_of
from worker.db import datasets
from worker.jobs.tools import Tools
from worker.messages import Status, Verb

SESSIONS = 100


def statements(
    site: Site, watched: Children, name: str, *, sessions: int, files: int, rows: int
) -> list[str]:
    """The statements that migrate a new project of so many sessions, each with so many files beside its
    recording of `rows`.
    """
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        for number in range(sessions):
            session = record_session(conn, project, f"day {number}", rows=rows, seed=number)
            for file in range(files):
                (session.recording.path.parent / f"{file}.txt").write_text(f"{name} {number} {file}")
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])
    end = watched.migrate(ref)
    assert end.answer["status"] == Status.MIGRATED, end.answer
    # A renewal comes by the clock: of a slow machine's job some are made by the work itself, when it enters a
    # phase.
    by_the_clock = ("update migration_jobs j set lease_", "migration_remembered_digests")
    return [one for one in end.answer["statements"] if not any(words in one for words in by_the_clock)]


def test_the_number_of_statements_does_not_depend_on_sessions_or_files(
    site: Site, tools: Tools, watched: Children
):
    """Without those of the heartbeat and of what is remembered, which come by the clock; of a small project
    nothing is remembered. No recording has the size of another
    project's: one that has is looked up first.
    """
    tools.open_store(create=True)

    few = statements(site, watched, "few", sessions=2, files=0, rows=10)
    many_sessions = statements(site, watched, "many sessions", sessions=40, files=0, rows=30)
    many_files = statements(site, watched, "many files", sessions=2, files=60, rows=50)

    assert few == many_sessions == many_files


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("files", "most_bytes"), [(200_000, 250 << 20), (1_000_000, 1_000 << 20)])
def test_a_worker_stays_small_at_very_many_files(site: Site, watched: Children, files: int, most_bytes: int):
    """Each file costs its name, its digest and what is compared with it, 0.7 KB together."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "very many")
        for number in range(SESSIONS):
            make_session(conn, project.project_id, f"day {number}")
    for number in range(SESSIONS):
        session = folder_of(project) / f"day {number}"
        session.mkdir()
        for file in range(files // SESSIONS):
            (session / f"a name of some length {file}.txt").write_bytes(b"%d %d" % (number, file))
    (ref,) = open_run(site.engine, Verb.MIGRATE)

    end = watched.migrate(ref)

    assert end.answer["status"] == Status.MIGRATED, end.answer
    with site.engine.connect() as conn:
        (dataset,) = datasets.all_of(conn)
    assert sum(len(names) for _, _, names in os.walk(dataset.file_path)) == files
    check_tree(Path(dataset.file_path), project)
    print(f"{files:,} files: {end.answer['peak_bytes'] / (1 << 20):.0f} MB")
    assert end.answer["peak_bytes"] < most_bytes
