"""A worker's connection to a broker that dies: given away whatever state it is in, and never the end of the
worker.
"""

import uuid
from pathlib import Path

from celery.worker import WorkController
from kombu import Consumer, Queue
from kombu.transport.redis import Channel

from producer.local.servers import servers_folder, valkey
from tests.support.sites import Site
from worker.broker.client import send
from worker.broker.config import create_app
from worker.broker.consumer import LastingConsumer
from worker.messages import QUEUE, JobRef, Message, Verb
from worker.settings import Settings


def asking(channel: Channel, name: str, taken: list[object]) -> None:
    """Let a channel take messages of a queue without acknowledging them, and ask for the next one."""
    queue = Queue(name, channel=channel)
    queue.declare()
    Consumer(channel, [queue], callbacks=[lambda _body, message: taken.append(message)]).consume()
    channel.connection.cycle._register_BRPOP(channel)


def test_a_broker_that_dies_while_a_task_runs_does_not_end_the_worker(site: Site, tmp_path: Path):
    """With a message that is not acknowledged, and two channels that ask for more, each of which fails while
    it is closed.
    """
    with valkey(servers_folder(tmp_path), durable=False) as broker:
        settings = Settings(**site.settings.model_dump() | {"redis_url": broker.url})
        app = create_app(settings)
        consumer = WorkController(app=app, pool_cls="solo").consumer
        consumer.connection = app.connection_for_read()
        taken: list[object] = []
        channel = consumer.connection.default_channel
        asking(channel, QUEUE, taken)
        ref = JobRef(run_id=uuid.uuid4(), subject_id=1)
        send(settings, [Message(ref=ref, verb=Verb.MIGRATE, subject_name="study", size_bytes=1)])
        channel._brpop_read()
        channel.connection.cycle._register_BRPOP(channel)
        asking(consumer.connection.channel(), "others", taken)
        broker.child.process.kill()
        broker.child.process.wait()

        consumer.on_connection_error_after_connected(ConnectionError("Connection closed by server."))

    assert isinstance(consumer, LastingConsumer)
    assert len(taken) == 1
    assert consumer.connection is None
