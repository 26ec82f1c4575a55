"""`python -m tests.bench.asking`: what questions to a large catalog cost, on generated rows and manifests.

Every dataset has two projects or none, ten recordings of its own, and one file that all of them have. The
directories of projects are there, and empty; of the store there are the manifests.
"""

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy import Engine, text

from producer.cli import dataset_lines
from producer.cli.explain_lines import explain_lines
from producer.datasets import explained, listed, reported, shown, whereis
from producer.datasets.listed import Asked, Order
from producer.local.stack import stack
from producer.report import sharing
from worker.database_url import parse
from worker.db import schema
from worker.db.engine import connect
from worker.settings import Settings
from worker.store.manifest import Directory, File, Manifest

_ROUNDS = 5
_RECORDINGS = 10
_SIZE = 30_000_000
_AT_ONCE = 500


def main() -> None:
    """Make everything unless it is there, ask, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/asking"))
    parser.add_argument("--datasets", type=int, default=10_000)
    parser.add_argument("--projects", type=int, default=2_000)
    options = parser.parse_args()
    console = Console(width=120, highlight=False)
    folder = options.folder.resolve()
    with stack(folder / "state", data_dir=folder / "label", workers=0) as servers:
        settings = Settings(
            database_url=servers.addresses.database_url,  # type: ignore[arg-type]
            redis_url=servers.addresses.redis_url,  # type: ignore[arg-type]
            data_dir=servers.data_dir,
        )
        engine = connect(parse(servers.addresses.database_url), application_name="asking")
        schema.apply(engine, with_baseline=True)
        digest = make(engine, settings, options.datasets, options.projects)
        for name, ask in questions(engine, settings, digest).items():
            walls, processor = zip(*(_once_ms(ask) for _ in range(_ROUNDS)), strict=True)
            console.print(
                f"{name:45} {statistics.median(walls):8,.0f} ms ({min(walls):,.0f} to {max(walls):,.0f}), "
                f"{statistics.median(processor):,.0f} ms of this program's processor time"
            )
        engine.dispose()


def questions(engine: Engine, settings: Settings, digest: str) -> dict[str, Callable[[], object]]:
    """What people ask, each with its answer in words; `digest` is a recording's."""

    def listing(**asked: Any) -> list[object]:
        found = listed.find(engine, Asked(**asked))
        return [dataset_lines.listing_table(found), *dataset_lines.listing_summary(found)]

    def where(asked: str) -> list[object]:
        found = whereis.find(engine, settings, asked)
        return [*dataset_lines.whereis_lines(found)]

    empty = hashlib.sha256(b"empty").hexdigest()
    return {
        "datasets list": listing,
        "datasets list --unreferenced": lambda: listing(unreferenced=True),
        "datasets list --not-verified 30 --sort size": lambda: listing(
            not_verified_days=30, order=Order.SIZE
        ),
        "datasets list --json": lambda: json.dumps(
            [one.to_json() for one in listed.find(engine, Asked()).found]
        ),
        "datasets report, the page": lambda: sharing.render(reported.report(engine)),
        "datasets show": lambda: [*dataset_lines.shown_lines(shown.show(engine, 1))],
        "whereis, a recording": lambda: where(digest),
        "whereis, by twelve digits": lambda: where(digest[:12]),
        "whereis, a file that all datasets have": lambda: where(empty),
        "explain": lambda: [*explain_lines(explained.explain(engine, settings, 1))],
    }


def _once_ms(ask: Callable[[], object]) -> tuple[float, float]:
    """How long a question takes by the clock, and on the processor."""
    begin, worked = time.perf_counter(), time.process_time()
    ask()
    return (time.perf_counter() - begin) * 1000, (time.process_time() - worked) * 1000


# Rows and manifests -----------------------------------------------------------------------------------------


def make(engine: Engine, settings: Settings, datasets: int, projects: int) -> str:
    """Make all rows and manifests, if there are none; the digest of a recording."""
    with engine.connect() as conn:
        if not conn.scalar(text("select exists (select from raw_datasets)")):
            _make(engine, settings, datasets, projects)
    return _digest(1, 1)


def _make(engine: Engine, settings: Settings, datasets: int, projects: int) -> None:
    (settings.store_dir / "manifests").mkdir(parents=True)
    settings.datasets_dir.mkdir()
    description = {"format": 1, "id": "00000000-0000-4000-8000-000000000001", "digest": "blake3"}
    (settings.store_dir / "store.json").write_text(json.dumps(description))
    for first in range(1, datasets + 1, _AT_ONCE):
        rows = list(_manifests(settings, range(first, min(first + _AT_ONCE, datasets + 1))))
        with engine.begin() as conn:
            conn.execute(text("set local session_replication_role = replica"))
            for statement in _OF_DATASETS:
                conn.execute(text(statement), {"rows": json.dumps(rows), "trees": str(settings.datasets_dir)})
    for project in range(1, projects + 1):
        (settings.data_dir / f"study_{project}").mkdir()
    values = {"projects": projects, "root": str(settings.data_dir), "run": "0" * 32, "each": _RECORDINGS}
    with engine.begin() as conn:
        conn.execute(text("set local session_replication_role = replica"))
        for statement in _OF_PROJECTS:
            wanted = {name: value for name, value in values.items() if f":{name}" in statement}
            conn.execute(text(statement), wanted)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("select migration_count_all_jobs()"))
        conn.execute(text("vacuum analyze"))


def _manifests(settings: Settings, numbers: range) -> Iterator[dict[str, Any]]:
    """Write the manifest of each dataset; what its rows are made of."""
    for number in numbers:
        entries: list[Directory | File] = [File("readme", 0, hashlib.sha256(b"empty").hexdigest())]
        for session in range(1, _RECORDINGS + 1):
            entries.append(Directory(f"day {session}"))
            path = f"day {session}/accelerometer_data.csv"
            entries.append(File(path, _SIZE + number, _digest(number, session)))
        manifest = Manifest.of("blake3", entries)
        (settings.store_dir / "manifests" / f"{manifest.digest}.json").write_bytes(manifest.content)
        blobs = {file.digest: file.size_bytes for file in manifest.files}
        yield {"id": number, "hash": manifest.digest, "size": manifest.size_bytes, "blobs": blobs}


def _digest(dataset: int, session: int) -> str:
    return hashlib.sha256(f"{dataset} {session}".encode()).hexdigest()


_ROWS = "jsonb_to_recordset(cast(:rows as jsonb)) as r(id integer, hash text, size bigint, blobs jsonb)"
_OF_DATASETS = (
    f"""
    insert into raw_datasets (dataset_id, dataset_name, dataset_hash, file_path, file_size_bytes, session_count, metadata)
    select id, 'study ' || id, hash, :trees || '/study_' || id || '-' || left(hash, 12), size, {_RECORDINGS},
           '{{"digest_algorithm": "blake3"}}' from {_ROWS}""",
    f"""
    insert into raw_dataset_sessions (dataset_id, session_name, session_path, file_count)
    select id, 'day ' || s, :trees || '/study_' || id || '-' || left(hash, 12) || '/day ' || s, 1
    from {_ROWS} cross join generate_series(1, {_RECORDINGS}) as s""",
    f"insert into migration_indexed_datasets (dataset_hash, checked_at) select hash, now() from {_ROWS}",
    f"""
    insert into migration_dataset_blobs (dataset_hash, digest, size_bytes)
    select hash, b.key, cast(b.value as bigint) from {_ROWS} cross join jsonb_each_text(blobs) as b""",
    f"""
    insert into migration_blob_checks (digest, inode, mtime_ns, checked_at)
    select b.key, 1, 1, now() - id * interval '1 hour' from {_ROWS} cross join jsonb_each_text(blobs) as b
    on conflict do nothing""",
)
_OF_PROJECTS = (
    "insert into participants (participant_code) values ('P001')",
    """
    insert into projects (project_id, project_name, participant_id, legacy_path, project_type)
    select p, 'study ' || p, 1, :root || '/study_' || p, 'dataset_based' from generate_series(1, :projects) as p""",
    """
    insert into project_dataset_refs (project_id, dataset_id)
    select p, (p + 1) / 2 from generate_series(1, :projects) as p""",
    """
    insert into sessions (project_id, session_name, start_ns, stop_ns, parent_session_data_path, dataset_id, raw_session_name)
    select project_id, 'day ' || s, 0, 1, d.file_path || '/day ' || s, dataset_id, 'day ' || s
    from project_dataset_refs join raw_datasets d using (dataset_id) cross join generate_series(1, :each) as s""",
    """
    insert into migration_runs (run_id, verb, dry_run, state, finished_at)
    values (cast(:run as uuid), 'migrate', false, 'finished', now())""",
    """
    insert into migration_jobs (run_id, subject_id, subject_name, state, outcome, finished_at)
    select cast(:run as uuid), p, 'study ' || p, 'done',
           jsonb_build_object('project_id', p, 'project_name', 'study ' || p, 'status', 'migrated', 'reason', 'stored',
                              'dataset_created', p % 2 = 1), now()
    from generate_series(1, :projects) as p""",
    """
    insert into project_conversions (project_id, run_id, dataset_id, dataset_hash, legacy_path, before, tree_attributes,
                                     converted_at)
    select project_id, cast(:run as uuid), dataset_id, d.dataset_hash, p.legacy_path, '{}', '', now() - interval '9 days'
    from projects p join project_dataset_refs using (project_id) join raw_datasets d using (dataset_id)""",
    "insert into migration_store (store_id, digest) values ('00000000-0000-4000-8000-000000000001', 'blake3')",
)


if __name__ == "__main__":
    main()
