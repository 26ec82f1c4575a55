"""PostgreSQL and Redis that answer over TLS alone. The servers out of Python packages cannot; these are the
machine's own.
"""

import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from producer.local.child_process import Child, start, stop
from producer.local.servers import (
    LOOPBACK,
    LocalStackError,
    Server,
    _postgres_identity,
    _run,
    _start_on_free_port,
    write_secret,
)
from tests.support.certificates import PROGRAM, Certificates
from tests.support.lacking import lacking

OTHER_ADDRESS = "127.0.0.2"
"""The servers listen there, too, but their certificate does not say so."""

UNWIELDY = "p@:;/#?&%+ 'ä"
"""What a URL has to encode, at the end of every password."""


def password() -> str:
    """A new one, with all that makes URLs difficult."""
    return secrets.token_urlsafe(12) + UNWIELDY


def programs() -> tuple[Path, str]:
    """The folder of PostgreSQL's programs and Redis's program, if they are installed, and `openssl`.

    Locally the test is skipped without them; where CI is set it fails, since no other run would notice.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    postgres = found[-1] if found else shutil.which("postgres")
    server = shutil.which("redis-server") or shutil.which("valkey-server")
    missing = [
        name
        for name, there in (
            ("postgresql", postgres),
            ("redis-server", server),
            ("openssl", shutil.which(PROGRAM)),
        )
        if not there
    ]
    if missing:
        lacking(f"servers that speak TLS are not installed: apt-get install {' '.join(missing)}")
    return Path(str(postgres)).parent, str(server)


@contextmanager
def postgres(programs: Path, folder: Path, certificates: Certificates) -> Iterator[Server]:
    """Run PostgreSQL on an empty cluster; its URL says nothing of TLS yet."""
    who, rows = _postgres_identity(), folder / "rows"
    secret = password()
    rows.mkdir(mode=0o700)
    files = {
        "password": secret,
        "server.pem": certificates.certificate.read_text(),
        "server.key": certificates.key.read_text(),
    }
    for name, content in files.items():
        write_secret(folder / name, content)
    for path in (rows, *(folder / name for name in files)):
        os.chown(path, who.uid or -1, who.gid or -1)
    access = ["--username=label", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    made = _run(
        [programs / "initdb", "--pgdata", rows, *access, "--encoding=UTF8", "--no-locale", "--no-sync"], who
    )
    if made.returncode:
        raise LocalStackError(made.stderr)
    (rows / "pg_hba.conf").write_text("hostssl all all 127.0.0.0/8 scram-sha-256\n")
    settings = {
        "listen_addresses": f"{LOOPBACK},{OTHER_ADDRESS}",
        "unix_socket_directories": "",
        "fsync": "off",
        "ssl": "on",
        "ssl_cert_file": str(folder / "server.pem"),
        "ssl_key_file": str(folder / "server.key"),
    }

    def start_at(port: int) -> Child:
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return start(
            "PostgreSQL with TLS",
            [programs / "postgres", "-D", rows, "-p", str(port), *options],
            log_file=folder / "postgres.log",
            on_parent_death=signal.SIGINT,
            cwd=Path("/"),
            identity=who,
        )

    child, port = _start_on_free_port(start_at, partial(_postgres_answers, secret))
    try:
        yield Server(
            child=child, url=f"postgresql://label:{quote(secret, safe='')}@{LOOPBACK}:{port}/postgres"
        )
    finally:
        stop([child], politely=signal.SIGINT)


def _postgres_answers(secret: str, port: int) -> bool:
    try:
        psycopg2.connect(
            host=LOOPBACK, port=port, user="label", password=secret, dbname="postgres", sslmode="require"
        ).close()
    except psycopg2.OperationalError:
        return False
    return True


def tls_alone(certificates: Certificates) -> dict[str, Any]:
    """Settings of a Redis that has no port for plain text; its `tls-port` is to be added."""
    return {
        "port": 0,
        "tls-cert-file": certificates.certificate,
        "tls-key-file": certificates.key,
        "tls-ca-cert-file": certificates.authority,
        "tls-auth-clients": "no",
    }


@contextmanager
def redis_server(program: str, folder: Path, certificates: Certificates) -> Iterator[Server]:
    """Run Redis without a port for plain text; its URL names no authority yet."""
    secret = password()
    settings = {
        "bind": f"{LOOPBACK} {OTHER_ADDRESS}",
        **tls_alone(certificates),
        "requirepass": f'"{secret}"',
        "save": '""',
        "appendonly": "no",
        "dir": folder,
    }

    def start_at(port: int) -> Child:
        lines = (f"{name} {value}\n" for name, value in {**settings, "tls-port": port}.items())
        return start(
            "Redis with TLS",
            [program, "-"],
            log_file=folder / "redis.log",
            on_parent_death=signal.SIGINT,
            cwd=folder,
            standard_input="".join(lines).encode(),
        )

    child, port = _start_on_free_port(start_at, partial(_redis_answers, secret, certificates))
    try:
        yield Server(child=child, url=f"rediss://:{quote(secret, safe='')}@{LOOPBACK}:{port}/0")
    finally:
        stop([child], politely=signal.SIGINT)


def _redis_answers(secret: str, certificates: Certificates, port: int) -> bool:
    once = Retry(NoBackoff(), 0)
    with redis.Redis(
        host=LOOPBACK,
        port=port,
        password=secret,
        ssl=True,
        ssl_ca_certs=str(certificates.authority),
        socket_timeout=3,
        retry=once,
    ) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
