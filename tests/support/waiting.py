"""How tests wait: on a condition, and long, because only a test that fails waits so long, and machines are
busy.
"""

import os
import time
from collections.abc import Callable

PATIENCE_S = float(os.environ.get("TESTS_PATIENCE_S", "120"))
"""For one condition. Two of these fit into the time that pytest gives a test (`timeout` in pyproject.toml).
A machine with one slow processor needs more, and is asked less often.
"""

_EVERY_S = PATIENCE_S / 12_000


def eventually(condition: Callable[[], bool], what: str, *, within_s: float = PATIENCE_S) -> None:
    """Wait until the condition holds, or fail saying what was waited for."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(_EVERY_S)
