"""Every exit code, and the two places where one is decided: for an error, and for a run's report."""

import enum
from collections.abc import Mapping
from typing import Any

from worker import errors
from worker.db.ledger import Run
from worker.messages import RunState, Status, Verb


class Exit(enum.IntEnum):
    """Every exit code, as `--help` lists them."""

    WELL = 0
    UNEXPECTED = 1
    USAGE = 2
    SOME_FAILED = 3
    BYTES_MISMATCH = 4
    NOT_READY = 5
    WORK_LEFT = 8
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 all well · 1 unexpected error · 2 usage · 3 the run ended, some of it failed · "
    "4 stored bytes do not match · 5 database, broker, settings or schema not ready · "
    "8 stopped with work left · 130 interrupted"
)

_OF_ERRORS: dict[type[Exception], Exit] = {
    errors.UsageError: Exit.USAGE,
    errors.SettingsError: Exit.NOT_READY,
    errors.SchemaMissingError: Exit.NOT_READY,
    errors.RowsHiddenError: Exit.NOT_READY,
    errors.SequenceBehindError: Exit.NOT_READY,
    errors.DatabaseRefusedError: Exit.NOT_READY,
    errors.ColumnTypesError: Exit.NOT_READY,
    errors.DatabaseUnavailableError: Exit.NOT_READY,
    errors.DatabaseBusyError: Exit.NOT_READY,
    errors.BrokerUnavailableError: Exit.NOT_READY,
    errors.StoreUnusableError: Exit.NOT_READY,
    errors.StoredBytesMismatchError: Exit.BYTES_MISMATCH,
    errors.DatasetsMissingError: Exit.SOME_FAILED,
    errors.NoRoomForImportError: Exit.NOT_READY,
    errors.StoreStoppedError: Exit.NOT_READY,
    errors.ClaimLostError: Exit.NOT_READY,
}

_MISMATCHES = {errors.StoredBytesMismatchError.__name__, errors.SessionsDifferError.__name__}


def epilog(example: str) -> str:
    """What stands below a verb's help."""
    return f"Example: {example}\n\n{EXIT_CODES}"


def exit_code(error: Exception) -> Exit:
    """The one place where an error becomes an exit code."""
    return next((code for kind, code in _OF_ERRORS.items() if isinstance(error, kind)), Exit.UNEXPECTED)


def verdict(document: Mapping[str, Any], run: Run) -> Exit:
    """The one place where the report of a run that has ended becomes an exit code."""
    if run.state is RunState.CANCELLED:
        return Exit.WORK_LEFT
    if any(error["error_class"] in _MISMATCHES for error in document["errors"]):
        return Exit.BYTES_MISMATCH
    if any(error["error_class"] == errors.SharingUnsupportedError.__name__ for error in document["errors"]):
        return Exit.NOT_READY
    if document["errors"] or (run.verb is Verb.VERIFY and _left_unverified(document, run)):
        return Exit.SOME_FAILED
    return Exit.SOME_FAILED if _left_named(document, run) else Exit.WELL


def _left_named(document: Mapping[str, Any], run: Run) -> bool:
    """Was something skipped that was named to be reclaimed or adopted?"""
    named = {
        Verb.RECLAIM: ("project", run.options.project_ids),
        Verb.ADOPT: ("dataset", run.options.dataset_ids),
    }
    subject, ids = named.get(run.verb, ("", ()))
    return bool(ids and document[f"{subject}s_skipped"])


def _left_unverified(document: Mapping[str, Any], run: Run) -> bool:
    """Was nothing verified of what was due, or not all of what was named? Then the run has proved nothing.

    Where something was named, every job is about it, or about what it stands for.
    """
    ends = [end for of in document["statuses"].values() for end in of.items()]
    jobs: int = sum(count for _, count in ends)
    proved: int = sum(count for status, count in ends if status in {Status.VERIFIED, Status.REPAIRED})
    names_some = bool(run.options.project_ids or run.options.dataset_ids)
    return proved < jobs if names_some else proved == 0 < jobs
