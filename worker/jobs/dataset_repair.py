"""Repairs what a dataset's verification found: what does not belong goes, what is missing comes, blobs and
copies get good bytes, last the manifest. Knows no outcome.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from uuid import UUID

from worker.db import verifications
from worker.jobs.attempt import Attempt
from worker.jobs.dataset_check import Bad
from worker.jobs.good_bytes import (
    Backup,
    Find,
    first_of,
    in_backup,
    in_legacy_directories,
    in_trees,
    is_allowed,
)
from worker.jobs.judging import is_right
from worker.jobs.manifest_again import rebuild
from worker.jobs.repair import (
    CLAIM,
    Needs,
    Tree,
    inode_at,
    is_open,
    manifest_or_none,
    replace_blobs,
    replace_copies,
    story,
)
from worker.runtime import log
from worker.store.digest import printable
from worker.store.inspection import Fault, What, inspect, is_folder
from worker.store.manifest import Manifest

_log = log.get(__name__)

MEANWHILE = "another job"
"""Where the good bytes came from that were there when this job's turn came."""

Origins = dict[str, str]
"""Where the good bytes of repaired things came from, by their paths."""


def repair_tree(attempt: Attempt, bad: Sequence[Bad], tree: Tree, manifest: Manifest) -> Origins:
    """Repair blobs, copies and entries of a dataset; what could not be repaired is absent from the result.

    Claims the dataset, then the right to replace files, as a migration does: of two jobs that found the same
    bad blob, the second finds it repaired. Dying anywhere: each file is the bad one or a good one, and the
    next attempt finds what is still bad.
    """
    with (
        attempt.claim([tree.dataset_hash], f"dataset {tree.dataset_hash[:12]}") as claim,
        attempt.claim([CLAIM], CLAIM),
        attempt.store.staging(f"{attempt.name}-mend") as staging,
    ):
        attempt.heartbeat.enter("repair", tree.dataset_hash)
        origins = _tidy(attempt, tree, manifest)
        origins |= _repair_blobs(attempt, bad, tree, manifest, staging)
        if is_folder(os.fspath(tree.path), ""):
            origins |= _repair_files(attempt, bad, tree, manifest, staging)
        elif _has_all_blobs(attempt, manifest):
            attempt.store.build_tree(manifest, f"{staging}/tree", attempt.pace)
            attempt.store.publish(manifest, f"{staging}/tree", tree.path, staging, claim.ping)
            origins[os.fspath(tree.path)] = "the store's blobs"
        attempt.store.sync()
    return origins


def repair_blobs(attempt: Attempt, bad: Sequence[Bad], tree: Tree) -> Origins:
    """Repair blobs of a dataset whose manifest is damaged. Claims as `repair_tree`."""
    with attempt.claim([CLAIM], CLAIM), attempt.store.staging(f"{attempt.name}-mend") as staging:
        attempt.heartbeat.enter("repair", tree.dataset_hash)
        return _repair_blobs(attempt, bad, tree, None, staging)


def repair_manifest(attempt: Attempt, tree: Tree) -> Manifest | None:
    """Make a damaged manifest again; None where that cannot be done. Claims as `repair_tree`."""
    with (
        attempt.claim([tree.dataset_hash], f"dataset {tree.dataset_hash[:12]}"),
        attempt.claim([CLAIM], CLAIM),
        attempt.store.staging(f"{attempt.name}-manifest") as staging,
    ):
        attempt.heartbeat.enter("repair", tree.dataset_hash)
        # Another job may have made it meanwhile.
        return manifest_or_none(attempt, tree.dataset_hash) or rebuild(attempt, tree, staging)


def close_tree(attempt: Attempt, tree: Tree, manifest: Manifest) -> None:
    """Close directories that a repair left open for writing when it was cut off. Claims as `repair_tree`, but
    only where there are any: whoever replaces a file opens its directory for a moment.
    """
    folders = [os.fspath(tree.path), *(f"{tree.path}/{one.path}" for one in manifest.directories)]
    if not any(is_open(attempt, folder) for folder in folders):
        return
    with (
        attempt.claim([tree.dataset_hash], f"dataset {tree.dataset_hash[:12]}"),
        attempt.claim([CLAIM], CLAIM),
    ):
        for folder in folders:
            if is_open(attempt, folder):
                attempt.store.close_directory(folder)


def _tidy(attempt: Attempt, tree: Tree, manifest: Manifest) -> Origins:
    """Move away what does not belong into the tree, and make the directories that it lacks."""
    origins: Origins = {}
    # A directory that is made is empty, so that its own directories are missing at the next look.
    while made := _tidied(attempt, tree, manifest):
        origins |= made
    return origins


def _tidied(attempt: Attempt, tree: Tree, manifest: Manifest) -> list[tuple[str, str]]:
    done = []
    faults = [
        one
        for one in inspect(manifest, os.fspath(tree.path), attempt.pace)
        if isinstance(one, Fault) and one.path
    ]
    # What has the name of a directory has to go before that can come.
    for fault in sorted(faults, key=lambda one: one.what is not What.UNEXPECTED_ENTRY):
        path = f"{tree.path}/{fault.path}"
        if fault.what is What.UNEXPECTED_ENTRY:
            _log.warning("unexpected_entry", path=printable(path))
            attempt.store.remove_from_tree(path, story(attempt))
            done.append((path, "the manifest"))
        elif fault.file is None:
            attempt.store.make_directory_in_tree(path)
            done.append((path, "the manifest"))
    return done


def _repair_blobs(
    attempt: Attempt, bad: Sequence[Bad], tree: Tree, manifest: Manifest | None, staging: str
) -> Origins:
    """Bad blobs, and those whose bytes only a copy in a tree may have."""
    sizes = {one.digest: one.size_bytes for one in bad if one.digest is not None}
    wrong = {
        digest: size
        for digest, size in sizes.items()
        if not is_right(attempt, attempt.store.blob_path(digest), digest)
    }
    named = [one for one in bad if one.is_blob and one.digest is not None]
    origins = {one.path: MEANWHILE for one in named if one.digest not in wrong}
    if not wrong:
        return origins
    needs = Needs(attempt, wrong, tree, manifest)
    found = replace_blobs(attempt, wrong, needs, _sources(attempt, needs), staging)
    origins |= {attempt.store.blob_path(digest): origin for digest, origin in found.items()}
    return origins


def _repair_files(
    attempt: Attempt, bad: Sequence[Bad], tree: Tree, manifest: Manifest, staging: str
) -> Origins:
    """Files of the tree that are bad or missing, be it because their directory was."""
    digests = {one.digest for one in bad if one.below is not None}
    wanted = {file.path: file.digest for file in manifest.files if file.digest in digests}
    for one in inspect(manifest, os.fspath(tree.path), attempt.pace):
        if isinstance(one, Fault) and one.file is not None:
            wanted[one.path] = one.file.digest
    found = replace_copies(attempt, wanted, tree, staging)
    return {f"{tree.path}/{path}": origin for path, origin in found.items()}


def _has_all_blobs(attempt: Attempt, manifest: Manifest) -> bool:
    """Are all blobs there, and right? Only such may be linked."""
    sizes = {file.digest: file.size_bytes for file in manifest.files}
    return all(is_right(attempt, attempt.store.blob_path(digest), digest) for digest in sizes)


def _sources(attempt: Attempt, needs: Needs) -> Find:
    """Where good bytes are looked for: trees, legacy directories, what the operator named."""
    hashes = {user.dataset_hash for users in needs.users.values() for user in users}
    with attempt.engine.connect() as conn:
        directories = verifications.legacy_directories(conn, hashes)
    in_legacy: dict[str, list[str]] = {}
    for digest in needs.users:
        for tree, path in needs.places(digest):
            in_legacy.setdefault(digest, []).extend(
                f"{folder.rstrip('/')}/{path}" for folder in directories.get(tree.dataset_hash, ())
            )
    unlisted = [
        folder
        for tree in needs.without_manifest
        for folder in directories.get(tree.dataset_hash, ())
        if is_allowed(folder, os.path.realpath(folder), attempt.tools.roots)
    ]
    return first_of(
        [
            in_trees(attempt, needs.paths(), _inode_of_blob(attempt)),
            in_legacy_directories(attempt, in_legacy),
            *(in_backup(attempt, one) for one in _backups(attempt.run_id, tuple(unlisted))),
            *(in_backup(attempt, one) for one in _backups(attempt.run_id, attempt.lease.options.repair_from)),
        ]
    )


def _inode_of_blob(attempt: Attempt) -> Callable[[str], int | None]:
    return lambda digest: inode_at(attempt.store.blob_path(digest))


@lru_cache(maxsize=2)
def _backups(run_id: UUID, folders: tuple[str, ...]) -> tuple[Backup, ...]:
    """Listed and read once a process and run, however many datasets need something."""
    del run_id
    return tuple(Backup(folder) for folder in folders)
