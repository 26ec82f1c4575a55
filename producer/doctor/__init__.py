"""Checks settings, servers, tables, workers and their machines, and says what to do. Repairs nothing."""
