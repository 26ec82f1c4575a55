"""What the parts of a report are made from. Knows no outcome's place in a document."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.errors import MigratorError
from worker.messages import Outcome, RunState, Verb
from worker.wording import VERB_WORDS


class ReportInconsistentError(MigratorError):
    """Outcomes contradict each other or their run, or totals do not add up: a defect of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a report says about its run, besides what the outcomes say.

    Times are aware; `finished_at` is the end of the last outcome (not the time of the call), so
    that the same outcomes give the same bytes. `selection` is what the ledger keeps: the options
    the run was opened with, and under `left_out` the projects they left out (project_id,
    project_name, reason). It must hold JSON values and no secret.
    """

    run_id: uuid.UUID
    verb: Verb
    dry_run: bool
    state: RunState
    started_at: datetime
    finished_at: datetime
    selection: Mapping[str, Any]
    interim: str | None = None
    """Why the report was written before the run's end; None for a final one."""

    def succeeded(self, outcome: Outcome) -> bool:
        """Did the job do what the run is for, or in a dry run: would it?"""
        return outcome.status in VERB_WORDS[self.verb].successes(dry_run=self.dry_run)
