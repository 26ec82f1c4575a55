"""The metrics as Prometheus sees them, over HTTP. Knows no container."""

import urllib.request
from typing import Any

from tests.compose.installation import Installation
from tests.support.waiting import eventually

_WITHIN_S = 20.0


def check(installation: Installation) -> None:
    """Every part answers, and the store's room is among the figures."""
    installation.compose("--profile=metrics", "up", "--detach", "metrics")
    eventually(lambda: _figures(installation) is not None, "the metrics answer", within_s=120)

    figures: Any = _figures(installation)
    assert [figures[f'label_migrator_up{{part="{part}"}}'] for part in ("database", "broker", "store")] == [
        1.0
    ] * 3
    assert figures["label_migrator_store_room_bytes"] > 0


def _figures(installation: Installation) -> dict[str, float] | None:
    try:
        with urllib.request.urlopen(installation.metrics_url, timeout=_WITHIN_S) as answer:  # noqa: S310 - loopback
            lines = answer.read().decode().splitlines()
    except OSError:
        return None
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }
