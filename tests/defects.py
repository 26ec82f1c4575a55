"""A known defect and the tests that guard against it, for the tables of known defects."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One defect: what it was, which tests guard against it, and, where tests are not the whole answer, the
    rest of it.
    """

    number: int
    was: str
    guards: tuple[str, ...] = ()
    note: str | None = None

    def missing_guards(self) -> list[str]:
        """Those guards that no test has the name of; each is written `folder/test_file.py::test_name`."""
        return [
            guard
            for guard in self.guards
            if guard.partition("::")[2] not in _tests_in(guard.partition("::")[0])
        ]


@cache
def _tests_in(file: str) -> frozenset[str]:
    """The names of the test functions of a file."""
    path = TESTS / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )
