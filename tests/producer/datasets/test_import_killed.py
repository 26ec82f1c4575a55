"""`kill -9` at every statement of an import: no row is there before its commit, and all are after it."""

import os
import signal
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import event

from producer.datasets import bags
from tests.estate import dump, snapshot_tree
from tests.support.claims import let_claims_run_out
from tests.support.runs import migrate_all, tools_of, verify_datasets
from tests.support.sites import Site
from tests.support.studies import check_store, plain_study, staged
from worker.db.engine import connect
from worker.jobs.import_dataset import Imported
from worker.messages import Status

TABLES = (
    "raw_datasets",
    "raw_dataset_sessions",
    "migration_indexed_datasets",
    "migration_dataset_blobs",
)


def taken_in(site: Site, bag: Path) -> Imported:
    return bags.take_in(site.settings, site.engine, str(bag), lambda _words: None)


def imported_until(site: Site, bag: Path, at: int) -> bool:
    """Let a process import the bag and kill itself before its statement or commit of this number; did it
    come to the end?
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            engine = connect(site.settings.sqlalchemy_url, application_name="dying")
            numbers = count(1)

            def tick(*_arguments: object) -> None:
                if next(numbers) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            event.listen(engine, "before_cursor_execute", tick)
            event.listen(engine, "commit", tick)
            bags.take_in(site.settings, engine, str(bag), lambda _words: None)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


@pytest.mark.slow
def test_an_import_of_a_dataset_may_be_killed_at_every_statement(site: Site, tmp_path: Path):
    path = plain_study(site, "study", 1, 2)
    with tools_of(site) as tools:
        (study,) = migrate_all(site, tools)
        tree = {name: one.content for name, one in snapshot_tree(path).items()}
        bags.export(
            site.settings, site.engine, study.dataset_id or 0, str(tmp_path / "bag"), lambda _words: None
        )

        whole = deaths = 0
        while True:
            site.empty()
            if imported_until(site, tmp_path / "bag", at=deaths + 1):
                break
            deaths += 1
            with site.engine.connect() as conn:
                rows = dump(conn, TABLES)
            counts = {len(rows[table]) for table in TABLES}
            assert counts == {0} or min(counts) > 0, "some rows without the others"
            whole += min(counts) > 0
            let_claims_run_out(site.engine)

            found = taken_in(site, tmp_path / "bag")

            assert found.is_new == (counts == {0})
            assert {
                name: one.content for name, one in snapshot_tree(Path(found.dataset.file_path)).items()
            } == tree
            check_store(site)
            assert staged(site) == [] or not found.is_new
            (checked,) = verify_datasets(tools)
            assert checked.status is Status.VERIFIED

    assert deaths > 15
    assert whole >= 1, "some died after the commit"
