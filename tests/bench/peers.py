"""Other tools on the same data, each until its result is durable. Knows nothing of the migrator."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.bench.corpora import Corpus
from tests.bench.measure import Measured, Settle, bytes_below, cpu_s, timed

Measure = Callable[[Corpus, Path, Settle], Measured]
"""Run a contender once over a corpus; what it makes goes into the given folder, which is there and empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A contender. `needs` is the program without which it cannot run; `instead` takes its place then."""

    name: str
    measure: Measure
    needs: str | None = None
    instead: "Peer | None" = None


def available(peers: Sequence[Peer], say: Callable[[str], None]) -> list[Peer]:
    """Those that can run here, or what runs in their place; says what is left out and why."""
    found = []
    for peer in peers:
        if peer.needs is None or shutil.which(peer.needs):
            found.append(peer)
        else:
            instead = f"; {peer.instead.name} takes its place" if peer.instead else "; left out"
            say(f"{peer.name}: {peer.needs} is not installed{instead}")
            found += [peer.instead] if peer.instead else []
    return found


# Copying ----------------------------------------------------------------------------------------------------


def _cp(corpus: Corpus, out: Path, settle: Settle) -> Measured:
    settle()
    measured = timed(lambda: [start(["cp", "-r", str(corpus.root), f"{out}/copy"])])
    return replace(measured, stored_bytes=bytes_below(out))


def _naive(corpus: Corpus, out: Path, settle: Settle) -> Measured:
    script = ready(["tests.bench.naive", str(corpus.root), f"{out}/store"])
    settle()
    measured = timed(lambda: [go(script)], spent_s=cpu_s([script.pid]))
    return replace(measured, stored_bytes=bytes_below(out))


# Content-addressed stores: they take files over in place, so each gets a copy that is not timed, its best
# case -----


def _dvc(corpus: Corpus, out: Path, settle: Settle, *, link: str = "hardlink") -> Measured:
    shutil.copytree(corpus.root, out / "work")
    env = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": f"{out}/site",
        "DVC_GLOBAL_CONFIG_DIR": f"{out}/config",
    }
    for arguments in (["init", "--no-scm", "-q"], ["config", "cache.type", link]):
        _run(["dvc", *arguments], cwd=out, env=env)
    settle()
    measured = timed(lambda: [start(["dvc", "add", "-q", "work"], cwd=out, env=env)])
    return replace(measured, stored_bytes=bytes_below(out))


def _git_annex(corpus: Corpus, out: Path, settle: Settle) -> Measured:
    shutil.copytree(corpus.root, out / "work")
    env = {
        "HOME": str(out),
        "GIT_AUTHOR_NAME": "bench",
        "GIT_AUTHOR_EMAIL": "bench@localhost",
        "GIT_COMMITTER_NAME": "bench",
        "GIT_COMMITTER_EMAIL": "bench@localhost",
    }
    work = out / "work"
    for arguments in (["init", "-q"], ["annex", "init", "--quiet", "bench"]):
        _run(["git", *arguments], cwd=work, env=env)
    settle()
    measured = timed(lambda: [start(["git", "annex", "add", "-J2", "--quiet", "."], cwd=work, env=env)])
    return replace(measured, stored_bytes=bytes_below(out))


# In place: files that are equal share their blocks afterwards, and stay where they are. It gets a copy, too.


def _duperemove(corpus: Corpus, out: Path, settle: Settle) -> Measured:
    shutil.copytree(corpus.root, out / "work")
    settle()
    return timed(
        lambda: [start(["duperemove", "-dr", "-q", "--io-threads=2", "--cpu-threads=2", f"{out}/work"])]
    )


# Reading alone ----------------------------------------------------------------------------------------------


def _b3sum(corpus: Corpus, _out: Path, settle: Settle) -> Measured:
    settle()
    return timed(lambda: [start(["b3sum", *names]) for names in halves(corpus.sizes)])


def _blake3(corpus: Corpus, _out: Path, settle: Settle) -> Measured:
    scripts = [
        ready(["tests.bench.hash_only"], first_line="\0".join(names)) for names in halves(corpus.sizes)
    ]
    settle()
    return timed(
        lambda: [go(script) for script in scripts], spent_s=cpu_s([script.pid for script in scripts])
    )


def halves(sizes: Mapping[str, int]) -> list[list[str]]:
    """Two shares of about equal size: the biggest first, each to whoever has less."""
    shares: list[tuple[int, list[str]]] = [(0, []), (0, [])]
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        shares.sort(key=lambda share: share[0])
        taken, names = shares[0]
        shares[0] = (taken + sizes[name], [*names, name])
    return [names for _, names in shares if names]


# Processes --------------------------------------------------------------------------------------------------


def start(
    command: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL)


def _run(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
    subprocess.run(command, cwd=cwd, env={**os.environ, **env}, check=True, stdout=subprocess.DEVNULL)


def ready(module: Sequence[str], first_line: str | None = None) -> subprocess.Popen[bytes]:
    """Start one of our own scripts and wait until it has imported everything: only its work is timed."""
    script = subprocess.Popen(
        [sys.executable, "-m", *module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert script.stdin is not None
    assert script.stdout is not None
    if first_line is not None:
        script.stdin.write(f"{first_line}\n".encode())
    if script.stdout.readline() != b"ready\n":
        raise RuntimeError(f"{module[0]} did not start")
    return script


def go(script: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Let a script begin."""
    assert script.stdin is not None
    script.stdin.write(b"go\n")
    return script


CP = Peer(name="cp -r", measure=_cp)
NAIVE = Peer(name="naive", measure=_naive)
DVC = Peer(name="dvc add", measure=_dvc, needs="dvc")
DVC_SHARING = Peer(name="dvc add, reflinks", measure=partial(_dvc, link="reflink"), needs="dvc")
DUPEREMOVE = Peer(name="duperemove", measure=_duperemove, needs="duperemove")
GIT_ANNEX = Peer(name="git-annex add", measure=_git_annex, needs="git-annex")
BLAKE3 = Peer(name="blake3 x 2", measure=_blake3)
B3SUM = Peer(name="b3sum x 2", measure=_b3sum, needs="b3sum", instead=BLAKE3)
