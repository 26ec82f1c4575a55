"""Generated projects go out and come in again: everything is equal by our file, and by Label's alone all that
it does not lose.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from producer.projects import project_file
from producer.projects.exported import export
from producer.projects.imported import import_project
from tests.support.runs import migrate_all, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study

ROUNDS, LONG_ROUNDS = 100, 1_000
RECORDS = 30
DAYS = {0: ("day 1", "day 2"), 1: ("day 3",)}
"""The recordings of each of two datasets."""

Row = Mapping[str, Any]

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
_TIME = st.integers(0, 2**53)
_BOUT = st.fixed_dictionaries(
    {"start": _TIME | st.floats(0, 1e15), "end": _TIME, "label": _TEXT},
    optional={"confidence": st.none() | st.floats(0, 1)},
)
_BOUTS = st.none() | st.lists(
    _BOUT
    | st.lists(_TIME, min_size=2, max_size=2)
    | st.tuples(_TIME, _TIME, _TEXT, st.floats(0, 1)).map(list),
    max_size=3,
)
_LABELING = (
    _TEXT.filter(lambda name: not name.lstrip().startswith("{"))
    | st.fixed_dictionaries(
        {"name": _TEXT, "color": st.none() | st.just("#ff0000")}, optional={"is_deleted": st.booleans()}
    )
    | st.fixed_dictionaries({"name": _TEXT}, optional={"is_deleted": st.booleans()}).map(json.dumps)
)
_FLAG = st.sampled_from([None, 0, 1, 100])


@st.composite
def _sessions(draw: st.DrawFn) -> list[Row]:
    names = draw(st.lists(st.text("ab.1é ", min_size=1, max_size=6), max_size=5, unique=True))
    return [draw(_session(name)) for name in names]


def _session(name: str) -> st.SearchStrategy[Row]:
    begin_and_end = st.tuples(st.integers(0, RECORDS - 1), st.integers(0, RECORDS)).map(sorted)
    return st.fixed_dictionaries(
        {
            "session_name": st.just(name),
            "status": st.sampled_from(["Initial", "Visualized", "Decision Made", "Split", "unlabeled", None]),
            "keep": st.sampled_from([None, True, False]),
            "is_visible": st.booleans(),
            "bouts": _BOUTS | _BOUTS.map(json.dumps),
            "verified": _FLAG,
            "puffs_verified": _FLAG,
            "smoking_verified": _FLAG,
            "start_ns": _TIME,
            "stop_ns": _TIME,
            "offsets": st.none() | begin_and_end,
            # Which dataset, which of its recordings, and whether the row names them beside the path.
            "place": st.none()
            | st.sampled_from([(number, day) for number, days in DAYS.items() for day in days]),
            "is_named": st.booleans(),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets:
    """A site, and its two datasets: ids and directories."""

    site: Site
    ids: tuple[int, int]
    paths: tuple[str, str]


@pytest.fixture(scope="module")
def datasets(make_site: Callable[[], AbstractContextManager[Site]]) -> Iterator[Datasets]:
    with make_site() as site:
        plain_study(site, "one", 1, 2, rows=RECORDS)
        plain_study(site, "other", 3, rows=RECORDS)
        with tools_of(site) as tools:
            migrate_all(site, tools)
        with site.engine.connect() as conn:
            rows = conn.execute(
                text("select dataset_id, file_path from raw_datasets order by session_count desc")
            ).all()
        yield Datasets(site=site, ids=(rows[0][0], rows[1][0]), paths=(rows[0][1], rows[1][1]))


def made(
    conn: Connection, here: Datasets, sessions: list[Row], cuts: list[tuple[int, int]], labelings: Any
) -> int:
    """A dataset-based project as Label might have it."""
    number: int = conn.execute(
        text(
            "insert into projects (project_name, participant_id, project_type, labelings)"
            " select 'round ' || nextval(pg_get_serial_sequence('projects', 'project_id')), min(participant_id),"
            " 'dataset_based', cast(:labelings as jsonb) from participants returning project_id"
        ),
        {"labelings": json.dumps(labelings)},
    ).scalar_one()
    conn.execute(
        text(
            "insert into project_dataset_refs (project_id, dataset_id) select :project, unnest(cast(:ids as integer[]))"
        ),
        {"project": number, "ids": list(here.ids)},
    )
    ids = []
    for one in sessions:
        place = one["place"]
        begin, end = one["offsets"] if place and one["offsets"] else (None, None)
        is_named = place is not None and one["is_named"]
        row = {name: one[name] for name in one if name not in {"offsets", "place", "is_named"}}
        row |= {
            "project_id": number,
            "data_start_offset": begin,
            "data_end_offset": end,
            "parent_session_data_path": f"{here.paths[place[0]]}/{place[1]}" if place else None,
            "dataset_id": here.ids[place[0]] if is_named else None,
            "raw_session_name": place[1] if is_named else None,
        }
        columns = ", ".join(row)
        ids.append(
            conn.execute(
                text(
                    f"insert into sessions ({columns}) select {columns}"
                    " from jsonb_populate_record(null::sessions, cast(:row as jsonb)) returning session_id"
                ),
                {"row": json.dumps(row)},
            ).scalar_one()
        )
    for child, parent in cuts:
        if max(child, parent) < len(ids):
            conn.execute(
                text(
                    "insert into session_lineage (child_session_id, parent_session_id) values (:child, :parent)"
                ),
                {"child": ids[child], "parent": ids[parent]},
            )
    return number


def whole(conn: Connection, number: int | None) -> tuple[Any, dict[str, Row], list[tuple[str, str, Any]]]:
    """Labelings, sessions without their ids, and lineage by names."""
    rows = conn.scalars(text("select to_jsonb(s) from sessions s where project_id = :id"), {"id": number})
    cut = conn.execute(
        text(
            "select c.session_name, p.session_name, l.split_timestamp from session_lineage l"
            " join sessions c on c.session_id = child_session_id join sessions p on p.session_id = parent_session_id"
            " where c.project_id = :id order by 1, 2, 3"
        ),
        {"id": number},
    )
    labelings = conn.scalar(text("select labelings from projects where project_id = :id"), {"id": number})
    sessions = {
        row["session_name"]: {k: v for k, v in row.items() if k not in {"session_id", "project_id"}}
        for row in rows
    }
    return labelings, sessions, [tuple(row) for row in cut]


_any_project = given(
    sessions=_sessions(),
    cuts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=3),
    labelings=st.none() | st.lists(_LABELING, max_size=3),
)


@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@_any_project
def test_a_project_comes_back_as_it_went(
    datasets: Datasets, sessions: list[Row], cuts: list[tuple[int, int]], labelings: Any
):
    check_round(datasets, sessions, cuts, labelings)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=LONG_ROUNDS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@_any_project
def test_a_thousand_projects_come_back_as_they_went(
    datasets: Datasets, sessions: list[Row], cuts: list[tuple[int, int]], labelings: Any
):
    check_round(datasets, sessions, cuts, labelings)


def check_round(datasets: Datasets, sessions: list[Row], cuts: list[tuple[int, int]], labelings: Any) -> None:
    """Send a project out, and take it in by our file and by Label's alone."""
    site = datasets.site
    with site.engine.begin() as conn:
        number = made(conn, datasets, sessions, cuts, labelings)
    document = json.loads(json.dumps(export(site.engine, number).document))
    back = import_project(site.settings, site.engine, project_file.check(document, "ours"))
    del document["migrator"]
    by_label = import_project(
        site.settings, site.engine, project_file.check(document, "Label's"), name=f"by Label, {number}"
    )
    assert not back.left_out
    with site.engine.connect() as conn:
        labels, before, lineage = whole(conn, number)
        assert whole(conn, back.project_id) == (labels, before, lineage)
        shown, after, nothing = whole(conn, by_label.project_id)
    assert shown == [one for one in labels or [] if not is_hidden(one)]
    assert not nothing
    assert after.keys() == {name for name, row in before.items() if row["keep"] is not False}
    for name, row in after.items():
        check_by_label(row, before[name])


def check_by_label(row: Row, before: Row) -> None:
    """What Label's format carries of a session."""
    equal = ("start_ns", "stop_ns", "data_start_offset", "data_end_offset")
    assert [row[key] for key in equal] == [before[key] for key in equal]
    bouts = before["bouts"]
    assert row["bouts"] == ((json.loads(bouts) if isinstance(bouts, str) else bouts) or None)
    assert row["status"] == (before["status"] or "unlabeled")
    assert bool(row["verified"]) == bool(before["verified"])
    assert (row["keep"], row["puffs_verified"], row["smoking_verified"]) == (None, 0, 0)
    if before["dataset_id"] is not None:
        assert row["parent_session_data_path"] == before["parent_session_data_path"]


def is_hidden(labeling: Any) -> bool:
    one = json.loads(labeling) if isinstance(labeling, str) and labeling.startswith("{") else labeling
    return isinstance(one, dict) and bool(one.get("is_deleted"))
