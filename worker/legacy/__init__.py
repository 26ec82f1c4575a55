"""The old directories: listed, hashed, copied from, rebuilt. Knows no rows."""
