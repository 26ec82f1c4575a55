"""Which projects a person means by a call, and which of them are left out, with the reason. Asks no database."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from worker.db.projects import Project

EXCLUDED = "excluded"


_BEYOND_LIMIT = "beyond --limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A project that gets no message, and why."""

    project_id: int
    project_name: str
    reason: str


def choose(
    candidates: Sequence[Project], only: Collection[int], not_those: Mapping[int, str], limit: int | None
) -> tuple[list[Project], list[LeftOut]]:
    """Those of the candidates that a run is to have, and the others with the reason: `not_those` says it by id. A legacy project
    without a path does not count towards `limit`.
    """
    left_out: list[LeftOut] = []
    chosen: list[Project] = []
    counted = 0
    for project in candidates:
        if only and project.project_id not in only:
            continue
        full = limit is not None and counted >= limit
        reason = not_those.get(project.project_id, _BEYOND_LIMIT if full else None)
        if reason is None:
            chosen.append(project)
            counted += bool(project.path) or not project.is_legacy
        else:
            left_out.append(
                LeftOut(project_id=project.project_id, project_name=project.project_name, reason=reason)
            )
    return chosen, left_out
