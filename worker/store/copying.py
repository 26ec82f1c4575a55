"""One file into a new one, in the pass that shows its bytes to those who hash them. Knows no layout and no
digest.
"""

from collections.abc import Sequence

from worker.runtime.throttle import Pace
from worker.store.cloning import Cloner
from worker.store.digest import (
    BIG_BYTES,
    Signature,
    Sink,
    abreast,
    chunks_of,
    one_by_one,
    opened,
    read_stored,
)
from worker.store.files import Writer, allocated


def copy(
    path: str,
    signature: Signature,
    new: tuple[int, str],
    sinks: Sequence[Sink],
    *,
    cloner: Cloner,
    buffer: memoryview,
    pace: Pace,
) -> bool:
    """Copy a file to a new one, of which `new` is the descriptor and the path, and show every chunk to
    `sinks`; do the two share their blocks now?

    Where the file system can they do, and the copy is what is shown: what was hashed is what is there,
    whatever is written to the source meanwhile. Errors of reading as `read_chunks`, of writing as `Writer`.
    """
    descriptor, name = new
    size_bytes = signature.size_bytes
    show = abreast if size_bytes >= BIG_BYTES else one_by_one
    with opened(path, signature) as source:
        is_clone = cloner.may_clone(signature) and cloner.clone(source, descriptor)
        if not is_clone:
            holes = size_bytes >= BIG_BYTES and allocated(path, size_bytes) < size_bytes
            sinks = [*sinks, Writer(descriptor, name, size_bytes, holes=holes)]
            for chunk in chunks_of(source, path, size_bytes, buffer, pace):
                show(chunk, sinks)
    if is_clone:
        for chunk in read_stored(name, buffer, pace, clone_of=path):
            show(chunk, sinks)
    return is_clone
