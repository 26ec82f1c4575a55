"""An installation from nothing: folders, passwords, ports, and the Compose project that uses them. Knows no
run.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, make_url

from producer.local.child_process import Identity
from producer.local.servers import LOOPBACK, free_port, write_secret
from tests.compose.engine import CHECKOUT, Composed, docker
from tests.support.folders import remove_all
from tests.support.waiting import eventually
from worker.db.engine import connect

# A name of its own, because two tests at once would take each other's image away.
IMAGE = f"label-dataset-migrator:compose-test-{secrets.token_hex(4)}"
LEASE_S = 10
_OF_THE_IMAGE = Identity(uid=10001, gid=10001, extra_groups=())
_BUILD_WITHIN_S = 1800.0
_UP_WITHIN_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where everything is. Addresses are those that this machine uses; containers have their own."""

    compose: Composed
    data_dir: Path
    legacy_dir: Path
    reports: Path
    backups: Path
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    flower_url: str
    metrics_url: str
    secrets: dict[str, str] = field(repr=False)
    identity: Identity

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """An engine on the database."""
        url = make_url(self.database_url).set(drivername="postgresql+psycopg2")
        engine = connect(url, application_name="compose test")
        try:
            yield engine
        finally:
            engine.dispose()

    def producer(self, *words: str, exit_code: int = 0) -> str:
        """What the producer prints when an operator runs it; its reports land in `reports`."""
        return self.compose("run", "--rm", "--no-TTY", "producer", *words, exit_code=exit_code)

    def build(self) -> None:
        """Build the image, as an operator does."""
        self.compose("build", "--quiet", within_s=_BUILD_WITHIN_S)

    def psql(self, *words: str, stdin: str | None = None) -> str:
        """What `psql` prints that runs in the network of the bundled database."""
        return self.compose("run", "--rm", "--no-TTY", "psql", *words, stdin=stdin)

    def make_labels_tables(self) -> None:
        """Start PostgreSQL alone, and give the database what Label brings."""
        baseline = (CHECKOUT / "sql/label_app_baseline.sql").read_text(encoding="utf-8")
        self.psql("--quiet", stdin=baseline)

    def start_everything(self, *, workers: int) -> None:
        """Start the rest, with so many workers; returns when all of them say that they are well."""
        self.compose("up", "--detach", f"--scale=worker={workers}")
        eventually(
            lambda: self._are_well(workers),
            f"{workers} workers and Flower are healthy",
            within_s=_UP_WITHIN_S,
        )

    def _are_well(self, workers: int) -> bool:
        well = [each.service for each in self.compose.containers() if each.is_healthy]
        return well.count("worker") == workers and "flower" in well


def image_bytes() -> int:
    """The size of the image that is built."""
    return int(docker("image", "inspect", "--format={{.Size}}", IMAGE))


@contextmanager
def installation(*, in_data_dir: bool = False, **variables: str) -> Iterator[Installation]:
    """Make an installation whose workers do one job at a time; with the block it is gone, volumes included.

    `in_data_dir`: legacy projects lie in DATA_DIR itself, where Label makes them, and there is no LEGACY_DIR.
    `variables` are added to those of `.env`.
    """
    # Not below a folder that is closed to the containers' user.
    folder = Path(tempfile.mkdtemp(prefix="label-compose-"))
    folder.chmod(0o755)
    made = _made(folder, {"LEGACY_DIR": ""} | variables if in_data_dir else variables)
    try:
        yield made
    finally:
        made.compose.remove()
        remove_all(folder)


def _made(folder: Path, added: Mapping[str, str]) -> Installation:
    identity = _identity()
    data_dir, legacy_dir, reports, backups = (
        folder / name for name in ("label", "legacy", "reports", "backups")
    )
    for each in (data_dir, legacy_dir, reports, backups):
        each.mkdir()
    for each in (data_dir, reports, backups):
        os.chown(each, identity.uid or -1, identity.gid or -1)
    passwords = {
        name: secrets.token_hex(16)
        for name in ("POSTGRES_PASSWORD", "MIGRATOR_PASSWORD", "REDIS_PASSWORD", "FLOWER_BASIC_AUTH")
    }
    database_port, redis_port, flower_port, metrics_port = (free_port() for _ in range(4))
    variables = passwords | {
        "FLOWER_BASIC_AUTH": f"lab:{passwords['FLOWER_BASIC_AUTH']}",
        "FLOWER_BIND": f"{LOOPBACK}:{flower_port}",
        "METRICS_BIND": f"{LOOPBACK}:{metrics_port}",
        "DATA_DIR": str(data_dir),
        "LEGACY_DIR": str(legacy_dir),
        "REPORTS_DIR": str(reports),
        "BACKUP_DIR": str(backups),
        "RUN_AS": f"{identity.uid}:{identity.gid}",
        "LEASE_S": str(LEASE_S),
        "WORKER_CONCURRENCY": "1",
        "MIGRATOR_IMAGE": IMAGE,
        **{
            name: os.environ[name]
            for name in ("PYTHON_IMAGE", "POSTGRES_IMAGE", "REDIS_IMAGE")
            if name in os.environ
        },
        **added,
    }
    write_secret(folder / "env", "".join(f"{name}={value}\n" for name, value in variables.items()))
    override = folder / "override.json"
    override.write_text(
        json.dumps(_published({"postgres": (database_port, 5432), "redis": (redis_port, 6379)}))
    )
    return Installation(
        compose=Composed(
            name=f"label-compose-test-{secrets.token_hex(4)}", override=override, env_file=folder / "env"
        ),
        data_dir=data_dir,
        legacy_dir=Path(variables["LEGACY_DIR"] or data_dir),
        reports=reports,
        backups=backups,
        database_url=f"postgresql://label:{passwords['POSTGRES_PASSWORD']}@{LOOPBACK}:{database_port}/label",
        redis_url=f"redis://:{passwords['REDIS_PASSWORD']}@{LOOPBACK}:{redis_port}/0",
        flower_url=f"http://{LOOPBACK}:{flower_port}",
        metrics_url=f"http://{LOOPBACK}:{metrics_port}/metrics",
        secrets=passwords,
        identity=identity,
    )


def _identity() -> Identity:
    """Who containers run as: the user who runs this test, so that a worker beside them is the same; for root
    the image's own.
    """
    if os.geteuid() == 0:
        return _OF_THE_IMAGE
    return Identity(uid=os.geteuid(), gid=os.getegid(), extra_groups=tuple(os.getgroups()))


def _published(ports: dict[str, tuple[int, int]]) -> dict[str, object]:
    """A Compose file that lets this machine reach services; on loopback, and by a network of their own, as
    theirs is internal.
    """
    return {
        "services": {
            service: {"ports": [f"{LOOPBACK}:{outside}:{inside}"], "networks": ["published"]}
            for service, (outside, inside) in ports.items()
        },
        "networks": {"published": {}},
    }
