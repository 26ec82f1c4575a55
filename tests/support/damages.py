"""Every kind of damage that a store can take, and a store to take it: two datasets with one recording."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.estate import snapshot_tree
from tests.support.runs import migrate_all
from tests.support.sites import Site
from tests.support.studies import check_store, plain_study
from worker.db import garbage
from worker.jobs.tools import Tools
from worker.messages import Outcome
from worker.store.garbage import Entry, Garbage


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """Two stored datasets of two sessions each; both have the recording of `day 2`."""

    site: Site
    first: Outcome
    second: Outcome
    content: bytes
    before: tuple[dict[bytes, object], ...]

    @property
    def trees(self) -> tuple[Path, Path]:
        return Path(str(self.first.dataset_path)), Path(str(self.second.dataset_path))

    @property
    def shared(self) -> tuple[Path, Path]:
        """The shared recording in both trees."""
        first, second = (tree / "day 2" / "accelerometer_data.csv" for tree in self.trees)
        return first, second

    @property
    def blob(self) -> Path:
        """The shared recording's blob, wherever its links are."""
        from worker.store.digest import digest_of

        digest = digest_of("blake3", self.content)
        return self.site.settings.store_dir / "blobs" / digest[:2] / digest

    @property
    def manifest(self) -> Path:
        """The first dataset's manifest."""
        return self.site.settings.store_dir / "manifests" / f"{self.first.dataset_hash}.json"

    def check_whole(self, *, may_leave_staging: bool = False) -> None:
        """Every tree is what it was, the shared recording is one file again, and nothing is in staging."""
        for tree, before in zip(self.trees, self.before, strict=True):
            assert contents(tree) == before
        assert len({path.stat().st_ino for path in (*self.shared, self.blob)}) == 1
        check_store(self.site)
        assert may_leave_staging or os.listdir(self.site.settings.store_dir / "staging") == []


def twins(site: Site, tools: Tools) -> Twins:
    """Make and migrate them."""
    plain_study(site, "first", 1, 2)
    plain_study(site, "second", 2, 3)
    first, second = migrate_all(site, tools)
    trees = [Path(str(one.dataset_path)) for one in (first, second)]
    return Twins(
        site=site,
        first=first,
        second=second,
        content=(trees[0] / "day 2" / "accelerometer_data.csv").read_bytes(),
        before=tuple(contents(tree) for tree in trees),
    )


def begun_entry(tools: Tools, one: Outcome) -> Entry:
    """What a gc leaves that died, two days ago, when it had removed a dataset's rows."""
    entry = Entry(
        entry_id="begun",
        kind="dataset",
        name="begun",
        reason="nothing refers to it",
        quarantined_at=datetime.now(UTC) - timedelta(days=2),
        dataset_id=one.dataset_id,
        dataset_hash=one.dataset_hash,
        tree=one.dataset_path,
    )
    with tools.engine.begin() as conn:
        entry = replace(entry, rows=garbage.take_rows(conn, str(one.dataset_hash), 0))
        Garbage(tools.open_store(create=False)).describe(entry)
    return entry


def spare_tree(one: Outcome) -> Path:
    """What a job leaves that stored a dataset under another name and died before its conversion."""
    tree = Path(str(one.dataset_path))
    spare = tree.with_name(f"other_name-{tree.name.rpartition('-')[2]}")
    shutil.copytree(tree, spare, copy_function=os.link)
    return spare


def contents(tree: Path) -> dict[bytes, object]:
    """Every entry of a tree with its mode and its bytes."""
    return {name: (one.kind, one.mode, one.content) for name, one in snapshot_tree(tree).items()}


def open_for_writing(folder: Path) -> None:
    """What a careless person does first."""
    folder.chmod(0o755)


def flip(path: Path, offset: int = 7, bit: int = 0) -> None:
    """Another bit in the same file, its times as they were."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    """The end is missing."""
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 10)
    path.chmod(0o444)


def separate(path: Path) -> Path:
    """Let a tree's file be a copy, as where links are refused."""
    open_for_writing(path.parent)
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.rename(path)
    path.parent.chmod(0o555)
    return path


def _without(path: Path) -> None:
    open_for_writing(path.parent)
    path.unlink()
    path.parent.chmod(0o555)


def _empty_directory(path: Path) -> None:
    for folder in (path.parent, path):
        open_for_writing(folder)
    shutil.rmtree(path)
    path.parent.chmod(0o555)


def _without_tree(store: Twins) -> None:
    for folder, _, _ in os.walk(store.trees[0]):
        os.chmod(folder, 0o755)
    shutil.rmtree(store.trees[0])


def _one_more(path: Path) -> None:
    open_for_writing(path.parent)
    path.write_text("a note that someone left here")
    path.parent.chmod(0o555)


def _a_directory_instead(path: Path) -> None:
    open_for_writing(path.parent)
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("inside")
    path.parent.chmod(0o555)


def _a_link_instead(path: Path) -> None:
    open_for_writing(path.parent)
    path.unlink()
    path.symlink_to("/etc/hostname")
    path.parent.chmod(0o555)


def _gone_everywhere(store: Twins) -> None:
    inode = store.blob.stat().st_ino
    for path in (*store.shared, store.blob):
        if path.stat().st_ino == inode:
            _without(path) if path != store.blob else path.unlink()


NEEDS_BYTES: dict[str, Callable[[Twins], None]] = {
    "flipped blob": lambda store: flip(store.blob),
    "cut blob": lambda store: cut(store.blob),
    "emptied blob": lambda store: (store.blob.chmod(0o644), os.truncate(store.blob, 0), None)[-1],
    "gone everywhere": _gone_everywhere,
    "blob and manifest": lambda store: (flip(store.blob), flip(store.manifest, 200), None)[-1],
}
"""Damage that only bytes from elsewhere heal."""

HAS_BYTES: dict[str, Callable[[Twins], None]] = {
    "blob without its name": lambda store: store.blob.unlink(),
    "flipped copy": lambda store: flip(separate(store.shared[0])),
    "cut copy": lambda store: cut(separate(store.shared[0])),
    "missing file": lambda store: _without(store.shared[0]),
    "missing directory": lambda store: _empty_directory(store.shared[0].parent),
    "missing tree": _without_tree,
    "one file more": lambda store: _one_more(store.shared[0].with_name("note.txt")),
    "a directory instead": lambda store: _a_directory_instead(store.shared[0]),
    "a link instead": lambda store: _a_link_instead(store.shared[0]),
    "flipped manifest": lambda store: flip(store.manifest, 100),
    "missing manifest": lambda store: store.manifest.unlink(),
    "manifest and copy": lambda store: (flip(store.manifest, 100), flip(separate(store.shared[0])), None)[-1],
}
"""Damage that the store heals by itself."""
