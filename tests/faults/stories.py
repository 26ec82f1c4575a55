"""Migrations that are told again and again, each time from the same beginning, and disturbed at another
call.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.estate import Project
from tests.faults.child import Children, End
from tests.support.runs import open_run, run_one
from tests.support.shim import Call, Fault
from tests.support.sites import Site
from tests.support.states import Rows, check_legacy, check_migrated, look
from tests.support.studies import check_store, check_tree, damage, make_big, study
from tests.support.tiers import some_or_all
from worker.jobs.tools import Tools
from worker.messages import JobRef, Outcome, Status, Verb

_NAMING = {"link", "rename", "renameat2", "syncfs"}


class Story:
    """A migration that is cut off again and again, each time from the same beginning."""

    blobs_can_be_linked = True

    def __init__(self, site: Site, tools: Tools, watched: Children) -> None:
        self.site = site
        self.tools = tools
        self.watched = watched

    def begin(self) -> Project:
        """Make the project that is to be migrated; its store is there already."""
        self.tools.open_store(create=True)
        return study(self.site, "study", 1, 2)

    def is_told_here(self, call: Call) -> bool:
        """Does the call belong to what this story has and others have not?"""
        del call
        return True

    def check(self) -> None:
        """What must be true in the end, besides what must always be."""

    def calls(self) -> list[Call]:
        """The calls of the whole story, undisturbed."""
        self.site.empty()
        end = self._watch(self._job(self.begin()), None)
        assert end.answer["status"] == Status.MIGRATED, end.answer
        return end.counted

    def start(self, fault: Fault) -> tuple[JobRef, End]:
        """Tell the story from its beginning, disturbed."""
        self.site.empty()
        self.project = self.begin()
        self.legacy = look(self.site.engine, self.project.project_id)
        ref = self._job(self.project)
        return ref, self._watch(ref, fault)

    def check_between(self) -> Rows:
        """The project is one thing or the other."""
        between = look(self.site.engine, self.project.project_id)
        if between.is_legacy:
            check_legacy(between, self.legacy)
        else:
            check_migrated(between, self.legacy)
            check_tree(Path(between.datasets[between.refs[0]["dataset_id"]]["file_path"]), self.project)
        return between

    def check_end(self, outcome: Outcome | None) -> None:
        """The project is migrated, and every byte and every mode is what it should be."""
        assert outcome is not None
        assert outcome.status is Status.MIGRATED, outcome
        check_migrated(look(self.site.engine, self.project.project_id), self.legacy)
        check_tree(Path(str(outcome.dataset_path)), self.project)
        check_store(self.site)
        self.check()

    def _job(self, project: Project) -> JobRef:
        (ref,) = open_run(self.site.engine, Verb.MIGRATE, only=[project.project_id])
        return ref

    def _watch(self, ref: JobRef, fault: Fault | None) -> End:
        return self.watched.migrate(ref, fault, blobs_can_be_linked=self.blobs_can_be_linked)


class BigFiles(Story):
    """A file that is stored in the pass that hashes it."""

    def begin(self) -> Project:
        project = super().begin()
        make_big(project, 1)
        return project

    def is_told_here(self, call: Call) -> bool:
        return "-arrivals" in call.path or call.name == "syncfs"


class Mending(Story):
    """A blob that another dataset shares has gone bad, and the incoming copy mends it."""

    def begin(self) -> Project:
        self.first = study(self.site, "first", 1, 2)
        outcome = run_one(self.tools, Verb.MIGRATE, self.first.project_id)
        self.tree = Path(str(outcome.dataset_path))
        damage(self.tree / "day 1" / "accelerometer_data.csv")
        return study(self.site, "second", 1, 3)

    def is_told_here(self, call: Call) -> bool:
        others = ("-mend", "/quarantine/", str(self.tree))
        return any(other in call.path + call.target for other in others) or call.name == "syncfs"

    def check(self) -> None:
        check_tree(self.tree, self.first)


class Copying(Story):
    """No blob can be linked once more: the tree's files are copies."""

    blobs_can_be_linked = False

    def is_told_here(self, call: Call) -> bool:
        return any(place in call.path for place in ("/tree", "/raw_datasets/")) or call.name == "syncfs"


def first_of_each_kind(calls: Iterable[Call]) -> list[int]:
    """Of calls that differ in digests, numbers and names of sessions only, the first; none that fails
    anyhow.
    """
    kinds: dict[tuple[str, str, str], int] = {}
    for call in calls:
        if call.result != -1:
            path, target = (re.sub(r"day \d.*|[0-9a-f]{2,}", "#", text) for text in (call.path, call.target))
            kinds.setdefault((call.name, path, target), call.number)
    return sorted(kinds.values())


def some_kinds(calls: Iterable[Call]) -> list[int]:
    """Of the first calls of each kind every fourth, the last, and the first of each function that gives
    names, or waits for the disk. The tests of `make chaos` take what is left out.
    """
    calls = list(calls)
    kinds = first_of_each_kind(calls)
    names = {call.number: call.name for call in calls}
    firsts = {names[at]: at for at in reversed(kinds) if names[at] in _NAMING}
    return sorted({*kinds[::4], *kinds[-1:], *firsts.values()})


Kinds = Callable[[Iterable[Call]], list[int]]
SOME_OR_ALL_KINDS = some_or_all(some_kinds, first_of_each_kind)


STORIES: tuple[Callable[[Site, Tools, Children], Story], ...] = (Story, BigFiles, Mending, Copying)
