"""`kill -9` at every statement of an import: no row is there before its commit, and all are after it."""

from pathlib import Path

import pytest

from producer.datasets import bags
from tests.estate import dump, snapshot_tree
from tests.support.claims import let_claims_run_out
from tests.support.dying import EVERY_THIRD_OR_ALL, done_until
from tests.support.runs import migrate_all, tools_of, verify_datasets
from tests.support.sites import Site
from tests.support.studies import check_store, plain_study, staged
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
    """Let a process import the bag until that statement; did it come to the end?"""
    return done_until(
        site, lambda engine: bags.take_in(site.settings, engine, str(bag), lambda _words: None), at
    )


@pytest.mark.slow
@pytest.mark.parametrize("every", EVERY_THIRD_OR_ALL)
def test_an_import_of_a_dataset_may_be_killed_at_every_statement(site: Site, tmp_path: Path, every: int):
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
            if imported_until(site, tmp_path / "bag", at=1 + every * deaths):
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

    assert every * deaths > 15
    assert whole >= 1, "some died after the commit"
