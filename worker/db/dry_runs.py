"""What the jobs of a dry run found to be new. Opens no transaction, and knows no content, only digests."""

import json
import uuid
from collections.abc import Mapping

from sqlalchemy import Connection

from worker.db.engine import sql
from worker.messages import JobRef


def note_new_content(conn: Connection, ref: JobRef, sizes: Mapping[str, int]) -> None:
    """A dry run met content that the store does not have: the lowest project id becomes its owner."""
    rows = [{"digest": digest, "size_bytes": size} for digest, size in sorted(sizes.items())]
    conn.execute(
        sql("""
            insert into migration_dry_run_blobs (run_id, digest, size_bytes, project_id)
            select :run_id, b.digest, b.size_bytes, :project_id
            from jsonb_to_recordset(cast(:rows as jsonb)) as b(digest text, size_bytes bigint)
            on conflict on constraint migration_dry_run_blobs_pkey
            do update set project_id = least(migration_dry_run_blobs.project_id, excluded.project_id)"""),
        {"run_id": ref.run_id, "project_id": ref.subject_id, "rows": json.dumps(rows)},
    )


def new_content_by_project(conn: Connection, run_id: uuid.UUID) -> dict[int, tuple[int, int]]:
    """Files and bytes that each project of a dry run would be the first to store."""
    rows = conn.execute(
        sql("""
            select project_id, count(*) as files, sum(size_bytes)::bigint as bytes
            from migration_dry_run_blobs where run_id = :run_id group by project_id"""),
        {"run_id": run_id},
    )
    return {row.project_id: (row.files, row.bytes) for row in rows}
