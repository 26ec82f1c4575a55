"""The machine's program: with each version of NFS, a new lab and all steps. Says lines of JSON on standard
output; the host reads them.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from producer.local.stack import stack as local_stack
from tests.nfs import file_server, steps
from tests.nfs.clients import clients
from tests.nfs.lab import lab, make_projects
from tests.support.servers import REDIS_DATABASES, Databases, empty_redis
from tests.support.sites import Site, site_in

_LAB = Path("/lab")
_CLIENTS = ("one", "two")


def main(versions: Sequence[str]) -> int:
    """Play everything with each of these versions; 0 when all was well."""
    _LAB.mkdir()
    try:
        _play(versions)
    except BaseException:
        for log in sorted(_LAB.rglob("*.log")):
            sys.stderr.write(f"{log}:\n{log.read_text(errors='replace')[-3000:]}\n")
        _say(failed=traceback.format_exc())
        raise
    _say(ended=True)
    return 0


def _play(versions: Sequence[str]) -> None:
    file_server.start()
    _say(said="the file server runs")
    with local_stack(
        _LAB / "servers", durable=False, with_tables=False, redis_databases=REDIS_DATABASES
    ) as stack:
        _say(said="PostgreSQL and Valkey run")
        databases = Databases(stack)
        for version in versions:
            folder = _LAB / version
            folder.mkdir()
            with (
                file_server.exported(),
                databases.one() as engine,
                site_in(folder, engine, empty_redis(stack)) as site,
                _mounted(site),
                clients(
                    _CLIENTS,
                    version,
                    data_dir=site.data_dir,
                    legacy_root=site.legacy_root,
                    folder=folder,
                ) as two,
            ):
                projects = make_projects(site)
                with lab(site, two, projects) as made:
                    _say(said=f"version {version}: {len(projects.folders)} projects, two clients")
                    steps.tell(
                        made,
                        projects,
                        lambda name, seconds, checked, version=version: _say(  # type: ignore[misc]
                            step=name, version=version, seconds=seconds, checked=checked
                        ),
                    )


@contextmanager
def _mounted(site: Site) -> Iterator[None]:
    """The server's own machine sees its directories at the places where clients mount them."""
    places = {file_server.DATA: site.data_dir, file_server.LEGACY: site.legacy_root}
    for there, here in places.items():
        file_server.run("mount", "--bind", str(there), str(here))
    try:
        yield
    finally:
        for here in places.values():
            file_server.run("umount", str(here))


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
