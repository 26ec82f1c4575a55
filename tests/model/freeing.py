"""The verbs that move away or remove: reclaim, undo, purge, gc and its restore."""

from tests.model.steps import WAIT, Job, Next, Play, Step, Weak, end, go, others, then
from tests.model.storing import move_back
from tests.model.world import (
    DELETED,
    HALF,
    KEPT,
    MIGRATED,
    MOVING,
    NOT_RECLAIMED,
    OWN_DIRECTORY,
    PURGED,
    PURGING,
    RECLAIMED,
    UNDOING,
    WHOLE,
    World,
    is_whole,
    put,
)

Steps = list[Next] | tuple[Next, ...]


def _set(w: World, job: Job, state: int) -> World:
    return w._replace(record=put(w.record, job.directory, state))


def _claim(w: World, job: Job, _: int) -> Steps:
    return WAIT if others(w.reclaiming, job) else then(w._replace(reclaiming=job.number))


# Reclaim ----------------------------------------------------------------------------------------------------


def _may_go(w: World, job: Job, *, young_too: bool = False) -> bool:
    """The conditions that rows decide, for all projects that have the directory."""
    projects = [p for p in job.layout.projects_in(job.directory) if w.mode[p] != DELETED]
    return (
        bool(projects)
        and all(w.mode[p] == MIGRATED and w.split[p] != OWN_DIRECTORY for p in projects)
        and (young_too or not w.open_splits[OWN_DIRECTORY - 1])
    )


def _settle(w: World, job: Job, _: int) -> Steps:
    g = job.directory
    if w.record[g] == MOVING and job.weak is not Weak.LEAVES_MOVING_ROWS:
        return go(w, "lock")
    young_too = job.weak is Weak.RECLAIMS_THE_YOUNG
    fits = w.record[g] == NOT_RECLAIMED and w.here[g] and _may_go(w, job, young_too=young_too)
    return then(w) if fits else end(w, job)


def _hash(w: World, job: Job, _: int) -> Steps:
    return end(w, job) if w.edited[job.directory] or not w.here[job.directory] else then(w)


def _read_dataset(w: World, job: Job, _: int) -> Steps:
    return then(w) if is_whole(w, job.dataset) else end(w, job)


def _locked_by_others(w: World, job: Job) -> bool:
    return others(w.dataset_locks[job.dataset], job) or any(
        others(w.project_locks[p], job) for p in job.layout.projects_in(job.directory)
    )


def _lock(w: World, job: Job, number: int) -> World:
    """All rows of the group locked for this actor, or, with 0, no more."""
    locks = w.project_locks
    for p in job.layout.projects_in(job.directory):
        locks = put(locks, p, number)
    return w._replace(project_locks=locks, dataset_locks=put(w.dataset_locks, job.dataset, number))


def _write_intent(w: World, job: Job, _: int) -> Steps:
    if _locked_by_others(w, job):
        return WAIT
    fits = w.record[job.directory] == NOT_RECLAIMED and _may_go(w, job, young_too=True)
    if not fits and job.weak is not Weak.RECLAIMS_WITHOUT_RECHECK:
        return end(w, job)
    return then(_set(w, job, MOVING))


def _lock_and_recheck(w: World, job: Job, _: int) -> Steps:
    if _locked_by_others(w, job):
        return WAIT
    if not _may_go(w, job, young_too=True) and job.weak is not Weak.RECLAIMS_WITHOUT_RECHECK:
        return go(_lock(w, job, job.number), "back")
    return then(_lock(w, job, job.number))


def _rename(w: World, job: Job, _: int) -> Steps:
    g = job.directory
    if not w.here[g]:
        return then(w)
    edited = 2 if w.edited[g] else 0
    return then(
        w._replace(here=put(w.here, g, 0), away=put(w.away, g, WHOLE), edited=put(w.edited, g, edited))
    )


def _look_again(w: World, job: Job, _: int) -> Steps:
    return then(w) if w.edited[job.directory] else go(w, "reclaimed")


def _give_up(w: World, job: Job, _: int) -> Steps:
    return end(_set(w, job, NOT_RECLAIMED), job)


def _say_reclaimed(w: World, job: Job, _: int) -> Steps:
    return end(_set(w, job, RECLAIMED), job)


def reclaim(weak: Weak | None) -> Play:
    """One group's directory is moved away."""
    conditions = (
        Step("claim", _claim, "worker.db.claims.hold"),
        Step("settle", _settle, "worker.jobs.moved_directory.settle_moves"),
        Step("hash", _hash, "worker.legacy.hash.hash_tree"),
        Step("read", _read_dataset, "worker.jobs.reclaim_conditions.check_sound"),
    )
    intent = (Step("intent", _write_intent, "worker.jobs.reclaim._Moving._begin"),)
    lock = (Step("lock", _lock_and_recheck, "worker.jobs.reclaim._Moving._lock_and_check"),)
    rename = (Step("rename", _rename, "worker.legacy.moved_away.move_away"),)
    rest = (
        Step("look again", _look_again, "worker.jobs.reclaim._Moving._confirm"),
        Step("back", move_back, "worker.legacy.moved_away.move_back"),
        Step("given up", _give_up, "worker.jobs.reclaim._Moving._give_up"),
        Step("reclaimed", _say_reclaimed, "worker.jobs.reclaim._Moving._end"),
    )
    if weak is Weak.RENAMES_BEFORE_THE_INTENT:
        return Play("reclaim", (*conditions, *rename, *intent, *lock, *rest))
    return Play("reclaim", (*conditions, *intent, *lock, *rename, *rest))


# Undo and purge ---------------------------------------------------------------------------------------------


def _say_undoing(w: World, job: Job, _: int) -> Steps:
    g = job.directory
    return then(_set(w, job, UNDOING)) if w.record[g] in (RECLAIMED, UNDOING) else end(w, job)


def _say_undone(w: World, job: Job, _: int) -> Steps:
    g = job.directory
    # The place was taken: it stays away.
    return end(_set(w, job, RECLAIMED if w.away[g] == WHOLE else NOT_RECLAIMED), job)


def undo(weak: Weak | None) -> Play:
    """The directory that was moved away comes back."""
    claim = (Step("claim", _claim, "worker.db.claims.hold"),)
    steps = (
        Step("undoing", _say_undoing, "worker.jobs.moved_directory.take_back"),
        Step("rename", move_back, "worker.legacy.moved_away.move_back"),
        Step("undone", _say_undone, "worker.jobs.moved_directory.take_back"),
    )
    return Play("undo", steps if weak is Weak.UNDOES_WITHOUT_CLAIM else (*claim, *steps))


def _find_reclaimed(w: World, job: Job, _: int) -> Steps:
    if w.record[job.directory] == PURGING:
        return go(w, "remove")
    return then(w) if w.record[job.directory] == RECLAIMED else end(w, job)


def _read_before_purge(w: World, job: Job, _: int) -> Steps:
    projects = [p for p in job.layout.projects_in(job.directory) if w.mode[p] == MIGRATED]
    reads = job.weak is not Weak.PURGES_WITHOUT_READING
    if not projects or (reads and not all(is_whole(w, job.layout.dataset_of[p]) for p in projects)):
        return end(w, job)
    return then(w._replace(read_for_purge=1))


def _say_purging(w: World, job: Job, _: int) -> Steps:
    if _locked_by_others(w, job):
        return WAIT
    if w.record[job.directory] != RECLAIMED and job.weak is not Weak.PURGES_WITHOUT_CLAIM:
        return end(w, job)
    if job.weak is Weak.PURGES_WITHOUT_INTENT:
        return then(w)
    return then(_set(w, job, PURGING))


def _remove_some(w: World, job: Job, _: int) -> Steps:
    g = job.directory
    return then(w._replace(away=put(w.away, g, HALF)) if w.away[g] == WHOLE else w)


def _remove_rest(w: World, job: Job, _: int) -> Steps:
    g = job.directory
    if not w.away[g]:
        return then(w)
    keeps = w.edited[g] == 2 and job.weak is not Weak.PURGES_WHAT_CHANGED
    return then(w._replace(away=put(w.away, g, KEPT if keeps else 0)))


def _say_purged(w: World, job: Job, _: int) -> Steps:
    return end(_set(w, job, PURGED), job)


def purge(weak: Weak | None) -> Play:
    """What was moved away is removed."""
    claim = (Step("claim", _claim, "worker.db.claims.hold"),)
    steps = (
        Step("row", _find_reclaimed, "worker.jobs.purge._row"),
        Step("read", _read_before_purge, "worker.jobs.purge._check_sound"),
        Step("purging", _say_purging, "worker.jobs.purge._begin"),
        Step("remove", _remove_some, "worker.legacy.purge.purge_tree"),
        Step("remove the rest", _remove_rest, "worker.legacy.purge.purge_tree"),
        Step("purged", _say_purged, "worker.jobs.purge._end"),
    )
    return Play("purge", steps if weak is Weak.PURGES_WITHOUT_CLAIM else (*claim, *steps))
