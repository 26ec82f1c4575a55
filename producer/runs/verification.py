"""Opening a verification: jobs about stored datasets, about the sessions of projects, or both in one run.
Compares nothing itself.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine

from producer.runs import stored_datasets
from producer.runs.migrated_projects import jobs_of
from producer.runs.open import Opened, open_run
from producer.runs.selection import LeftOut
from producer.runs.stored_datasets import Chosen
from producer.runs.survey import OnListing
from worker.broker import client as broker
from worker.db import projects, verifications
from worker.db.ledger import NewJob
from worker.errors import UsageError
from worker.messages import RunOptions, Subject, Verb
from worker.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a call of `producer verify` asks for. Without `store` and `sessions` it is both."""

    store: bool = False
    sessions: bool = False
    project_ids: tuple[int, ...] = ()
    dataset_ids: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    limit: int | None = None
    sample: float | None = None
    older_than_days: float | None = None
    repair: bool = False
    repair_from: tuple[str, ...] = ()

    @property
    def of_store(self) -> bool:
        """Are stored datasets verified?"""
        return self.store or not self.sessions

    @property
    def of_sessions(self) -> bool:
        """Are sessions verified?"""
        return self.sessions or not self.store

    def check(self) -> None:
        """Raise `UsageError` for options that contradict each other."""
        if self.repair_from and not self.repair:
            raise UsageError("--from is where --repair looks for good copies: add --repair")
        if not self.of_store:
            for name, value in (
                ("--repair", self.repair),
                ("--older-than", self.older_than_days is not None),
            ):
                if value:
                    raise UsageError(f"{name} is about the store: add --store, or leave out --sessions")


def verify(
    settings: Settings,
    engine: Engine,
    *,
    wanted: Wanted,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a verification run and send its jobs.

    Named projects stand for their datasets, too, and named datasets for the projects that were migrated to
    them. Raises `UsageError` naming every id that cannot be verified, with the reason.
    """
    wanted.check()
    folders = stored_datasets.check_from(settings, wanted.repair_from)
    broker.check(settings)
    jobs: list[NewJob] = []
    left_out: list[LeftOut] = []
    facts: dict[str, Any] = {}
    until = None
    if wanted.of_store:
        with engine.connect() as conn:
            chosen = _choose_datasets(conn, wanted)
            facts = {"coverage": verifications.opened_on(conn, [one.dataset_id for one in chosen.datasets])}
        jobs += [_job(one) for one in chosen.datasets]
        left_out += chosen.left_out
        until = chosen.due.until
    if wanted.of_sessions:
        of_projects, others = _session_jobs(engine, wanted, on_listing)
        jobs += of_projects
        left_out += others
    return open_run(
        settings,
        engine,
        verb=Verb.VERIFY,
        dry_run=False,
        jobs=jobs,
        left_out=left_out,
        options=_options(wanted, folders, until),
        facts=facts,
    )


def _choose_datasets(conn: Connection, wanted: Wanted) -> Chosen:
    of_projects = verifications.of_projects(conn, wanted.project_ids)
    without = [number for number in wanted.project_ids if number not in of_projects]
    if without and not wanted.of_sessions:
        # Otherwise the choice of projects says more of them.
        known = projects.by_ids(conn, [number for number in without if number > 0])
        reasons = [f"{one} ({'no dataset' if one in known else 'no such project'})" for one in without]
        raise UsageError(f"These project ids cannot be verified: {', '.join(reasons)}")
    return stored_datasets.choose(
        conn,
        dataset_ids=wanted.dataset_ids,
        of_projects={number for ids in of_projects.values() for number in ids},
        names_some=bool(wanted.dataset_ids or wanted.project_ids),
        sample=wanted.sample,
        older_than_days=wanted.older_than_days,
    )


def _session_jobs(
    engine: Engine, wanted: Wanted, on_listing: OnListing
) -> tuple[list[NewJob], list[LeftOut]]:
    named = wanted.project_ids
    if wanted.dataset_ids:
        with engine.connect() as conn:
            converted = projects.active_conversions(conn).values()
        also = (one.project_id for one in converted if one.dataset_id in wanted.dataset_ids)
        named = tuple(dict.fromkeys([*named, *also]))
        if not named:
            return [], []
    options = RunOptions(project_ids=named, exclude=wanted.exclude, limit=wanted.limit)
    return jobs_of(engine, Verb.VERIFY, options, on_listing=on_listing)


def _job(one: verifications.StoredDataset) -> NewJob:
    return NewJob(
        subject=Subject.DATASET,
        subject_id=one.dataset_id,
        subject_name=one.dataset_name,
        path=one.file_path,
        files=one.files,
        size_bytes=one.size_bytes,
    )


def _options(
    wanted: Wanted, folders: Collection[str], until: tuple[datetime | None, str] | None
) -> RunOptions:
    """The run's options: only those that were given, so that a report shows no others."""
    given: dict[str, Any] = {
        "store": wanted.of_store or None,
        "sessions": wanted.of_sessions or None,
        "dataset_ids": wanted.dataset_ids or None,
        "older_than_days": wanted.older_than_days,
        "sample_until": until,
        "repair": wanted.repair or None,
        "repair_from": tuple(folders) or None,
    }
    return RunOptions(
        project_ids=wanted.project_ids,
        exclude=wanted.exclude,
        limit=wanted.limit,
        sample=wanted.sample,
        **{name: value for name, value in given.items() if value is not None},
    )
