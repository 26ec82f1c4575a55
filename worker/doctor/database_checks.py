"""What a worker learns from its database: can it be reached, which one is it, which projects to look for."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.db import health
from worker.db.engine import autocommit, connect
from worker.db.projects import sample_of_legacy
from worker.doctor.machine_checks import clock_check
from worker.errors import MigratorError
from worker.findings import Checks, failed, passed
from worker.settings import Settings

_STATEMENT_S = 3.0
_SAMPLE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class FromDatabase:
    """What a worker learned from its database. `identity` tells it from every other one; `projects` are some
    legacy projects' paths by id. Both are empty where they could not be read.
    """

    checks: Checks
    identity: str | None = None
    projects: Mapping[int, str] = field(default_factory=dict)


def ask_database(settings: Settings, token: str) -> FromDatabase:
    """Connect as a worker does. Every worker that is asked with the same token draws the same projects."""
    # For these few questions only: the parent forks, and keeps no connection while it does.
    engine = connect(
        settings.sqlalchemy_url,
        application_name="label-migrator checkup",
        keeps_connections=False,
        statement_limit_s=_STATEMENT_S,
    )
    try:
        return _ask(engine, token)
    except (MigratorError, SQLAlchemyError) as error:
        remedy = "Check DATABASE_URL on that worker's machine and the network between."
        return FromDatabase(checks={"database from workers": failed(str(error).partition("\n")[0], remedy)})
    finally:
        engine.dispose()


def _ask(engine: Engine, token: str) -> FromDatabase:
    with autocommit(engine) as conn:
        checks = {
            "database from workers": passed("answers"),
            "clocks of workers": clock_check(health.clock_ahead_s(conn)),
        }
        identity: str | None = None
        projects: dict[int, str] = {}
        # A table or a right that is missing is found by the producer's own checks of the database.
        with suppress(MigratorError, SQLAlchemyError):
            identity = health.identity(conn)
            projects = sample_of_legacy(conn, token, _SAMPLE)
    return FromDatabase(checks=checks, identity=identity, projects=projects)
