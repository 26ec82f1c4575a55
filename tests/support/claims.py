"""Claims of jobs that are not there, and who waits for one."""

import uuid
from contextlib import AbstractContextManager

from sqlalchemy import Engine, text

from tests.support.ledger_rows import await_old_server
from tests.support.waiting import PATIENCE_S
from worker.db import claims
from worker.db.claims import Claim, Owner


def owner(attempt: int = 1, job: uuid.UUID | None = None) -> Owner:
    """An attempt at a job of its own, or at the one given."""
    return Owner(job=str(job or uuid.uuid4()), attempt=attempt)


def held(
    engine: Engine, *keys: str, what: str = "it", lease_s: float = PATIENCE_S, by: Owner | None = None
) -> AbstractContextManager[Claim]:
    """Another job's claim on these keys, for the block."""
    return claims.hold(engine, keys, owner=by or owner(), what=what, lease_s=lease_s)


def waiting_for_claims(engine: Engine) -> int:
    """How many jobs of this database wait for a claim: they listen."""
    query = """
        select count(*) from pg_stat_activity
        where datname = current_database() and query = 'listen migration_claims'"""
    with engine.connect() as conn:
        return conn.scalar(text(query)) or 0


def let_claims_run_out(engine: Engine) -> None:
    """What time does to the claims of a process that is dead."""
    with engine.begin() as conn:
        await_old_server(conn)
        conn.execute(text("update dataset_claims set expires_at = clock_timestamp() - interval '1 second'"))
