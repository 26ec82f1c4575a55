"""The floor: no store can be faster on this machine, because it has to write the different bytes durably and
to read all of them once. Knows of the migrator only how it writes.

The time is that of the slower of two: the fastest of three ways to write, and two `b3sum` over all files. All
of them are two processes, as there are two workers, and none knows what the others have done.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tests.bench.corpora import Corpus
from tests.bench.measure import Measured, Settle, cpu_s, timed
from tests.bench.peers import B3SUM, Peer, available, go, halves, ready, start

_DD = """
out=$1; shift; number=0
for name; do
    number=$((number + 1))
    dd if="$name" of="$out/$number" bs=8M oflag=direct conv=fsync status=none || exit
done"""


def _floor(corpus: Corpus, out: Path, settle: Settle) -> Measured:
    written = {
        name: _measured(start_all, corpus, out / name, settle)
        for name, start_all in _WRITING.items()
        if name != "dd" or _writes_directly(out)
    }
    fastest = min(written, key=lambda name: written[name].seconds)
    (peer,) = available([B3SUM], print)
    read = peer.measure(corpus, out, settle)
    if read.seconds > written[fastest].seconds:
        return replace(read, decided_by=peer.name)
    return replace(written[fastest], decided_by=fastest)


def _measured(
    start_all: Callable[[Sequence[tuple[Path, list[str]]]], Measured],
    corpus: Corpus,
    out: Path,
    settle: Settle,
) -> Measured:
    """Write each content once, two shares at a time; what was written is removed, so that the next way finds
    as much room.
    """
    shares = [(out / f"{number}", names) for number, names in enumerate(halves(corpus.different))]
    for folder, _ in shares:
        folder.mkdir(parents=True)
    settle()
    try:
        return start_all(shares)
    finally:
        shutil.rmtree(out)


def _by_dd(shares: Sequence[tuple[Path, list[str]]]) -> Measured:
    return timed(lambda: [start(["sh", "-c", _DD, "dd", str(folder), *names]) for folder, names in shares])


def _by_cp(shares: Sequence[tuple[Path, list[str]]]) -> Measured:
    # With their folders, because files in different ones have equal names.
    return timed(lambda: [start(["cp", "--parents", *names, str(folder)]) for folder, names in shares])


def _by_our_writer(shares: Sequence[tuple[Path, list[str]]]) -> Measured:
    scripts = [
        ready(["tests.bench.write_only"], first_line="\0".join([str(folder), *names]))
        for folder, names in shares
    ]
    return timed(
        lambda: [go(script) for script in scripts], spent_s=cpu_s([script.pid for script in scripts])
    )


_WRITING: Mapping[str, Callable[[Sequence[tuple[Path, list[str]]]], Measured]] = {
    "dd": _by_dd,
    "cp": _by_cp,
    "our writer": _by_our_writer,
}


def _writes_directly(folder: Path) -> bool:
    """Does the file system write past the page cache? `dd` is left out where it does not."""
    probe = folder / "direct"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    finally:
        with suppress(FileNotFoundError):
            probe.unlink()
    return True


FLOOR = Peer(name="floor", measure=_floor)
