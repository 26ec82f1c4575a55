"""The two states that a project may be in, fully legacy or fully migrated, and whether it is in one of
them.
"""

from dataclasses import dataclass

from sqlalchemy import Engine

from tests.estate import dump
from tests.estate.compare import CONVERTED_TABLES
from tests.support.model import Row, Tree, by_key, grouped, migrated, parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Everything in the database that is about one project, or about datasets."""

    label: dict[str, list[Row]]
    refs: list[Row]
    configs: list[Row]
    active: int
    datasets: dict[int, Row]

    @property
    def project(self) -> Row:
        """The project's own row."""
        return self.label["projects"][0]

    @property
    def is_legacy(self) -> bool:
        """What the project's row says; whether all others agree, `check_legacy` and `check_migrated` tell."""
        return self.project["project_type"] in {None, "legacy"}

    def session(self, name: str) -> Row:
        """One session."""
        return by_key(self.label["sessions"], "session_name")[name]


def look(engine: Engine, project_id: int) -> Rows:
    """The rows of a project as they are now, all from one moment."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        tables = dump(conn, CONVERTED_TABLES)
    own = grouped(tables["sessions"], "project_id").get(project_id, [])
    ids = {row["session_id"] for row in own}
    return Rows(
        label={
            "projects": [row for row in tables["projects"] if row["project_id"] == project_id],
            "sessions": own,
            "session_lineage": [row for row in tables["session_lineage"] if row["child_session_id"] in ids],
        },
        refs=grouped(tables["project_dataset_refs"], "project_id").get(project_id, []),
        configs=grouped(tables["project_split_configs"], "project_id").get(project_id, []),
        active=sum(
            row["project_id"] == project_id and row["rolled_back_at"] is None
            for row in tables["project_conversions"]
        ),
        datasets=by_key(tables["raw_datasets"], "dataset_id"),
    )


def check_legacy(rows: Rows, legacy: Rows) -> None:
    """As it was, and nothing of a conversion beside it. A dataset that was stored may stay."""
    assert rows.label == legacy.label
    assert (rows.refs, rows.configs, rows.active) == ([], [], 0)


def check_migrated(rows: Rows, legacy: Rows) -> None:
    """As the contract says of the legacy project that it was."""
    path = legacy.project["path"]
    config = parsed(rows.project["analysis_config"])
    dataset = rows.datasets[config["dataset_id"]]
    expected = migrated(
        legacy.project,
        legacy.label["sessions"],
        Tree.of(path),
        dataset,
        written={
            "migrated_from": "legacy",
            "migration_date": config["migration_date"],
            "original_path": path,
            "dataset_id": dataset["dataset_id"],
            "run_id": config["run_id"],
        },
        config_ids={row["raw_session_name"]: row["config_id"] for row in rows.configs},
    )
    assert rows.project | {"analysis_config": config} == expected.project
    assert rows.label["sessions"] == expected.sessions
    assert rows.label["session_lineage"] == legacy.label["session_lineage"]
    assert [row["dataset_id"] for row in rows.refs] == [dataset["dataset_id"]]
    assert {row["raw_session_name"] for row in rows.configs} == expected.segments.keys()
    assert rows.active == 1


def check(rows: Rows, legacy: Rows) -> None:
    """One or the other (I4)."""
    (check_legacy if rows.is_legacy else check_migrated)(rows, legacy)
