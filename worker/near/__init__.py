"""Recordings that are the same but for their form: found by how they begin, then read. Knows no rows."""
