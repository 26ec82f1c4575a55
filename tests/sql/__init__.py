"""The files of sql/ and worker.db.schema against a real PostgreSQL."""
