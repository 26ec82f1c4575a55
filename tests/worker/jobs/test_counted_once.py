"""Recordings are read once when they are new and counted once a content, however many are known."""

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.runs import run
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.jobs.tools import Tools
from worker.legacy import session_files
from worker.legacy.row_counter import RowCounter
from worker.messages import Outcome, Status, Verb
from worker.store.digest import HEAD_BYTES

BIG, MIDDLE, SMALL = 9 << 20, 2 << 20, 600 << 10


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all chunks in which records were counted."""
    sizes: list[int] = []

    class Counting(RowCounter):
        def feed(self, chunk: memoryview) -> None:
            sizes.append(len(chunk))
            super().feed(chunk)

    monkeypatch.setattr(session_files, "RowCounter", Counting)
    return sizes


def study(site: Site, name: str, first: int, size_bytes: int) -> Path:
    """A project of one recording of this size, whose values begin with `first`."""
    project = plain_study(site, name, 1)
    line = b"%019d,0.100000,0.200000,0.300000\n" % first
    head = b"ns_since_reboot,x,y,z\n"
    lines, rest = divmod(size_bytes - len(head), len(line))
    last = b"%0*d,0,0,0\n" % (rest - 7, 1) if rest > 7 else b"\n" * rest
    (project / "day 1" / "accelerometer_data.csv").write_bytes(head + line * lines + last)
    return project


def know_every_size(site: Site, sizes: list[int]) -> None:
    """As many recordings are known that some of them have any size."""
    with site.engine.begin() as conn:
        conn.execute(
            text("""
                insert into migration_recording_counts (digest, size_bytes, head, records)
                select 'digest ' || size || ' ' || n, size, 'head ' || n, 7
                from unnest(cast(:sizes as bigint[])) as size cross join generate_series(1, 5) as n"""),
            {"sizes": sizes},
        )


def paced(tools: Tools, *, dry_run: bool = False) -> tuple[int, Outcome]:
    """How many bytes the run of all projects reads, and what became of the last one."""
    sizes: list[int] = []
    ended = run(replace(tools, pace=sizes.append), Verb.MIGRATE, dry_run=dry_run)
    return sum(sizes), ended[max(ended)]


def records(site: Site) -> set[int | None]:
    with site.engine.connect() as conn:
        return set(
            conn.scalars(text("select records from migration_recording_counts where head !~ '^head '"))
        )


@pytest.mark.parametrize("size_bytes", [BIG, MIDDLE, SMALL], ids=["big", "middle", "small"])
@pytest.mark.parametrize("dry_run", [False, True], ids=["real", "dry run"])
def test_a_new_recording_is_read_once_although_its_size_is_known(
    site: Site, tools: Tools, fed: list[int], *, size_bytes: int, dry_run: bool
):
    project = study(site, "new", 1, size_bytes)
    know_every_size(site, [size_bytes])

    read, outcome = paced(tools, dry_run=dry_run)

    all_bytes = sum(path.stat().st_size for path in project.rglob("*") if path.is_file())
    # What is not big is read again to be stored.
    stored = 0 if dry_run or size_bytes == BIG else all_bytes
    assert outcome.status in {Status.MIGRATED, Status.WOULD_MIGRATE}
    assert read <= all_bytes + stored + HEAD_BYTES
    assert sum(fed) == size_bytes


@pytest.mark.parametrize("size_bytes", [BIG, MIDDLE], ids=["big", "middle"])
def test_a_known_recording_is_not_counted_again(site: Site, tools: Tools, fed: list[int], size_bytes: int):
    study(site, "one", 1, size_bytes)
    paced(tools)
    fed.clear()
    study(site, "two", 1, size_bytes)

    read, outcome = paced(tools)

    assert outcome.status is Status.MIGRATED
    assert outcome.bytes.stored == 0
    assert fed == []
    assert read <= outcome.bytes.reused + HEAD_BYTES


def test_a_recording_that_only_begins_like_a_known_one_gets_its_own_records(site: Site, tools: Tools):
    one = study(site, "one", 1, MIDDLE)
    paced(tools)
    two = study(site, "two", 1, MIDDLE)
    recorded = two / "day 1" / "accelerometer_data.csv"
    content = bytearray((one / "day 1" / "accelerometer_data.csv").read_bytes())
    at = content.index(b"\n", MIDDLE // 2) + 1
    # Two records become one of the same length.
    end = content.index(b"\n", content.index(b"\n", at) + 1)
    content[at:end] = b"1,1,1," + b"1" * (end - at - 6)
    recorded.write_bytes(content)

    paced(tools)

    (first, second) = sorted(records(site))
    assert second == first + 1


def test_a_recording_counted_by_an_earlier_release_gets_its_beginning(
    site: Site, tools: Tools, fed: list[int]
):
    study(site, "one", 1, MIDDLE)
    paced(tools)
    with site.engine.begin() as conn:
        conn.execute(text("update migration_recording_counts set head = null"))
    study(site, "two", 1, MIDDLE)
    paced(tools)
    fed.clear()
    study(site, "three", 1, MIDDLE)

    paced(tools)

    assert fed == []
