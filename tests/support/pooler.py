"""A real PgBouncer in front of a database, in transaction mode, with as few connections to the server as one
likes.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import URL

from producer.local.servers import LOOPBACK, free_port
from tests.support.lacking import program
from tests.support.waiting import PATIENCE_S, eventually

_PROGRAM = "pgbouncer"
_AS_ROOT = "nobody"
"""It refuses to run as root."""


@contextmanager
def pgbouncer(behind: URL, *, connections: int, ignores_options: bool = False) -> Iterator[URL]:
    """The address of a pooler that has so many connections to the server of this address for all clients.

    Locally the test is skipped without the program; where CI is set it fails.
    """
    pooler = program(_PROGRAM)
    folder = Path(tempfile.mkdtemp(prefix="label-pooler-"))
    folder.chmod(0o755)
    port = free_port()
    (folder / "pgbouncer.ini").write_text(
        f"""
[databases]
* = host={behind.host} port={behind.port} user={behind.username} password={behind.password}
[pgbouncer]
listen_addr = {LOOPBACK}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 1000
ignore_startup_parameters = extra_float_digits{", options" if ignores_options else ""}
"""
    )
    command = [pooler, *(["-u", _AS_ROOT] if os.geteuid() == 0 else []), str(folder / "pgbouncer.ini")]
    log = folder / "log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            eventually(lambda: process.poll() is not None or _answers(port), "the pooler answers")
            assert process.poll() is None, log.read_text()
            yield behind.set(host=LOOPBACK, port=port)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
            shutil.rmtree(folder)


def _answers(port: int) -> bool:
    with suppress(OSError), closing(socket.create_connection((LOOPBACK, port), 1)):
        return True
    return False
