"""Passwords are planted, everything is run, and everything that others can read afterwards is searched for
them.
"""

import base64
import http.client
import json
import secrets
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import redis
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from producer.cli.app import app
from producer.local.child_process import Child, stop
from producer.local.servers import free_port
from producer.local.stack import (
    FLOWER_PASSWORD,
    run_flower,
    start_worker,
)
from tests.estate import make_project, record_session
from tests.support.psql import contents
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S, eventually
from worker import settings as settings_module
from worker.errors import SettingsError

UNWIELDY = "p@:/;#?&%+ '\"\\$ä"
"""Whatever takes a password apart at one of these leaves a half of it; both halves are looked for."""

VERBS = (
    *("enqueue", "rollback", "verify", "collect", "pause", "resume", "cancel", "retry", "throttle"),
    *("status", "runs", "up", "demo", "schema apply", "schema status"),
)


class Secret:
    """A password that cannot be met by chance, and how it might be written somewhere."""

    def __init__(self) -> None:
        self._halves = [f"Zq{secrets.token_hex(8)}Zq" for _ in range(2)]
        self.text = UNWIELDY.join(self._halves)
        self.in_url = quote(self.text, safe="")

    @property
    def forms(self) -> Iterator[bytes]:
        """As it is, which is also what quoting, escaping and `repr` leave of each half, and in base64 and
        hexadecimal.
        """
        for half in (half.encode() for half in self._halves):
            yield half
            yield half.hex().encode()
            for before in range(3):
                # The characters at both ends depend on the neighbours.
                encoded = base64.b64encode(b"\0" * before + half)
                yield encoded[4 if before else 0 : len(encoded) // 4 * 4 - 4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A site whose servers know passwords of our own, and these."""

    site: Site
    owner: Engine
    database: Secret
    broker: Secret
    wrong: Secret

    @property
    def every(self) -> tuple[Secret, ...]:
        return self.database, self.broker, self.wrong

    def database_url(self, password: Secret, *, port: int | None = None) -> str:
        url = self.owner.url
        return f"postgresql://planted:{password.in_url}@{url.host}:{port or url.port}/{url.database}"

    def redis_url(self, password: Secret, *, port: int | None = None) -> str:
        url = urlsplit(self.site.redis_url)
        return f"redis://planted:{password.in_url}@{url.hostname}:{port or url.port}{url.path}"


@pytest.fixture(scope="module")
def planted(module_site: Site) -> Iterator[Planted]:
    site, owner = module_site, module_site.engine
    with redis.Redis.from_url(site.redis_url) as client:
        made = Planted(site=site, owner=owner, database=Secret(), broker=Secret(), wrong=Secret())
        client.acl_setuser(
            "planted",
            enabled=True,
            passwords=[f"+{made.broker.text}"],
            categories=["+@all"],
            keys=["*"],
            channels=["*"],
        )
        with owner.begin() as conn:
            conn.execute(
                text("select set_config('log_statement', 'none', true)"),
            )
            literal = conn.scalar(text("select quote_literal(cast(:it as text))"), {"it": made.database.text})
            conn.exec_driver_sql(
                f"create role planted superuser login password {literal}",
                execution_options={"no_parameters": True},
            )
        env = site.env | {
            "DATABASE_URL": made.database_url(made.database),
            "REDIS_URL": made.redis_url(made.broker),
            "LOG_LEVEL": "debug",
        }
        try:
            yield replace(made, site=replace(site, env=env))
        finally:
            client.acl_deluser("planted")
            with owner.begin() as conn:
                conn.execute(text("drop role planted"))


class Evidence:
    """All that was written, with where it stood; what is found is named without being quoted."""

    def __init__(self) -> None:
        self._pieces: list[tuple[str, bytes]] = []

    def add(self, where: str, what: bytes | str) -> None:
        self._pieces.append(
            (where, what if isinstance(what, bytes) else what.encode(errors="surrogateescape"))
        )

    def add_folder(self, folder: Path) -> None:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.add(str(path.relative_to(folder)), path.read_bytes())

    def leaks(self, wanted: Iterable[Secret]) -> list[str]:
        forms = [form for secret in wanted for form in secret.forms]
        return sorted({where for where, what in self._pieces if any(form in what for form in forms)})

    @property
    def size_bytes(self) -> int:
        return sum(len(what) for _, what in self._pieces)


def test_a_leaked_secret_is_found_in_every_form():
    """In every form that a careless line could give it."""
    secret = Secret()
    address = f"redis://:{secret.in_url}@host:1/0"
    careless = {
        "raw": secret.text,
        "url": address,
        "repr": repr(secret.text),
        "json": json.dumps({"url": secret.text}),
        "half": secret.text.partition("@")[0],
        "rest": secret.text.rpartition("#")[2],
        "basic": base64.b64encode(f"label:{secret.text}".encode()).decode(),
        "base64": base64.b64encode(secret.text.encode()).decode(),
        "base64 of a document": base64.b64encode(json.dumps({"it": address}).encode()).decode(),
    }
    evidence = Evidence()
    for where, what in careless.items():
        evidence.add(where, what)
    evidence.add("harmless", f"redis://:**@host:1/0 {Secret().text}")

    assert evidence.leaks([secret]) == sorted(careless)


# Everything is run ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_secret_is_seen_anywhere(planted: Planted):
    """Verbs, failures, logs, reports, Flower, the broker, the ledger, the list of processes."""
    evidence, watched = Evidence(), []
    site = planted.site
    _estate(planted)
    with (
        _lost_workers(planted),
        site.workers(1, LOG_FORMAT="json"),
        site.workers(1, LOG_FORMAT="console"),
        run_flower(site.env, site.folder) as flower,
        ThreadPoolExecutor(4) as several,
    ):
        flower_password = (site.folder / FLOWER_PASSWORD).read_text()
        watched.append(_literally(flower_password))
        for words in (
            *(["enqueue", "--dry-run", "--wait"], ["enqueue", "--wait", "--json"], ["verify", "--sessions"]),
            *(["rollback", "--wait"], ["retry"], ["status"], ["schema", "status"], ["schema", "apply"]),
        ):
            evidence.add(" ".join(words), _output(site, *words))
            evidence.add("processes", _command_lines())
        for answer in several.map(lambda path: _flower_says(flower.url, flower_password, path), _PAGES):
            evidence.add(*answer)
        for asked in several.map(lambda words: (words, _celery_says(site, *words)), _ASKED):
            evidence.add(" ".join(asked[0]), asked[1])
        for failed in several.map(lambda case: (case, _fails(planted, case)), _misfortunes(planted)):
            evidence.add(*failed)
        evidence.add("processes", _command_lines())
        evidence.add("the broker's memory", _all_of_redis(site.redis_url))
    for table in _tables(planted.owner):
        evidence.add(f"table {table}", contents(planted.owner, table))
    (site.folder / FLOWER_PASSWORD).unlink(missing_ok=True)
    evidence.add_folder(site.folder)

    assert evidence.leaks([*planted.every, *watched]) == []
    assert evidence.size_bytes > 200_000, "there was something to search"


def _estate(planted: Planted) -> None:
    """Two projects, one of which fails."""
    site = planted.site
    with planted.owner.begin() as conn:
        record_session(conn, make_project(conn, site.legacy_root, "study"), "day", rows=20, seed=1)
        make_project(conn, site.legacy_root, "gone", path=f"{site.legacy_root}/gone")


def _output(site: Site, *words: str, **env: str) -> str:
    done = site.run_producer(*words, **env)
    return f"{done.stdout}\n{done.stderr}"


# Processes of others ----------------------------------------------------------------------------------------


def _command_lines() -> bytes:
    """The arguments of every process of this machine: every user can read these."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:  # it has just ended
            continue
    return b"\n".join(found)


_ASKED = (
    ("report",),
    ("inspect", "conf", "--json"),
)
"""What Celery's own commands tell of an app and of its workers."""


def _celery_says(site: Site, *words: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.app", *words],
        cwd=site.folder,
        env=site.env,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, words
    return done.stdout + done.stderr


_PAGES = (
    *("/", "/workers", "/worker/{node}", "/tasks", "/broker", "/metrics", "/api/queues/length"),
    *("/api/workers?refresh=1", "/api/tasks", "/task/{task}"),
)


def _flower_says(url: str, password: str, path: str) -> tuple[str, bytes]:
    """One page, with all that is in it."""
    if "{" in path:
        tasks = json.loads(_get(url, password, "/api/tasks")[1])
        task_id, task = next(iter(tasks.items()))
        path = path.format(task=task_id, node=task["worker"])
    status, page = _get(url, password, path)
    assert (path, status) == (path, http.HTTPStatus.OK)
    return f"Flower {path}", page


def _get(url: str, password: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    credentials = base64.b64encode(f"label:{password}".encode()).decode()
    connection.request("GET", path, headers={"Authorization": f"Basic {credentials}"})
    answer = connection.getresponse()
    page = answer.read()
    connection.close()
    return answer.status, page


# Misfortunes ------------------------------------------------------------------------------------------------


def _misfortunes(planted: Planted) -> dict[str, tuple[dict[str, str], int]]:
    """Settings that come to nothing, with the exit code."""
    good, bad = planted.database, planted.wrong
    nowhere = free_port()
    return {
        "a wrong password of the database": ({"DATABASE_URL": planted.database_url(bad)}, 5),
        "a wrong password of the broker": ({"REDIS_URL": planted.redis_url(bad)}, 5),
        "no database": ({"DATABASE_URL": planted.database_url(good, port=nowhere)}, 5),
        "no broker": ({"REDIS_URL": planted.redis_url(planted.broker, port=nowhere)}, 5),
        "an option that is none": ({"DATABASE_URL": f"{planted.database_url(good)}?passwrd={bad.in_url}"}, 5),
        "a database without tables": (
            {"DATABASE_URL": planted.database_url(good).rpartition("/")[0] + "/postgres"},
            5,
        ),
        "passwords after the question mark": (
            {"DATABASE_URL": f"{planted.database_url(bad)}?password={good.in_url}&application_name=x"},
            2,
        ),
    }


def _fails(planted: Planted, case: str) -> str:
    """A verb that needs database and broker. Debug level, so that everything is said that ever would be."""
    env, expected = _misfortunes(planted)[case]
    done = planted.site.run_producer("rollback", "--project-id", "999", **env)
    assert (case, done.returncode) == (case, expected), "see what it said by hand; it is not shown here"
    return f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "mysql://planted:{encoded}@host/label"),
        ("DATABASE_URL", "postgresql://planted:{text}@host/label"),
        ("DATABASE_URL", "postgresql://planted:x@host:{encoded}/label"),
        ("REDIS_URL", "amqp://planted:{encoded}@host"),
        ("REDIS_URL", "redis://:{text}@host/0"),
        ("REDIS_URL", "redis://:x@host:{encoded}/0"),
        ("REDIS_URL", "rediss://:x@host/0?ssl_cert_reqs={encoded}"),
        ("REDIS_URL", "rediss://:x@host/0?{encoded}=x"),
        ("REDIS_URL", "rediss://:x@host/0?ssl_keyfile={encoded}"),
    ],
)
def test_an_address_that_cannot_be_used_is_not_quoted(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, name: str, url: str
):
    for variable, value in planted.site.env.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv(name, url.format(encoded=planted.wrong.in_url, text=planted.wrong.text))

    with pytest.raises(SettingsError) as refused:
        settings_module.load()

    evidence = Evidence()
    evidence.add(url, "".join(traceback.format_exception(refused.value)))
    assert str(refused.value).startswith(f"{name} is not usable")
    assert evidence.leaks(planted.every) == []


@contextmanager
def _lost_workers(planted: Planted) -> Iterator[None]:
    """Workers that do not get in: one at the broker, one at the database. They have said so when the block
    ends.
    """
    # With a queue of its own, or it would take a message and wait for its database.
    aside = planted.redis_url(planted.broker).rpartition("/")[0] + "/0"
    cases = {
        "lost-broker": ({"REDIS_URL": planted.redis_url(planted.wrong)}, b"Cannot connect to"),
        "lost-database": (
            {"REDIS_URL": aside, "DATABASE_URL": planted.database_url(planted.wrong)},
            b"not_reaped",
        ),
    }
    children: list[Child] = []
    try:
        for name, (env, _) in cases.items():
            log = planted.site.folder / f"{name}.log"
            its_env = planted.site.env | env | {"LEASE_S": "1"}
            children.append(start_worker(its_env, name=name, concurrency=1, log_file=log))
        yield
        for child, (_, words) in zip(children, cases.values(), strict=True):
            eventually(partial(_has_written, child.log_file, words), words.decode())
    finally:
        stop(children, within_s=10)


def _has_written(log: Path, words: bytes) -> bool:
    return words in log.read_bytes()


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_shows_no_secret(planted: Planted, monkeypatch: pytest.MonkeyPatch, verb: str):
    for name, value in planted.site.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(planted.site.folder)

    told = CliRunner().invoke(app, [*verb.split(), "--help"])

    evidence = Evidence()
    evidence.add(verb, told.output)
    assert told.exit_code == 0
    assert "Usage" in told.output
    assert evidence.leaks(planted.every) == []


# What is kept -----------------------------------------------------------------------------------------------


def _tables(engine: Engine) -> list[str]:
    with engine.connect() as conn:
        return list(conn.scalars(text("select tablename from pg_tables where schemaname = 'public'")))


def _all_of_redis(url: str) -> bytes:
    """Every key with its value, in the server's own form of a dump and, for texts, as they are."""
    found = []
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            kind = client.type(key)
            values = {b"string": lambda k: [client.get(k)], b"list": lambda k: client.lrange(k, 0, -1)}
            found += [key, client.dump(key), *values.get(kind, lambda _k: [])(key)]
    return b"\n".join(one for one in found if one)


def _literally(password: str) -> Secret:
    """A password that another program has chosen, to be looked for as one half."""
    secret = Secret()
    secret._halves = [password]
    return secret
