"""What tests share is shared on purpose, and leaves nothing of one test to the next."""

import ast
import re
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.forking import Forks
from tests.support.servers import Databases

TESTS = Path(__file__).parent
IMPORTS = re.compile(r"^\s*(?:from|import) tests\.([\w.]+)", re.MULTILINE)
SHARED = {"support", "estate", "defects", "command_list"}
OF_ONE = re.compile(r"(^|\.)(conftest|test_\w+)$")


def imported(path: Path) -> set[str]:
    """The modules below `tests` that a module imports."""
    return set(IMPORTS.findall(path.read_text()))


def aliens(path: Path) -> set[str]:
    """What a module imports of another folder, or of what is one test's own."""
    folder = path.relative_to(TESTS).parts[0]
    own = {folder} if (TESTS / folder).is_dir() else {path.stem.removeprefix("test_")}
    return {name for name in imported(path) if name.split(".")[0] not in SHARED | own or OF_ONE.search(name)}


def test_folders_of_tests_share_what_is_in_support_and_nothing_else():
    found = {str(path.relative_to(TESTS)): aliens(path) for path in TESTS.rglob("*.py")}

    assert {path: names for path, names in found.items() if names} == {}


def test_the_program_imports_no_test():
    root = TESTS.parent

    assert [
        path for room in ("worker", "producer") for path in (root / room).rglob("*.py") if imported(path)
    ] == []


def test_names_of_tests_have_at_most_80_characters():
    names = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }

    assert [name for name in sorted(names) if len(name) > 80] == []


def test_a_database_with_rows_only_is_emptied_and_used_again(databases: Databases):
    with databases.one() as first, first.begin() as conn:
        conn.execute(text("insert into participants (participant_code) values ('P1')"))
    with databases.one() as second, second.begin() as conn:
        assert second.url == first.url
        ids = conn.scalars(
            text("insert into participants (participant_code) values ('P1') returning 1")
        ).all()
        assert (ids, conn.scalar(text("select min(participant_id) from participants"))) == ([1], 1)


@pytest.mark.parametrize(
    "change",
    [
        "alter table sessions add column remarks text",
        "drop trigger if exists none on projects; revoke select on projects from public; grant select on projects to public",
        "delete from migration_state_arrows",
        "create index on sessions (session_name)",
    ],
)
def test_a_database_that_was_changed_otherwise_is_not_used_again(databases: Databases, change: str):
    with databases.one() as changed, changed.begin() as conn:
        conn.execute(text(change))

    with databases.one() as other:
        assert other.url != changed.url


def print_modules(_order: object) -> None:
    """In a forked process, before it has loaded anything by itself."""
    print(*sys.modules, sep="\n", flush=True)


def test_forked_processes_share_nothing_that_workers_share_with_their_children(
    programs: Forks, tmp_path: Path
):
    """`worker.runtime.shutdown` has a page that is shared from its loading on: all workers would stop at
    once.
    """
    process = programs.call("modules", "tests.test_support:print_modules", {}, env={}, folder=tmp_path)

    assert programs.await_end(process, "it has said what is loaded") == 0
    loaded = set(process.output.read_text().split())
    assert {"producer.cli.app", "worker.jobs.migrate"} <= loaded
    assert loaded.isdisjoint({"worker.app", "worker.bootsteps", "worker.runtime.shutdown", "worker.tasks"})
