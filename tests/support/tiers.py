"""What a test does in the default suite, and in the long one."""

from typing import Any

import pytest


def some_or_all(some: Any, everything: Any) -> tuple[Any, Any]:
    """Two parameters of a test: a share of what can be tried, and all of it, which takes minutes."""
    marks = (pytest.mark.long, pytest.mark.timeout(3600))
    return pytest.param(some, id="some"), pytest.param(everything, id="all", marks=marks)
