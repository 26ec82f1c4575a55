"""Names damage for people: which datasets have it, which projects refer to these, which sessions read it.
Changes nothing.
"""

from collections.abc import Sequence

from worker.db import verifications
from worker.jobs.attempt import Attempt
from worker.jobs.dataset_check import Bad
from worker.jobs.repair import Needs, Tree, inode_at
from worker.messages import Damage
from worker.store.digest import printable
from worker.store.manifest import Manifest


def name_damage(attempt: Attempt, bad: Sequence[Bad], tree: Tree, manifest: Manifest | None) -> list[Damage]:
    """Each bad thing with who is concerned by it, before it is repaired.

    A blob concerns every dataset that needs it, a copy those whose trees have that file, all else this
    dataset alone.
    """
    needs = Needs(attempt, {one.digest for one in bad if one.digest is not None}, tree, manifest)
    named = []
    for one in bad:
        sessions = _sessions(one, tree, needs)
        if one.below == "" and manifest is not None:
            sessions = {number: set(manifest.session_names) for number in sessions}
        with attempt.engine.connect() as conn:
            project_ids, session_names = verifications.readers_of(conn, sessions)
        named.append(
            Damage(
                path=printable(one.path),
                what=one.what.value,
                digest=one.digest,
                dataset_ids=tuple(sorted(sessions)),
                project_ids=tuple(project_ids),
                sessions=tuple(session_names),
            )
        )
    return named


def _sessions(one: Bad, tree: Tree, needs: Needs) -> dict[int, set[str]]:
    """The datasets that a bad thing concerns, and of each the raw sessions that have it."""
    assert tree.dataset_id is not None  # noqa: S101 - for the type checker: a dataset's job has its row
    found: dict[int, set[str]] = {tree.dataset_id: set()}
    if one.below is not None:
        found[tree.dataset_id].add(one.below.partition("/")[0])
    if one.digest is None or (one.below is not None and one.inode is None):
        return found
    for user in needs.users.get(one.digest, ()):
        if one.is_blob and user.dataset_id is not None:
            found.setdefault(user.dataset_id, set())
    for other, path in needs.places(one.digest):
        shared = one.is_blob or inode_at(f"{other.path}/{path}") == one.inode
        if shared and other.dataset_id is not None:
            found.setdefault(other.dataset_id, set()).add(path.partition("/")[0])
    return found
