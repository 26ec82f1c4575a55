"""Runs and outcomes for tests of reports: plain ones by hand, and any at all from hypothesis."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from producer.report.facts import RunFacts
from worker.messages import (
    ByteCounts,
    FileCounts,
    LinkCounts,
    Outcome,
    RunState,
    Status,
    Verb,
    Warning_,
)
from worker.wording import VERB_WORDS

BEGIN = datetime(2026, 3, 7, 13, 2, 11, 120_000, tzinfo=UTC)
RUN_ID = uuid.UUID("6f3c1d9e-52a0-4f7b-9c51-0d0f8c2b7a14")
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</title></style></script><b>&amp;",
    "abc\u202egnp.exe \u05d0\u05d1\u05d2",
    "{{ 7 * 7 }} {% raw %} ${x}",
    "\u2028 line \n feed \t tab",
)


def run_facts(**changes: Any) -> RunFacts:
    return RunFacts(
        **{
            "run_id": RUN_ID,
            "verb": Verb.MIGRATE,
            "dry_run": False,
            "state": RunState.FINISHED,
            "started_at": BEGIN,
            "finished_at": BEGIN + timedelta(minutes=5),
            "selection": {},
            **changes,
        }
    )


def migrated(
    project_id: int, *, digest: str = "a" * 64, stored: int = 0, reused: int = 0, **changes: Any
) -> Outcome:
    """A migrated project; its dataset is new if it stored anything."""
    return Outcome(
        **{
            "project_id": project_id,
            "project_name": f"Project {project_id}",
            "status": Status.MIGRATED,
            "reason": "converted",
            "original_path": f"/srv/label/project_{project_id}",
            "dataset_id": 1,
            "dataset_hash": digest,
            "dataset_path": f"/srv/label/raw_datasets/x-{digest[:12]}",
            "dataset_created": stored > 0,
            "sessions_count": 3,
            "files": FileCounts(stored=int(stored > 0), reused=int(stored == 0)),
            "bytes": ByteCounts(stored=stored, reused=reused),
            "links": LinkCounts(hard=1),
            "worker": "celery@one",
            "attempts": 1,
            "started_at": BEGIN,
            "finished_at": BEGIN + timedelta(seconds=2),
            "duration_s": 2.0,
            **changes,
        }
    )


def failed(project_id: int, **changes: Any) -> Outcome:
    return Outcome(
        **{
            "project_id": project_id,
            "project_name": f"Project {project_id}",
            "status": Status.FAILED,
            "reason": "its directory is missing",
            "original_path": f"/srv/label/project_{project_id}",
            "error_class": "DirectoryMissingError",
            "error": f"Directory does not exist: /srv/label/project_{project_id}",
            "remedy": "Mount it.",
            **changes,
        }
    )


def skipped(project_id: int, **changes: Any) -> Outcome:
    return Outcome(
        **{
            "project_id": project_id,
            "project_name": f"Project {project_id}",
            "status": Status.SKIPPED,
            "reason": "the project has no path",
            **changes,
        }
    )


_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_AMOUNTS = st.integers(min_value=0, max_value=1 << 50)
_TIMES = st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 2), timezones=st.just(UTC))  # noqa: DTZ001


@st.composite
def any_run(draw: st.DrawFn) -> RunFacts:
    """A run of any verb; verification has no dry run."""
    verb = draw(st.sampled_from([verb for verb in Verb if verb is not Verb.GC]))
    return run_facts(
        verb=verb,
        dry_run=verb is not Verb.VERIFY and draw(st.booleans()),
        state=draw(st.sampled_from(RunState)),
    )


@st.composite
def any_outcome(draw: st.DrawFn, run: RunFacts) -> Outcome:
    """An outcome that a job of `run` can have, its figures independent of its status."""
    begun = draw(st.booleans())
    started_at = draw(_TIMES)
    success = VERB_WORDS[run.verb].success(dry_run=run.dry_run)
    status = draw(st.sampled_from([success, Status.FAILED, Status.SKIPPED, Status.CANCELLED]))
    return Outcome(
        project_id=draw(st.integers(min_value=1, max_value=40)),
        project_name=draw(st.none() | _TEXTS),
        status=status,
        reason=draw(_TEXTS),
        original_path=draw(st.none() | _TEXTS),
        dataset_id=draw(st.none() | st.integers(1, 9)),
        dataset_hash=draw(st.none() | st.sampled_from("abc").map(lambda digit: digit * 64)),
        dataset_path=draw(st.none() | _TEXTS),
        dataset_created=draw(st.booleans()),
        sessions_count=draw(st.integers(0, 100)),
        files=draw(st.builds(FileCounts, stored=_AMOUNTS, reused=_AMOUNTS, left=_AMOUNTS)),
        bytes=draw(st.builds(ByteCounts, stored=_AMOUNTS, reused=_AMOUNTS)),
        warnings=tuple(
            draw(st.lists(st.builds(Warning_, message=_TEXTS, session=st.none() | _TEXTS), max_size=2))
        ),
        differences=tuple(draw(st.lists(_TEXTS, max_size=2))),
        error_class=draw(st.none() | st.just("StoreFullError")),
        error=draw(st.none() | _TEXTS),
        remedy=draw(st.none() | _TEXTS),
        worker=draw(st.none() | st.sampled_from(["celery@one", "celery@two"])),
        attempts=draw(st.integers(0, 3)),
        started_at=started_at if begun else None,
        finished_at=started_at + draw(st.timedeltas(timedelta(0), timedelta(hours=3))) if begun else None,
        duration_s=draw(st.floats(0, 1e5)),
    )


@st.composite
def any_outcomes(draw: st.DrawFn) -> tuple[RunFacts, list[Outcome]]:
    """A run and the outcomes of all its jobs, in any order."""
    run = draw(any_run())
    outcomes = draw(st.lists(any_outcome(run), max_size=12, unique_by=lambda outcome: outcome.project_id))
    return run, outcomes


def catalog_document(datasets: int, projects: int, *, name: str = "study") -> dict[str, Any]:
    """A document of `datasets report`: project N has dataset N, of the last ones as many as there are; the
    first dataset belongs to three projects more. The names of the first ones attack.
    """

    def called(number: int) -> str:
        return HOSTILE[number - 1] if number <= len(HOSTILE) else f"{name} {number}"

    own = {number: [number] for number in range(1, min(datasets, projects - 3) + 1)}
    own[1] += range(projects - 2, projects + 1)
    having = {project: number for number, found in own.items() for project in found}
    sizes = {number: 1_000 * number for number in range(1, datasets + 1)}
    had = sum(sizes[number] for number in having.values())
    stored = sum(sizes[number] for number in own)
    return {
        "at": BEGIN.isoformat(),
        "datasets": datasets,
        "datasets_shared": 1,
        "datasets_by_label": 0,
        "projects": projects,
        "projects_with_datasets": len(having),
        "projects_legacy": projects - len(having),
        "datasets_not_indexed": 0,
        "content": {"had": had, "stored": stored, "saved": had - stored},
        "space": {
            "store": sum(sizes.values()),
            "legacy": 9_000,
            "shared": 1_000,
            "moved_away": 2_000,
            "freed": 500,
            "reclaimable": 8_000,
            "directories": 3,
            "directories_not_measured": 1,
        },
        "gc": {"unreferenced": datasets - len(own), "due": 2, "bytes": 4_000, "refuses": False},
        "oldest_check": None,
        "verified": [
            {"from_days": 0, "to_days": 1, "datasets": datasets - 1, "bytes": 7_000},
            {"from_days": None, "to_days": None, "datasets": 1, "bytes": 1_000},
        ],
        "sharing": [
            {"from": 1, "to": 1, "datasets": datasets - 1, "bytes": 7_000, "saved": 0},
            {"from": 3, "to": None, "datasets": 1, "bytes": 1_000, "saved": 3_000},
        ],
        "dataset_list": [
            {
                "dataset_id": number,
                "dataset_name": called(number),
                "dataset_hash": f"{number:064x}",
                "file_path": f"/srv/raw_datasets/{called(number)}",
                "size_bytes": size,
                "projects": len(own.get(number, ())),
                "project_ids": own.get(number, []),
                "saved_bytes": size * max(0, len(own.get(number, ())) - 1),
                "verified_at": None if number == 1 else BEGIN.isoformat(),
                "legacy_directories": {"in_place": 1, "moved_away": 0, "purged": 2},
                "stored_by_migrator": True,
                "unreferenced": number not in own,
            }
            for number, size in sizes.items()
        ],
        "project_list": [
            {
                "project_id": number,
                "project_name": called(number),
                "is_legacy": number not in having,
                "path": f"/srv/label/{called(number)}",
                "dataset_ids": [having[number]] if number in having else [],
                "size_bytes": sizes[having[number]] if number in having else 0,
                "own_bytes": 0,
                "legacy": "in_place",
            }
            for number in range(1, projects + 1)
        ],
    }
