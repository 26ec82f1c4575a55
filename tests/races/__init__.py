"""Several at once on one thing, on real connections: exactly one of them does it, and nobody is worse off."""
