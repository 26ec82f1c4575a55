"""How long tests wait for what must happen: long, because only a test that fails waits so long, and machines are busy."""

PATIENCE_S = 120.0
"""For one condition. Two of these fit into the time that pytest gives a test (`timeout` in pyproject.toml)."""
