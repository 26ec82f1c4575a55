"""A run in waves as an operator has it: workers take it from gate to gate, a planted difference stops it, and
one command takes that wave back.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.estate import make_project, record_session
from tests.support.sites import Site
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

_PLANTS = """
    create function before_the_gate() returns trigger language plpgsql as $$
    begin
        perform pg_advisory_xact_lock(42);
        return new;
    end $$;
    create trigger before_the_gate before insert on migration_runs
        for each row when (new.selection #>> '{options,gate_of,wave}' = '2') execute function before_the_gate();
"""


def studies(site: Site, count: int) -> None:
    with site.engine.begin() as conn:
        for number in range(count):
            project = make_project(conn, site.legacy_root, f"study {number}")
            record_session(conn, project, "day", rows=10 + number, seed=number)


def say(site: Site, *words: str, exit_code: int = 0) -> dict[str, Any]:
    """Call a verb; its document."""
    done = site.run_producer(*words, "--json")
    assert done.returncode == exit_code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def jobs(site: Site, run_id: str) -> dict[int, dict[int, str]]:
    """The states of a run's jobs, by wave and project."""
    with site.engine.connect() as conn:
        rows = conn.execute(
            text("select wave, subject_id, state from migration_jobs where run_id = :id"), {"id": run_id}
        )
        found: dict[int, dict[int, str]] = {}
        for row in rows:
            found.setdefault(row.wave, {})[row.subject_id] = row.state
        return found


@contextmanager
def before_the_gate_of_wave_2(site: Site) -> Iterator[None]:
    """Let the second gate begin to look only when the block ends."""
    with site.engine.begin() as conn:
        conn.exec_driver_sql(_PLANTS)
    with site.engine.begin() as conn:
        conn.execute(text("select pg_advisory_xact_lock(42)"))
        yield


def plant(site: Site, project_id: int) -> None:
    """Flip a bit of what was stored of a project."""
    with site.engine.connect() as conn:
        tree = conn.scalar(
            text("""
                select d.file_path from project_dataset_refs r join raw_datasets d using (dataset_id)
                where r.project_id = :id"""),
            {"id": project_id},
        )
    path = Path(str(tree)) / "day" / "accelerometer_data.csv"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def migrated(site: Site) -> set[int]:
    with site.engine.connect() as conn:
        return set(
            conn.scalars(text("select project_id from project_conversions where rolled_back_at is null"))
        )


def stops_in_wave_2_and_is_taken_back(site: Site, count: int, sizes: list[int]) -> dict[str, Any]:
    studies(site, count)
    with site.workers(2, concurrency=2):
        with before_the_gate_of_wave_2(site):
            opened = say(site, "enqueue", "--waves", "1,5%,100%")
            assert [one["projects"] for one in opened["waves"]] == sizes
            run_id = opened["run_id"]
            eventually(lambda: set(jobs(site, run_id)[2].values()) == {"done"}, "the second wave is migrated")
            planted = min(jobs(site, run_id)[2])
            plant(site, planted)
        stopped = say(site, "collect", "--report-dir", str(site.folder), exit_code=8)
        status = say(site, "status")
        seen = site.run_producer("status").stderr
        doctor = site.run_producer("doctor").stderr
        before = migrated(site)
        back = say(
            site, "rollback", "--run", run_id[:8], "--wave", "2", "--wait", "--report-dir", str(site.folder)
        )

    assert f"gate of wave 2 found: project {planted} study" in stopped["stopped"]
    assert status["run_id"] == run_id, "the latest run is the operator's, not its gate"
    assert [one["state"] for one in status["waves"]] == ["passed", "stopped", "waiting"]
    assert f"project {planted} study" in status["waves"][1]["gate"]["reason"]
    assert f"producer rollback --run {run_id[:8]} --wave 2" in seen
    assert f"producer resume {run_id[:8]} --skip-gate" in seen
    assert f"gate of wave 2 found: project {planted} study" in doctor.replace("\n", " ").replace("  ", "")
    found = jobs(site, run_id)
    assert set(found[3].values()) == {"held"}
    assert before == {*found[1], *found[2]}
    assert back["report"]["projects_rolled_back"] == sizes[1]
    assert migrated(site) == set(found[1])
    report: dict[str, Any] = json.loads(Path(stopped["interim_report_path"]).read_text())
    return report


def test_a_planted_difference_stops_the_run_and_its_wave_is_taken_back(site: Site):
    report = stops_in_wave_2_and_is_taken_back(site, 24, [1, 1, 22])

    waves = report["waves"]
    assert [one["ends"] for one in waves] == [{"done": 1}, {"done": 1}, {"held": 22}]
    assert [one["gate"] and one["gate"]["failed"] for one in waves] == [0, 2, None]
    gate = say(site, "collect", waves[1]["gate"]["run_id"], "--report-dir", str(site.folder), exit_code=4)
    assert {one["what"] for one in json.loads(Path(gate["report_path"]).read_text())["damaged"]} == {
        "wrong_bytes"
    }
    (page,) = site.folder.glob("interim_migration_report_*.html")
    assert "its gate has stopped the run" in page.read_text()


@pytest.mark.long
def test_two_hundred_projects_stop_in_the_second_wave(site: Site):
    stops_in_wave_2_and_is_taken_back(site, 200, [1, 9, 190])


def test_waves_end_by_themselves_while_no_producer_lives(site: Site):
    studies(site, 6)
    rehearsed = site.run_producer("enqueue", "--dry-run", "--waves", "1,50%,100%", "--gate", "none")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert "rehearses all waves at once" in rehearsed.stderr
    with site.workers(1):
        opened = say(site, "enqueue", "--waves", "1,50%,100%")
        eventually(lambda: say(site, "status")["state"] == "finished", "the run ends")
        collected = say(site, "collect", "--report-dir", str(site.folder))

    assert len(migrated(site)) == 6
    report = json.loads(Path(collected["report_path"]).read_text())
    assert [one["state"] for one in report["waves"]] == ["passed", "passed", "open"]
    assert {one["wave"] for one in opened["plan"]} == {1, 2, 3}


def test_waves_that_make_no_sense_are_usage_errors(site: Site):
    for options, says in (
        (["--waves", "1,100%", "--gate", "hope"], "Invalid value for '--gate'"),
        (["--gate", "verify"], "add --waves"),
        (["--waves", "1,100%"], "nothing to migrate"),
    ):
        done = site.run_producer("enqueue", *options)

        assert done.returncode == 2, done.stderr
        assert says in done.stderr
