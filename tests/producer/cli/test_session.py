"""Calls in an environment that is not ready, or about a run that is not there."""

import socket
import subprocess
import sys
import time
import uuid
from typing import NoReturn

import pytest
from sqlalchemy import text

from producer.datasets import listed
from tests.producer.cli.calls import PASSWORD, Call, lines, runs
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S


def test_an_unreachable_database_is_named_without_its_password(site: Site, closed_port: int):
    done = site.run_producer(
        "enqueue", DATABASE_URL=f"postgresql://somebody:{PASSWORD}@127.0.0.1:{closed_port}/label"
    )

    assert done.returncode == 5
    assert lines(done)[0].startswith(f"Database connection failed: 127.0.0.1:{closed_port}: ")
    assert "Check DATABASE_URL" in lines(done)[1]
    assert PASSWORD not in done.stderr


def test_a_refused_password_is_a_connection_that_failed(site: Site, call: Call):
    url = site.engine.url.set(drivername="postgresql", password=PASSWORD)

    done = call("runs", DATABASE_URL=url.render_as_string(hide_password=False))

    assert done.returncode == 5
    assert lines(done)[0].startswith(f"Database connection failed: {url.host}:{url.port}: ")
    assert PASSWORD not in done.stderr


def test_an_unreachable_broker_ends_the_call_in_seconds_before_anything_is_queued(
    site: Site, call: Call, closed_port: int
):
    begin = time.monotonic()

    done = call("enqueue", "--wait", REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:{closed_port}/0")

    assert time.monotonic() - begin < PATIENCE_S, "it is not waited for"
    assert done.returncode == 5
    assert lines(done)[0].startswith(f"Broker connection failed: 127.0.0.1:{closed_port}: ")
    assert PASSWORD not in done.stderr
    assert runs(site.engine) == []


def test_an_interrupted_call_without_a_run_speaks_of_none(call: Call, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(listed, "find", interrupted)

    done = call("datasets", "list")

    assert done.returncode == 130
    assert lines(done) == ["Interrupted. Nothing goes on without it: give the command again"]


def test_a_broker_that_never_answers_ends_the_call_in_seconds(site: Site, call: Call):
    begin = time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = call("enqueue", REDIS_URL=f"redis://127.0.0.1:{port}/0")

    assert time.monotonic() - begin < PATIENCE_S, "it is not waited for"
    assert done.returncode == 5
    assert lines(done)[0].startswith(f"Broker connection failed: 127.0.0.1:{port}: ")
    assert runs(site.engine) == []


def test_bad_settings_are_named_with_what_was_expected_and_never_shown(call: Call):
    done = call(
        "enqueue",
        DATABASE_URL=f"mysql://u:{PASSWORD}@h/d",
        DATA_DIR="relative/place",
        HASH_THREADS="many",
        BWLIMIT="fast",
        LEASE_S="0",
    )

    assert done.returncode == 5
    for name in ("DATABASE_URL", "DATA_DIR", "HASH_THREADS", "BWLIMIT", "LEASE_S"):
        assert f"{name} is not usable: expected " in lines(done)[0]
    assert PASSWORD not in done.stderr


def test_without_settings_both_ways_out_are_named(site: Site):
    unset = {"DATABASE_URL", "REDIS_URL", "DATA_DIR"}
    env = {name: value for name, value in site.env.items() if name not in unset}

    done = subprocess.run(
        [sys.executable, "-m", "producer", "status"],
        cwd=site.folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 5
    assert "DATABASE_URL and REDIS_URL are not set" in lines(done)[0]
    assert "producer up" in lines(done)[0]


def test_a_run_that_is_not_there_is_a_usage_error(site: Site, call: Call):
    none = call("status")
    unknown = call("collect", "no-such-run")
    with site.engine.begin() as conn:
        for number in (1, 2):
            conn.execute(
                text("insert into migration_runs (run_id, verb, dry_run) values (:id, 'migrate', true)"),
                {"id": uuid.UUID(int=number)},
            )
    several = call("collect", "00000000")

    assert [done.returncode for done in (none, unknown, several)] == [2, 2, 2]
    assert lines(none)[0] == "There is no run yet"
    assert lines(unknown)[0] == "No run begins with 'no-such-run'"
    assert lines(several)[0] == "More than one run begins with '00000000'; give more of the id"
