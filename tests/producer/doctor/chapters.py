"""What tests of the doctor share: reading a chapter, and servers that are configured otherwise for a
moment.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from producer.doctor.findings import Chapter
from tests.support.sites import Site
from worker.findings import Verdict

PASSWORD = "hunter2secret"  # noqa: S105 - what must not be seen again


def bad(chapter: Chapter) -> dict[str, str]:
    """What is not well, by name."""
    return {
        name: check.verdict.value
        for name, check in chapter.checks.items()
        if check.verdict is not Verdict.PASS
    }


@contextmanager
def configured(site: Site, **values: object) -> Iterator[None]:
    """Let the server have other settings for a moment."""
    with redis.Redis.from_url(site.redis_url, decode_responses=True) as client:
        before = {name: client.config_get(name)[name] for name in values}
        try:
            for name, value in values.items():
                client.config_set(name, value)
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)
