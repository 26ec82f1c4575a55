"""What must hold after every step of the protocol, and once all have ended."""

from collections.abc import Iterator

from tests.model.world import (
    DELETED,
    FALSE_DAMAGE,
    HALF,
    LEGACY,
    MANIFEST,
    MIGRATED,
    MOVING,
    OWN_DIRECTORY,
    PURGED,
    PURGING,
    RECLAIMED,
    ROWS,
    ROWS_LOST,
    STORED_TREE,
    TREE,
    UNDOING,
    WHOLE,
    Layout,
    World,
    is_whole,
)

_WRONGS = {
    FALSE_DAMAGE: "a verification named damage that was none",
    ROWS_LOST: "rows were deleted that no description in quarantine has",
}


def broken(w: World, layout: Layout) -> str | None:
    """What must hold after every step, and does not; None if all holds."""
    for p in (0, 1):
        if wrong := _of_project(w, layout, p):
            return wrong
    for g in layout.directories:
        if w.edited[g] == 1 and not w.here[g]:
            return "a file that was changed by hand at its legacy path is lost"
        if w.edited[g] == 2 and not w.away[g]:
            return "a file that was changed by hand was removed"
    return _WRONGS.get(w.wrong)


def _of_project(w: World, layout: Layout, p: int) -> str | None:
    """A project is readable one way, and so is the session that was split of one of its sessions."""
    d, g = layout.dataset_of[p], layout.directory_of[p]
    if w.mode[p] == DELETED:
        return None
    if w.mode[p] == LEGACY and not w.here[g]:
        return f"project {p} is legacy, and its directory is not at its legacy path"
    if w.mode[p] == MIGRATED and not (w.row[d] and w.tree[d] and w.manifest[d] and w.blob):
        return f"project {p} refers to dataset {d}, of which something is gone"
    if w.mode[p] == MIGRATED and not (is_whole(w, d) or w.here[g] or w.away[g] == WHOLE):
        return f"no good copy of what project {p} refers to is left"
    return _of_split_session(w, p, d, g)


def _of_split_session(w: World, p: int, d: int, g: int) -> str | None:
    if w.split[p] == OWN_DIRECTORY and not w.here[g]:
        return f"a session of project {p} reads from a directory that was moved away"
    if w.split[p] == STORED_TREE and not (w.tree[d] and w.row[d]):
        return f"a session of project {p} reads from a tree that is gone"
    return None


def unfinished(w: World, layout: Layout) -> str | None:
    """What must hold once all have ended, and does not."""
    return next(_unfinished(w, layout), None)


def _unfinished(w: World, layout: Layout) -> Iterator[str]:
    for g in layout.directories:
        if w.record[g] in (MOVING, UNDOING, PURGING) or w.away[g] == HALF:
            yield f"the directory {g} is left half moved or half removed"
        if (w.record[g] == RECLAIMED) != (w.away[g] == WHOLE):
            yield f"the record of directory {g} does not say where it is"
        if w.record[g] == RECLAIMED and w.here[g]:
            yield f"the directory {g} was moved away, and is there again as well"
        if not w.here[g] and not w.away[g] and w.record[g] != PURGED:
            yield f"the directory {g} is gone, and no record says why"
    for d in layout.datasets:
        if w.row[d] and not (w.tree[d] and w.manifest[d] and w.index[d] and w.blob):
            yield f"dataset {d} has a row, and something of it is gone"
        has_tree, has_manifest = w.entry[d] & TREE or w.tree[d], w.entry[d] & MANIFEST or w.manifest[d]
        if w.entry[d] & ROWS and not w.row[d] and not (has_tree and has_manifest):
            yield f"the entry of dataset {d} in quarantine promises what is neither in it nor left in its place"
    if (*w.claims, w.reclaiming, w.mending, *w.project_locks, *w.dataset_locks, w.mark_lock) != (0,) * 9:
        yield "something is still locked"
