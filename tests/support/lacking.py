"""What a test does where something that it needs is not there: locally it is skipped with the reason, and in
continuous integration, which installs everything, it fails.
"""

import os
import shutil
from typing import NoReturn

import pytest


def lacking(reason: str) -> NoReturn:
    """Skip the test, or fail where CI is set."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a program that is installed, for administrators or for all; `lacking` if it is not."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    return found if found is not None else lacking(f"{name} is not installed")
