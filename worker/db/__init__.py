"""Rows in PostgreSQL: the application's tables and the ledger. Knows no files and no Celery."""
