"""A dataset goes to another lab as a bag, and is there what it was here; what is no such bag is refused."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bagit
import pytest
from sqlalchemy import text

from producer.datasets import bags, listed, whereis
from producer.datasets.listed import Asked
from tests.estate import every_form, make_dataset, make_project, record_session, snapshot_tree
from tests.support.disks import small_disk
from tests.support.registered import register
from tests.support.runs import gc, migrate_all, run, run_one, tools_of, verify_datasets
from tests.support.sites import Site
from tests.support.studies import check_store, damage, plain_study, staged
from worker.errors import (
    BagNotWrittenError,
    BagRefusedError,
    NoRoomForImportError,
    StoredBytesMismatchError,
    UsageError,
)
from worker.jobs.export_dataset import Exported
from worker.jobs.import_dataset import Imported
from worker.messages import Outcome, Status, Subject, Verb
from worker.store import row_file
from worker.store.manifest import Manifest

ODD_NAMES = ("line\nfeed", "carriage\rreturn", " before", "café", "a*b", "#c", "~d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labs:
    """Two labs: the first has stored a study, the second nothing."""

    here: Site
    there: Site
    study: Outcome
    bag: Path

    @property
    def tree(self) -> Path:
        return Path(str(self.study.dataset_path))


def exported(site: Site, dataset_id: int | None, bag: Path) -> Exported:
    return bags.export(site.settings, site.engine, dataset_id or 0, str(bag), lambda _words: None)


def taken_in(site: Site, bag: Path) -> Imported:
    return bags.take_in(site.settings, site.engine, str(bag), lambda _words: None)


def study_with_odd_names(site: Site, name: str, *names: str) -> None:
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        for seed in (1, 2):
            record_session(conn, project, f"day {seed}", rows=40, seed=seed)
    assert project.directory is not None
    for one in names:
        (project.directory / "day 1" / one).write_bytes(os.fsencode(f"in {one}"))
    (project.directory / "day 2" / "labels.json").write_bytes(b'[{"start": 1,\r\n"end": 2}]')
    (project.directory / "day 2" / "empty" / "deeper").mkdir(parents=True)
    (project.directory / "at the top").touch()


@pytest.fixture(scope="module")
def labs(make_site: Callable[[], AbstractContextManager[Site]], tmp_path_factory: Any) -> Iterator[Labs]:
    with make_site() as here, make_site() as there:
        study_with_odd_names(here, "Study of everything", *ODD_NAMES)
        with tools_of(here) as tools:
            (study,) = migrate_all(here, tools)
        bag = tmp_path_factory.mktemp("disk") / "bag"
        exported(here, study.dataset_id, bag)
        yield Labs(here=here, there=there, study=study, bag=bag)


@pytest.fixture
def there(labs: Labs) -> Site:
    """The second lab, emptied."""
    labs.there.empty()
    return labs.there


@pytest.fixture
def copy(labs: Labs, tmp_path: Path) -> Path:
    """A copy of the bag to do with as one likes."""
    return Path(shutil.copytree(labs.bag, tmp_path / "copy"))


def contents(tree: Path) -> dict[bytes, object]:
    return {name: (entry.kind, entry.content) for name, entry in snapshot_tree(tree).items()}


def session_rows(site: Site, dataset_id: int) -> list[tuple[Any, ...]]:
    with site.engine.connect() as conn:
        rows = conn.execute(
            text(
                "select session_name, file_count, original_labels_json from raw_dataset_sessions"
                " where dataset_id = :id order by session_name"
            ),
            {"id": dataset_id},
        )
        return [tuple(row) for row in rows]


def everything(site: Site) -> tuple[list[str], dict[str, int]]:
    """All files of the store and its trees, and how many rows the tables have that an import writes."""
    files = sorted(
        str(path)
        for folder in ("raw_datasets", "dataset_store")
        for path in (site.data_dir / folder).rglob("*")
    )
    tables = ("raw_datasets", "raw_dataset_sessions", "migration_indexed_datasets", "migration_dataset_blobs")
    with site.engine.connect() as conn:
        rows = {
            name: conn.scalar(text(f"select count(*) from {name}")) or 0
            for name in (*tables, "migration_store")
        }
    return files, rows


# There and back ---------------------------------------------------------------------------------------------


def test_a_dataset_is_the_same_in_another_lab(labs: Labs, there: Site):
    found = taken_in(there, labs.bag)

    assert found.is_new
    assert found.dataset.dataset_hash == labs.study.dataset_hash
    assert found.dataset.dataset_name == "Study of everything"
    assert contents(Path(found.dataset.file_path)) == contents(labs.tree)
    assert {(one.kind, one.mode) for one in snapshot_tree(Path(found.dataset.file_path)).values()} <= {
        ("directory", 0o555),
        ("file", 0o444),
    }
    assert session_rows(there, found.dataset.dataset_id) == session_rows(
        labs.here, labs.study.dataset_id or 0
    )
    check_store(there)
    assert staged(there) == []


def test_an_imported_dataset_is_one_of_this_program_and_may_be_verified(labs: Labs, there: Site):
    number = taken_in(there, labs.bag).dataset.dataset_id

    (one,) = listed.find(there.engine, Asked(unreferenced=True)).found
    assert (one.entry.dataset_id, one.is_ours) == (number, True)
    assert whereis.find(there.engine, there.settings, labs.study.dataset_hash or "").dataset is not None
    with tools_of(there) as tools:
        (checked,) = verify_datasets(tools)
    assert checked.status is Status.VERIFIED


def test_a_gc_takes_an_imported_dataset_at_the_usual_age_and_brings_it_back(labs: Labs, there: Site):
    number = taken_in(there, labs.bag).dataset.dataset_id

    with tools_of(there) as tools:
        assert gc(tools, grace_hours=24).garbage == ()
        (taken,) = gc(tools, grace_hours=0).garbage
        assert taken.dataset_id == number
        gc(tools, restore_entry=taken.entry_id)
        (checked,) = verify_datasets(tools, only=[number])
    assert checked.status is Status.VERIFIED


def test_a_migration_of_equal_content_reuses_an_imported_dataset(labs: Labs, there: Site):
    number = taken_in(there, labs.bag).dataset.dataset_id

    study_with_odd_names(there, "again", *ODD_NAMES)
    with tools_of(there) as tools:
        (outcome,) = migrate_all(there, tools)
        assert (outcome.dataset_id, outcome.dataset_created) == (number, False)
        assert outcome.bytes.stored == 0
        assert run_one(tools, Verb.ROLLBACK, outcome.project_id or 0).status is Status.ROLLED_BACK


def test_a_dataset_that_is_here_already_is_named_and_not_read(labs: Labs, there: Site, copy: Path):
    first = taken_in(there, labs.bag)
    before = everything(there)
    damage(copy / "data" / "tree" / "day 1" / "accelerometer_data.csv")

    second = taken_in(there, copy)

    assert (second.is_new, second.dataset.dataset_id) == (False, first.dataset.dataset_id)
    assert everything(there) == before


def test_what_the_store_has_already_is_not_stored_again(labs: Labs, there: Site):
    plain_study(there, "other", 1, rows=40)
    with tools_of(there) as tools:
        migrate_all(there, tools)

    found = taken_in(there, labs.bag)

    shared = labs.tree / "day 1" / "accelerometer_data.csv"
    assert found.bytes.reused >= shared.stat().st_size
    check_store(there)


def test_a_bad_blob_that_the_store_has_is_replaced_from_the_bag(labs: Labs, there: Site):
    plain_study(there, "other", 1, rows=40)
    with tools_of(there) as tools:
        (other,) = migrate_all(there, tools)
    damage(Path(str(other.dataset_path)) / "day 1" / "accelerometer_data.csv")

    found = taken_in(there, labs.bag)

    check_store(there)
    assert contents(Path(found.dataset.file_path)) == contents(labs.tree)
    with tools_of(there) as tools:
        assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


def test_a_store_with_other_digests_takes_a_bag_in_by_its_own(
    labs: Labs, make_site: Callable[[], AbstractContextManager[Site]]
):
    with make_site() as site:
        settings = site.settings.model_copy(update={"store_digest": "sha256"})
        found = bags.take_in(settings, site.engine, str(labs.bag), lambda _words: None)

        assert found.dataset.dataset_hash != labs.study.dataset_hash
        assert contents(Path(found.dataset.file_path)) == contents(labs.tree)


def test_empty_directories_that_were_lost_on_the_way_come_back(labs: Labs, there: Site, copy: Path):
    (copy / "data" / "tree" / "day 2" / "empty" / "deeper").rmdir()
    (copy / "data" / "tree" / "day 2" / "empty").rmdir()

    assert contents(Path(taken_in(there, copy).dataset.file_path)) == contents(labs.tree)


def test_what_label_registered_travels_once_it_was_adopted(labs: Labs, there: Site, tmp_path: Path):
    walk = register(labs.here, "walk", 1, 2)
    content = contents(walk.tree)
    with pytest.raises(BagNotWrittenError, match=f"producer datasets adopt {walk.dataset_id}"):
        exported(labs.here, walk.dataset_id, tmp_path / "bag")
    with tools_of(labs.here) as tools:
        run(tools, Verb.ADOPT, only=[walk.dataset_id], subject=Subject.DATASET)

    exported(labs.here, walk.dataset_id, tmp_path / "bag")

    assert bagit.Bag(str(tmp_path / "bag")).info["Label-Hash"]
    assert contents(Path(taken_in(there, tmp_path / "bag").dataset.file_path)) == content
    with tools_of(there) as tools:
        assert [one.status for one in verify_datasets(tools)] == [Status.VERIFIED]


def test_every_dataset_that_label_leaves_behind_is_the_same_elsewhere(
    make_site: Callable[[], AbstractContextManager[Site]], tmp_path: Path
):
    """But for those with names that no bag can hold; those are refused."""
    refused = 0
    with make_site() as here, make_site() as there:
        with here.engine.begin() as conn:
            every_form(conn, here.legacy_root, data_dir=here.data_dir, outside=here.folder / "outside")
        with tools_of(here) as tools:
            stored = {one.dataset_id: one for one in run(tools, Verb.MIGRATE).values() if one.dataset_id}
        for number, one in stored.items():
            bag = tmp_path / str(number)
            try:
                exported(here, number, bag)
            except BagNotWrittenError:
                refused += 1
                continue
            found = taken_in(there, bag)
            assert contents(Path(found.dataset.file_path)) == contents(Path(str(one.dataset_path)))
            assert session_rows(there, found.dataset.dataset_id) == session_rows(here, number)
        with tools_of(there) as tools:
            checked = verify_datasets(tools)

    assert {one.status for one in checked} == {Status.VERIFIED}
    assert len(checked) == len(stored) - refused > 20
    assert refused <= 3


# Other tools ------------------------------------------------------------------------------------------------


def test_the_validator_of_bags_accepts_what_was_exported(labs: Labs):
    bag = bagit.Bag(str(labs.bag))

    assert bag.validate()
    assert bag.version_info == (1, 0)
    assert bag.info["External-Identifier"] == labs.study.dataset_hash
    assert bag.info["Dataset-Name"] == "Study of everything"
    assert bag.info["Bag-Software-Agent"].startswith("label-dataset-migrator ")
    files = [path for path in (labs.bag / "data").rglob("*") if path.is_file()]
    assert bag.info["Payload-Oxum"] == f"{sum(path.stat().st_size for path in files)}.{len(files)}"
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_a_bag_that_another_tool_made_of_the_payload_is_taken_in(labs: Labs, there: Site, tmp_path: Path):
    other = Path(shutil.copytree(labs.bag / "data", tmp_path / "other"))
    bagit.make_bag(str(other), {"Contact-Name": "the other lab"})

    assert contents(Path(taken_in(there, other).dataset.file_path)) == contents(labs.tree)


def test_names_are_encoded_as_the_standard_says_and_read_back(labs: Labs, there: Site, tmp_path: Path):
    names = ("50%", "%0A", "a\n\n\nb", "%250D")
    study_with_odd_names(labs.here, "percent", *names)
    with tools_of(labs.here) as tools:
        (study,) = migrate_all(labs.here, tools)
    exported(labs.here, study.dataset_id, tmp_path / "bag")

    lines = (tmp_path / "bag" / "manifest-sha256.txt").read_text().splitlines()
    assert {line.partition("/day 1/")[2] for line in lines} >= {"50%25", "%250A", "a%0A%0A%0Ab", "%25250D"}
    found = taken_in(there, tmp_path / "bag")
    assert contents(Path(found.dataset.file_path)) == contents(Path(str(study.dataset_path)))


# What cannot be exported ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (os.fsdecode(b"caf\xe9"), r"caf\\xe9: its name is not UTF-8"),
        ("ends in ", "ends in : its name ends in white space"),
        ("cafe\u0301", "in its Unicode form only"),
    ],
)
def test_a_name_that_no_bag_can_hold_is_named(labs: Labs, tmp_path: Path, name: str, reason: str):
    study_with_odd_names(labs.here, reason[-20:], name, "café")
    with tools_of(labs.here) as tools:
        (study,) = migrate_all(labs.here, tools)

    with pytest.raises(BagNotWrittenError, match=rf"No bag can hold day 1/.*{reason}"):
        exported(labs.here, study.dataset_id, tmp_path / "bag")
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_exported_is_named_and_leaves_nothing(labs: Labs, tmp_path: Path):
    with labs.here.engine.begin() as conn:
        of_label = make_dataset(conn, labs.tree.parent, f"{1:064x}")
    (tmp_path / "taken").mkdir()

    for number, output, kind, reason in (
        (987654, "bag", UsageError, "There is no dataset 987654"),
        (of_label, "bag", BagNotWrittenError, "has no manifest: Label registered it itself"),
        (labs.study.dataset_id, "taken", BagNotWrittenError, "taken is there already"),
        (labs.study.dataset_id, "no/bag", BagNotWrittenError, "There is no directory .*/no "),
        (labs.study.dataset_id, "n" * 255, BagNotWrittenError, "Cannot write .*: File name too long"),
    ):
        with pytest.raises(kind, match=reason):
            exported(labs.here, number, tmp_path / output)
    assert os.listdir(tmp_path) == ["taken"]
    assert os.listdir(tmp_path / "taken") == []


def test_a_damaged_store_is_noticed_by_an_export(
    make_site: Callable[[], AbstractContextManager[Site]], tmp_path: Path
):
    with make_site() as site:
        plain_study(site, "study", 1)
        with tools_of(site) as tools:
            (study,) = migrate_all(site, tools)
        recording = Path(str(study.dataset_path)) / "day 1" / "accelerometer_data.csv"
        damage(recording)

        with pytest.raises(
            StoredBytesMismatchError, match=r"accelerometer_data\.csv does not have the bytes"
        ):
            exported(site, study.dataset_id, tmp_path / "bag")
        assert os.listdir(tmp_path) == []


def test_what_an_export_left_that_was_killed_is_named_by_the_next(labs: Labs, tmp_path: Path):
    (tmp_path / "bag.unfinished-0123abcd").mkdir()

    found = exported(labs.here, labs.study.dataset_id, tmp_path / "bag")

    assert found.unfinished == [f"{tmp_path}/bag.unfinished-0123abcd"]


def test_a_disk_that_is_too_small_is_named_and_keeps_nothing(
    labs: Labs, make_site: Callable[[], AbstractContextManager[Site]], tmp_path: Path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    with make_site() as site, small_disk(disk, tmp_path):
        folder = plain_study(site, "big", 1)
        with (folder / "day 1" / "video").open("wb") as file:
            file.write(os.urandom(20 << 20))
        folder = plain_study(site, "of many files", 1)
        for number in range(1_100):
            (folder / "day 1" / str(number)).touch()
        with tools_of(site) as tools:
            study, many = migrate_all(site, tools)

        with pytest.raises(BagNotWrittenError, match=r"Not enough room in .*: 20\d* bytes are to be written"):
            exported(site, study.dataset_id, disk / "bag")
        with pytest.raises(BagNotWrittenError, match=r"Cannot write .*/day 1/\d+: No space left on device"):
            exported(site, many.dataset_id, disk / "bag")
        assert os.listdir(disk) == ["lost+found"]

        exported(site, study.dataset_id, tmp_path / "bag")
        settings = labs.there.settings.model_copy(update={"data_dir": disk})
        labs.there.empty()
        with pytest.raises(NoRoomForImportError, match="Too large for the store"):
            bags.take_in(settings, labs.there.engine, str(tmp_path / "bag"), lambda _words: None)
        assert everything(labs.there)[1]["raw_datasets"] == 0


# What is no bag of a dataset --------------------------------------------------------------------------------


def again(bag: Path) -> None:
    """Let the bag's own manifests say what is in it now."""
    found = bagit.Bag(str(bag))
    found.save(manifests=True)


def rewrite(bag: Path, name: str, edit: Callable[[Any], object]) -> None:
    path = bag / "data" / name
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))
    again(bag)


def rewritten_manifest(bag: Path, edit: Callable[[list[Any]], object]) -> None:
    """Another manifest of a dataset, written as one is; the row follows."""
    path = bag / "data" / "manifest.json"
    document = json.loads(path.read_bytes())
    edit(document["entries"])
    entries = ",\n".join(json.dumps(one, separators=(",", ":")) for one in document["entries"])
    path.write_text(f'{{"format":1,"digest":"blake3","entries":[\n{entries}\n]}}\n')
    again(bag)


def renamed(bag: Path, name: str) -> None:
    """The row as a lab would write it whose dataset has this name."""
    path = bag / "data" / "row.json"
    digest = json.loads(path.read_bytes())["dataset_hash"]
    path.write_bytes(replace(row_file.parse(path.read_bytes(), digest, "row"), dataset_name=name).content)
    again(bag)


def flip(bag: Path) -> None:
    damage(bag / "data" / "tree" / "day 1" / "accelerometer_data.csv")


def tag(name: str, content: str) -> Callable[[Path], object]:
    return lambda bag: (bag / name).write_text(content)


def pipe(bag: Path) -> None:
    os.mkfifo(bag / "data" / "tree" / "day 1" / "pipe")


def make_socket(bag: Path) -> None:
    here = os.getcwd()
    os.chdir(bag)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket")
    finally:
        os.chdir(here)


BAD: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "a bit flipped": (flip, r"data/tree/day 1/accelerometer_data\.csv sha256 validation failed"),
    "a file too many": (
        lambda bag: (bag / "data" / "tree" / "more").write_text("more"),
        r"data/tree/more is not in data/manifest\.json",
    ),
    "a file missing": (
        lambda bag: (bag / "data" / "tree" / "at the top").unlink(),
        "data/tree/at the top is missing",
    ),
    "a file of another length": (
        lambda bag: (bag / "data" / "tree" / "at the top").write_text("four"),
        r"data/tree/at the top has 4 bytes, and by data/manifest\.json 0",
    ),
    "a payload file too many beside the tree": (
        lambda bag: (bag / "data" / "more").write_text("more"),
        "data/more is in no manifest",
    ),
    "a directory too many": (
        lambda bag: (bag / "data" / "tree" / "more").mkdir(),
        r"data/tree/more is not in data/manifest\.json",
    ),
    "a file missing and the bag made again": (
        lambda bag: ((bag / "data" / "tree" / "at the top").unlink(), again(bag)),
        "data/tree/at the top is missing",
    ),
    "a tag file changed": (
        lambda bag: (bag / "bag-info.txt").write_text((bag / "bag-info.txt").read_text() + "More: words\n"),
        "bag-info.txt sha256 validation failed",
    ),
    "no bag at all": (lambda bag: (bag / "bagit.txt").unlink(), r"is not a BagIt bag: it has no bagit\.txt"),
    "another version": (
        tag("bagit.txt", "BagIt-Version: 7.0\nTag-File-Character-Encoding: UTF-8\n"),
        "Unsupported bag version: 7.0",
    ),
    "no version": (tag("bagit.txt", "nothing\n"), "is refused: "),
    "an unknown encoding": (
        tag("bagit.txt", "BagIt-Version: 1.0\nTag-File-Character-Encoding: klingon\n"),
        "Unsupported encoding: klingon",
    ),
    "no payload manifest": (
        lambda bag: (bag / "manifest-sha256.txt").unlink(),
        "is in no manifest|manifest-sha256.txt",
    ),
    "a path that leads outside": (
        lambda bag: (bag / "manifest-sha256.txt").write_text(f"{'0' * 64}  data/../../../etc/passwd\n"),
        "is unsafe",
    ),
    "bytes that are no text": (
        lambda bag: (bag / "manifest-sha256.txt").write_bytes(b"\xff\xfe\x00"),
        "is refused: ",
    ),
    "a link": (
        lambda bag: (bag / "data" / "tree" / "day 1" / "link").symlink_to("/etc/passwd"),
        "data/tree/day 1/link is a link",
    ),
    "a linked directory": (
        lambda bag: (bag / "data" / "tree" / "etc").symlink_to("/etc"),
        "data/tree/etc is a link",
    ),
    "a pipe": (pipe, "data/tree/day 1/pipe is neither a file nor a directory"),
    "a socket": (make_socket, "socket is neither a file nor a directory"),
    "no manifest of a dataset": (
        lambda bag: (bag / "data" / "manifest.json").unlink(),
        r"it has no data/manifest\.json, so it holds no dataset",
    ),
    "no row": (lambda bag: (bag / "data" / "row.json").unlink(), r"it has no data/row\.json"),
    "a manifest that is not JSON": (
        lambda bag: (bag / "data" / "manifest.json").write_text('{"format": 1,'),
        r"data/manifest\.json cannot be read",
    ),
    "a manifest of another format": (
        lambda bag: rewrite(bag, "manifest.json", lambda found: found.update(format=2)),
        "not a manifest of a format that this version reads",
    ),
    "a manifest written otherwise": (
        lambda bag: rewrite(bag, "manifest.json", dict),
        "is not written as a manifest is",
    ),
    "a manifest whose path leads outside": (
        lambda bag: rewritten_manifest(bag, lambda entries: entries[0].__setitem__(1, "../outside")),
        "not an entry of a manifest",
    ),
    "a manifest whose digest leads outside": (
        lambda bag: rewritten_manifest(bag, lambda entries: entries[0].__setitem__(3, "../" * 20 + "x")),
        "no digest or size of at the top",
    ),
    "a manifest with a file below a file": (
        lambda bag: rewritten_manifest(
            bag, lambda entries: entries.insert(1, ["f", "at the top/x", 0, "0" * 64])
        ),
        "no tree can have at the top/x",
    ),
    "a manifest in another order": (
        lambda bag: rewritten_manifest(bag, lambda entries: entries.reverse()),
        "its entries are not in their order",
    ),
    "a row that is not JSON": (
        lambda bag: (bag / "data" / "row.json").write_text("{"),
        r"Row file data/row\.json is not JSON",
    ),
    "a row that nests without end": (
        lambda bag: (bag / "data" / "row.json").write_text("[" * 100_000),
        r"data/row\.json",
    ),
    "a name that no row can have": (
        lambda bag: renamed(bag, "n" * 256),
        "a dataset's name has 1 to 255 characters",
    ),
    "a name that no database can hold": (
        lambda bag: renamed(bag, "a\0b"),
        "the database cannot hold",
    ),
    "a row of another format": (
        lambda bag: rewrite(bag, "row.json", lambda found: found.update(format=9)),
        "is not of a format that this version reads",
    ),
    "a row that was changed": (
        lambda bag: rewrite(bag, "row.json", lambda found: found.update(dataset_name="another")),
        "its checksum differs",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_bag_of_a_dataset_is_named_and_nothing_is_written(there: Site, copy: Path, what: str):
    spoil, reason = BAD[what]
    spoil(copy)
    before = everything(there)

    with pytest.raises(BagRefusedError, match=reason) as refused:
        taken_in(there, copy)

    assert str(copy) in str(refused.value)
    assert everything(there) == before


def test_bytes_that_a_new_bag_hides_are_named_and_no_row_refers_to_them(there: Site, copy: Path):
    before = everything(there)[1]
    flip(copy)
    again(copy)

    with pytest.raises(
        BagRefusedError, match=r"accelerometer_data\.csv has not the bytes of its digest in data/"
    ):
        taken_in(there, copy)

    after = everything(there)[1]
    assert after | {"migration_store": 0} == before
    check_store(there)
    assert os.listdir(there.settings.store_dir / "manifests") == staged(there) == []
    with tools_of(there) as tools:
        gc(tools)
    assert not list((there.settings.store_dir / "blobs").glob("*/*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a store to another user")
def test_an_import_by_another_user_than_the_stores_is_refused(labs: Labs, there: Site):
    plain_study(there, "study", 1)
    with tools_of(there) as tools:
        migrate_all(there, tools)
    os.chown(there.settings.store_dir, 12345, -1)
    before = everything(there)

    with pytest.raises(UsageError, match=r"belongs to user 12345, .* and this is user 0: import as that one"):
        taken_in(there, labs.bag)
    assert everything(there) == before


def test_a_bag_inside_the_store_or_absent_is_refused(labs: Labs, there: Site, tmp_path: Path):
    (tmp_path / "a file").touch()
    for path, reason in (
        (tmp_path / "nothing", "nothing is not a directory"),
        (tmp_path / "a file", "a file is not a directory"),
        (tmp_path, "is not a BagIt bag"),
    ):
        with pytest.raises(BagRefusedError, match=reason):
            taken_in(there, path)
    inside = there.data_dir / "dataset_store" / "bag"
    inside.parent.mkdir()
    shutil.copytree(labs.bag, inside)
    with pytest.raises(BagRefusedError, match="overlaps the store's directory"):
        taken_in(there, inside)


def test_a_bag_whose_names_are_too_long_for_the_store_is_refused(labs: Labs, there: Site, tmp_path: Path):
    deep = "/".join(["d" * 250] * 15)
    manifest = Manifest.parse((labs.bag / "data" / "manifest.json").read_bytes())
    assert manifest.session_names
    bag = tmp_path / "b"
    shutil.copytree(labs.bag, bag)
    here = os.getcwd()
    os.chdir(bag / "data" / "tree" / "day 1")
    try:
        os.makedirs(deep)
    finally:
        os.chdir(here)

    with pytest.raises(BagRefusedError, match=r"is refused"):
        taken_in(there, bag)
    assert everything(there)[1]["raw_datasets"] == 0
