"""What each session of a legacy project becomes: its raw directory, its offsets, or why it is left as it is.
Pure.
"""

import os
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from worker.db.sessions import Session
from worker.errors import ProjectError
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.noise import Noise
from worker.legacy.scan import Scan
from worker.legacy.session_files import LABELS, LABELS_MOST_BYTES
from worker.messages import Warning_
from worker.sessions_csv import RECORDING
from worker.store.digest import printable


class SessionNameRefusedError(ProjectError):
    """A session reads from a place that its name alone leads to, and which is no directory of the project's
    own.
    """

    remedy: ClassVar[str] = (
        "Give the session the name of its directory, or its directory as parent path; then enqueue the project again."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """What becomes of one session that can be re-pointed: its raw directory and its offsets afterwards."""

    session: Session
    raw_name: str
    start: int | None
    end: int | None
    is_virtual_child: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a conversion does to a project's sessions, and what it leaves alone."""

    sessions: tuple[SessionPlan, ...]
    left_alone: tuple[Session, ...]
    warnings: tuple[Warning_, ...]

    @property
    def split_parameters(self) -> dict[str, dict[str, Any]]:
        """For each raw session that has virtual children: its segments, as `project_split_configs` keeps
        them.
        """
        parameters: dict[str, dict[str, Any]] = {}
        for plan in self.sessions:
            if plan.is_virtual_child:
                config = parameters.setdefault(plan.raw_name, {"source": "migration", "segments": []})
                config["segments"].append(
                    {"session_name": plan.session.session_name, "start": plan.start, "end": plan.end}
                )
        return parameters


def plan_sessions(project_path: str, rows: Sequence[Session], tree: HashedTree) -> Plan:
    """Decide for every session of a project where its rows will be read from. Pure.

    A session without a parent path becomes the records 0 to N of its own directory, because with open offsets
    Label's model scoring would drop the last record and later splits would get no offsets. A split child
    keeps its offsets. A row that cannot be judged is left alone, with a warning that names it. Raises
    `SessionNameRefusedError` for one that would become unreadable by that.
    """
    names = frozenset(tree.scan.session_names)
    directories = _plain_directories(tree)
    plans: list[SessionPlan] = []
    left_alone: list[Session] = []
    warnings: list[Warning_] = [
        Warning_(session=name, message=f"{LABELS} is not text; the file is kept, the column stays empty")
        for name in sorted(tree.unreadable_labels)
    ]
    warnings += [
        Warning_(
            session=name,
            message=f"{LABELS} is larger than {LABELS_MOST_BYTES >> 20} MiB; the file is kept, the column stays empty",
        )
        for name in sorted(tree.large_labels)
    ]
    warnings += _noise(tree.scan.noise, names)
    if tree.scan.links:
        warnings.append(
            Warning_(message=f"{tree.scan.links} symbolic links were stored as what they point to")
        )
    for row in rows:
        parent = row.parent_session_data_path
        raw_name = _own_directory(parent, project_path, directories) if parent else row.session_name
        if raw_name in names:
            plan = _plan(row, raw_name, tree.records.get(raw_name), child=bool(parent))
            plans.append(plan)
            warnings.extend(_remarks(plan, tree.records.get(raw_name)))
            continue
        if not parent:
            _check_name(row, tree.sources)
        left_alone.append(row)
        warnings.append(
            _left_alone(row, f"its parent path is not directly below the project's: {parent}")
            if raw_name is None
            else _left_alone(row, f"its directory is missing: {raw_name}")
        )
    return Plan(sessions=tuple(plans), left_alone=tuple(left_alone), warnings=tuple(warnings))


def _plan(row: Session, raw_name: str, records: int | None, *, child: bool) -> SessionPlan:
    start, end = row.data_start_offset, row.data_end_offset
    if not child and records is not None:
        start, end = 0, records
    return SessionPlan(session=row, raw_name=raw_name, start=start, end=end, is_virtual_child=child)


def _noise(noise: Noise, sessions: Collection[str]) -> Iterator[Warning_]:
    """What other programs left in the directory: stored with the rest, it keeps equal recordings from being
    one dataset.
    """
    if not noise.count:
        return
    more = f" and {noise.count - len(noise.first)} more" if noise.count > len(noise.first) else ""
    named = f"{', '.join(map(printable, noise.first))}{more}"
    yield Warning_(
        message=f"entries that other programs leave behind are stored with the recordings, so that a copy without them is "
        f"another dataset: {named}"
    )
    if raw := [name for name in noise.first if name in sessions]:
        yield Warning_(
            message=f"directories that other programs leave behind become raw sessions: {', '.join(map(printable, raw))}"
        )


def _remarks(plan: SessionPlan, records: int | None) -> list[Warning_]:
    """What a person may want to look at, though the session reads as it did before."""
    if not plan.is_virtual_child and records is None:
        return [_remark(plan, "its recording has no records or cannot be read; its offsets stay as they are")]
    if plan.is_virtual_child and records is not None and plan.end is not None and plan.end > records:
        return [_remark(plan, f"its offsets end at {plan.end}, past the {records} records of its recording")]
    return []


def _remark(plan: SessionPlan, reason: str) -> Warning_:
    return Warning_(
        session=plan.session.session_name, message=f"session {plan.session.session_name}: {reason}"
    )


def _left_alone(row: Session, reason: str) -> Warning_:
    return Warning_(
        session=row.session_name, message=f"session {row.session_name} was left as it is: {reason}"
    )


def _own_directory(path: str, project_path: str, directories: Collection[str]) -> str | None:
    """The one component by which an absolute path goes below the project's; None when it is anything else.

    A comparison of texts, without double slashes and dots. `..` undoes the component before it only where
    that is one of `directories`: behind a link it leads elsewhere, and behind nothing nowhere.
    """
    prefix, parts = _components(project_path), _components(path)
    if not path.startswith("/") or parts[: len(prefix)] != prefix:
        return None
    below: list[str] = []
    for part in parts[len(prefix) :]:
        if part != "..":
            below.append(part)
        elif "/".join(below) in directories:
            below.pop()
        else:
            return None
    return below[0] if len(below) == 1 else None


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]


def _plain_directories(tree: HashedTree) -> frozenset[str]:
    """The directories that are known to be no links: all of them, or none where the tree has any link."""
    return frozenset() if tree.scan.links else frozenset(entry.path for entry in tree.scan.directories)


def check_names(rows: Sequence[Session], scanned: Scan) -> None:
    """Raise `SessionNameRefusedError` for a session that `plan_sessions` would refuse, before a byte is
    stored.
    """
    names = frozenset(scanned.session_names)
    odd = [row for row in rows if not row.parent_session_data_path and row.session_name not in names]
    if odd:
        paths = frozenset(scanned.files.paths)
        for row in odd:
            _check_name(row, paths)


def _check_name(row: Session, files: Container[str]) -> None:
    """A session without a parent path reads from the project's path joined with its name, whatever that
    is.
    """
    name = row.session_name
    place = os.path.normpath(os.path.join(name, RECORDING))
    if place in files or name.startswith("/") or ".." in name.split("/"):
        raise SessionNameRefusedError(
            f"Session {row.session_id} would lose its recording: its name {name!r} is not that of a session directory"
        )
