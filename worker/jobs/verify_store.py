"""The steps of one dataset's verification: are its manifest, its tree, its blobs and copies what they were
when it was stored? On request what is damaged is repaired.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection

from worker.conversion import dataset_row
from worker.db import blob_index, datasets, leases, verifications
from worker.db.datasets import Dataset
from worker.db.engine import autocommit
from worker.db.verifications import Due
from worker.errors import NothingToDoError, RowFileError, StoredBytesMismatchError
from worker.jobs.attempt import Attempt
from worker.jobs.dataset_check import Bad, DatasetCheck
from worker.jobs.dataset_damage import name_damage
from worker.jobs.dataset_repair import Origins, close_tree, repair_blobs, repair_manifest, repair_tree
from worker.jobs.indexing import index, index_rest
from worker.jobs.repair import Tree, manifest_or_none, story
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.messages import Damage, JobRef, Outcome, Status, Verb, VerifiedCounts, Warning_
from worker.runtime import log
from worker.store.digest import printable
from worker.store.files import fresh_status
from worker.store.inspection import What
from worker.store.manifest import Manifest
from worker.units import human_bytes

_log = log.get(__name__)

_SHOWN = 3
"""So many damaged things are named in a job's reason; its outcome has them all."""


def verify_store(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Verify one stored dataset; None when it is not ours to do.

    Twice, at once, or dying anywhere: as `run_job` says. What was read in this run is not read again, and a
    repair that was cut off is begun again by the next attempt.
    """
    return run_job(tools, ref, worker, _work, Verb.VERIFY)


class _Dataset:
    """One dataset in one attempt: what was found of it, and what of that is repaired."""

    def __init__(self, attempt: Attempt, dataset: Dataset) -> None:
        self.attempt = attempt
        self.tree = Tree(
            path=Path(dataset.file_path), dataset_hash=dataset.dataset_hash, dataset_id=dataset.dataset_id
        )
        self.check = DatasetCheck(attempt, dataset.dataset_id, _due(attempt))
        self.damage: list[Damage] = []
        self.manifest = manifest_or_none(attempt, dataset.dataset_hash)
        self.has_row_file = True

    @property
    def repairs(self) -> bool:
        return self.attempt.lease.options.repair

    def verify(self) -> None:
        """Manifest, tree, blobs, copies; each repaired as soon as it is known."""
        if self.manifest is None:
            with self._held():
                self.manifest = manifest_or_none(self.attempt, self.tree.dataset_hash)
        if self.manifest is None:
            self._without_manifest()
        if self.manifest is not None:
            index(self.attempt, self.manifest)
            self.check.check_tree(self.manifest, self.tree)
            self._settle(self.manifest)
            if self.repairs:
                close_tree(self.attempt, self.tree, self.manifest)
        self._check_row_file()

    def _check_row_file(self) -> None:
        """A dataset of an earlier release has none, and a repair gives it one; a damaged one is made anew
        from the rows.
        """
        store, damaged = self.attempt.store, False
        try:
            self.has_row_file = store.read_row(self.tree.dataset_hash) is not None
        except RowFileError as error:
            self.has_row_file, damaged = True, True
            _log.warning("row_file_not_read", reason=str(error))
        if (damaged or not self.has_row_file) and self.repairs:
            self.has_row_file = self._write_row_file()
        if damaged:
            (named,) = name_damage(
                self.attempt,
                [Bad(path=store.row_path(self.tree.dataset_hash), what=What.WRONG_BYTES)],
                self.tree,
                self.manifest,
            )
            source = "its rows" if self.repairs else None
            self.damage.append(replace(named, repaired=self.repairs, source=source))

    def _write_row_file(self) -> bool:
        """From the rows as they are. None of a table that numbers its rows in a way of its own."""
        with autocommit(self.attempt.engine) as conn:
            row = dataset_row.read(conn, self.attempt.lease.ref.subject_id)
        if row is None:
            raise _gone(self.attempt)
        with self.attempt.store.staging(f"{self.attempt.name}-row") as staging:
            self.attempt.store.replace_row(row, staging, story(self.attempt, "the rows of the dataset"))
        return True

    def _without_manifest(self) -> None:
        """The index still knows the blobs; with these whole, the manifest can be made again from the tree."""
        path = self.attempt.store.manifest_path(self.tree.dataset_hash)
        what = What.WRONG_BYTES if os.path.lexists(path) else What.MISSING
        manifest = Bad(path=path, what=what)
        with self.attempt.engine.connect() as conn:
            sizes = blob_index.sizes(conn, self.tree.dataset_hash)
        self.check.check_blobs(sizes)
        self._settle(None)
        (named,) = name_damage(self.attempt, [manifest], self.tree, None)
        if self.repairs:
            self.manifest = repair_manifest(self.attempt, self.tree)
        if self.manifest is not None:
            named = replace(named, repaired=True, source=str(self.tree.path))
        self.damage.append(named)

    def _settle(self, manifest: Manifest | None) -> None:
        """Name what was found, repair it if that is asked for, and see what is still bad then."""
        bad, self.check.findings.bad = self._confirmed(self.check.findings.bad), []
        if not bad:
            return
        # Who else needs what is bad, datasets of earlier releases included.
        index_rest(self.attempt)
        named = name_damage(self.attempt, bad, self.tree, manifest)
        if not self.repairs:
            self.damage += named
            return
        if manifest is None:
            origins = repair_blobs(self.attempt, bad, self.tree)
        else:
            origins = repair_tree(self.attempt, bad, self.tree, manifest)
        self._note(bad, named, origins, self.check.check_again(bad, manifest, self.tree), manifest)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """While the dataset's row is locked, nothing of it is moved away. It may have been, and have been
        brought back since: what was missing then is no damage.
        """
        with self.attempt.engine.begin() as conn:
            if not datasets.is_held(conn, self.attempt.lease.ref.subject_id):
                raise _gone(self.attempt)
            yield

    def _confirmed(self, bad: Sequence[Bad]) -> list[Bad]:
        """What is wrong indeed, and was not only missing for a moment."""
        if not bad:
            return []
        with self._held():
            back = {one.path for one in bad if one.what is What.MISSING and fresh_status(one.path)}
        again = [one for one in bad if one.path in back]
        return [one for one in bad if one.path not in back] + self.check.check_again(again, None, self.tree)

    def _note(
        self,
        bad: Sequence[Bad],
        named: Sequence[Damage],
        origins: Origins,
        still: Sequence[Bad],
        manifest: Manifest | None,
    ) -> None:
        left = {one.path for one in still}
        known = {one.path for one in bad}
        self.damage += [
            damage if one.path in left else replace(damage, repaired=True, source=origins.get(one.path))
            for one, damage in zip(bad, named, strict=True)
        ]
        self.damage += name_damage(
            self.attempt, [one for one in still if one.path not in known], self.tree, manifest
        )
        self.check.note_right(one for one in bad if one.path not in left)


def _work(attempt: Attempt) -> Outcome:
    found = _Dataset(attempt, _row(attempt))
    attempt.heartbeat.enter("verify", found.tree.dataset_hash)
    found.verify()
    return _end(attempt, found)


def _row(attempt: Attempt) -> Dataset:
    with autocommit(attempt.engine) as conn:
        dataset = datasets.get(conn, attempt.lease.ref.subject_id)
    if dataset is None:
        raise _gone(attempt)
    return dataset


def _gone(attempt: Attempt) -> NothingToDoError:
    return NothingToDoError(f"dataset {attempt.lease.ref.subject_id}: removed since the run was opened")


def _due(attempt: Attempt) -> Due:
    options = attempt.lease.options
    age = options.older_than_days
    before = None if age is None else attempt.lease.run_created_at - timedelta(days=age)
    return Due(before=before, until=options.sample_until)


def _end(attempt: Attempt, found: _Dataset) -> Outcome:
    """Write the outcome, unless the dataset was removed meanwhile: then what is missing is no damage."""
    outcome = _outcome(attempt, found)
    with attempt.engine.begin() as conn:
        if datasets.get(conn, attempt.lease.ref.subject_id) is None:
            raise _gone(attempt)
        if outcome.status is not Status.FAILED:
            blob_index.mark_whole(conn, found.tree.dataset_hash)
        outcome = outcome.with_changes(verified=_counts(conn, found))
        leases.end_job(conn, attempt.lease, outcome)
    return outcome


def _outcome(attempt: Attempt, found: _Dataset) -> Outcome:
    left = [one for one in found.damage if not one.repaired]
    counts = found.check.findings
    read = f"{counts.files:,} file{'s' * (counts.files != 1)} read, {human_bytes(counts.bytes_read)}"
    if not found.has_row_file:
        read += "; it has no row file yet: producer datasets rebuild writes it"
    if left:
        status, reason = Status.FAILED, _words(left, "damaged")
    elif found.damage:
        status, reason = Status.REPAIRED, f"{_words(found.damage, 'repaired')}; {read}"
    else:
        status, reason = Status.VERIFIED, read
    outcome = attempt.outcome(status, reason).with_changes(
        dataset_id=found.tree.dataset_id,
        dataset_hash=found.tree.dataset_hash,
        dataset_path=str(found.tree.path),
        damaged=tuple(found.damage),
    )
    if not left:
        return outcome
    error = StoredBytesMismatchError(reason)
    return outcome.with_changes(
        error_class=error.error_class,
        error=reason,
        remedy=error.remedy,
        warnings=tuple(
            Warning_(message=f"--from {printable(folder)} is not a directory on {attempt.worker}")
            for folder in attempt.lease.options.repair_from
            if not os.path.isdir(folder)
        ),
    )


def _counts(conn: Connection, found: _Dataset) -> VerifiedCounts:
    """What was read, and how old the oldest check is now of what no other job of the run reads."""
    findings = found.check.findings
    return VerifiedCounts(
        files=findings.files,
        bytes_total=findings.bytes_total,
        bytes_verified=findings.bytes_read,
        oldest_check=verifications.oldest_check(conn, findings.own),
        left_to=tuple(sorted(findings.left_to)),
    )


def _words(damage: Sequence[Damage], what: str) -> str:
    names = "; ".join(f"{one.path} ({one.what.replace('_', ' ')})" for one in damage[:_SHOWN])
    more = f"; and {len(damage) - _SHOWN} more" if len(damage) > _SHOWN else ""
    return f"{len(damage)} stored {'thing is' if len(damage) == 1 else 'things are'} {what}: {names}{more}"
