"""What `stat` says is untouched since it was read need not be read again, by whichever verb; all else is."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.runs import do, gc, migrate_all, open_run, run, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.errors import RunPausedError
from worker.jobs import remembering
from worker.jobs.tools import Tools
from worker.legacy import remembered
from worker.messages import Outcome, Status, Verb
from worker.store.digest import HEAD_BYTES

BIG, MIDDLE = 9 << 20, 2 << 20
ROWS = "select part, length(entries) as size from migration_remembered_digests order by project_id, part"


@pytest.fixture(autouse=True)
def files_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is to be believed as soon as it was written, so that no test has to wait for two seconds."""
    monkeypatch.setattr(remembered, "_LOCAL_MARGIN_NS", 0)


@pytest.fixture
def tools(site: Site) -> Iterator[Tools]:
    """What a worker has, with one thread for files, so that they are read in one order."""
    with ThreadPoolExecutor(1) as one, tools_of(site) as made:
        yield replace(made, threads=one)


def study(site: Site, name: str = "study", *, seed: int = 1) -> Path:
    """A project of two large files and small ones."""
    project = plain_study(site, name, seed)
    for number, size in enumerate((BIG, MIDDLE)):
        (project / f"day {seed}" / f"{number}.bin").write_bytes(os.urandom(size))
    return project


def twin(site: Site, of: Path, name: str, *, seed: int = 1) -> Path:
    """A project with the same content."""
    project = plain_study(site, name, seed)
    for path in of.rglob("*"):
        if path.is_file():
            (project / path.relative_to(of)).write_bytes(path.read_bytes())
    return project


def bytes_of(project: Path) -> int:
    return sum(path.stat().st_size for path in project.rglob("*") if path.is_file())


def read_by(work: Callable[[], object]) -> int:
    """How many bytes this process has read from anything meanwhile, as the kernel counts them."""

    def so_far() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["rchar"])

    before = so_far()
    work()
    return so_far() - before


def seen_by(tools: Tools, verb: Verb, **options: object) -> tuple[list[Outcome], int]:
    """Do a run; its outcomes, and how many bytes of files were read for it."""
    sizes: list[int] = []
    outcomes = run(replace(tools, pace=sizes.append), verb, **options)  # type: ignore[arg-type]
    return list(outcomes.values()), sum(sizes)


def raising_in_the_second_file(error: BaseException) -> Callable[[int], None]:
    """A pace that ends the work when the largest file has been read, and half of the next."""
    seen = 0

    def pace(size_bytes: int) -> None:
        nonlocal seen
        seen += size_bytes
        if seen > BIG + MIDDLE // 2:
            raise error

    return pace


def test_a_rehearsal_and_the_real_run_read_duplicates_once_and_new_bytes_twice(site: Site, tools: Tools):
    first = study(site, "first")
    size = bytes_of(first)
    for number in range(3):
        twin(site, first, f"twin {number}")
    noise = MIDDLE // 2

    rehearsed = read_by(lambda: run(tools, Verb.MIGRATE, dry_run=True))
    real = read_by(lambda: migrate_all(site, tools))

    assert 4 * size <= rehearsed < 4 * size + noise
    assert size <= real < size + noise


@pytest.mark.parametrize("verb", [Verb.ROLLBACK, Verb.MIGRATE])
def test_a_rollback_and_a_second_migration_read_nothing_again(site: Site, tools: Tools, verb: Verb):
    study(site)
    migrate_all(site, tools)
    if verb is Verb.MIGRATE:
        run(tools, Verb.ROLLBACK)

    (outcome,), size = seen_by(tools, verb)

    assert outcome.status in {Status.MIGRATED, Status.ROLLED_BACK}
    assert size == 0
    if verb is Verb.MIGRATE:
        assert outcome.bytes.remembered == outcome.bytes.read == outcome.bytes.reused > BIG


def test_a_reclaim_does_not_read_the_untouched_directory_again(site: Site, tools: Tools):
    project = study(site)
    migrate_all(site, tools)

    (outcome,), size = seen_by(tools, Verb.RECLAIM, older_than_days=0)

    assert outcome.status is Status.RECLAIMED
    # What is stored is read, as ever.
    assert size <= bytes_of(project.parent / ".label-reclaimed") + BIG // 10


def test_what_was_touched_is_read_again_and_nothing_else(site: Site, tools: Tools):
    project = study(site)
    run(tools, Verb.MIGRATE, dry_run=True)
    middle = project / "day 1" / "1.bin"
    times = middle.stat()
    content = os.urandom(MIDDLE)
    middle.write_bytes(content)
    os.utime(middle, ns=(times.st_atime_ns, times.st_mtime_ns))

    (outcome,), size = seen_by(tools, Verb.MIGRATE, dry_run=True)
    assert (size, outcome.bytes.remembered) == (MIDDLE, bytes_of(project) - MIDDLE)
    (real,) = migrate_all(site, tools)
    assert (Path(real.dataset_path or "") / "day 1/1.bin").read_bytes() == content


def test_a_file_that_was_written_a_moment_ago_is_read_again(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remembered, "_LOCAL_MARGIN_NS", 3600 * 10**9)
    project = study(site)

    for _ in range(2):
        (_,), size = seen_by(tools, Verb.MIGRATE, dry_run=True)
        assert size == bytes_of(project)


def test_rehash_believes_nothing_and_learns_anew(site: Site, tools: Tools):
    project = study(site)
    for _ in range(2):
        (outcome,), size = seen_by(tools, Verb.MIGRATE, dry_run=True, rehash=True)
        assert (size, outcome.bytes.remembered) == (bytes_of(project), 0)
    with site.engine.connect() as conn:
        assert len(conn.execute(text(ROWS)).all()) == 1
    assert seen_by(tools, Verb.MIGRATE, dry_run=True)[1] == 0


def test_what_was_read_before_a_pause_is_not_read_again(site: Site, tools: Tools):
    study(site)
    (ref,) = open_run(site.engine, Verb.MIGRATE, dry_run=True)
    do(
        replace(tools, pace=raising_in_the_second_file(RunPausedError("The run is paused"))),
        Verb.MIGRATE,
        [ref],
    )
    (_,), size = seen_by(tools, Verb.MIGRATE, dry_run=True)

    assert size < BIG


def test_what_a_worker_that_died_had_read_is_kept_in_batches(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remembering, "_BATCH_S", 0.0)
    study(site)
    (ref,) = open_run(site.engine, Verb.MIGRATE, dry_run=True)
    with pytest.raises(SystemExit):
        do(replace(tools, pace=raising_in_the_second_file(SystemExit())), Verb.MIGRATE, [ref])
    (_,), size = seen_by(tools, Verb.MIGRATE, dry_run=True)

    assert size < BIG


def test_parts_are_put_together_and_what_is_gone_is_forgotten(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remembering, "_BATCH_S", 0.0)
    monkeypatch.setattr(remembering, "_SPARE_PARTS", 1)
    project = study(site)
    run(tools, Verb.MIGRATE, dry_run=True)
    before = rows(site)
    (project / "day 1/0.bin").unlink()
    (project / "day 1/2.bin").write_bytes(os.urandom(MIDDLE))

    run(tools, Verb.MIGRATE, dry_run=True)

    # What was met again, and what is new.
    assert len(rows(site)) == 2
    assert min(rows(site)) > max(before)
    assert seen_by(tools, Verb.MIGRATE, dry_run=True)[1] == 0


def rows(site: Site) -> list[int]:
    with site.engine.connect() as conn:
        return [row.part for row in conn.execute(text(ROWS))]


def test_by_another_digest_nothing_is_remembered(site: Site, tools: Tools):
    project = study(site)
    run(tools, Verb.MIGRATE, dry_run=True)
    with site.engine.begin() as conn:
        conn.execute(text("update migration_remembered_digests set algorithm = 'sha256'"))

    assert seen_by(tools, Verb.MIGRATE, dry_run=True)[1] == bytes_of(project)


def test_without_its_table_a_job_only_has_to_read(site: Site, tools: Tools):
    project = study(site)
    with site.engine.begin() as conn:
        conn.execute(text("alter table migration_remembered_digests rename to away"))
    try:
        (outcome,), size = seen_by(tools, Verb.MIGRATE, dry_run=True)
    finally:
        with site.engine.begin() as conn:
            conn.execute(text("alter table away rename to migration_remembered_digests"))

    assert (outcome.status, size) == (Status.WOULD_MIGRATE, bytes_of(project))


def test_gc_forgets_projects_that_are_gone(site: Site, tools: Tools):
    study(site)
    run(tools, Verb.MIGRATE, dry_run=True)
    with site.engine.begin() as conn:
        conn.execute(text("delete from sessions; delete from projects"))

    assert gc(tools).pruned["migration_remembered_digests"] == 1
    assert rows(site) == []


def test_two_jobs_with_one_big_file_still_meet_when_one_remembers_it(site: Site, tools: Tools):
    """The beginning by which jobs know big files is remembered with the digest, not read."""
    study(site)
    run(tools, Verb.MIGRATE, dry_run=True)
    sizes: list[int] = []
    (ref,) = open_run(site.engine, Verb.MIGRATE)
    do(replace(tools, pace=sizes.append), Verb.MIGRATE, [ref])

    assert HEAD_BYTES not in sizes
    with site.engine.connect() as conn:
        keys = conn.execute(text("select dataset_hash from dataset_claims")).scalars().all()
    assert any(key.startswith(f"file:{BIG}:") for key in keys)
