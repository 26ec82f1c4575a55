"""What the parts of a report are made from. Knows no outcome's place in a document."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from worker.errors import MigratorError
from worker.messages import Outcome, RunState, Verb
from worker.wording import VERB_WORDS


class ReportInconsistentError(MigratorError):
    """Outcomes contradict each other or their run, or totals do not add up: a defect of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a report says about its run, besides what the outcomes say.

    Times are aware; `finished_at` None: the end of the last outcome (not the time of the call), so
    that the same outcomes give the same bytes. `selection` is what the ledger keeps: the options
    the run was opened with, and under `left_out` the projects they left out (project_id,
    project_name, reason). It must hold JSON values and no secret.
    """

    run_id: uuid.UUID
    verb: Verb
    dry_run: bool
    state: RunState
    started_at: datetime
    finished_at: datetime | None = None
    selection: Mapping[str, Any]
    waves: Sequence[Mapping[str, Any]] = ()
    """JSON values, as `producer.runs.waves.wave_json` makes them, with how many jobs ended how."""
    interim: str | None = None
    """Why the report was written before the run's end; None for a final one."""

    def succeeded(self, outcome: Outcome) -> bool:
        """Did the job do what the run is for, or in a dry run: would it?"""
        return outcome.status in VERB_WORDS[self.verb].successes(dry_run=self.dry_run)


class LongList(Protocol):
    """A list that a report is made into: in memory, or on disk (`files.Spool`)."""

    def append(self, entry: Any, /) -> None:
        """Add an entry at the end."""

    def extend(self, entries: Iterable[Any], /) -> None:
        """Add entries at the end."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
