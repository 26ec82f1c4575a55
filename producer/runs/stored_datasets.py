"""Which stored datasets a verification reads, and what of them is due. Reads none itself."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from producer.runs.selection import LeftOut
from worker.db import verifications
from worker.db.verifications import Due, StoredDataset
from worker.errors import UsageError
from worker.messages import Subject
from worker.settings import Settings

_BY_LABEL = "registered by Label itself: nothing promises its bytes"
_NOT_DUE = "was read lately: nothing of it is due"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The datasets to verify; those that are left out, each with the reason; and what is due of them."""

    datasets: tuple[StoredDataset, ...]
    left_out: tuple[LeftOut, ...]
    due: Due


def choose(
    conn: Connection,
    *,
    dataset_ids: Collection[int],
    of_projects: Collection[int],
    names_some: bool,
    sample: float | None,
    older_than_days: float | None,
) -> Chosen:
    """All stored datasets of which something is due or, where the call `names_some`, those that are named and
    those of named projects.

    Raises `UsageError` naming every dataset that cannot be verified, with the reason.
    """
    due = _due(conn, sample, older_than_days)
    stored = {one.dataset_id: one for one in verifications.stored_datasets(conn, due)}
    by_label = verifications.registered_by_label(conn)
    _check_ids(dataset_ids, stored, by_label)
    only = {*dataset_ids, *of_projects} if names_some else {*stored, *by_label}
    wanted = [stored[number] for number in sorted(only & stored.keys())]
    left_out = [_left_out(number, by_label[number], _BY_LABEL) for number in sorted(only & by_label.keys())]
    left_out += [_left_out(one.dataset_id, one.dataset_name, _NOT_DUE) for one in wanted if not one.is_due]
    return Chosen(
        datasets=tuple(sorted((one for one in wanted if one.is_due), key=_biggest_first)),
        left_out=tuple(left_out),
        due=due,
    )


def _left_out(dataset_id: int, name: str, reason: str) -> LeftOut:
    return LeftOut(subject=Subject.DATASET, subject_id=dataset_id, subject_name=name, reason=reason)


def _biggest_first(one: StoredDataset) -> tuple[int, int]:
    return -(one.size_bytes or 0), one.dataset_id


def _due(conn: Connection, sample: float | None, older_than_days: float | None) -> Due:
    before = None if older_than_days is None else datetime.now(UTC) - timedelta(days=older_than_days)
    return Due(before=before, until=None if sample is None else verifications.sample(conn, sample))


def _check_ids(ids: Collection[int], stored: Collection[int], by_label: Collection[int]) -> None:
    problems = [
        f"{number} ({'ids begin at 1' if number < 1 else _BY_LABEL if number in by_label else 'no such dataset'})"
        for number in ids
        if number not in stored
    ]
    if problems:
        raise UsageError(f"These dataset ids cannot be verified: {', '.join(problems)}")


def check_from(settings: Settings, folders: Sequence[str]) -> tuple[str, ...]:
    """The absolute paths of directories that may have good bytes. Raises `UsageError` for one that is not
    there, or lies in, at or around the store.
    """
    checked = []
    for folder in folders:
        path = os.path.abspath(folder)
        if not os.path.isdir(path):
            raise UsageError(f"--from {folder}: there is no such directory")
        for store in (settings.store_dir, settings.datasets_dir):
            if _overlap(os.path.realpath(path), os.path.realpath(store)):
                raise UsageError(f"--from {folder} overlaps the store's own directory {store}")
        checked.append(path)
    return tuple(checked)


def _overlap(one: str, other: str) -> bool:
    return os.path.commonpath([one, other]) in {one, other}
