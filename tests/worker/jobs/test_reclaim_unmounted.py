"""What a missing mount hides is not gone: reclaim, undo, purge and rollback wait, and forget nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate import snapshot_tree
from tests.support.disks import mount, remove, unmount
from tests.support.ledger_rows import its_time_comes, job_of
from tests.support.runs import do, migrate_all, open_run, run_one
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.jobs.tools import Tools
from worker.messages import MOVED_AWAY, JobState, Status, Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked for while the mount is missing, and how it ends when it is back."""

    verb: Verb = Verb.RECLAIM
    done: Status
    state: str | None = "reclaimed"
    """Of the ledger's row when it begins."""
    options: dict[str, object] = field(default_factory=dict)


_PURGE = {"purge": True, "grace_days": 0}
ASKS = {
    "reclaim of what a dead job moved": Ask(done=Status.RECLAIMED, state="moving"),
    "undo": Ask(done=Status.UNDONE, options={"undo": True}),
    "undo of what a dead job was moving back": Ask(
        done=Status.UNDONE, state="undoing", options={"undo": True}
    ),
    "purge": Ask(done=Status.PURGED, options=_PURGE),
    "purge that a dead job began": Ask(done=Status.PURGED, state="purging", options=_PURGE),
    "rollback": Ask(verb=Verb.ROLLBACK, done=Status.ROLLED_BACK),
    "rollback that may rebuild": Ask(
        verb=Verb.ROLLBACK, done=Status.ROLLED_BACK, options={"restore_files": True}
    ),
    # The last one: nothing was moved yet that could be taken away.
    "reclaim": Ask(done=Status.RECLAIMED, state=None),
}


def take_away_what_was_moved(root: Path) -> None:
    (root / "something").touch()
    (root / MOVED_AWAY).rename(root.with_name("mounted elsewhere"))


def put_back(root: Path) -> None:
    if (root / "something").exists():
        root.with_name("mounted elsewhere").rename(root / MOVED_AWAY)
    else:
        root.mkdir(exist_ok=True)
        mount(root)


def rows(site: Site) -> list[tuple[object, ...]]:
    with site.engine.connect() as conn:
        found = conn.execute(text("select * from migration_reclaims order by reclaim_id"))
        return [tuple(row) for row in found]


@pytest.mark.parametrize(
    ("asked", "harm"),
    [(asked, harm) for asked in ASKS for harm in (unmount, remove, take_away_what_was_moved)][:-1],
)
def test_what_a_mount_hides_is_waited_for(site: Site, tools: Tools, asked: str, harm: Callable[[Path], None]):
    ask = ASKS[asked]
    home = plain_study(site, "study", 1)
    files = snapshot_tree(home)
    (migrated,) = migrate_all(site, tools)
    if ask.state is not None:
        run_one(tools, Verb.RECLAIM, migrated.project_id)
        with site.engine.begin() as conn:
            conn.execute(text("update migration_reclaims set state = :state"), {"state": ask.state})
    rehearsed, real = (
        open_run(site.engine, ask.verb, dry_run=dry_run, only=[migrated.project_id], **ask.options)
        for dry_run in (True, False)
    )
    before = rows(site)
    harm(site.legacy_root)
    try:
        assert do(tools, ask.verb, [*rehearsed, *real]) == {}
    finally:
        put_back(site.legacy_root)

    for ref in (*rehearsed, *real):
        job = job_of(site.engine, ref.run_id, ref.subject_id)
        assert (job["state"], job["retries"], job["crashes"]) == (JobState.QUEUED, 0, 0)
        assert str(site.legacy_root) in job["waits_for"]
        assert "is it mounted?" in job["phase"]
    its_time_comes(site.engine)
    (predicted,) = do(tools, ask.verb, rehearsed).values()
    assert predicted.status.value.startswith("would_"), predicted
    assert rows(site) == before
    (outcome,) = do(tools, ask.verb, real).values()
    assert (outcome.status, outcome.error) == (ask.done, None)
    away = list(site.legacy_root.glob(f"{MOVED_AWAY}/*"))
    kept = [snapshot_tree(place) for place in (home, *away) if place.exists()]
    assert kept == ([] if ask.done is Status.PURGED else [files])
