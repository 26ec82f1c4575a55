"""The plan of a migration in its report: of a dry run the decision it leads to, of a real run what was
forecast beside what became of it. Pure: from outcomes, and from what the run kept when it was opened.
"""

from array import array
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from producer.planning.forecast import (
    Band,
    Forecast,
    Load,
    Pace,
    band_of,
    busy_seconds,
    freed_by,
    measuring,
    peak_of,
    seconds_of,
    source_of,
)
from producer.report.facts import RunFacts
from producer.report.space import Space
from worker.messages import Outcome, RunState, Status

_MOST_GROUPS = 20
_MOST_IDS = 10
_MOST_NOTES = 5


class Migration:
    """The keys that only a migration's report has: `space`, and `plan`."""

    def __init__(self, run: RunFacts, new_list: object) -> None:
        self._space = Space(run, new_list)
        self._plan = Rehearsal(run) if run.dry_run else Comparison(run)

    def add(self, outcome: Outcome) -> None:
        """Take the next outcome."""
        self._space.add(outcome)
        self._plan.add(outcome)

    def keys(self) -> dict[str, Any]:
        """The keys `space` and `plan`."""
        keys = self._space.keys()
        return {**keys, "plan": self._plan.plan(keys["space"])}


class _Times:
    """When jobs ran: for how long at least one did."""

    def __init__(self) -> None:
        self._begun, self._ended = array("d"), array("d")

    def add(self, outcome: Outcome) -> None:
        if outcome.started_at is not None and outcome.finished_at is not None:
            self._begun.append(outcome.started_at.timestamp())
            self._ended.append(outcome.finished_at.timestamp())

    def busy_s(self) -> float:
        return busy_seconds(zip(self._begun, self._ended, strict=True))


class Rehearsal:
    """The plan that a dry run leads to."""

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._ready = self._skipped = self._cancelled = 0
        self._stored = self._read = self._files = self._directories = self._largest = 0
        self._blocked: dict[tuple[str, str | None], list[int]] = {}
        self._blocked_count: dict[tuple[str, str | None], int] = {}
        self._owners: dict[str, tuple[int, str | None]] = {}
        self._duplicates: dict[str, dict[str, Any]] = {}
        self._warned: list[dict[str, Any]] = []
        self._warned_count = 0
        self._pace = Pace(dry_run=True)
        self._workers: set[str] = set()
        self._times = _Times()
        self._ended_at: datetime | None = None

    def add(self, outcome: Outcome) -> None:
        """Take the next outcome, in the order of ids."""
        self._times.add(outcome)
        if outcome.finished_at is not None:
            self._ended_at = max(outcome.finished_at, self._ended_at or outcome.finished_at)
        if outcome.status is Status.FAILED:
            cause = outcome.error_class or "", outcome.remedy
            self._blocked_count[cause] = self._blocked_count.get(cause, 0) + 1
            self._blocked.setdefault(cause, []).append(outcome.project_id or 0)
        self._skipped += outcome.status is Status.SKIPPED
        self._cancelled += outcome.status is Status.CANCELLED
        if not self._run.succeeded(outcome):
            return
        self._ready += 1
        self._read += outcome.bytes.read
        self._stored += outcome.bytes.stored
        self._files += outcome.files.stored
        self._largest = max(self._largest, outcome.bytes.stored)
        if outcome.dataset_created:
            self._directories += outcome.sessions_count + 2
        self._add_duplicate(outcome)
        if outcome.warnings:
            self._warned_count += 1
            self._warned.extend(
                {
                    "project_id": outcome.project_id,
                    "project_name": outcome.project_name,
                    "message": warning.message,
                }
                for warning in outcome.warnings[: _MOST_NOTES - len(self._warned)]
            )
        self._pace.add(outcome.bytes.read - outcome.bytes.remembered, outcome.duration_s)
        self._workers.add(outcome.worker or "")

    def _add_duplicate(self, outcome: Outcome) -> None:
        """A project all of whose content is some dataset's, or another project's that comes before it."""
        digest = outcome.dataset_hash or ""
        if outcome.dataset_created:
            self._owners[digest] = outcome.project_id or 0, outcome.project_name
            return
        group = self._duplicates.get(digest)
        if group is None:
            owner = self._owners.get(digest)
            of = (
                {"subject": "project", "id": owner[0], "name": owner[1]}
                if owner is not None
                else {"subject": "dataset", "id": outcome.dataset_id, "name": None}
            )
            group = self._duplicates[digest] = {
                "dataset_hash": digest,
                "of": of,
                "projects": 0,
                "project_ids": [],
                "bytes": 0,
            }
        group["projects"] += 1
        group["bytes"] += outcome.bytes.read
        if len(group["project_ids"]) < _MOST_IDS:
            group["project_ids"].append(outcome.project_id)

    def plan(self, space: Mapping[str, int]) -> dict[str, Any]:
        """The plan as JSON; `space` is the report's."""
        conditions = self._run.selection.get("conditions") or {}
        forecast = self._forecast(space, conditions)
        blocked = sum(self._blocked_count.values())
        groups = sorted(self._duplicates.values(), key=lambda one: (-one["bytes"], one["dataset_hash"]))
        decision = self._decision(forecast, conditions)
        return {
            "decision": decision,
            "forecast": forecast.to_json(),
            "skipped": self._skipped,
            "not_rehearsed": self._cancelled,
            "is_complete": self._is_complete,
            "blocked": [
                {
                    "error_class": cause[0],
                    "remedy": cause[1],
                    "projects": self._blocked_count[cause],
                    "project_ids": ids[:_MOST_IDS],
                }
                for cause, ids in sorted(self._blocked.items(), key=lambda one: -self._blocked_count[one[0]])
            ][:_MOST_GROUPS],
            "duplicates": {
                "projects": sum(one["projects"] for one in groups),
                "bytes": sum(one["bytes"] for one in groups),
                "groups": groups[:_MOST_GROUPS],
            },
            "conditions": {key: value for key, value in conditions.items() if key != "paces"} or None,
            "warnings": {"projects": self._warned_count, "first": self._warned},
            "command": self._command(blocked) if decision not in {"nothing", "incomplete"} else None,
        }

    @property
    def _is_complete(self) -> bool:
        """Has every chosen project been rehearsed? A check that did not run did not pass."""
        return self._run.interim is None and self._run.state is RunState.FINISHED and not self._cancelled

    def _forecast(self, space: Mapping[str, int], conditions: Mapping[str, Any]) -> Forecast:
        self._pace.busy_s, self._pace.workers = self._times.busy_s(), len(self._workers)
        paces = [self._pace, *(Pace(**one) for one in conditions.get("paces", ()))]
        stored, may_share = Band.exactly(self._stored), conditions.get("may_share", True)
        rehash = bool((self._run.selection.get("options") or {}).get("rehash"))
        load = Load(
            jobs=self._ready,
            work=Band.exactly(self._read if rehash else self._stored),
            largest=self._largest,
        )
        peak = peak_of(stored, Band.exactly(self._files), self._directories, may_share=may_share)
        return Forecast(
            basis="dry_run",
            run_id=str(self._run.run_id),
            made_at=(self._ended_at or self._run.started_at)
            .astimezone(UTC)
            .isoformat(timespec="microseconds"),
            ready=self._ready,
            blocked=sum(self._blocked_count.values()),
            unknown=self._cancelled,
            read_bytes=self._read,
            stored=stored,
            freed=freed_by(space["reclaimable"], peak, may_share=may_share),
            peak=peak,
            seconds=seconds_of(
                load,
                paces,
                workers=conditions.get("workers"),
                limit_bytes_per_second=conditions.get("limit_bytes_per_second"),
            ),
            seconds_from=source_of(measuring(load, paces)),
        )

    def _decision(self, forecast: Forecast, conditions: Mapping[str, Any]) -> str:
        if not self._is_complete:
            return "incomplete"
        if not self._ready:
            return "nothing"
        room = conditions.get("room")
        if room is not None and forecast.peak.likely > room:
            return "no_room"
        return "partly" if self._blocked_count else "ready"

    def _command(self, blocked: int) -> str | None:
        """The call that does what was rehearsed: blocked projects are left out until they are repaired.
        None where it would name too many projects.
        """
        options = self._run.selection.get("options") or {}
        ids = [number for of in self._blocked.values() for number in of]
        waves = list(options.get("waves") or ())
        chosen = list(options.get("project_ids") or ())
        excluded = list(options.get("exclude") or ())
        if chosen:
            chosen = [number for number in chosen if number not in set(ids)]
        elif not options.get("limit") and blocked <= _MOST_IDS and (waves or ["%"])[-1].endswith("%"):
            excluded = sorted({*excluded, *ids})
        if len(chosen) + len(excluded) > 2 * _MOST_IDS:
            return None
        words = ["producer enqueue"]
        words += [f"--project-id {number}" for number in chosen]
        words += [f"--exclude {number}" for number in excluded]
        words += [f"--limit {options['limit']}"] if options.get("limit") else []
        words += [f"--{name.replace('_', '-')}" for name in ("include_failed", "rehash") if options.get(name)]
        words += [f"--waves {','.join(waves)} --gate {options['gate']}"] if waves else []
        limit = (self._run.selection.get("conditions") or {}).get("limit_bytes_per_second")
        words += [f"--limit-bytes-per-second {limit}"] if limit else []
        return " ".join([*words, "--wait"])


class Comparison:
    """What was forecast of a real run when it was opened, and what became of it."""

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._migrated = self._others = self._cancelled = self._stored = 0
        self._times = _Times()

    def add(self, outcome: Outcome) -> None:
        """Take the next outcome."""
        self._migrated += self._run.succeeded(outcome)
        self._others += not self._run.succeeded(outcome)
        self._cancelled += outcome.status is Status.CANCELLED
        self._stored += outcome.bytes.stored
        self._times.add(outcome)

    def plan(self, space: Mapping[str, int]) -> dict[str, Any] | None:
        """Both as JSON; None of a run for which nothing was forecast."""
        forecast = self._run.selection.get("forecast")
        if not isinstance(forecast, Mapping):
            return None
        is_complete = (
            self._run.interim is None and self._run.state is RunState.FINISHED and not self._cancelled
        )
        seconds = round(self._times.busy_s(), 3)
        expected = forecast["bytes"]["stored"]
        return {
            "forecast": dict(forecast),
            "is_complete": is_complete,
            "became": {
                "projects": self._migrated,
                "not_migrated": self._others,
                "stored": self._stored,
                "disk": space["store"],
                "reclaimable": space["reclaimable"],
                "seconds": seconds,
            },
            "off": {
                "projects": self._migrated - forecast["projects"]["ready"],
                "stored": self._stored - expected["likely"],
                "stored_in_band": band_of(expected).holds(self._stored),
                "seconds": round(seconds - forecast["seconds"]["likely"], 3) if forecast["seconds"] else None,
                "seconds_in_band": band_of(forecast["seconds"]).holds(seconds)
                if forecast["seconds"]
                else None,
            }
            if is_complete
            else None,
        }
