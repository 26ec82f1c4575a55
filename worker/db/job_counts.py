"""The counts of jobs that triggers keep: rows that are added up, and folded when they are many. Opens no
transaction.
"""

from sqlalchemy import Connection

from worker.db.engine import sql

FOLD_AT = 500
"""So many new rows are folded; fewer cost a reader nothing."""


def fold(conn: Connection) -> None:
    """Put sums in the place of the rows of all runs that have new ones, once these are many.

    Waits for nothing, and nothing waits for it: what another transaction folds right now is left to it, and
    a job that ends adds a row of its own.
    """
    conn.execute(
        sql("""
            with many as (
                select from (select from migration_job_counts where not folded limit :many) as new
                having count(*) = :many
            ), taken as (
                delete from migration_job_counts where ctid = any(array(
                    select c.ctid from migration_job_counts c
                    where exists (select from many)
                      and c.run_id in (select run_id from migration_job_counts where not folded)
                    for update of c skip locked))
                returning *
            )
            insert into migration_job_counts
            select run_id, subject, state, error_class, sum(jobs), sum(retries), sum(crashes), sum(fenced), sum(bytes_total),
                   sum(bytes_done), sum(files_done), sum(shared_bytes), true
            from taken group by run_id, subject, state, error_class
            having (sum(jobs), sum(retries), sum(crashes), sum(fenced), sum(bytes_total), sum(bytes_done), sum(files_done),
                    sum(shared_bytes)) <> (0, 0, 0, 0, 0, 0, 0, 0)"""),
        {"many": FOLD_AT},
    )
