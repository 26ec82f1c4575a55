"""What is bad is put aside under a name of its own, with the reason, and nothing that was put aside is
lost.
"""

from pathlib import Path

import pytest

from tests.support.trees import (
    open_store,
)
from tests.worker.store.contents import put_blob


@pytest.mark.parametrize("name", ["bad", "n" * 240, "\udcff" * 250, "n" * 255])
def test_quarantine_keeps_several_things_of_one_name_however_long_it_is(tmp_path: Path, name: str):
    store = open_store(tmp_path)
    place = tmp_path / "tree" / name
    place.parent.mkdir()
    good = put_blob(store, b"good")
    for content in (b"one", b"two"):
        place.unlink(missing_ok=True)
        place.write_bytes(content)
        with store.staging("repair") as staging:
            store.replace_in_tree(str(good), str(place), staging, bad_copy_of=good.name)
        assert place.read_bytes() == b"good"

    kept = sorted(
        path.read_bytes()
        for path in (store.root / "quarantine").iterdir()
        if not path.name.endswith(".reason.txt")
    )
    assert kept == [b"one", b"two"]


def test_quarantining_a_thing_that_is_gone_already_reports_nothing(tmp_path: Path):
    store = open_store(tmp_path)
    good = put_blob(store, b"good")
    copy = tmp_path / "copy"
    copy.write_bytes(b"good")
    good.unlink()

    store.replace_blob(good.name, str(copy))

    assert good.read_bytes() == b"good"
    assert list((store.root / "quarantine").iterdir()) == []
