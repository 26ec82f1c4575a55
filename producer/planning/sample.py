"""An estimate of what a migration would store, by the sizes of all files and the heads of some. Reads no
more than the first 64 KiB of a file, and writes nothing.

Files of different sizes are different. Of files of one size the heads tell: equal ones are taken for
duplicates, which is a guess; the digest of the whole content, which a dry run makes, is what the store goes
by.
"""

import math
import os
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from producer.planning.forecast import Band
from worker.errors import MigratorError
from worker.store.digest import HEAD_BYTES, Algorithm, Signature, head_of, new_buffer

MOST_HEADS = 2_000
"""So many heads are read at the most: some 130 MB, a minute of a disk that seeks."""

_SEED = 20_261_130
"""The sample of the same files is the same sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a sample says. `heads_read` of `heads_wanted` files whose size is not theirs alone;
    `unreadable`: those of them that could not be read.
    """

    files: int
    read_bytes: int
    stored: Band
    heads_read: int
    heads_wanted: int
    unreadable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What was found of the files of one size, or may be: bytes of all of them, and of what would be
    stored.
    """

    total: int
    stored: int


def estimate(
    sizes: Mapping[int, Sequence[str]],
    blobs: Mapping[int, Sequence[str]],
    heads_of: Callable[[Sequence[str]], Mapping[str, str | None]],
    most_heads: int = MOST_HEADS,
) -> Estimate:
    """Estimate what files would be stored. `sizes`: the paths of all files by their size; `blobs`: those of
    the store's files of these sizes. `heads_of` reads heads: None of what cannot be read.

    Half of the heads go to the sizes with the most to gain, the rest to a random sample of the others, by
    which those not read are estimated: a ratio, with twice its standard error (W. G. Cochran, Sampling
    Techniques, 3rd ed., chapter 6).
    """
    alone = {size for size, paths in sizes.items() if len(paths) == 1 and size not in blobs}
    shared = [size for size in sizes if size > 0 and size not in alone]
    surely, perhaps = _divided(shared, sizes, blobs, most_heads)
    chosen = _sampled(perhaps, sizes, most_heads - sum(len(sizes[size]) for size in surely))
    looked_at = (*surely, *chosen)
    heads = heads_of([path for size in looked_at for path in sizes[size]])
    stored_heads = heads_of([path for size in looked_at for path in blobs.get(size, ())])
    counted = {
        size: _counted(
            size,
            [heads[path] for path in sizes[size]],
            {stored_heads[path] for path in blobs.get(size, ())},
        )
        for size in looked_at
    }
    guessed = extrapolated(
        [counted[size] for size in chosen],
        [(size * len(sizes[size]), 0 if size in blobs else size) for size in perhaps if size not in counted],
    )
    stored = Band.exactly(sum(alone) + sum(one.stored for one in counted.values())).plus(guessed)
    files = sum(len(paths) for paths in sizes.values())
    total = sum(size * len(paths) for size, paths in sizes.items())
    return Estimate(
        files=files,
        read_bytes=total,
        stored=stored,
        heads_read=sum(head is not None for head in heads.values()),
        heads_wanted=sum(len(sizes[size]) for size in shared),
        unreadable=sum(head is None for head in heads.values()),
    )


def _divided(
    shared: Collection[int], sizes: Mapping[int, Sequence[str]], blobs: Collection[int], most_heads: int
) -> tuple[list[int], list[int]]:
    """The sizes with the most to gain, as far as half of the heads reach, and the others."""
    surely: list[int] = []
    perhaps: list[int] = []
    left = most_heads if sum(len(sizes[size]) for size in shared) <= most_heads else most_heads // 2
    for size in sorted(shared, key=lambda size: (-size * (len(sizes[size]) - (size not in blobs)), size)):
        if len(sizes[size]) <= left:
            surely.append(size)
            left -= len(sizes[size])
        else:
            perhaps.append(size)
    return surely, perhaps


def _sampled(perhaps: Iterable[int], sizes: Mapping[int, Sequence[str]], left: int) -> list[int]:
    """A random sample of sizes whose files together are no more than so many."""
    drawn = sorted(perhaps)
    random.Random(_SEED).shuffle(drawn)  # noqa: S311 - no secret
    chosen: list[int] = []
    for size in drawn:
        if len(sizes[size]) > left:
            break
        chosen.append(size)
        left -= len(sizes[size])
    return chosen


def _counted(size: int, heads: Sequence[str | None], known: Collection[str | None]) -> Counted:
    """Each different head is stored once, unless the store has it; what could not be read counts as
    different.
    """
    new = {head for head in heads if head is not None} - set(known)
    return Counted(total=size * len(heads), stored=size * (len(new) + sum(head is None for head in heads)))


def extrapolated(sampled: Sequence[Counted], rest: Sequence[tuple[int, int]]) -> Band:
    """What the sizes that were not sampled would store: of each the bytes, and the least that can be new of
    them.
    """
    most, least = sum(one[0] for one in rest), sum(one[1] for one in rest)
    if not rest:
        return Band.exactly(0)
    total = sum(one.total for one in sampled)
    if len(sampled) < 2 or not total:
        return Band(low=least, likely=(least + most) / 2, high=most)
    likely = min(max(sum(one.stored for one in sampled) / total * most, least), most)
    # Two of mean size that are all new and two that are as little new as can be: a small sample without a
    # duplicate does not prove that there is none (A. Agresti and B. A. Coull, Approximate is better than
    # "exact" for interval estimation of binomial proportions, 1998).
    mean = total / len(sampled)
    added = [(mean, mean)] * 2 + [(mean, mean * least / most if most else 0)] * 2
    observed = [(one.total, one.stored) for one in sampled] + added
    ratio = sum(stored for _, stored in observed) / sum(of for of, _ in observed)
    variance = sum((stored - ratio * of) ** 2 for of, stored in observed) / (len(observed) - 1)
    error = len(rest) * math.sqrt(variance * (1 / len(observed) + 1 / len(rest)))
    return Band(
        low=min(likely, max(least, ratio * most - 2 * error)),
        likely=likely,
        high=max(likely, min(most, ratio * most + 2 * error)),
    )


def head_of_file(path: str, algorithm: Algorithm) -> str | None:
    """The digest of a file's head, as a worker makes it; None for what cannot be read from here. The path
    is a resolved one: no link is followed, and no device or pipe waited for.
    """
    try:
        status = os.lstat(path)
        return head_of(path, Signature.of(status), algorithm, new_buffer(HEAD_BYTES))
    except (OSError, MigratorError):
        return None
