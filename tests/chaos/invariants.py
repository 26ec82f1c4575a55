"""What must hold when everything has settled (DESIGN.md, "What must always hold"), looked at with other eyes
than the program's: rows by SQL, bytes by their digests, each thing that is wrong as a line. Changes nothing.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import blake3
from sqlalchemy import Connection, Engine, text

from tests.chaos.estate import Estate, Row
from tests.chaos.places import places, stored_manifests
from tests.estate import differences, dump, readings, snapshot_tree
from tests.estate.compare import CONVERTED_TABLES, Entry
from tests.support.model import Tree, by_key, grouped, migrated, parsed

Tables = dict[str, list[Row]]

MOVED_AWAY = ".label-reclaimed"
"""Where legacy directories are moved away to, in their root."""


def wrong_rows_and_bytes(engine: Engine, estate: Estate, flipped: Collection[str] = ()) -> list[str]:
    """Everything that is wrong with the projects, their files and the store, whatever the runs say. Of
    `flipped` digests there was bad content at some time.
    """
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        tables = dump(conn, (*CONVERTED_TABLES, "migration_reclaims"))
        read = readings(conn, estate.data_dir)
        there = places(conn, estate)
        needed = {digest for files in stored_manifests(conn, estate.store).values() for digest in files}
    return [
        *_wrong_projects(tables, estate),
        *_wrong_lineage(tables, estate),
        *(f"reading: {line}" for line in differences(estate.read, read)),
        *_wrong_legacy_trees(tables, estate, there),
        *_wrong_datasets(tables, estate),
        *_wrong_blobs(estate, loose_and_bad=set(flipped) - needed),
        *_wrong_quarantine(estate, flipped),
        *_wrong_conversions(tables),
    ]


def legacy_projects(engine: Engine) -> set[int]:
    """The projects that are not migrated."""
    with engine.connect() as conn:
        query = text("select project_id from projects where coalesce(project_type, 'legacy') = 'legacy'")
        return set(conn.scalars(query))


def trees_of_nobody(engine: Engine, estate: Estate) -> list[str]:
    """Trees without a row: left by somebody who died between publishing and converting, when an equal project
    of another name was converted first. They are links to blobs, and gc is to take them; nothing is wrong
    with them.
    """
    with engine.connect() as conn:
        known = {os.path.basename(path) for path in conn.scalars(text("select file_path from raw_datasets"))}
    trees = estate.data_dir / "raw_datasets"
    return sorted(set(os.listdir(trees)) - known) if trees.exists() else []


# Rows -------------------------------------------------------------------------------------------------------


def _wrong_projects(tables: Tables, estate: Estate) -> Iterator[str]:
    """Each project is fully legacy or fully migrated (I4), with every edit (I7)."""
    own = grouped(tables["sessions"], "project_id")
    expected = grouped(list(estate.label_rows("sessions", "session_id").values()), "project_id")
    projects = estate.label_rows("projects", "project_id")
    found = by_key(tables["projects"], "project_id")
    if found.keys() != projects.keys():
        yield f"projects are {sorted(found)}, not {sorted(projects)}"
    if tables["participants"] != estate.rows["participants"]:
        yield "participants are not what they were"
    for number in sorted(found.keys() & projects.keys()):
        row = found[number]
        check = _wrong_legacy if row["project_type"] in {None, "legacy"} else _wrong_migrated
        kind = "legacy" if check is _wrong_legacy else "migrated"
        for line in check(
            tables, estate, row, projects[number], own.get(number, []), expected.get(number, [])
        ):
            yield f"project {number}, which is {kind}: {line}"


def _wrong_legacy(
    tables: Tables, estate: Estate, row: Row, former: Row, own: list[Row], expected: list[Row]
) -> Iterator[str]:
    """As the contract says in 6.2: as it was, and nothing of a conversion beside it."""
    number = row["project_id"]
    config = estate.config_of(number)
    yield from _differing("its row", _with_config(row), former | {"analysis_config": _exact(config)})
    yield from _wrong_sessions(own, expected, estate, number, estate.directories.get(number), None, {})
    for table in ("project_dataset_refs", "project_split_configs"):
        if any(one["project_id"] == number for one in tables[table]):
            yield f"{table} still has rows of it"
    if _active(tables, number):
        yield "a conversion of it is active"


def _wrong_migrated(
    tables: Tables, estate: Estate, row: Row, former: Row, own: list[Row], expected: list[Row]
) -> Iterator[str]:
    """As the contract says in 6.1, by a model of it in plain Python."""
    number = row["project_id"]
    active = _active(tables, number)
    if len(active) != 1:
        yield f"{len(active)} conversions are active"
        return
    datasets = by_key(tables["raw_datasets"], "dataset_id")
    dataset = datasets.get(active[0]["dataset_id"])
    if dataset is None:
        yield f"its dataset {active[0]['dataset_id']} is not there"
        return
    config = parsed(row["analysis_config"])
    configs = {
        one["raw_session_name"]: one["config_id"]
        for one in tables["project_split_configs"]
        if one["project_id"] == number
    }
    refs = [one["dataset_id"] for one in tables["project_dataset_refs"] if one["project_id"] == number]
    if refs != [dataset["dataset_id"]]:
        yield f"it refers to datasets {refs}, not to {dataset['dataset_id']}"
    names = {name for (project_id, name) in estate.whole if project_id == number}
    tree = Tree(names=frozenset(names), records={name: len(estate.whole[number, name]) for name in names})
    own_config = estate.config_of(number)
    try:
        model = migrated(
            former | {"analysis_config": None if own_config is None else json.dumps(own_config)},
            expected,
            tree,
            dataset,
            written={
                "migrated_from": "legacy",
                "migration_date": config["migration_date"],
                "original_path": former["path"],
                "dataset_id": dataset["dataset_id"],
                "run_id": str(active[0]["run_id"]),
            },
            config_ids=configs,
        )
    except KeyError as error:
        yield f"no split config, or no key of analysis_config, for {error}"
        return
    yield from _differing("its row", _with_config(row), model.project)
    yield from _wrong_sessions(
        own, model.sessions, estate, number, Path(dataset["file_path"]), dataset["dataset_id"], configs
    )
    used = {one["raw_session_name"] for one in own if one["split_config_id"] is not None}
    if used != configs.keys():
        yield f"its split configs are for {sorted(configs)}, its sessions use {sorted(used)}"


def _wrong_sessions(
    own: list[Row],
    expected: list[Row],
    estate: Estate,
    project_id: int,
    place: Path | None,
    dataset_id: int | None,
    configs: dict[str, int],
) -> Iterator[str]:
    """Those that were there at first are exactly `expected`; those that people made lie at `place`."""
    found = by_key(own, "session_id")
    made = {key: row for key, row in estate.made.items() if row["project_id"] == project_id}
    ids = {row["session_id"] for row in expected} | made.keys()
    if found.keys() != ids:
        yield f"its sessions are {sorted(found)}, not {sorted(ids)}"
    for row in expected:
        if row["session_id"] in found:
            yield from _differing(f"session {row['session_id']}", found[row["session_id"]], row)
    for key, row in made.items():
        if key not in found:
            continue
        raw_name = row["raw directory"]
        pointers: Row = {
            "parent_session_data_path": f"{place}/{raw_name}",
            "raw_session_name": None,
            "dataset_id": None,
            "split_config_id": None,
        }
        # Cut before the conversion it went along; cut afterwards it is as the application made it.
        if found[key]["dataset_id"] is not None:
            pointers |= {
                "raw_session_name": raw_name,
                "dataset_id": dataset_id,
                "split_config_id": configs.get(raw_name),
            }
        kept = {name: value for name, value in row.items() if name != "raw directory"}
        yield from _differing(f"session {key}, which people made,", found[key], kept | pointers)


def _wrong_lineage(tables: Tables, estate: Estate) -> Iterator[str]:
    before = [(row["child_session_id"], row["parent_session_id"]) for row in estate.rows["session_lineage"]]
    found = [(row["child_session_id"], row["parent_session_id"]) for row in tables["session_lineage"]]
    if sorted(found) != sorted(before + estate.lineage):
        yield f"lineage is {sorted(found)}, not {sorted(before + estate.lineage)}"


def _wrong_conversions(tables: Tables) -> Iterator[str]:
    """No job has two, no project two that are active, none refers to a project that is legacy."""
    jobs = Counter((row["run_id"], row["project_id"]) for row in tables["project_conversions"])
    for (run_id, number), count in jobs.items():
        if count > 1:
            yield f"run {run_id}, project {number}: {count} conversions of one job"


def _active(tables: Tables, project_id: int) -> list[Row]:
    return [
        row
        for row in tables["project_conversions"]
        if row["project_id"] == project_id and row["rolled_back_at"] is None
    ]


def _with_config(row: Row) -> Row:
    return row | {"analysis_config": parsed(row["analysis_config"])}


def _exact(value: Any) -> Any:
    """A JSON value as `parsed` gives it."""
    return None if value is None else parsed(json.dumps(value))


def _differing(what: str, found: Row, expected: Row) -> Iterator[str]:
    for column in found.keys() | expected.keys():
        if found.get(column) != expected.get(column):
            yield f"{what} has {column} = {found.get(column)!r}, not {expected.get(column)!r}"


# Files ------------------------------------------------------------------------------------------------------


def _wrong_legacy_trees(tables: Tables, estate: Estate, there: dict[int, Path]) -> Iterator[str]:
    """Each legacy directory is where the ledger says, and nowhere else, as it was (I3); what was purged, and
    not rebuilt since, is nowhere. None shares a file with the store.
    """
    for row in tables["migration_reclaims"]:
        if row["state"] not in {"reclaimed", "undone", "purged"}:
            yield f"project {row['project_id']}: its reclaim is left {row['state']}"
    for number, place in there.items():
        if not place.is_dir():
            yield f"legacy directory of project {number} is not at {place}"
            continue
        for line in _differing_trees(snapshot_tree(place), estate.trees[number]):
            yield f"legacy directory of project {number}: {line}"
    away = estate.legacy_root / MOVED_AWAY
    known = {*there.values(), away}
    for folder in (estate.legacy_root, away):
        for path in sorted(folder.iterdir()) if folder.exists() else ():
            if path not in known:
                yield f"left among legacy directories: {path}"


def _differing_trees(found: dict[bytes, Entry], expected: dict[bytes, Entry]) -> Iterator[str]:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            yield f"{os.fsdecode(name)} is {found.get(name)}, not {expected.get(name)}"


def _wrong_datasets(tables: Tables, estate: Estate) -> Iterator[str]:
    """Every dataset's tree is its manifest's, made of blobs; that of a migrated project is its legacy
    directory's.
    """
    store, trees = estate.data_dir / "dataset_store", estate.data_dir / "raw_datasets"
    for dataset in tables["raw_datasets"]:
        digest, tree = dataset["dataset_hash"], Path(dataset["file_path"])
        manifest = store / "manifests" / f"{digest}.json"
        if tree.parent != trees or not tree.is_dir() or not manifest.is_file():
            yield f"dataset {digest}: no tree {tree} or no manifest"
            continue
        content = manifest.read_bytes()
        if blake3.blake3(content).hexdigest() != digest:
            yield f"dataset {digest}: its manifest has another digest"
            continue
        entries = json.loads(content)["entries"]
        for line in _differing_from_manifest(tree, store, entries):
            yield f"dataset {digest}: {line}"
        names = {entry[1] for entry in entries if entry[0] == "d" and "/" not in entry[1]}
        rows = {
            row["session_name"]: row["session_path"]
            for row in tables["raw_dataset_sessions"]
            if row["dataset_id"] == dataset["dataset_id"]
        }
        if rows != {name: f"{tree}/{name}" for name in names}:
            yield f"dataset {digest}: its sessions are {rows}"
    datasets = by_key(tables["raw_datasets"], "dataset_id")
    for conversion in tables["project_conversions"]:
        dataset = datasets.get(conversion["dataset_id"])
        if dataset is not None:
            yield from _differing_from_legacy(Path(dataset["file_path"]), estate, conversion["project_id"])
        elif conversion["rolled_back_at"] is None:
            yield f"project {conversion['project_id']}: its dataset has no row"


def _differing_from_manifest(tree: Path, store: Path, entries: list[list[Any]]) -> Iterator[str]:
    found = snapshot_tree(tree)
    expected = {os.fsencode(entry[1]) for entry in entries} | {b"."}
    if found.keys() != expected:
        yield f"its tree differs from its manifest in {sorted(found.keys() ^ expected)}"
    for kind, path, *of_file in entries:
        entry = found.get(os.fsencode(path))
        if entry is None:
            continue
        if kind == "d" and (entry.kind, entry.mode) != ("directory", 0o555):
            yield f"{path} is {entry}"
        if kind == "f":
            size, digest = of_file
            blob = store / "blobs" / digest[:2] / digest
            if (entry.kind, entry.mode, entry.size_bytes) != ("file", 0o444, size):
                yield f"{path} is {entry}"
            elif not blob.exists() or not (tree / path).samefile(blob):
                yield f"{path} is not its blob {digest}"
    if found[b"."].mode != 0o555:
        yield f"its tree can be written: {found[b'.'].mode:o}"


def _differing_from_legacy(tree: Path, estate: Estate, project_id: int) -> Iterator[str]:
    def contents(entries: dict[bytes, Entry]) -> dict[bytes, tuple[str, int, bytes]]:
        return {name: (one.kind, one.size_bytes, one.content) for name, one in entries.items()}

    if contents(snapshot_tree(tree)) != contents(estate.trees[project_id]):
        yield f"project {project_id}: the bytes of {tree} are not those of its legacy directory"


def _wrong_blobs(estate: Estate, loose_and_bad: Collection[str]) -> Iterator[str]:
    """Every blob has the bytes of its digest (I11), none is there twice, and nothing else is there. One that
    no dataset needs is read again when one does: it may have gone bad.
    """
    store = estate.store
    if not store.exists():
        return
    known = {
        entry.content for tree in estate.trees.values() for entry in tree.values() if entry.kind == "file"
    }
    seen: Counter[bytes] = Counter()
    for name, entry in snapshot_tree(store / "blobs").items():
        path = store / "blobs" / os.fsdecode(name)
        if entry.kind == "directory":
            continue
        if path.name in loose_and_bad:
            continue
        seen[entry.content] += 1
        if not stat.S_ISREG(path.lstat().st_mode) or entry.mode != 0o444:
            yield f"blob {path.name} is {entry}"
        elif blake3.blake3(path.read_bytes()).hexdigest() != path.name or path.parent.name != path.name[:2]:
            yield f"blob {path} does not have the bytes of its digest"
        elif entry.content not in known:
            yield f"blob {path.name} is nobody's"
    yield from (f"{count} blobs have one content" for count in seen.values() if count > 1)
    for leftover in sorted(os.listdir(store / "staging")):
        yield f"staging is not empty: {leftover} {list(os.walk(store / 'staging' / leftover))}"


def _wrong_quarantine(estate: Estate, flipped: Collection[str]) -> Iterator[str]:
    """What a gc took, each with its description; damaged things, each with its reason, only if there was
    damage.
    """
    folder = estate.store / "quarantine"
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if (path / "description.json").is_file():
            description = json.loads((path / "description.json").read_bytes())
            if description["entry_id"] != path.name or not description["reason"]:
                yield f"quarantine entry {path.name} is described as {description}"
        elif path.name.endswith(".reason.txt"):
            if not path.with_name(path.name.removesuffix(".reason.txt")).exists():
                yield f"quarantine has a reason for nothing: {path.name}"
        elif not flipped or not path.with_name(f"{path.name}.reason.txt").is_file():
            yield f"quarantine is not empty: {path.name}"


# Runs -------------------------------------------------------------------------------------------------------


def wrong_runs(conn: Connection) -> list[str]:
    """Every run has ended, and every selected project in it with exactly one outcome (I5)."""
    lines = [
        f"run {row.run_id} is {row.state}"
        for row in conn.execute(text("select run_id, state from migration_runs"))
        if row.state not in {"finished", "cancelled"}
    ]
    query = text(
        "select run_id, verb, subject, subject_id, j.state, outcome->>'status' as status"
        " from migration_jobs j join migration_runs using (run_id)"
    )
    lines += [
        f"run {row.run_id}, {row.subject} {row.subject_id}: the job is {row.state}, its outcome is {row.status}"
        for row in conn.execute(query)
        if row.status not in (_DONE[row.verb] if row.state == "done" else {row.state})
    ]
    return lines


def wrong_waves(conn: Connection) -> list[str]:
    """No job of a wave was taken before the gate before it let the run go on."""
    rows = conn.execute(
        text("""
            select j.run_id, j.wave, j.subject_id, j.started_at, before.state, before.decided_at
            from migration_jobs j join migration_waves before on before.run_id = j.run_id and before.wave = j.wave - 1
            where j.started_at is not null
              and (before.state not in ('passed', 'waived') or j.started_at < before.decided_at)""")
    )
    return [f"a job of a wave began before its time: {row}" for row in rows]


def wrong_gates(conn: Connection, *, has_flipped: bool) -> list[str]:
    """A gate finds damage where a bit was flipped, and nowhere else."""
    rows = conn.execute(
        text("""
            select run_id, subject, subject_id, error_class, error from migration_jobs join migration_runs using (run_id)
            where options ? 'gate_of' and migration_jobs.state = 'failed' and error_class <> 'WorkerCrashedError'""")
    )
    expected = {"StoredBytesMismatchError", "SessionsDifferError"} if has_flipped else set()
    return [f"a gate found what is not there: {row}" for row in rows if row.error_class not in expected]


_DONE = {
    "migrate": {"migrated"},
    "rollback": {"rolled_back"},
    "verify": {"verified", "repaired"},
    "reclaim": {"reclaimed", "undone", "purged"},
    "gc": {"collected", "restored"},
}
