"""A real MariaDB on the loopback interface, as whichever user runs the tests, in a time zone of its own."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from producer.local.servers import LOOPBACK, free_port
from tests.support.lacking import program
from tests.support.waiting import PATIENCE_S, eventually

_NOT_DURABLE = ("--innodb-flush-method=nosync", "--debug-no-sync")


@dataclass(frozen=True, slots=True, kw_only=True)
class MariaDb:
    """A server. `home` has the file by which its administrator's client finds it."""

    port: int
    home: Path

    def run(self, sql: str, database: str = "label") -> str:
        """Let the client run statements as the administrator; what it prints."""
        done = subprocess.run(
            [
                program("mariadb"),
                "--default-character-set=utf8mb4",
                "--batch",
                "--skip-column-names",
                database,
            ],
            input=sql,
            env={**os.environ, "HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def mariadb(time_zone: str) -> Iterator[MariaDb]:
    """Run a new server. Locally the test is skipped without the program; where CI is set it fails."""
    server, install = program("mariadbd"), program("mariadb-install-db")
    # A socket's path may have about a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="label-mariadb-") as made:
        home = Path(made)
        common = ["--no-defaults", f"--datadir={home / 'rows'}", *_NOT_DURABLE]
        common += ["--user=root"] if os.geteuid() == 0 else []
        subprocess.run(
            [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
            capture_output=True,
            timeout=PATIENCE_S,
            check=True,
        )
        port, socket = free_port(), home / "socket"
        (home / ".my.cnf").write_text(f"[client]\nuser=root\nsocket={socket}\n")
        command = [server, *common, f"--socket={socket}", f"--port={port}", f"--bind-address={LOOPBACK}"]
        command += [
            "--skip-name-resolve",
            f"--default-time-zone={time_zone}",
            "--innodb-buffer-pool-size=16M",
        ]
        log = home / "log"
        with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
            try:
                eventually(lambda: process.poll() is not None or socket.exists(), "MariaDB answers")
                assert process.poll() is None, log.read_text()
                running = MariaDb(port=port, home=home)
                running.run("create database label character set utf8mb4", "mysql")
                yield running
            finally:
                process.terminate()
                process.wait(PATIENCE_S)
