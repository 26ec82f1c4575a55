"""The identity of a dataset: one serialised form for equal trees, never one for different ones."""

import json
import os
import random
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trees import STUDY, manifest_of, read_tree, write_tree
from worker.store.digest import digest_of
from worker.store.manifest import Directory, File, Manifest

# Any bytes that a name may have: all but the slash and NUL, and not the two names that mean directories.
NAMES = (
    st.binary(min_size=1, max_size=12)
    .map(lambda name: name.replace(b"/", b"|").replace(b"\0", b"0"))
    .filter(lambda name: name not in {b".", b".."})
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: os.fsdecode(b"/".join(names)))
DIGESTS = st.text(string.hexdigits.lower(), min_size=64, max_size=64)
ENTRIES = st.builds(Directory, PATHS) | st.builds(File, PATHS, st.integers(0, 2**63), DIGESTS)
MANIFESTS = st.builds(
    Manifest.of,
    st.sampled_from(["blake3", "sha256"]),
    st.lists(ENTRIES, max_size=8, unique_by=lambda entry: entry.path),
)


def one_file(path: str, content: bytes) -> Manifest:
    return Manifest.of("blake3", [File(path, len(content), digest_of("blake3", content))])


# Reading back -----------------------------------------------------------------------------------------------


@given(manifest=MANIFESTS)
@settings(deadline=None)
def test_a_manifest_is_read_back_as_it_was(manifest: Manifest):
    again = Manifest.parse(manifest.content)

    assert again == manifest
    assert again.content == manifest.content
    assert again.digest == manifest.digest


@given(one=MANIFESTS, other=MANIFESTS)
@settings(deadline=None, max_examples=200)
def test_two_manifests_have_one_form_and_one_digest_only_if_they_are_equal(one: Manifest, other: Manifest):
    assert (one.content == other.content) == (one == other) == (one.digest == other.digest)


@given(name=NAMES)
@settings(deadline=None)
def test_a_name_of_any_bytes_comes_back_byte_for_byte(name: bytes):
    manifest = one_file(os.fsdecode(name), b"")

    (file,) = Manifest.parse(manifest.content).files

    assert os.fsencode(file.path) == name


def test_the_serialised_form_is_ascii_json_with_an_entry_a_line():
    manifest = manifest_of({b"s/caf\xe9": b"x", "s/é".encode(): b"x"})

    document = json.loads(manifest.content.decode("ascii"))

    assert document["format"] == 1
    assert document["digest"] == "blake3"
    assert len(document["entries"]) == 3
    assert manifest.content.decode("ascii").count("\n") == 3 + 2
    assert manifest.content == (
        b'{"format":1,"digest":"blake3","entries":[\n'
        b'["d","s"],\n'
        b'["f","s/caf\\udce9",1,"' + digest_of("blake3", b"x").encode() + b'"],\n'
        b'["f","s/\\u00e9",1,"' + digest_of("blake3", b"x").encode() + b'"]\n]}\n'
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"format":2,"digest":"blake3","entries":[]}',
        b'{"format":1}',
        b'{"format":1,"digest":"blake3"}',
        b'{"format":1,"entries":[]}',
        b'{"format":1,"digest":"blake3","entries":null}',
        b'{"format":1,"digest":"md5","entries":[]}',
        b'{"format":1,"digest":["blake3"],"entries":[]}',
        b'{"format":1,"digest":"blake3","entries":[5]}',
        b'{"format":1,"digest":"blake3","entries":[["d"]]}',
        b'{"format":1,"digest":"blake3","entries":[["d",5]]}',
        b'{"format":1,"digest":"blake3","entries":[["l","link"]]}',
        b'{"format":1,"digest":"blake3","entries":[["f","a","5","00"]]}',
        b'{"format":1,"digest":"blake3","entries":[["f","a",5]]}',
        b'{"format":1,"digest":"blake3","entries":{"d":"a"}}',
        b'{"format":1,"digest":"blake3","entries":[["d",""]]}',
        b'{"format":1,"digest":"blake3","entries":[["d","/etc"]]}',
        b'{"format":1,"digest":"blake3","entries":[["d","s/../.."]]}',
        b'{"format":1,"digest":"blake3","entries":[["f","../a",5,"00"]]}',
        b'{"format":1,"digest":"blake3","entries":[["f","s//a",5,"00"]]}',
    ],
)
def test_what_is_no_manifest_of_this_format_is_a_value_error(content: bytes):
    with pytest.raises(ValueError, match=r"."):
        Manifest.parse(content)


# Identity ---------------------------------------------------------------------------------------------------


def test_entries_are_in_the_byte_order_of_their_paths_whatever_order_they_come_in():
    manifest = manifest_of(STUDY)
    shuffled = list(manifest.entries)
    random.Random(1).shuffle(shuffled)

    again = Manifest.of("blake3", shuffled)

    assert again.content == manifest.content
    names = [os.fsencode(entry.path) for entry in again.entries]
    assert names == sorted(names)


def test_the_order_is_that_of_bytes_and_not_of_characters():
    # U+FF01 is EF BC 81 in UTF-8; the lone byte E9 is the surrogate U+DCE9 to Python, which sorts after it by
    # bytes only.
    names = [b"\xef\xbc\x81", b"\xe9", b"z", b"Z", b"a b", b"a.b", b"a", b"a/b"]

    manifest = Manifest.of("blake3", [Directory(os.fsdecode(name)) for name in names])

    assert [os.fsencode(entry.path) for entry in manifest.entries] == sorted(names)


def test_a_directory_comes_before_what_is_in_it():
    manifest = manifest_of({b"a-b/c/d": b"", b"a/b/c": None, b"a b/c": None})

    seen: set[str] = set()
    for directory in manifest.directories:
        assert os.path.dirname(directory.path) in seen | {""}
        seen.add(directory.path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({b"s/a": b"bc"}, {b"s/ab": b"c"}),
        ({b"s/a": b"", b"s/b": b""}, {b"s/ab": b""}),
        ({b"s/a": b"1", b"s/b": b"2"}, {b"s/a": b"1s/b2"}),
        ({b"s/a": b"1", b"s/b": b"2"}, {b"s/a": b"2", b"s/b": b"1"}),
        ({b's/a",1,"x': b""}, {b"s/a": b""}),
        ({b's/a"],\n["d","t': b""}, {b"s/a": b"", b"t": None}),
        ({b"s/x": None}, {b"s/x": b""}),
        ({b"s/x": b""}, {b"s": None}),
        ({b"s": None}, {b"s": None, b"t": None}),
        ({b"s/a": b"x"}, {b"s/a": b"x", b"s/b": None}),
        ({b"s/a": b"x"}, {b"s/a": b"x", b"t": None}),
        ({b"s/\xe9": b""}, {"s/é".encode(): b""}),
        ({b"s/\xe9": b""}, {b"s/\\udce9": b""}),
        ({b"s/A": b""}, {b"s/a": b""}),
    ],
    ids=lambda tree: " ".join(repr(os.fsdecode(name)) for name in tree),
)
def test_different_trees_never_have_one_digest(one: dict[bytes, bytes], other: dict[bytes, bytes]):
    assert manifest_of(one).digest != manifest_of(other).digest


def test_an_empty_directory_counts_in_a_manifest():
    without = {name: content for name, content in STUDY.items() if content is not None}

    assert manifest_of(STUDY).digest != manifest_of(without).digest
    assert manifest_of(STUDY).session_names != manifest_of(without).session_names


def test_modes_times_and_owners_do_not_count(tmp_path: Path):
    one, other = write_tree(tmp_path / "one"), write_tree(tmp_path / "other")
    for above, _, files in os.walk(other):
        for name in files:
            os.chmod(os.path.join(above, name), 0o640)
            os.utime(os.path.join(above, name), ns=(1, 1))

    assert manifest_of(read_tree(one)).digest == manifest_of(read_tree(other)).digest


def test_the_algorithm_is_part_of_the_identity():
    assert Manifest.of("blake3", []).content != Manifest.of("sha256", []).content
    assert manifest_of(STUDY, "sha256").digest == digest_of("sha256", manifest_of(STUDY, "sha256").content)


# What it says of the tree -----------------------------------------------------------------------------------


def test_sessions_are_the_immediate_directories_and_the_size_that_of_all_files():
    manifest = manifest_of(STUDY)

    assert manifest.session_names == ("2025-07-01_10_00_00", "2025-07-01_12_00_00", "2025-07-01_14_00_00")
    assert manifest.size_bytes == sum(len(content) for content in STUDY.values() if content is not None)
    assert len(manifest.files) == 7
    assert len(manifest.directories) == 6
