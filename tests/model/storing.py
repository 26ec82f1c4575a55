"""The verbs that bring bytes into the store and rows to them: migrate (and reuse), verify, repair, roll
back.
"""

from tests.model.steps import WAIT, Job, Next, Play, Step, Weak, end, go, others, then
from tests.model.world import (
    ABSENT,
    ACTIVE,
    BAD,
    FALSE_DAMAGE,
    GOOD,
    LEGACY,
    MIGRATED,
    NOT_RECLAIMED,
    OWN_DIRECTORY,
    PURGED,
    PURGING,
    STORED_TREE,
    UNDOING,
    WHOLE,
    World,
    is_whole,
    put,
)

_WAS_THERE, _MISSING = 0, 1


def _lease(w: World, job: Job, _: int) -> list[Next]:
    if w.mode[job.project] != LEGACY:
        return end(w, job)
    return then(w._replace(running=w.running | job.bit))


def _read(w: World, job: Job, _: int) -> list[Next]:
    # A directory that was changed has another content; that dataset is not of this model.
    return then(w) if w.here[job.directory] and w.edited[job.directory] != 1 else end(w, job)


def _unmark(w: World, job: Job, seen: int) -> list[Next] | tuple[Next, ...]:
    if others(w.mark_lock, job):
        return WAIT
    return then(w._replace(mark=0), seen)


def _look_for_the_dataset(w: World, job: Job, _: int) -> list[Next]:
    if w.row[job.dataset] and is_whole(w, job.dataset):
        return go(w, "convert", _WAS_THERE)
    return then(w)


def _claim(w: World, job: Job, seen: int) -> list[Next] | tuple[Next, ...]:
    if others(w.claims[job.dataset], job):
        return WAIT
    return then(w._replace(claims=put(w.claims, job.dataset, job.number)), seen)


def _look_for_blobs(w: World, job: Job, _: int) -> list[Next]:
    d = job.dataset
    if w.row[d] and is_whole(w, d):
        return go(w, "convert", _WAS_THERE)
    if w.blob == BAD:
        w = w._replace(blob=GOOD, tree=(w.tree[0] and GOOD, w.tree[1] and GOOD))
    return then(w, _MISSING if w.blob == ABSENT else _WAS_THERE)


def _admit(w: World, _job: Job, seen: int) -> list[Next]:
    return then(w._replace(blob=w.blob or GOOD) if seen == _MISSING else w, seen)


def _publish_manifest(w: World, job: Job, seen: int) -> list[Next]:
    return then(w._replace(manifest=put(w.manifest, job.dataset, 1)), seen)


def _publish_tree(w: World, job: Job, _: int) -> list[Next]:
    d = job.dataset
    if w.tree[d] == ABSENT and w.blob == ABSENT:
        # The link cannot be made: the attempt begins again.
        return go(w._replace(claims=put(w.claims, d, 0)), "unmark")
    return then(w._replace(tree=put(w.tree, d, GOOD)), 2)


def _write_index(w: World, job: Job, seen: int) -> list[Next]:
    if job.weak is Weak.INDEX_AFTER_CONVERSION:
        return then(w, seen)
    return then(w._replace(index=put(w.index, job.dataset, 1)), seen)


def _convert(w: World, job: Job, seen: int) -> list[Next] | tuple[Next, ...]:
    """`seen` is 2 for a dataset that this attempt has stored."""
    p, d, g = job.project, job.dataset, job.directory
    if others(w.dataset_locks[d], job) or others(w.project_locks[p], job):
        return WAIT
    if w.mode[p] != LEGACY:
        return end(w, job)
    if seen != 2 and not w.row[d] and job.weak is not Weak.CONVERTS_WITHOUT_THE_ROW:
        return go(w._replace(claims=_given_back(w, job)), "unmark")
    record = w.record
    if record[g] == PURGED and len(job.layout.projects_in(g)) == 1:
        record = put(record, g, NOT_RECLAIMED)
    split = put(w.split, p, STORED_TREE) if w.split[p] == OWN_DIRECTORY else w.split
    w = w._replace(mode=put(w.mode, p, MIGRATED), row=put(w.row, d, 1), record=record, split=split)
    if job.weak is Weak.INDEX_AFTER_CONVERSION:
        return then(w._replace(running=w.running & ~job.bit))
    return end(w, job)


def _given_back(w: World, job: Job) -> tuple[int, int]:
    d = job.dataset
    return put(w.claims, d, 0) if w.claims[d] == job.number else w.claims


def _write_index_late(w: World, job: Job, _: int) -> list[Next]:
    return end(w._replace(index=put(w.index, job.dataset, 1)), job)


def migrate(weak: Weak | None) -> Play:
    """One project's migration; it reuses a dataset that is there."""
    begin = (
        Step("lease", _lease, "worker.db.leases.take_lease"),
        Step("read", _read, "worker.jobs.read_once.read_once"),
    )
    unmark = (Step("unmark", _unmark, "worker.db.garbage.unmark"),)
    look = (
        Step("look", _look_for_the_dataset, "worker.jobs.dataset_place.find_stored"),
        Step("claim", _claim, "worker.db.claims.hold"),
        Step("missing", _look_for_blobs, "worker.legacy.ingest.missing_from"),
    )
    store = (
        Step("admit", _admit, "worker.store.store.Store.admit"),
        Step("manifest", _publish_manifest, "worker.store.store.Store.publish"),
        Step("tree", _publish_tree, "worker.store.store.Store.publish"),
        Step("index", _write_index, "worker.jobs.indexing.index"),
        Step("convert", _convert, "worker.conversion.convert.convert"),
    )
    if weak is Weak.LOOKS_BEFORE_THE_MARK_IS_DELETED:
        return Play("migrate", (*begin, *look, *unmark, *store))
    if weak is Weak.INDEX_AFTER_CONVERSION:
        store = (*store, Step("index, late", _write_index_late))
    return Play("migrate", (*begin, *unmark, *look, *store))


# Verify and repair ------------------------------------------------------------------------------------------


def _find_dataset(w: World, job: Job, _: int) -> list[Next]:
    return then(w) if w.row[job.dataset] else end(w, job)


def _is_there(w: World, d: int) -> bool:
    return bool(w.tree[d] and w.manifest[d] and w.blob)


def _read_stored(w: World, job: Job, _: int) -> list[Next]:
    return end(w, job) if _is_there(w, job.dataset) else then(w)


def _name_damage(w: World, job: Job, _: int) -> list[Next] | tuple[Next, ...]:
    d = job.dataset
    if others(w.dataset_locks[d], job):
        return WAIT
    looks_again = job.weak is not Weak.VERIFIES_ONE_LOOK
    if w.row[d] and not (looks_again and _is_there(w, d)):
        w = w._replace(wrong=FALSE_DAMAGE)
    return end(w, job)


def verify(_weak: Weak | None) -> Play:
    """One dataset is read."""
    return Play(
        "verify",
        (
            Step("row", _find_dataset, "worker.jobs.verify_store._row"),
            Step("read", _read_stored, "worker.jobs.dataset_check.DatasetCheck.check_tree"),
            Step("name damage", _name_damage, "worker.jobs.verify_store._Dataset._confirmed"),
        ),
    )


def _find_bad(w: World, job: Job, _: int) -> list[Next]:
    return then(w) if w.row[job.dataset] and not is_whole(w, job.dataset) else end(w, job)


def _claim_mending(w: World, job: Job, _: int) -> list[Next] | tuple[Next, ...]:
    return WAIT if others(w.mending, job) else then(w._replace(mending=job.number))


def _stage_good_bytes(w: World, job: Job, _: int) -> list[Next]:
    """From a legacy directory, wherever it is now."""
    good = any(
        job.layout.dataset_of[p] == job.dataset
        and ((w.here[g] and w.edited[g] != 1) or (w.away[g] == WHOLE and w.edited[g] != 2))
        for p in (0, 1)
        for g in (job.layout.directory_of[p],)
    )
    return then(w) if good or GOOD in w.tree else end(w, job)


def _mend_trees(w: World, _job: Job, _: int) -> list[Next]:
    return then(w._replace(tree=(w.tree[0] and GOOD, w.tree[1] and GOOD)))


def _mend_blob(w: World, job: Job, _: int) -> list[Next]:
    return end(w._replace(blob=GOOD), job)


REPAIR = Play(
    "repair",
    (
        Step("find", _find_bad, "worker.jobs.dataset_check.DatasetCheck.check_blobs"),
        Step("claim", _claim_mending, "worker.db.claims.hold"),
        Step("find again", _find_bad, "worker.jobs.dataset_repair._repair_blobs"),
        Step("stage", _stage_good_bytes, "worker.jobs.good_bytes.in_legacy_directories"),
        Step("trees", _mend_trees, "worker.store.store.Store.replace_in_tree"),
        Step("blob", _mend_blob, "worker.store.store.Store.replace_blob"),
    ),
)


# Roll back --------------------------------------------------------------------------------------------------


_GONE, _KNOWN = 1, 2
"""What a rollback saw under the claim: no directory; a purge that had begun."""

_BLIND = (Weak.REVERTS_WHILE_RECLAIMED, Weak.OVERLOOKS_A_PURGE)


def _find_conversion(w: World, job: Job, _: int) -> list[Next]:
    """An attempt that died may have left the directory half moved back, whatever the project is by now."""
    is_half_back = w.record[job.directory] == UNDOING
    return then(w) if w.mode[job.project] == MIGRATED or is_half_back else end(w, job)


def _claim_reclaiming(w: World, job: Job, seen: int) -> list[Next] | tuple[Next, ...]:
    return WAIT if others(w.reclaiming, job) else then(w._replace(reclaiming=job.number), seen)


def _look_where_it_is(w: World, job: Job, _: int) -> list[Next]:
    g = job.directory
    if w.record[g] in ACTIVE:
        return then(w._replace(record=put(w.record, g, UNDOING)))
    known = _KNOWN if w.record[g] in (PURGING, PURGED) else 0
    return go(w._replace(reclaiming=0), "rebuild", known | (0 if w.here[g] else _GONE))


def move_back(w: World, job: Job, seen: int) -> list[Next]:
    """Rename the directory to its legacy path, if it is away and the place is free."""
    return then(moved_back(w, job.directory), seen)


def moved_back(w: World, g: int) -> World:
    """The directory at its legacy path."""
    if not w.away[g] or w.here[g]:
        return w
    edited = 1 if w.edited[g] == 2 else w.edited[g]
    return w._replace(here=put(w.here, g, 1), away=put(w.away, g, 0), edited=put(w.edited, g, edited))


def _say_undone(w: World, job: Job, _: int) -> list[Next]:
    return then(w._replace(record=put(w.record, job.directory, NOT_RECLAIMED), reclaiming=0))


def _looked(w: World, job: Job, _: int) -> list[Next]:
    return then(w, 0 if w.here[job.directory] else _GONE)


def _rebuild(w: World, job: Job, seen: int) -> list[Next]:
    g, d = job.directory, job.dataset
    if w.mode[job.project] != MIGRATED:
        return end(w, job)
    if seen & _GONE and not w.here[g]:
        if w.tree[d] != GOOD:
            return end(w, job)
        return then(w._replace(here=put(w.here, g, 1)), seen)
    return then(w, seen)


def _compare(w: World, job: Job, seen: int) -> list[Next]:
    g = job.directory
    if not w.here[g]:
        return go(w, "claim")
    return then(w, seen) if w.edited[g] != 1 else end(w, job)


def _revert(w: World, job: Job, seen: int) -> list[Next] | tuple[Next, ...]:
    p, d, g = job.project, job.dataset, job.directory
    if others(w.dataset_locks[d], job) or others(w.project_locks[p], job):
        return WAIT
    if w.mode[p] != MIGRATED:
        return end(w, job)
    is_new_to_me = w.record[g] in (PURGING, PURGED) and not seen & _KNOWN and job.weak not in _BLIND
    if is_new_to_me or (w.record[g] in ACTIVE and job.weak is not Weak.REVERTS_WHILE_RECLAIMED):
        return go(w, "claim")
    split = put(w.split, p, OWN_DIRECTORY) if w.split[p] == STORED_TREE else w.split
    return end(w._replace(mode=put(w.mode, p, LEGACY), split=split), job)


def rollback(weak: Weak | None) -> Play:
    """One project's rollback, with --restore-files."""
    find = Step("conversion", _find_conversion, "worker.jobs.rollback.conversion_of")
    back = (
        Step("claim", _claim_reclaiming, "worker.db.claims.hold"),
        Step("where", _look_where_it_is, "worker.jobs.moved_directory.bring_home"),
        Step("rename", move_back, "worker.legacy.moved_away.move_back"),
        Step("undone", _say_undone, "worker.jobs.moved_directory.take_back"),
    )
    rest = (
        Step("rebuild", _rebuild, "worker.legacy.restore.restore_tree"),
        Step("compare", _compare, "worker.jobs.rollback.compare"),
        Step("revert", _revert, "worker.conversion.revert.revert"),
    )
    if weak is Weak.REBUILDS_WITHOUT_CLAIM:
        look = Step(
            "claim", lambda w, job, _: go(w, "gone?") if w.record[job.directory] not in ACTIVE else then(w)
        )
        return Play(
            "rollback",
            (find, look, *(Step("claim 2", *back[0][1:]), *back[1:]), Step("gone?", _looked), *rest),
        )
    return Play("rollback", (find, *back, *rest))
