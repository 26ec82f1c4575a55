"""Where legacy projects may lie, and where they may not. Reads no directory."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from worker.errors import PathRefusedError
from worker.store.digest import printable


@dataclass(frozen=True, kw_only=True)
class Roots:
    """Where legacy projects may lie, and the store's directories, which no project may touch."""

    allowed: tuple[Path, ...]
    store: tuple[Path, ...]

    @cached_property
    def real_allowed(self) -> tuple[str, ...]:
        """The same with links resolved: once, not for each path that is compared with them."""
        return tuple(os.path.realpath(root) for root in self.allowed)

    @cached_property
    def real_store(self) -> tuple[str, ...]:
        """Likewise."""
        return tuple(os.path.realpath(root) for root in self.store)


def check_place(path: str, real: str, roots: Roots) -> None:
    """Raise `PathRefusedError` unless `real`, which `path` resolves to, is in a root and off the store."""
    if not any(is_within(real, root) for root in roots.real_allowed):
        allowed = ", ".join(str(root) for root in roots.allowed)
        raise PathRefusedError(f"Project path is outside LEGACY_ROOTS ({allowed}): {printable(path)}")
    check_apart_from_store(real, roots, f"Project path {printable(path)}")


def check_apart_from_store(real: str, roots: Roots, subject: str) -> None:
    """Raise `PathRefusedError` about `subject` when `real` is in or around a directory of the store."""
    for store, real_store in zip(roots.store, roots.real_store, strict=True):
        if is_within(real, real_store) or is_within(real_store, real):
            raise PathRefusedError(f"{subject} overlaps the store's directory {store}")


def is_within(real: str, real_root: str) -> bool:
    """Is one resolved path the same as the other or below it?"""
    return real == real_root or real.startswith(real_root.rstrip("/") + "/")
