"""The types of columns are judged once for all jobs that ask, and anew when they are asked for anew."""

from collections.abc import ItemsView

from sqlalchemy import Engine

from worker.db import column_types
from worker.db.column_types import Column, ColumnTypes
from worker.db.engine import autocommit


class Counted(dict[tuple[str, str], Column]):
    """Counts how often all of it is gone through."""

    times = 0

    def items(self) -> ItemsView[tuple[str, str], Column]:  # type: ignore[override]
        self.times += 1
        return super().items()


def test_columns_are_judged_once_however_many_jobs_ask(database: Engine):
    with autocommit(database) as conn:
        columns = Counted(column_types.ask(conn).columns)
    types = ColumnTypes(columns)

    found = [types.misfits(tables) for tables in (column_types.ALL, column_types.OF_ROLLBACK) * 3]

    assert found == [[]] * 6
    assert columns.times == 1


def test_a_misfit_is_told_of_its_own_table_alone(database: Engine):
    with database.begin() as conn:
        conn.exec_driver_sql("alter table raw_datasets alter column dataset_hash type integer using null")
        types = column_types.ask(conn)
        conn.rollback()

    assert [one.place for one in types.misfits()] == ["raw_datasets.dataset_hash"]
    assert types.misfits(column_types.OF_ROLLBACK) == []
