"""Whatever people and the migrator do, in whatever order: rows are what a model says, and every session reads
as ever.

`EXPLORE=200 pytest tests/fidelity/test_history.py` looks at that many new histories instead of the same few.
"""

import os
import shutil
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, text

from tests.estate import (
    JSON_NULL,
    Form,
    Project,
    RawJson,
    Reading,
    differences,
    dump,
    make_project,
    make_session,
    readings,
    record_session,
    split_on_upload,
    split_session,
    write_recording,
)
from tests.estate.compare import CONVERTED_TABLES
from tests.support.model import Row, Tree, by_key, grouped, migrated, parsed
from tests.support.runs import run_one
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Status, Verb
from worker.sessions_csv import Reader

EXPLORE = int(os.environ.get("EXPLORE", "0"))
_MOST_PROJECTS = 3
_NOT_OBJECTS = (JSON_NULL, [1, "two"], "text", RawJson("1.50"))

kinds_of_sessions = st.lists(
    st.tuples(st.sampled_from(["whole", "cut by an upload", "without a directory"]), st.integers(0, 2)),
    min_size=1,
    max_size=3,
    unique_by=lambda pair: pair[1],
)
configs = st.sampled_from([None, {}, {"mine": 1, "dataset_id": "mine, too"}, *_NOT_OBJECTS])
which = st.integers(0, 1000)
"""Chooses among those that there are."""
rarely = st.sampled_from([False, False, False, True])


@dataclass(kw_only=True)
class Known:
    """What the model knows of a project: its rows as they would be had it never been migrated, and whether it
    is.
    """

    made: Project
    project: Row
    sessions: dict[int, Row]
    tree: Tree
    content: list[tuple[str, int]]
    run_id: str | None = None
    config_was_null: bool = False
    converted: set[int] = field(default_factory=set)
    """The sessions that there were when it was migrated."""

    @property
    def number(self) -> int:
        return self.made.project_id

    @property
    def is_migrated(self) -> bool:
        return self.run_id is not None

    @property
    def has_directory(self) -> bool:
        return os.path.exists(str(self.made.path))


class History(RuleBasedStateMachine):
    """One history of an installation. Every rule does one thing to the site and the same to the model."""

    def __init__(self, site: Site, tools: Tools) -> None:
        super().__init__()
        self.site = site
        self.tools = tools
        self.known: list[Known] = []
        self.lineage: list[Row] = []
        self.frames: dict[tuple[int, Reader], Reading] = {}
        site.empty()

    # Projects -----------------------------------------------------------------------------------------------

    @initialize(content=kinds_of_sessions, config=configs)
    def there_is_a_project(self, content: list[tuple[str, int]], config: Any) -> None:
        # Without its last project the root must not look like a mount that is missing.
        (self.site.legacy_root / "no project").mkdir(exist_ok=True)
        self._add(content, config)

    @precondition(lambda self: len(self.known) < _MOST_PROJECTS)
    @rule(content=kinds_of_sessions, config=configs)
    def comes_a_project(self, content: list[tuple[str, int]], config: Any) -> None:
        self._add(content, config)

    @precondition(lambda self: len(self.known) < _MOST_PROJECTS)
    @rule(index=which, config=configs)
    def comes_a_project_of_the_same_content(self, index: int, config: Any) -> None:
        self._add(_choose(self.known, index).content, config)

    def _add(self, content: list[tuple[str, int]], config: Any) -> None:
        with self.site.engine.begin() as conn:
            project = make_project(
                conn,
                self.site.legacy_root,
                f"study {len(self.known)}",
                analysis_config=config,
                project_type=None if len(content) == 1 else "legacy",
            )
            assert project.directory is not None
            (project.directory / "there is always one").mkdir()
            for kind, seed in content:
                _add_session(conn, project, kind, seed)
            tables = dump(conn)
            self.frames |= readings(conn, self.site.data_dir, project_id=project.project_id)
        self.lineage = tables["session_lineage"]
        self.known.append(
            Known(
                made=project,
                project=by_key(tables["projects"], "project_id")[project.project_id],
                sessions=by_key(
                    grouped(tables["sessions"], "project_id").get(project.project_id, []), "session_id"
                ),
                tree=Tree.of(str(project.path)),
                content=content,
            )
        )

    def _legacy(self) -> list[Known]:
        return [one for one in self.known if not one.is_migrated]

    def _migrated(self) -> list[Known]:
        return [one for one in self.known if one.is_migrated]

    # The migrator -------------------------------------------------------------------------------------------

    @precondition(lambda self: self._legacy())
    @rule(index=which, rehearsed=rarely)
    def migrate(self, index: int, rehearsed: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        one = _choose(self._legacy(), index)
        outcome = run_one(self.tools, Verb.MIGRATE, one.number, dry_run=rehearsed)

        assert outcome.error is None
        if rehearsed:
            assert outcome.status is Status.WOULD_MIGRATE
            return
        assert outcome.status is Status.MIGRATED
        one.run_id = parsed(self._row(one)["analysis_config"])["run_id"]
        one.config_was_null = one.project["analysis_config"] is None
        one.converted = set(one.sessions)

    @precondition(lambda self: self._migrated())
    @rule(index=which, rehearsed=rarely, restore=st.booleans())
    def roll_back(self, index: int, rehearsed: bool, restore: bool) -> None:  # noqa: FBT001 - as above
        one = _choose(self._migrated(), index)
        outcome = run_one(self.tools, Verb.ROLLBACK, one.number, dry_run=rehearsed, restore_files=restore)

        if not one.has_directory and not restore:
            assert (outcome.status, outcome.error_class) == (Status.FAILED, "LegacyPathMissingError")
            return
        assert outcome.error is None
        if rehearsed:
            assert outcome.status is Status.WOULD_ROLL_BACK
            return
        assert outcome.status is Status.ROLLED_BACK
        assert one.has_directory
        assert Tree.of(str(one.made.path)) == one.tree
        if one.config_was_null and one.project["analysis_config"] == "{}":
            # Nobody can tell an empty object that people made of our keys from one that our keys leave
            # behind.
            one.project["analysis_config"] = None
        one.run_id, one.converted = None, set()

    @precondition(lambda self: self._migrated())
    @rule(index=which)
    def verify(self, index: int) -> None:
        one = _choose(self._migrated(), index)

        outcome = run_one(self.tools, Verb.VERIFY, one.number)

        # People may leave a project no session that can be read at all.
        proved = one.has_directory and "can be read by either" not in outcome.reason
        assert outcome.status is (Status.VERIFIED if proved else Status.SKIPPED)

    @precondition(lambda self: self._migrated())
    @rule(index=which)
    def the_legacy_directory_is_removed(self, index: int) -> None:
        one = _choose(self._migrated(), index)
        if one.has_directory:
            shutil.rmtree(str(one.made.path))

    # People -------------------------------------------------------------------------------------------------

    @rule(
        index=which, session=which, bouts=st.sampled_from([None, "[]", '[[1, 2, "smoking", 0.50]]', '"[]"'])
    )
    def draw_bouts(self, index: int, session: int, bouts: str | None) -> None:
        self._change_session(index, session, {"bouts": bouts})

    @rule(
        index=which,
        session=which,
        keep=st.sampled_from([None, True, False]),
        verified=st.sampled_from([None, 0, 1, 100]),
    )
    def set_flags(self, index: int, session: int, keep: bool | None, verified: int | None) -> None:  # noqa: FBT001
        self._change_session(index, session, {"keep": keep, "verified": verified, "status": "Decision Made"})

    def _change_session(self, index: int, session: int, values: Row) -> None:
        one = _choose(self.known, index)
        if not one.sessions:
            return
        number = sorted(one.sessions)[session % len(one.sessions)]
        settings_ = ", ".join(
            f"{name} = cast(:{name} as jsonb)" if name == "bouts" else f"{name} = :{name}" for name in values
        )
        with self.site.engine.begin() as conn:
            conn.execute(
                text(f"update sessions set {settings_} where session_id = :id"), values | {"id": number}
            )
        one.sessions[number] |= values

    @rule(index=which, session=which, cut=which)
    def split(self, index: int, session: int, cut: int) -> None:
        one = _choose(self.known, index)
        can = [number for number in sorted(one.sessions) if self._rows(number) > 1]
        if not can:
            return
        number = can[session % len(can)]
        cut = 1 + cut % (self._rows(number) - 1)
        with self.site.engine.begin() as conn:
            children = split_session(conn, number, [cut], self.site.data_dir)
            tables = dump(conn)
        rows = by_key(tables["sessions"], "session_id")
        one.sessions[number] |= {"status": "Split", "keep": False, "is_visible": False}
        for child in children:
            place = f"{one.made.path}/{os.path.basename(rows[child]['parent_session_data_path'])}"
            one.sessions[child] = rows[child] | {"parent_session_data_path": place}
        self.lineage = tables["session_lineage"]
        for reader in Reader:
            whole = self.frames[number, reader]
            assert whole is not None
            for child, part in zip(children, (whole.iloc[:cut], whole.iloc[cut:]), strict=True):
                self.frames[child, reader] = part.reset_index(drop=True)

    def _rows(self, number: int) -> int:
        frame: pd.DataFrame | None = self.frames[number, Reader.SPLIT]
        return 0 if frame is None else len(frame)

    @rule(index=which, session=which)
    def delete_a_session(self, index: int, session: int) -> None:
        one = _choose(self.known, index)
        parents = {row["parent_session_id"] for row in self.lineage}
        can = [number for number in sorted(one.sessions) if number not in parents]
        if not can:
            return
        number = can[session % len(can)]
        with self.site.engine.begin() as conn:
            conn.execute(text("delete from session_lineage where child_session_id = :id"), {"id": number})
            conn.execute(text("delete from sessions where session_id = :id"), {"id": number})
        del one.sessions[number]
        one.converted.discard(number)
        self.lineage = [row for row in self.lineage if row["child_session_id"] != number]
        self.frames = {key: frame for key, frame in self.frames.items() if key[0] != number}

    @rule(index=which, labelings=st.sampled_from(['["smoking"]', '[{"name": "x", "color": null}]', None]))
    def change_labelings(self, index: int, labelings: str | None) -> None:
        one = _choose(self.known, index)
        self._update_project(one, "labelings = cast(:labelings as jsonb)", labelings=labelings)
        one.project["labelings"] = labelings

    @rule(index=which, name=st.sampled_from(["renamed", "renamed/.."]))
    def rename(self, index: int, name: str) -> None:
        one = _choose(self.known, index)
        name = f"{name} {one.number}"
        self._update_project(one, "project_name = :name", name=name)
        one.project["project_name"] = name

    @precondition(lambda self: self._with_keys())
    @rule(
        index=which, key=st.sampled_from(["mine", "yours"]), value=st.sampled_from(["1", '{"deep": [1.50]}'])
    )
    def set_a_config_key(self, index: int, key: str, value: str) -> None:
        self._change_config(
            _choose(self._with_keys(), index),
            "|| jsonb_build_object(cast(:key as text), cast(:value as jsonb))",
            key=key,
            value=value,
        )

    @precondition(lambda self: self._with_keys())
    @rule(index=which, key=st.sampled_from(["mine", "yours"]))
    def remove_a_config_key(self, index: int, key: str) -> None:
        one = _choose(self._with_keys(), index)
        if key in (parsed(one.project["analysis_config"]) or {}):
            self._change_config(one, "- cast(:key as text)", key=key)

    def _with_keys(self) -> list[Known]:
        """Projects whose config is an object, or nothing yet."""
        return [
            one
            for one in self.known
            if one.project["analysis_config"] is None
            or isinstance(parsed(one.project["analysis_config"]), dict)
        ]

    def _change_config(self, one: Known, change: str, **values: Any) -> None:
        """The same change to the row and to the model's text of the value, both by PostgreSQL's
        arithmetic.
        """
        self._update_project(one, f"analysis_config = coalesce(analysis_config, '{{}}') {change}", **values)
        with self.site.engine.connect() as conn:
            one.project["analysis_config"] = conn.execute(
                text(f"select cast(coalesce(cast(:former as jsonb), '{{}}') {change} as text)"),
                values | {"former": one.project["analysis_config"]},
            ).scalar_one()

    def _update_project(self, one: Known, assignment: str, **values: Any) -> None:
        with self.site.engine.begin() as conn:
            conn.execute(
                text(f"update projects set {assignment} where project_id = :id"), values | {"id": one.number}
            )

    def _row(self, one: Known) -> Row:
        with self.site.engine.connect() as conn:
            return by_key(dump(conn, ["projects"])["projects"], "project_id")[one.number]

    # What holds after every step ----------------------------------------------------------------------------

    @invariant()
    def rows_are_what_the_model_says(self) -> None:
        """I4 and I7."""
        with self.site.engine.connect() as conn:
            tables = dump(conn, CONVERTED_TABLES)
        assert tables["session_lineage"] == self.lineage
        active = {row["project_id"] for row in tables["project_conversions"] if not row["rolled_back_at"]}
        assert active == {one.number for one in self.known if one.is_migrated}
        for one in self.known:
            self._check(one, tables)
        assert len(tables["projects"]) == len(self.known)
        assert len(tables["sessions"]) == sum(len(one.sessions) for one in self.known)

    def _check(self, one: Known, tables: dict[str, list[Row]]) -> None:
        found = by_key(tables["projects"], "project_id")[one.number]
        sessions = by_key(grouped(tables["sessions"], "project_id").get(one.number, []), "session_id")
        refs = grouped(tables["project_dataset_refs"], "project_id").get(one.number, [])
        split_configs = grouped(tables["project_split_configs"], "project_id").get(one.number, [])
        if not one.is_migrated:
            assert (found, sessions) == (one.project, one.sessions)
            assert (refs, split_configs) == ([], [])
            return
        config = parsed(found["analysis_config"])
        dataset = by_key(tables["raw_datasets"], "dataset_id")[config["dataset_id"]]
        expected = migrated(
            one.project,
            [row for number, row in one.sessions.items() if number in one.converted],
            one.tree,
            dataset,
            written={
                "migrated_from": "legacy",
                "migration_date": config["migration_date"],
                "original_path": one.made.path,
                "dataset_id": dataset["dataset_id"],
                "run_id": one.run_id,
            },
            config_ids={row["raw_session_name"]: row["config_id"] for row in split_configs},
        )
        since = {
            number: row
            | {
                "parent_session_data_path": f"{dataset['file_path']}/"
                + os.path.basename(row["parent_session_data_path"])
            }
            for number, row in one.sessions.items()
            if number not in one.converted
        }
        assert found | {"analysis_config": config} == expected.project
        assert sessions == by_key(expected.sessions, "session_id") | since
        assert [row["dataset_id"] for row in refs] == [dataset["dataset_id"]]

    @invariant()
    def every_session_reads_as_ever(self) -> None:
        """I6; also where the legacy directory is gone."""
        with self.site.engine.connect() as conn:
            assert differences(self.frames, readings(conn, self.site.data_dir)) == []


def _choose(those: list[Known], index: int) -> Known:
    return those[index % len(those)]


def _add_session(conn: Connection, project: Project, kind: str, seed: int) -> None:
    assert project.directory is not None
    name = f"session {seed}"
    if kind == "whole":
        record_session(conn, project, name, rows=10 + seed, seed=seed)
    elif kind == "without a directory":
        make_session(conn, project.project_id, name, bouts=[[1, 2]])
    else:
        recording = write_recording(project.directory / name, rows=12, seed=seed, form=Form.GAPPED, gaps=[5])
        split_on_upload(conn, project, name, recording)


@pytest.mark.timeout(max(600, 5 * EXPLORE))
def test_any_history_of_people_and_migrator_keeps_what_people_see(site: Site, tools: Tools):
    play(site, tools, EXPLORE or 10)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_histories_of_people_and_migrator_keep_what_people_see(site: Site, tools: Tools):
    play(site, tools, 100)


def play(site: Site, tools: Tools, histories: int) -> None:
    """So many of them, the same each time unless new ones are asked for."""
    run_state_machine_as_test(
        lambda: History(site, tools),
        settings=settings(
            max_examples=histories,
            stateful_step_count=10,
            deadline=None,
            derandomize=not EXPLORE,
            database=None,
            # A shorter history is worth minutes only to whoever asks for it.
            phases=[phase for phase in Phase if phase is not Phase.shrink or EXPLORE],
            suppress_health_check=list(HealthCheck),
        ),
    )
