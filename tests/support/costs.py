"""What statements cost PostgreSQL, in pages and rows: the same on any machine, at any time."""

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, event

Ask = Callable[[Connection], object]


def pages(engine: Engine, ask: Ask) -> int:
    """How many pages the statements touch that `ask` has executed, in memory or not. All is rolled back."""
    return sum(int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]) for plan in plans(engine, ask))


def rows(engine: Engine, ask: Ask) -> int:
    """How many rows all nodes of their plans have read, those that were left out among them."""
    return sum(
        round((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        for plan in plans(engine, ask)
        for node in _nodes(plan)
    )


def plans(engine: Engine, ask: Ask) -> list[dict[str, Any]]:
    """The plans of these statements, executed once more from the same state."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
        asked.append((statement, parameters))

    with engine.connect() as conn:
        before = conn.begin_nested()
        event.listen(engine, "before_cursor_execute", note)
        try:
            ask(conn)
        finally:
            event.remove(engine, "before_cursor_execute", note)
        before.rollback()
        cursor = conn.connection.cursor()
        found = [_plan(cursor, *one) for one in asked]
        conn.rollback()
    assert found
    return found


def _plan(cursor: Any, statement: str, parameters: Any) -> dict[str, Any]:
    settings, separator, rest = statement.partition(";")
    if separator and settings.strip().startswith("set local"):
        cursor.execute(settings)
        statement = rest
    cursor.execute("explain (analyze, buffers, format json) " + statement, parameters)
    ((explained,),) = cursor.fetchone()
    plan: dict[str, Any] = explained["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)
