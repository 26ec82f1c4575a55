"""`producer metrics` as Prometheus meets it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.sites import Site


@contextmanager
def serving(site: Site, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `producer metrics` on a free port; gives the process and its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "producer", "metrics", "--port", "0"],
        cwd=site.folder,
        env={**site.env, **env},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("Serving http://127.0.0.1:"), line + process.stderr.read()
            yield process, line.split()[1]
        finally:
            process.kill()
