"""Garbage collection with a grace time of nothing, and its restore."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.steps import WAIT, Act, Job, Next, Play, Step, Weak, end, go, others, then
from tests.model.world import (
    ABSENT,
    BLOB,
    DESCRIPTION,
    GOOD,
    MANIFEST,
    NOT_RIPE,
    ROWS,
    ROWS_LOST,
    TREE,
    World,
    is_referenced,
    put,
)

Steps = list[Next] | tuple[Next, ...]


def _is_referenced(w: World, job: Job, dataset: int) -> bool:
    """What Label's open transactions refer to is younger than any grace time."""
    in_progress = job.weak is not Weak.TAKES_WITHOUT_GRACE
    return is_referenced(w, job.layout, dataset, in_progress=in_progress)


def _date_before(w: World, _job: Job, _: int) -> Steps:
    return then(w, w.running)


def _mark(w: World, job: Job, before: int) -> Steps:
    """Mark the blob if only datasets that nothing refers to need it.

    `before`: the jobs that ran when the mark was dated, for the weaker protocol.
    """
    users = [d for d in job.layout.datasets if w.index[d]]
    if not w.blob or w.mark or any(_is_referenced(w, job, d) for d in users):
        return then(w)
    return then(w._replace(mark=1 | before if job.weak is Weak.MARK_DATED_BEFORE_ITS_COMMIT else NOT_RIPE))


def _ripen(w: World, _job: Job, _: int) -> Steps:
    return then(w._replace(mark=1 | w.running) if w.mark & NOT_RIPE else w)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taking:
    """How gc takes one dataset."""

    dataset: int
    weak: Weak | None

    def steps(self) -> Iterator[Step]:
        """In their order."""
        d = self.dataset
        described = self._step("describe", self._describe, "worker.store.garbage.Garbage.describe")
        deleted = self._step("delete", self._delete, "worker.db.garbage.take_rows")
        is_late = self.weak is Weak.DESCRIBES_AFTER_DELETING
        yield self._step("claim", self._claim, "worker.db.claims.hold")
        yield self._step("look", self._look, "worker.jobs.collect_garbage._Collection.run")
        yield from (deleted, described) if is_late else (described, deleted)
        yield self._step("tree", self._move_tree, "worker.store.garbage.Garbage.take_tree")
        yield self._step("manifest", self._move_manifest, "worker.store.garbage.Garbage.take_tree")
        yield from _TakingBlob(entry=d, otherwise=f"release {d}", weak=self.weak).steps()
        yield self._step("release", self._release, "worker.db.claims.hold")
        yield self._step("done", lambda w, _job, _seen: then(w))

    def _step(self, label: str, act: Act, stands_for: str = "") -> Step:
        return Step(f"{label} {self.dataset}", act, stands_for)

    def _claim(self, w: World, job: Job, _: int) -> Steps:
        d = self.dataset
        is_old = w.entry[d] and not (w.row[d] or w.tree[d])
        if self.weak is Weak.TAKES_WITHOUT_CLAIM or (is_old and self.weak is Weak.REMOVES_WITHOUT_CLAIM):
            return then(w)
        # It waits only shortly: to go on without is always possible.
        if others(w.claims[d], job):
            return go(w, f"done {d}")
        return then(w._replace(claims=put(w.claims, d, job.number)))

    def _look(self, w: World, job: Job, _: int) -> Steps:
        """Is it loose? Is an entry in quarantine to be finished, given up, or old enough to be removed?"""
        d = self.dataset
        has_something = w.row[d] or w.tree[d] or w.manifest[d]
        if not w.entry[d]:
            is_loose = has_something and not _is_referenced(w, job, d)
            return then(w) if is_loose else go(w, f"release {d}")
        if not w.row[d] and (has_something or w.index[d]):
            return go(w, f"delete {d}")
        return go(w._replace(entry=put(w.entry, d, 0)), f"release {d}")

    def _describe(self, w: World, _job: Job, _: int) -> Steps:
        d = self.dataset
        return then(w._replace(entry=put(w.entry, d, DESCRIPTION | (ROWS if w.row[d] else 0))))

    def _delete(self, w: World, job: Job, _: int) -> Steps:
        d = self.dataset
        if others(w.dataset_locks[d], job):
            return WAIT
        if self.weak is not Weak.TAKES_WITHOUT_RECHECK and _is_referenced(w, job, d):
            return go(w._replace(entry=put(w.entry, d, 0)), f"release {d}")
        wrong = ROWS_LOST if w.row[d] and not w.entry[d] & ROWS else w.wrong
        return then(w._replace(row=put(w.row, d, 0), index=put(w.index, d, 0), wrong=wrong))

    def _move_tree(self, w: World, _job: Job, _: int) -> Steps:
        d = self.dataset
        if not w.tree[d]:
            return then(w)
        return then(w._replace(tree=put(w.tree, d, ABSENT), entry=put(w.entry, d, w.entry[d] | TREE)))

    def _move_manifest(self, w: World, _job: Job, _: int) -> Steps:
        d = self.dataset
        if not w.manifest[d]:
            return then(w)
        return then(w._replace(manifest=put(w.manifest, d, 0), entry=put(w.entry, d, w.entry[d] | MANIFEST)))

    def _release(self, w: World, job: Job, _: int) -> Steps:
        d = self.dataset
        return then(w._replace(claims=put(w.claims, d, 0) if w.claims[d] == job.number else w.claims))


@dataclass(frozen=True, slots=True, kw_only=True)
class _TakingBlob:
    """How gc takes the blob, into a dataset's entry or, without one, into that of the loose blobs."""

    entry: int | None
    otherwise: str
    weak: Weak | None

    def steps(self) -> Iterator[Step]:
        """In their order."""
        name = "loose" if self.entry is None else self.entry
        moved = Step(f"blob {name}", self._move, "worker.store.garbage.Garbage.take_blobs")
        committed = Step(f"commit {name}", self._commit, "worker.jobs.garbage_blobs.take_blobs")
        yield Step(f"mark {name}", self._lock, "worker.db.garbage.lock_due")
        yield from (committed, moved) if self.weak is Weak.MOVES_BLOBS_AFTER_COMMIT else (moved, committed)

    def _lock(self, w: World, job: Job, _: int) -> Steps:
        if others(w.mark_lock, job):
            return WAIT
        may_not_know = w.mark & w.running and self.weak is not Weak.TAKES_FROM_RUNNING_JOBS
        is_needed = any(w.index[d] for d in job.layout.datasets)
        if not w.blob or not w.mark or w.mark & NOT_RIPE or may_not_know or is_needed:
            return go(w, self.otherwise)
        return then(w._replace(mark_lock=job.number))

    def _move(self, w: World, _job: Job, _: int) -> Steps:
        entries = w.entry if self.entry is None else put(w.entry, self.entry, w.entry[self.entry] | BLOB)
        return then(w._replace(blob=ABSENT, entry=entries))

    def _commit(self, w: World, _job: Job, _: int) -> Steps:
        return then(w._replace(mark=0, mark_lock=0))


def gc(weak: Weak | None, datasets: tuple[int, ...]) -> Play:
    """One garbage collection."""
    mark = Step("mark", _mark, "worker.db.garbage.mark")
    if weak is Weak.MARK_DATED_BEFORE_ITS_COMMIT:
        steps = [Step("date", _date_before), mark]
    else:
        steps = [mark, Step("ripen", _ripen, "worker.db.garbage.ripen")]
    for d in datasets:
        steps += _Taking(dataset=d, weak=weak).steps()
    steps += _TakingBlob(entry=None, otherwise="end", weak=weak).steps()
    return Play("gc", (*steps, Step("end", lambda w, job, _seen: end(w, job))))


# gc --restore -----------------------------------------------------------------------------------------------


def _claim_dataset(w: World, job: Job, _: int) -> Steps:
    if others(w.claims[job.dataset], job):
        return WAIT
    return then(w._replace(claims=put(w.claims, job.dataset, job.number)))


def _find_entry(w: World, job: Job, _: int) -> Steps:
    return then(w) if w.entry[job.dataset] & ROWS and not w.row[job.dataset] else end(w, job)


def _index_again(w: World, job: Job, _: int) -> Steps:
    return then(w._replace(index=put(w.index, job.dataset, 1)))


def _unmark(w: World, job: Job, _: int) -> Steps:
    if job.weak is Weak.RESTORES_UNDER_THE_MARK:
        return then(w)
    return WAIT if others(w.mark_lock, job) else then(w._replace(mark=0))


def _bring_blob(w: World, job: Job, _: int) -> Steps:
    from_tree = (
        w.entry[job.dataset] & TREE or w.tree[job.dataset]
    ) and job.weak is not Weak.RESTORES_BLOBS_FROM_THE_ENTRY_ONLY
    there = w.entry[job.dataset] & BLOB or from_tree
    return then(w._replace(blob=w.blob or (GOOD if there else ABSENT)))


def _bring_manifest(w: World, job: Job, _: int) -> Steps:
    d = job.dataset
    if w.entry[d] & MANIFEST:
        w = w._replace(manifest=put(w.manifest, d, 1), entry=put(w.entry, d, w.entry[d] & ~MANIFEST))
    return then(w)


def _bring_tree(w: World, job: Job, _: int) -> Steps:
    d = job.dataset
    if w.entry[d] & TREE:
        w = w._replace(tree=put(w.tree, d, GOOD), entry=put(w.entry, d, w.entry[d] & ~TREE))
    return then(w)


def _bring_rows(w: World, job: Job, _: int) -> Steps:
    return then(w._replace(row=put(w.row, job.dataset, 1)))


def _forget_entry(w: World, job: Job, _: int) -> Steps:
    return end(w._replace(entry=put(w.entry, job.dataset, 0)), job)


def restore(weak: Weak | None) -> Play:
    """A dataset comes back from quarantine."""
    begin = (
        Step("claim", _claim_dataset, "worker.db.claims.hold"),
        Step("entry", _find_entry, "worker.store.garbage.Garbage.find"),
    )
    index = (Step("index", _index_again, "worker.jobs.indexing.index"),)
    unmark = (Step("unmark", _unmark, "worker.db.garbage.unmark"),)
    blob = (Step("blob", _bring_blob, "worker.store.garbage.Garbage.restore_blobs"),)
    put_back = (
        *blob,
        Step("manifest", _bring_manifest, "worker.store.garbage.Garbage.restore_tree"),
        Step("tree", _bring_tree, "worker.store.garbage.Garbage.restore_tree"),
    )
    rows = (Step("rows", _bring_rows, "worker.db.garbage.put_rows_back"),)
    forget = (Step("forget", _forget_entry, "worker.store.garbage.Garbage.remove"),)
    match weak:
        case Weak.RESTORES_INDEX_LAST:
            return Play("restore", (*begin, *unmark, *put_back, *rows, *index, *forget))
        case Weak.RESTORES_ROWS_FIRST:
            return Play("restore", (*begin, *rows, *index, *unmark, *put_back, *forget))
    return Play("restore", (*begin, *index, *unmark, *put_back, *rows, *forget))
