"""A worker's connection to a broker that dies: given away whatever state it is in, and never the end of the worker."""

from pathlib import Path

import pytest
from celery.worker import WorkController
from kombu import Consumer, Queue
from kombu.transport.redis import Channel

from producer.local_servers import servers_folder, valkey
from tests.conftest import Site
from worker.app import create_app
from worker.consumer import LastingConsumer

pytestmark = pytest.mark.stack


def asking(channel: Channel, name: str, taken: list[object]) -> None:
    """Let a channel take messages of a queue without acknowledging them, and ask for the next one."""
    queue = Queue(name, channel=channel)
    queue.declare()
    Consumer(channel, [queue], callbacks=[lambda _body, message: taken.append(message)]).consume()
    channel.connection.cycle._register_BRPOP(channel)


def test_a_broker_that_dies_while_a_task_runs_does_not_take_the_worker_along(site: Site, tmp_path: Path):
    """With a message that is not acknowledged, and two channels that ask for more, each of which fails while it is closed."""
    with valkey(servers_folder(tmp_path), durable=False) as broker:
        app = create_app(site.settings)
        app.conf.broker_url = broker.url
        consumer = WorkController(app=app, pool_cls="solo").consumer
        consumer.connection = app.connection_for_read()
        taken: list[object] = []
        channel = consumer.connection.default_channel
        asking(channel, "tasks", taken)
        with consumer.connection.Producer() as producer:
            producer.publish({}, routing_key="tasks")
        channel._brpop_read()
        channel.connection.cycle._register_BRPOP(channel)
        asking(consumer.connection.channel(), "others", taken)
        broker.child.process.kill()
        broker.child.process.wait()

        consumer.on_connection_error_after_connected(ConnectionError("Connection closed by server."))

    assert isinstance(consumer, LastingConsumer)
    assert len(taken) == 1
    assert consumer.connection is None
