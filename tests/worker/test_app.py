"""The Celery app: every setting is one that Celery has, says what the design needs, and nothing is shared
across a fork.
"""

import os
import subprocess
import sys

import pytest
from celery.app.defaults import SETTING_KEYS
from kombu import Connection
from sqlalchemy import event

from tests.estate import make_project, record_session
from tests.support.sites import Site
from worker import tasks
from worker.broker import config
from worker.broker.config import create_app
from worker.messages import QUEUE, TASKS, Verb
from worker.runtime import shutdown
from worker.settings import Settings


def own_settings() -> dict[str, object]:
    """What the app is configured with beyond Celery's defaults."""
    return {**config._MESSAGES, **config._DELIVERY, **config._CONNECTIONS, **config._VISIBILITY}


def test_celery_knows_every_setting_by_its_name():
    """A misspelt one would be ignored without a word."""
    assert set(own_settings()) <= SETTING_KEYS
    assert len(own_settings()) >= 20


def test_the_broker_s_client_knows_every_transport_option(settings: Settings):
    """They reach the client's connection; an unknown one is refused there, or has to be one of the
    transport's own.
    """
    options = config._transport(5)
    of_the_transport = {"visibility_timeout"}
    url = settings.redis_url.get_secret_value()

    with Connection(url, transport_options=options) as connection:
        channel = connection.default_channel
        parameters = channel._connparams()
        assert channel.visibility_timeout == options["visibility_timeout"]

    assert {name: parameters[name] for name in options.keys() - of_the_transport} == {
        name: value for name, value in options.items() if name not in of_the_transport
    }


def test_celery_accepts_and_sends_json_only(settings: Settings):
    conf = create_app(settings).conf

    assert conf.accept_content == ["json"]
    assert conf.result_accept_content == ["json"]
    assert (conf.task_serializer, conf.result_serializer) == ("json", "json")


def test_the_ledger_is_the_only_way_to_a_retry(settings: Settings):
    conf = create_app(settings).conf

    assert conf.task_acks_late
    assert not conf.task_reject_on_worker_lost
    assert not conf.task_retry_on_worker_lost
    assert not conf.worker_cancel_long_running_tasks_on_connection_loss
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_connection_max_retries is None
    assert conf.broker_transport_options["visibility_timeout"] >= 7 * 86_400


def test_each_verb_has_its_celery_tasks(settings: Settings):
    app = create_app(settings)
    app.loader.import_default_modules()

    assert {name for name in app.tasks if name.startswith("worker.")} == set(TASKS)
    assert {verb for verb, _ in TASKS.values()} == set(Verb)
    assert app.conf.task_default_queue == QUEUE


def test_each_process_has_an_engine_of_its_own(site: Site, monkeypatch: pytest.MonkeyPatch):
    """A connection that two processes use mixes up their answers."""
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    tasks._tools.cache_clear()
    try:
        parent, child = tasks._tools(1), tasks._tools(2)
        assert parent.engine is not child.engine
        assert parent.engine.pool is not child.engine.pool
        assert parent is tasks._tools(1)
    finally:
        for tools in (parent, child):
            tools.engine.dispose()
            tools.threads.shutdown()
        tasks._tools.cache_clear()


def test_making_app_and_tools_opens_no_connection(site: Site, monkeypatch: pytest.MonkeyPatch):
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    opened: list[object] = []
    tasks._tools.cache_clear()
    tools = tasks._tools(3)
    event.listen(tools.engine, "connect", lambda *_: opened.append(1))
    create_app(site.settings)
    try:
        assert opened == []
        with tools.engine.connect():
            assert opened == [1]
    finally:
        tools.engine.dispose()
        tools.threads.shutdown()
        tasks._tools.cache_clear()


def test_a_child_process_sees_that_its_parent_was_asked_to_stop(monkeypatch: pytest.MonkeyPatch):
    """By a page of memory that both have: a fork copies everything else."""
    import mmap
    import os

    monkeypatch.setattr(shutdown, "_stops", mmap.mmap(-1, 1))
    reading, writing = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        before = shutdown.has_begun()
        os.read(told, 1)
        os.write(writing, bytes([before, shutdown.has_begun()]))
        os._exit(0)
    shutdown.begin()
    os.write(tell, b"!")
    os.waitpid(child, 0)

    assert os.read(reading, 2)[1] == 1
    for descriptor in (reading, writing, told, tell):
        os.close(descriptor)


OF_OTHERS = {
    "CELERY_BROKER_URL": "redis://127.0.0.1:1/5",
    "CELERY_BROKER_READ_URL": "redis://127.0.0.1:1/5",
    "CELERY_BROKER_WRITE_URL": "redis://127.0.0.1:1/5",
    "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/6",
    "CELERY_LOADER": "default",
    "CELERY_CONFIG_MODULE": "no_such_module",
    "FLOWER_BROKER_API": "http://127.0.0.1:1/api/",
}


@pytest.mark.parametrize("name", OF_OTHERS)
def test_variables_of_another_celery_application_change_nothing(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, OF_OTHERS[name])

    conf = create_app(settings).conf

    urls = {conf.broker_url, conf.broker_read_url, conf.broker_write_url, conf.result_backend}
    assert urls == {settings.broker.url}
    assert conf.task_default_queue == QUEUE
    assert name not in os.environ


def test_a_run_goes_its_way_beside_another_celery_application(site: Site):
    """Worker and producer both have its variables; neither its Redis nor its configuration is touched."""
    with site.engine.begin() as conn:
        record_session(conn, make_project(conn, site.legacy_root, "study"), "day", rows=20)

    with site.workers(**OF_OTHERS):
        done = site.run_producer("enqueue", "--wait", "--timeout", "60", **OF_OTHERS)

    assert done.returncode == 0, done.stderr
    assert "CELERY_BROKER_URL" in done.stderr


def test_another_broker_on_the_command_line_is_refused(site: Site):
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.app", "--broker", "redis://127.0.0.1:1/5", "report"],
        env=site.env,
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "celery --broker is not understood here: REDIS_URL alone" in done.stderr
