"""What the doctor finds that the conversion of Label's tables from another database server got wrong."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.doctor.findings import FEW, Chapter, first_few
from worker.db import label_tables
from worker.db.column_types import Misfit
from worker.db.engine import autocommit
from worker.errors import MigratorError
from worker.findings import Check, failed, passed, warned

GUIDE = "docs/from-mysql.md"

_QUARTER_S = 15 * 60
"""Time zones differ by whole quarters of an hour."""

_LEAST_S = 30 * 60
_SOON_S = 5 * 60
"""Label writes the row so soon after it has named the directory, unless much is copied in between."""

_ENOUGH = 3


def _names(conn: Connection) -> Check:
    if misnamed := label_tables.misnamed(conn):
        return failed(_found(misnamed), _as_owner(misnamed))
    return passed("without capitals, as statements write them")


def _types(conn: Connection) -> Check:
    """Of the columns that the migrator does not touch. The others are "column types" of the database."""
    if unlike := label_tables.unlike_types(conn):
        remedy = f"{_as_owner(unlike)}; where 100 became true, only MySQL still knows it: {GUIDE}"
        return warned(_found(unlike), remedy)
    return passed("flags are numbers, labels are json")


def _keys(conn: Connection) -> Check:
    primary, unique = label_tables.missing_keys(conn)
    if primary:
        return failed(_found(primary + unique), _as_owner(primary + unique))
    if unique:
        return warned(_found(unique), _as_owner(unique))
    return passed("every table has its own, and no name is there twice")


def _references(conn: Connection) -> Check:
    if broken := label_tables.broken_references(conn):
        return warned(_found(broken), _as_owner(broken))
    return passed("foreign keys are there, of the types of what they refer to")


def _numbers(conn: Connection) -> Check:
    """Can Label add rows? Of its own sequences only the tables' owner sees how far they are."""
    unnumbered, numbers = label_tables.unnumbered(conn), label_tables.own_numbers(conn)
    if unnumbered or numbers.behind:
        found = [f"{one.place} {one.reason}" for one in unnumbered]
        found += ["sequences give numbers that rows have already"] if numbers.behind else []
        statements = [one.remedy for one in unnumbered] + numbers.behind
        return warned(
            f"Label cannot add rows: {'; '.join(found)}", f"As the tables' owner: {'; '.join(statements)}"
        )
    unseen = f" (our role may not read those of {', '.join(numbers.unseen)})" if numbers.unseen else ""
    return passed(f"sequences go on behind the rows that are there{unseen}")


def _capitals(conn: Connection) -> Check:
    """MySQL took `A` and `a` for one, PostgreSQL and the disk do not."""
    twins = label_tables.twins(conn)
    if not twins:
        return passed("no two names differ in capitals or outer blanks only")
    finding = "; ".join(
        f"{one.table} {' and '.join(map(str, one.ids))} ({' and '.join(map(repr, one.names))})"
        for one in twins[:FEW]
    )
    more = f"; and {len(twins) - FEW} more" if len(twins) > FEW else ""
    return warned(
        f"MySQL takes for one what is two here: {finding}{more}",
        "If one of them was made because Label did not find the other, merge them in Label; else nothing.",
    )


def _garbled(conn: Connection) -> Check:
    if garbled := label_tables.garbled(conn):
        return warned(
            f"UTF-8 that was taken for latin1: {first_few([f'{one.place} {one.reason}' for one in garbled])}",
            f"{_as_owner(garbled[:FEW])}; and so on, with what else was stored so: {GUIDE}",
        )
    return passed("no name or path of a project is UTF-8 that was taken for latin1")


def times_check(lags: Sequence[timedelta] | None, time_zone: str) -> Check:
    """Do the times fit those in the names of directories, which Label takes from the clock on the wall?"""
    if lags is None:
        return passed("our role may not read when projects were made; the tables' owner may")
    shifted = sorted(_quarters(lag) for lag in lags if _is_shifted(lag.total_seconds()))
    if len(shifted) >= _ENOUGH and 2 * len(shifted) > len(lags):
        by = " or ".join(_hours(quarters) for quarters in sorted(set(shifted)))
        return warned(
            f"{len(shifted)} of {len(lags)} projects were made {by} off the time in their directories' names, "
            f"by the database's time zone, {time_zone}",
            "If that is not Label's: alter database … set timezone to 'REGION/CITY'. "
            f"If it is, the conversion has shifted all times; convert again: {GUIDE}",
        )
    fitting = sum(0 <= lag.total_seconds() < _LEAST_S for lag in lags)
    return passed(f"{fitting} of {len(lags)} directories' names fit the database's time zone, {time_zone}")


def _is_shifted(lag_s: float) -> bool:
    return abs(lag_s) >= _LEAST_S - _SOON_S and lag_s % _QUARTER_S < _SOON_S


def _quarters(lag: timedelta) -> int:
    return int(lag.total_seconds() // _QUARTER_S)


def _hours(quarters: int) -> str:
    return f"{'-' if quarters < 0 else '+'}{abs(quarters) // 4}:{abs(quarters) % 4 * 15:02}"


def _found(misfits: Sequence[Misfit]) -> str:
    return "; ".join(f"{one.place} {one.reason}" for one in misfits)


def _as_owner(misfits: Sequence[Misfit]) -> str:
    return f"As the tables' owner: {'; '.join(one.remedy for one in misfits)}"


def _times(conn: Connection) -> Check:
    return times_check(label_tables.lags(conn), label_tables.time_zone(conn))


CHECKS: Mapping[str, Callable[[Connection], Check]] = {
    "names": _names,
    "types": _types,
    "keys": _keys,
    "references": _references,
    "numbers": _numbers,
    "capitals": _capitals,
    "garbled names": _garbled,
    "times": _times,
}


def check_label(engine: Engine) -> Chapter:
    """Everything about Label's own tables, if they are there: that they are is a check of the database."""
    chapter = Chapter("Label's tables")
    try:
        with autocommit(engine) as conn:
            if label_tables.is_there(conn):
                chapter.carry_out(CHECKS, conn)
            else:
                chapter.leave_out(CHECKS, "there is no table projects")
    except (MigratorError, SQLAlchemyError):
        chapter.leave_out(CHECKS, "PostgreSQL cannot be asked")
    return chapter
