"""`producer metrics` as Prometheus meets it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.forking import Forks, Process
from tests.support.sites import Site
from tests.support.waiting import eventually


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """One that serves at `url`."""

    url: str
    process: Process
    programs: Forks

    def stop(self) -> int:
        """Ask it to stop, and wait for that; the status that it ends with."""
        self.process.signal(signal.SIGTERM)
        return self.programs.await_end(self.process, "the exporter ends")


@contextmanager
def serving(site: Site, **env: str) -> Iterator[Exporter]:
    """Run `producer metrics` on a free port, forked as producers are."""
    programs = site.programs
    assert programs is not None
    process = site.start_producer("metrics", "--port", "0", **env)

    def said() -> str:
        return process.log.read_text() if process.log.exists() else ""

    def has_begun() -> bool:
        assert programs.ended(process) is None, said()
        return "\n" in said()

    try:
        eventually(has_begun, "the exporter says where it serves")
        line = said().splitlines()[0]
        assert line.startswith("Serving http://127.0.0.1:"), said()
        yield Exporter(url=line.split()[1], process=process, programs=programs)
    finally:
        if programs.ended(process) is None:
            process.signal(signal.SIGKILL)
            programs.await_end(process, "the exporter is killed")
