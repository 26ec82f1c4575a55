"""Label's own hash equals what an independent implementation says, on trees of every kind."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.store.label_hash import label_hash

INDEPENDENT = Path(__file__).with_name("label_hash.sh")

NOTHING = hashlib.sha256().hexdigest()

# A path and its content; a path that ends in "/" is a directory, content that begins with "->" a link.
_NAMES = (
    "a",
    "A",
    "a.csv",
    "a-b",
    "a b",
    "a/b",
    "ab/c",
    "a.b/c",
    "é",
    "ß",
    "z",
    "Ω",
    "漢",
    "😀",
    "\ufffd",
    "_",
    "~",
)
TREES: dict[str, dict[str, str]] = {
    "empty": {},
    "empty directory": {"a/": ""},
    "empty directories in each other": {"a/b/c/": "", "d/": ""},
    "empty file": {"a": ""},
    "one file": {"a": "x"},
    "content that is a path": {"a": "b", "b": ""},
    "path that is a content": {"ab": ""},
    "files before directories": {"b": "1", "a/c": "2"},
    "files before directories, deeper": {"m/b": "1", "m/a/c": "2", "m/z": "3"},
    "directory with a dot sorts after its own name": {"a/x": "1", "a.b/x": "2", "a-b/x": "3"},
    "link to a file": {"a": "x", "b": "->a"},
    "link to a file in another directory": {"d/a": "xyz", "b": "->d/a"},
    "link to a directory": {"d/a": "x", "e": "->d"},
    "link that leads nowhere": {"a": "x", "b": "->nowhere"},
    "link to itself": {"a": "->a"},
    "link to a link": {"a": "x", "b": "->a", "c": "->b"},
    "link to the directory above": {"d/a": "x", "d/up": "->.."},
    "hidden files": {".a": "1", "a": "2", ".d/b": "3"},
    "line end in a name": {"a\nb": "1", "a": "2", "a\n/c": "3"},
    "blanks at both ends": {" a": "1", "a ": "2", " ": "3"},
    "quotes and a backslash": {"'": "1", '"': "2", "\\": "3", "$(x)": "4", "-n": "5"},
    "a recording": {"s1/accelerometer_data.csv": "ns,x,y,z\n1,0,0,1\n" * 500, "s1/labels.json": "{}"},
    "two sessions": {f"s{n}/accelerometer_data.csv": f"{n}\n" for n in (1, 2)},
    "ten sessions, of which the tenth comes second": {f"s{n}/a.csv": f"{n}" for n in range(1, 11)},
    "bytes that are no text": {"a": "\x00\x01\ufffe"},
    "megabytes": {"a": "0123456789" * 300_000, "b": "x"},
    "beyond the basic plane, which UTF-16 would sort first": {"\ufffd": "1", "😀": "2"},
    "composed and decomposed": {"\u00e9": "1", "e\u0301": "2"},
    "a letter in two cases": {"a": "1", "B": "2", "C/x": "3", "b/x": "4"},
    "deep": {"/".join("abcdefghij" * 8) + "/x": "1"},
    **{f"only {name!r}": {name: "x", "n": "y"} for name in _NAMES},
    **{f"{name!r} as a directory": {f"{name}d/x": "1", f"{name}": "2"} for name in _NAMES[:13]},
}


def make(root: Path, tree: dict[str, str]) -> str:
    root.mkdir()
    for path, content in tree.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            target.mkdir(exist_ok=True)
        elif content.startswith("->"):
            target.symlink_to(content[2:])
        else:
            target.write_bytes(content.encode())
    return str(root)


def independently(*roots: str) -> list[str]:
    done = subprocess.run([INDEPENDENT, *roots], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def test_sixty_trees_have_the_hash_of_an_independent_implementation(tmp_path: Path):
    assert len(TREES) == 60
    roots = [make(tmp_path / str(number), tree) for number, tree in enumerate(TREES.values())]
    ours = [label_hash(root) for root in roots]
    assert dict(zip(TREES, ours, strict=True)) == dict(zip(TREES, independently(*roots), strict=True))
    assert ours[0] == ours[1] == ours[2] == NOTHING
    assert len(set(ours)) > 50


_PART = st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=4)
_PATHS = st.lists(_PART.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=3).map("/".join)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(_PATHS, st.text(max_size=9).filter(lambda text: not text.startswith("->")), max_size=8)
)
def test_any_tree_has_the_hash_of_an_independent_implementation(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, str]
):
    inner = (
        {path.rpartition("/")[0] for path in tree}
        | {"/".join(path.split("/")[:2]) for path in tree if path.count("/") > 1}
        | {path.split("/")[0] for path in tree if "/" in path}
    )
    possible = {path: content for path, content in tree.items() if path not in inner}
    root = make(tmp_path_factory.mktemp("tree") / "root", possible)
    assert [label_hash(root)] == independently(root)


def test_two_trees_of_other_names_and_bytes_may_have_one_hash(tmp_path: Path):
    one, other = make(tmp_path / "one", {"a": "b"}), make(tmp_path / "other", {"ab": ""})
    assert label_hash(one) == label_hash(other) == hashlib.sha256(b"ab").hexdigest()


def test_a_name_that_is_not_utf8_has_no_hash_as_it_has_none_for_label(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_bytes(b"y")
    assert label_hash(str(tmp_path)) is None


def test_a_pipe_adds_its_name_and_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a")
    assert label_hash(str(tmp_path)) == hashlib.sha256(b"a").hexdigest()
