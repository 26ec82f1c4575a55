"""Made-up rows of Label's tables, as few columns as a test needs."""

from typing import Any

from sqlalchemy import Connection, text


def insert(connection: Connection, table: str, key: str, **columns: Any) -> int:
    """Insert one row and return its key."""
    names = ", ".join(columns)
    values = ", ".join(f":{name}" for name in columns)
    row = connection.execute(
        text(f"insert into {table} ({names}) values ({values}) returning {key}"), columns
    )
    return int(row.scalar_one())


def project(connection: Connection, name: str = "walk", **columns: Any) -> int:
    """A project, and its participant."""
    participant_id = insert(connection, "participants", "participant_id", participant_code=f"of {name}")
    return insert(
        connection, "projects", "project_id", project_name=name, participant_id=participant_id, **columns
    )


def session(
    connection: Connection, project_id: int, name: str = "2025-01-01_10_00_00", **columns: Any
) -> int:
    """A session of a project."""
    columns = {"start_ns": 0, "stop_ns": 1, **columns}
    return insert(connection, "sessions", "session_id", project_id=project_id, session_name=name, **columns)


def dataset(connection: Connection, name: str = "walk", **columns: Any) -> int:
    """A dataset whose hash follows from its name."""
    columns = {
        "dataset_hash": name.encode().hex().ljust(64, "0"),
        "file_path": f"/raw_datasets/{name}",
        **columns,
    }
    return insert(connection, "raw_datasets", "dataset_id", dataset_name=name, **columns)


def split_config(connection: Connection, project_id: int, dataset_id: int, **columns: Any) -> int:
    """A split config of a project."""
    return insert(
        connection,
        "project_split_configs",
        "config_id",
        project_id=project_id,
        dataset_id=dataset_id,
        raw_session_name="2025-01-01_10_00_00",
        **columns,
    )
