"""Little memory, few open files, the wrong user and a wrong clock are warned of."""

import json
import resource
from pathlib import Path

from tests.worker.doctor.machines import PATIENCE_S, process, request
from worker.doctor import machine_checks
from worker.doctor.protocol import Machine
from worker.findings import Verdict


def test_little_memory_and_root_are_warned_of():
    little, much = (f"MemTotal: 9 kB\nMemAvailable:  {size} kB\n" for size in (400_000, 4_000_000))

    assert machine_checks.memory_check(little).verdict is Verdict.WARN
    assert machine_checks.memory_check(much).finding == "4.1 GB available"
    assert machine_checks.memory_check("").verdict is Verdict.PASS
    assert machine_checks.user_check(0).verdict is Verdict.WARN
    assert machine_checks.user_check(4_000_000_000).finding == "runs as user 4000000000"
    assert machine_checks.open_files_check(resource.RLIM_INFINITY).verdict is Verdict.PASS


def test_a_low_limit_of_open_files_is_that_of_the_worker(tmp_path: Path):
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    with process(request(tmp_path), preexec_fn=lower) as (_, lines):
        found = Machine.from_json(json.loads(lines.next(PATIENCE_S) or ""))

    assert found.checks["open files"].finding == "256 at most"
    assert found.checks["open files"].verdict is Verdict.WARN


def test_a_clock_that_is_off_is_warned_of():
    assert machine_checks.clock_check(0.2).verdict is Verdict.PASS
    assert machine_checks.clock_check(-60.0).verdict is Verdict.WARN
    assert machine_checks.clock_check(60.0).finding == "60.0 s ahead of the database's"
