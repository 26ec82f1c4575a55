"""The way to the broker: whatever goes wrong there is said in our words, with its address and the driver's
reason.
"""

import uuid
from collections.abc import Iterator

import pytest
import redis

from tests.support.sites import Site
from worker.broker import client as broker
from worker.errors import BrokerUnavailableError
from worker.messages import QUEUE, JobRef, Message, Verb


@pytest.fixture
def closed_broker(site: Site) -> Iterator[redis.Redis]:
    """Give a client of a broker that answers but takes no message."""
    with redis.Redis.from_url(site.redis_url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-lpush")
        try:
            yield client
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+lpush")


def test_a_batch_that_breaks_while_it_is_sent_is_a_broker_error(site: Site, closed_broker: redis.Redis):
    messages = [
        Message(
            ref=JobRef(run_id=uuid.uuid4(), subject_id=number),
            verb=Verb.MIGRATE,
            subject_name="study",
            size_bytes=1,
        )
        for number in range(1, 4)
    ]

    with pytest.raises(BrokerUnavailableError, match=r"^Broker refuses: 127\.0\.0\.1:\d+: .*lpush"):
        broker.send(site.settings, messages)

    assert closed_broker.llen(QUEUE) == 0
