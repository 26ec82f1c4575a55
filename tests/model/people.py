"""What Label, people and disks do meanwhile: they know nothing of the protocol."""

from tests.model.steps import ENDED, WAIT, Job, Next, Play, Step, end, others, then
from tests.model.world import (
    BAD,
    DELETED,
    GOOD,
    LEGACY,
    MIGRATED,
    OWN_DIRECTORY,
    PURGED,
    PURGING,
    STORED_TREE,
    WHOLE,
    World,
    put,
)


def _read_place(w: World, job: Job, _: int) -> list[Next]:
    if w.mode[job.project] == DELETED:
        return end(w, job)
    place = OWN_DIRECTORY if w.mode[job.project] == LEGACY else STORED_TREE
    which = place - 1
    return then(w._replace(open_splits=put(w.open_splits, which, w.open_splits[which] | job.bit)), place)


def _insert_session(w: World, job: Job, place: int) -> list[Next] | tuple[Next, ...]:
    if others(w.project_locks[job.project], job):
        return WAIT
    if w.mode[job.project] != DELETED:
        w = w._replace(split=put(w.split, job.project, place))
    return end(w, job)


SPLIT = Play(
    "Label splits a session",
    (
        Step("read", _read_place, "select of the session"),
        Step("insert", _insert_session, "insert of its children"),
    ),
    may_die=False,
)


def _delete(w: World, job: Job, _: int) -> list[Next] | tuple[Next, ...]:
    if others(w.project_locks[job.project], job):
        return WAIT
    return end(w._replace(mode=put(w.mode, job.project, DELETED), split=put(w.split, job.project, 0)), job)


DELETE = Play("Label deletes a project", (Step("delete", _delete, "delete of its row"),), may_die=False)


def _open(w: World, job: Job, _: int) -> list[Next]:
    return then(w, w.here[job.directory]) if w.here[job.directory] else end(w, job)


def _write(w: World, job: Job, _: int) -> list[Next]:
    """Into the file that was opened, wherever it is by now; nobody has it open for a purge's grace time."""
    g = job.directory
    if w.here[g]:
        return end(w._replace(edited=put(w.edited, g, 1)), job)
    if w.away[g] == WHOLE and w.record[g] not in _REMOVING:
        return end(w._replace(edited=put(w.edited, g, 2)), job)
    return end(w, job)


_REMOVING = (PURGING, PURGED)

EDIT = Play(
    "somebody edits a legacy file",
    (Step("open", _open, "open"), Step("write", _write, "write")),
    may_die=False,
)


def _go_bad(w: World, job: Job, _: int) -> list[Next]:
    """Only while there is another good copy of what is referred to: no protocol can do without."""
    has_copies = all(
        w.here[g] or w.away[g] == WHOLE
        for p in (0, 1)
        if w.mode[p] == MIGRATED
        for g in (job.layout.directory_of[p],)
    )
    if w.blob != GOOD or w.read_for_purge or not has_copies:
        return [Next(w, ENDED)]
    return [Next(w._replace(blob=BAD, tree=(w.tree[0] and BAD, w.tree[1] and BAD)), ENDED)]


FLIP = Play("the disk flips a bit", (Step("flip", _go_bad, "nothing"),), may_die=False)
