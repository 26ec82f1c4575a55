"""The files of sql/: their text, checksums, and the tables and columns that they make. Knows no database."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

BASELINE = "label_app_baseline"
"""Label's own tables, for demo and tests."""

INDEXES = "create_indexes"
"""Indexes of tables that may be large: a query whose rows are the statements to be run, each by itself."""

STEPS = ("add_virtual_split_columns", "create_raw_datasets_tables", "create_migration_ledger", INDEXES)
"""What every database needs, in the order in which it is applied."""

_COMMENT = re.compile(r"--.*")
_MAKES = re.compile(
    r"create table if not exists (?P<new>\w+) \((?P<body>.*?)^\);"
    r"|alter table (?P<old>\w+)|add column if not exists (?P<column>\w+)",
    re.MULTILINE | re.DOTALL,
)
_COLUMN = re.compile(r"^ {4}(?!constraint\b)(\w+) ", re.MULTILINE)


def read(name: str) -> bytes:
    """A file as this program has it; `name` without its ending."""
    return (_folder() / f"{name}.sql").read_bytes()


def checksum(sql: bytes) -> str:
    """The SHA-256 by which the database remembers which version of a file it has had."""
    return hashlib.sha256(sql).hexdigest()


def needed(names: Sequence[str] = STEPS) -> Iterator[tuple[str, str | None]]:
    """Every table, and every (table, column), that these steps make.

    The files say it themselves: to be repeatable they have no other way to make a table or a later column
    than the phrases looked for here.
    """
    for name in names:
        table = ""
        for made in _MAKES.finditer(_COMMENT.sub("", read(name).decode())):
            table = made["new"] or made["old"] or table
            if made["new"]:
                yield table, None
                for column in _COLUMN.findall(made["body"]):
                    yield table, column
            elif made["column"]:
                yield table, made["column"]


def _folder() -> Traversable:
    """Where the files are: inside the package once it is installed, beside it in a checkout."""
    installed = resources.files("worker") / "sql"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "sql"
