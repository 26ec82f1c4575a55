"""What rows and store say differently: each kind with its next step. Finds nothing by itself."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """In one word, for scripts."""

    ROW_WITHOUT_TREE = "row_without_tree"
    ROW_WITHOUT_MANIFEST = "row_without_manifest"
    TREE_WITHOUT_ROW = "tree_without_row"
    MANIFEST_WITHOUT_TREE = "manifest_without_tree"
    MANIFEST_DIFFERS = "manifest_differs"
    """Its bytes do not have the digest that is its name."""
    TREE_DIFFERS = "tree_differs"
    OTHER_HASH = "other_hash"
    """A row with another hash has the tree."""
    NOT_ADOPTED = "not_adopted"
    """The row of the tree is as Label registered it, and the tree is ours."""
    LABELS_DIFFER = "labels_differ"
    BLOBS_MISSING = "blobs_missing"
    ROW_FILE_UNREADABLE = "row_file_unreadable"
    ROW_FILE_DIFFERS = "row_file_differs"
    REFUSED = "refused"
    """The database took no row."""


_AGAIN = "then call this again"
_REMEDIES = {
    Kind.ROW_WITHOUT_TREE: "Bring the tree back: producer gc --restore, a backup, or producer verify --store --repair",
    Kind.ROW_WITHOUT_MANIFEST: "Make the manifest again: producer verify --store --repair",
    Kind.TREE_WITHOUT_ROW: "If it is Label's own, let Label scan and register it; if it is not known in the lab, look into it and remove it",
    Kind.MANIFEST_WITHOUT_TREE: (
        f"Take the tree from a backup, {_AGAIN}; or migrate a project with that content. Otherwise a gc takes the manifest"
    ),
    Kind.MANIFEST_DIFFERS: f"Take the manifest from a backup, {_AGAIN}",
    Kind.TREE_DIFFERS: f"Take the tree from a backup, {_AGAIN}; or migrate a project with that content",
    Kind.OTHER_HASH: (
        "If nothing refers to that dataset (producer datasets show), remove its row by SQL, never in Label, which would remove "
        f"the tree; {_AGAIN}"
    ),
    Kind.NOT_ADOPTED: (
        "It reads as before. To have it adopted again, let a plain copy take the directory's place "
        "(cp --recursive --no-preserve=mode), then: producer datasets adopt"
    ),
    Kind.LABELS_DIFFER: f"Take the file from a backup, {_AGAIN}; or migrate a project with that content",
    Kind.BLOBS_MISSING: "Make them again from the tree: producer verify --store --repair",
    Kind.ROW_FILE_UNREADABLE: (
        f"Take it from a backup, {_AGAIN}. Or move it away: it is written anew from the row, and where there is none the row "
        "is made of manifest and tree, with a new id"
    ),
    Kind.ROW_FILE_DIFFERS: f"If the row is right, move the file away, {_AGAIN}: it is written anew from the row",
    Kind.REFUSED: f"Settle what PostgreSQL names, {_AGAIN}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One thing that is not settled: where it is, and what is wrong."""

    kind: Kind
    path: str
    reason: str
    dataset_hash: str | None = None
    dataset_id: int | None = None

    @property
    def remedy(self) -> str:
        """The next step."""
        return _REMEDIES[self.kind]
