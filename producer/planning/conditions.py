"""What there is for a migration when it is planned: room on disk, and workers. As it is seen from here and
now.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from producer.runs.survey import room_in
from worker.broker import client as broker
from worker.errors import BrokerUnavailableError
from worker.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """`room`: what the store takes before it calls itself full, None where it is not to be seen from here.
    `free`: what is free on the file systems of the store and of the legacy roots, each once, with what lies
    there; `not_seen`: those that are not to be seen from here. `workers`: how many are online, None where
    the broker does not say.
    """

    at: datetime
    room: int | None
    free: tuple[dict[str, Any], ...]
    not_seen: tuple[str, ...]
    workers: int | None

    @property
    def may_share(self) -> bool:
        """May stored files come to share blocks with legacy ones? Only on one file system, and only XFS and
        Btrfs can.
        """
        return bool(self.not_seen) or any(len(one["holds"]) > 1 for one in self.free)

    def to_json(self) -> dict[str, Any]:
        """As a run keeps it for its report."""
        return {
            "at": self.at.isoformat(timespec="microseconds"),
            "room": self.room,
            "free": list(self.free),
            "not_seen": list(self.not_seen),
            "may_share": self.may_share,
            "workers": self.workers,
        }


def conditions(settings: Settings, *, asks_workers: bool = False) -> Conditions:
    """Look at the file systems and, if asked to, ask the broker for a second. Nothing here is an error:
    what is not seen is said to be so.
    """
    by_device: dict[int, dict[str, Any]] = {}
    not_seen: list[str] = []
    for what, path in _places(settings):
        try:
            device = os.stat(path).st_dev
            status = os.statvfs(path)
        except OSError:
            not_seen.append(f"{what} {path}")
            continue
        one = by_device.setdefault(
            device, {"path": str(path), "holds": [], "free": status.f_bavail * status.f_frsize}
        )
        if what not in one["holds"]:
            one["holds"].append(what)
    return Conditions(
        at=datetime.now(UTC),
        room=room_in(settings),
        free=tuple(by_device.values()),
        not_seen=tuple(not_seen),
        workers=_workers(settings) if asks_workers else None,
    )


def _places(settings: Settings) -> Iterator[tuple[str, Path]]:
    # A store that is not there yet will be made in DATA_DIR.
    yield "store", settings.store_dir if settings.store_dir.is_dir() else settings.data_dir
    for root in settings.legacy_roots:
        yield "legacy directories", root


def _workers(settings: Settings) -> int | None:
    try:
        return len(broker.workers_online(settings))
    except BrokerUnavailableError:
        return None
