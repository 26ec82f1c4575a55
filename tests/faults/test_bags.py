"""An export or an import of a dataset that is cut off at any call: half a bag has never its name, no row
refers to half a dataset, and the next one does it all.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import bagit
import pytest

from producer.datasets import bags
from tests.estate import snapshot_tree
from tests.faults.child import Children, End
from tests.faults.lost_writes import lose_what_was_not_synced
from tests.faults.stories import first_of_each_kind, some_kinds
from tests.support.claims import let_claims_run_out
from tests.support.runs import gc, migrate_all, verify_datasets
from tests.support.shim import Act, Fault
from tests.support.sites import Site
from tests.support.studies import check_store, plain_study, staged
from worker.db import datasets
from worker.jobs.tools import Tools
from worker.messages import Status


class Bags:
    """A dataset and its bag. Each telling begins alike."""

    def __init__(self, site: Site, tools: Tools, watched: Children) -> None:
        self.site, self.tools, self._watched = site, tools, watched
        site.empty()
        legacy = plain_study(site, "study", 1, 2)
        (legacy / "day 1" / "empty").mkdir()
        self.content = _content(legacy)
        (study,) = migrate_all(site, tools)
        self.dataset_id = study.dataset_id or 0
        self.disk = site.legacy_root / "disk"
        self.bag = self.disk / "bag"
        self._kept = site.folder / "kept bag"
        shutil.rmtree(self._kept, ignore_errors=True)
        bags.export(site.settings, site.engine, self.dataset_id, str(self._kept), lambda _words: None)

    def export(self, fault: Fault | None = None) -> End:
        shutil.rmtree(self.disk, ignore_errors=True)
        self.disk.mkdir()
        return self._watched.export(self.dataset_id, self.bag, fault)

    def check_export(self) -> bool:
        """Is there a bag? Then it is a whole one."""
        if not self.bag.exists():
            return False
        assert bagit.Bag(str(self.bag)).validate()
        assert _content(self.bag / "data" / "tree") == self.content
        return True

    def take_in(self, fault: Fault | None = None) -> End:
        self.site.empty()
        return self._watched.take_in(self._kept, fault)

    def check_import(self) -> bool:
        """Is there a row? Then there is all of the dataset."""
        with self.site.engine.connect() as conn:
            found = datasets.all_of(conn)
        for one in found:
            assert _content(Path(one.file_path)) == self.content
            check_store(self.site)
        return bool(found)

    def go_on(self) -> None:
        """The next one finds what was stored, and a gc what was left."""
        let_claims_run_out(self.site.engine)
        bags.take_in(self.site.settings, self.site.engine, str(self._kept), lambda _words: None)
        assert self.check_import()
        (checked,) = verify_datasets(self.tools)
        assert checked.status is Status.VERIFIED
        gc(self.tools, grace_hours=24)
        assert staged(self.site) == []


def _content(tree: Path) -> Mapping[bytes, object]:
    return {name: (entry.kind, entry.content) for name, entry in snapshot_tree(tree).items()}


@pytest.fixture
def told(site: Site, tools: Tools, watched: Children) -> Bags:
    return Bags(site, tools, watched)


def test_an_export_that_is_cut_off_leaves_no_half_bag_under_its_name(told: Bags):
    calls = told.export().counted
    assert len(first_of_each_kind(calls)) > 10
    points = some_kinds(calls)
    assert told.check_export()

    bags_there = 0
    for point in points:
        end = told.export(Fault(act=Act.KILL_BEFORE, at=point))
        assert end.died
        lose_what_was_not_synced(end.calls)
        bags_there += told.check_export()

    assert bags_there < len(points) / 2
    assert [name for name in os.listdir(told.disk) if not name.startswith("bag")] == []


@pytest.mark.slow
def test_an_import_that_is_cut_off_is_ended_by_the_next_one(told: Bags):
    calls = told.take_in().counted
    assert len(first_of_each_kind(calls)) > 15
    assert told.check_import()

    for turn, point in enumerate(some_kinds(calls)):
        end = told.take_in(Fault(act=Act.KILL_BEFORE, at=point))
        assert end.died
        if turn % 2:
            lose_what_was_not_synced(end.calls)
        told.check_import()
        told.go_on()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("act", [Act.KILL_BEFORE, Act.KILL_AFTER])
def test_an_export_and_an_import_may_be_cut_off_at_every_call(told: Bags, act: Act):
    for call in told.export().counted:
        assert told.export(Fault(act=act, at=call.number)).died
        told.check_export()
    for call in told.take_in().counted:
        end = told.take_in(Fault(act=act, at=call.number))
        assert end.died
        lose_what_was_not_synced(end.calls)
        told.check_import()
        told.go_on()
