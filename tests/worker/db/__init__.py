"""Rows and locks in a real PostgreSQL."""
