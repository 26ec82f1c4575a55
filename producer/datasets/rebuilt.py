"""Rows of datasets made again from the store: the call, and its answer as JSON."""

from dataclasses import asdict
from typing import Any

from worker.jobs.rebuild import Outcome, rebuild

__all__ = ["Outcome", "rebuild", "to_json"]


def to_json(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    """As `producer datasets rebuild --json` shows it."""
    return {
        "dry_run": dry_run,
        "datasets_there": outcome.there,
        "rebuilt": [asdict(one) for one in outcome.rebuilt],
        "row_files_written": list(outcome.row_files),
        "drift": [asdict(one) | {"remedy": one.remedy} for one in outcome.drift],
    }
