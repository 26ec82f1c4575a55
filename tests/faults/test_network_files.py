"""What a network file system does to a store: errors at close(2), servers that do not answer, names that only
seem absent.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.child import Children
from tests.faults.disturbing import disturb
from tests.faults.stories import BigFiles, Copying, Mending, Story, first_of_each_kind
from tests.support.ledger_rows import jobs_of
from tests.support.runs import let_lease_run_out, open_run
from tests.support.shim import Act, Fault
from tests.support.sites import Site
from tests.support.states import look
from tests.support.studies import check_store, check_tree, staged, study
from worker.db import ledger
from worker.errors import StoreBrokenError
from worker.jobs.attempt import Attempt
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.messages import JobState, Outcome, RunState, Status, Verb


@pytest.mark.parametrize("story", [Story, BigFiles, Mending, Copying])
def test_an_error_that_close_returns_counts_as_an_error_of_the_store(
    site: Site, tools: Tools, watched: Children, story: Callable[[Site, Tools, Children], Story]
):
    """NFS tells of a full disk or a quota there. The run is paused, or the files are written once more; no
    project fails.
    """
    told = story(site, tools, watched)
    calls = {call.number: call for call in told.calls() if call.name == "close"}
    points = first_of_each_kind(calls.values())
    assert points

    for turn, point in enumerate(points):
        disturb(told, calls[point], (errno.EDQUOT, errno.ENOSPC, errno.EIO, errno.ESTALE)[turn % 4])


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["link", "rename", "mkdir", "syncfs"])
def test_a_server_that_does_not_answer_pauses_the_run(
    site: Site, tools: Tools, watched: Children, call: str, number: int
):
    told = Story(site, tools, watched)
    told.calls()
    ref, end = told.start(Fault(act=Act.FAIL_FROM, at=1, call=call, errno=number))

    assert end.answer["status"] is None
    with site.engine.connect() as conn:
        assert ledger.find_run(conn, str(ref.run_id)).state is RunState.PAUSED


def test_an_attempt_that_has_lost_its_job_pauses_nothing(site: Site, tools: Tools):
    """Its files are stale because the other one removed them, and the store is well."""
    study(site, "study", 1)
    (ref,) = open_run(site.engine, Verb.MIGRATE)

    def lose_the_lease_and_meet_an_error(_job: Attempt) -> Outcome:
        with site.engine.begin() as conn:
            conn.exec_driver_sql(
                "update migration_jobs set attempt = attempt + 1, taken_as = '2:' || (attempt + 1)"
            )
        raise StoreBrokenError("Cannot write to the store: Stale file handle")

    assert run_job(tools, ref, "a worker", lose_the_lease_and_meet_an_error, Verb.MIGRATE) is None

    with site.engine.connect() as conn:
        (job,) = jobs_of(conn, ref.run_id)
        assert ledger.find_run(conn, str(ref.run_id)).state is RunState.RUNNING
    assert job.state == JobState.RUNNING.value


def test_a_staged_file_can_be_written_until_it_is_complete(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """An NFS client takes up again, after its server was restarted, only what its user may open for
    writing.
    """
    from tests.support.runs import run_one

    project = study(site, "study", 1, 2)
    modes: dict[str, int] = {}
    real = os.open

    def note(path: str, flags: int, mode: int = 0o777, **more: int | None) -> int:
        if flags & os.O_CREAT:
            modes[os.fspath(path)] = mode
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", note)

    outcome = run_one(tools, Verb.MIGRATE, project.project_id)

    staged_files = {path: mode for path, mode in modes.items() if "/staging/" in path}
    assert len(staged_files) >= 5
    assert {path for path, mode in staged_files.items() if not mode & 0o200} == set()
    check_tree(Path(str(outcome.dataset_path)), project)
    check_store(site)


def test_blocks_are_reserved_where_the_file_system_can_and_not_written_otherwise(
    site: Site, tools: Tools, watched: Children
):
    """The C library's own posix_fallocate writes a byte into each block then."""
    told = BigFiles(site, tools, watched)
    for number in (errno.EOPNOTSUPP, errno.EINVAL):
        _, end = told.start(Fault(act=Act.FAIL_ONCE, at=1, call="fallocate", errno=number))

        (asked,) = [call for call in end.counted if call.name == "fallocate"]
        assert asked.errno == number
        assert end.answer["status"] == Status.MIGRATED
        assert [call for call in end.calls if call.name == "pwrite64" and "/staging/" in call.path] == []


# Names that seem absent -------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", ["tree", "manifest", "blob"])
def test_what_another_worker_published_is_found_behind_a_stale_name_cache(
    site: Site, tools: Tools, watched: Children, thing: str
):
    """A network file system remembers for up to a minute that a name was not there; a rename to it says that
    it is.
    """
    tools.open_store(create=True)
    project = study(site, "study", 1, 2)
    legacy = look(site.engine, project.project_id)
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])
    assert watched.migrate(ref, Fault(act=Act.KILL_BEFORE, at=2, call="syncfs")).died
    let_lease_run_out(site.engine, ref)
    store = site.settings.store_dir
    (tree,) = site.settings.datasets_dir.iterdir()
    (manifest,) = (store / "manifests").glob("*[0-9a-f].json")
    blob = min((store / "blobs").glob("*/*"))
    stale = {"tree": tree, "manifest": manifest, "blob": blob}[thing]

    end = watched.migrate(ref, Fault(act=Act.FAIL_ONCE, at=1_000_000, stale=str(stale)))

    assert end.answer["status"] == Status.MIGRATED, end.answer
    assert legacy.is_legacy
    check_tree(tree, project)
    check_store(site)
    assert staged(site) == []
    assert list((store / "quarantine").iterdir()) == []
