"""The filter for messages: only jobs of ours come in, and nothing that is put into the broker stops a
worker.
"""

import base64
import json
import pickle
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import text

from producer.local.stack import Stack
from tests.estate import make_project, record_session
from tests.support.ledger_rows import job_of, make_run
from tests.support.servers import empty_redis
from tests.support.sites import Site
from tests.support.waiting import eventually
from worker.broker import client as broker
from worker.broker.message_validation import MOST_BYTES, RefusedError, check_answer
from worker.broker.message_validation import job_of as job_named_by
from worker.messages import QUEUE, JobRef, Message, Verb
from worker.settings import Settings

SECRET = "sEcret-in-a-message"  # noqa: S105 - made up; must not be seen in any log

Envelope = dict[str, Any]
Forgery = Callable[[Envelope], Envelope | bytes | None]


def with_body(body: bytes) -> Forgery:
    return lambda envelope: envelope | {"body": base64.b64encode(body).decode()}


def with_arguments(*args: Any, **kwargs: Any) -> Forgery:
    nothing = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return with_body(json.dumps([args, kwargs, nothing]).encode())


def with_changes(**changes: Any) -> Forgery:
    return lambda envelope: envelope | {name.replace("_", "-"): value for name, value in changes.items()}


def with_headers(**changes: Any) -> Forgery:
    return lambda envelope: envelope | {"headers": envelope["headers"] | changes}


def with_properties(**changes: Any) -> Forgery:
    return lambda envelope: envelope | {"properties": envelope["properties"] | changes}


def without(part: str, name: str) -> Forgery:
    def forge(envelope: Envelope) -> Envelope:
        del envelope[part][name]
        return envelope

    return forge


def raw(message: bytes) -> Forgery:
    return lambda _envelope: message


RUN = "00000000-0000-0000-0000-000000000001"
AFTERWARDS = {"task": "worker.tasks.rollback_project", "args": [RUN, 1], "kwargs": {}, "options": {}}

FORGERIES: Mapping[str, tuple[str, Forgery]] = {
    "no argument": ("0.0: missing", with_arguments()),
    "one argument": ("0.1: missing", with_arguments(RUN)),
    "one argument too many": ("0: too_long", with_arguments(RUN, 1, "/etc")),
    "an argument by name": ("1: extra_forbidden", with_arguments(RUN, 1, path=SECRET)),
    "a run that is no id": ("0.0: uuid_parsing", with_arguments(SECRET, 1)),
    "a run that is a number": ("0.0: uuid_type", with_arguments(1, 1)),
    "a project that is a text": ("0.1: int_type", with_arguments(RUN, "1")),
    "a project that is a truth": ("0.1: int_type", with_arguments(RUN, True)),
    "a project that is a fraction": ("0.1: int_type", with_arguments(RUN, 1.0)),
    "project zero": ("0.1: greater_than_equal", with_arguments(RUN, 0)),
    "a project below zero": ("0.1: greater_than_equal", with_arguments(RUN, -1)),
    "a project beyond PostgreSQL": ("0.1: less_than_equal", with_arguments(RUN, 2**31)),
    "a body that is a number": ("tuple_type", with_body(b"5")),
    "a body that is no JSON": ("json_invalid", with_body(SECRET.encode())),
    "a body that is not UTF-8": ("json_invalid", with_body(b'[["\xff", 1], {}, {}]')),
    "a body nested without end": ("json_invalid", with_body(b"[" * 40_000)),
    "a body that is not base64": ("body: not base64", with_changes(body=SECRET)),
    "a task to go on with": (
        "2.chain: none_required",
        with_body(
            json.dumps(
                [[RUN, 1], {}, {"callbacks": None, "errbacks": None, "chain": [AFTERWARDS], "chord": None}]
            ).encode()
        ),
    ),
    "pickle": (
        "content-type: literal_error",
        lambda envelope: (
            with_body(pickle.dumps(([RUN, 1], {}, {})))(envelope)
            | {"content-type": "application/x-python-serialize", "content-encoding": "binary"}
        ),
    ),
    "YAML": (
        "content-type: literal_error",
        lambda envelope: (
            with_body(b"!!python/object/apply:os.system [id]")(envelope)
            | {"content-type": "application/x-yaml"}
        ),
    ),
    "compressed": ("headers: not_harmless", with_headers(compression="application/x-gzip")),
    "a field of the task's request": ("headers: not_harmless", with_headers(soft_time_limit=1)),
    "an unknown task": ("headers.task: value_error", with_headers(task="os.system")),
    "a task of Celery's own": ("headers.task: value_error", with_headers(task="celery.backend_cleanup")),
    "a task that is a list": ("headers.task: string_type", with_headers(task=["x"])),
    "another task's id": ("headers.id: not the id", with_headers(id=str(uuid.UUID(int=7)))),
    "an id that is a list": ("headers.id: string_type", with_headers(id=["x"])),
    "a time to wait": ("headers.eta: none_required", with_headers(eta="2999-01-01T00:00:00")),
    "a time that is none": ("headers.eta: none_required", with_headers(eta=SECRET)),
    "a limit of time": ("headers.timelimit.0: none_required", with_headers(timelimit=[1, 1])),
    "a limit that is a text": ("headers.timelimit: tuple_type", with_headers(timelimit="x")),
    "retries": ("headers.retries: literal_error", with_headers(retries=3)),
    "a group": ("headers.group: none_required", with_headers(group="g")),
    "stamps": ("headers.stamps: extra_forbidden", with_headers(stamps={SECRET: SECRET})),
    "a nested header": ("headers: not_harmless", with_headers(**{SECRET: [SECRET]})),
    "a long header": ("headers: not_harmless", with_headers(more="x" * 5000)),
    "a long name of a header": ("headers: not_harmless", with_headers(**{"x" * 100: 1})),
    "a property that is nested": ("properties: not_harmless", with_properties(more={SECRET: SECRET})),
    "no headers": ("headers.task: missing", with_changes(headers={})),
    "no delivery tag": ("properties.delivery_tag: missing", without("properties", "delivery_tag")),
    "another queue to return to": (
        "properties.delivery_info.routing_key: literal_error",
        with_properties(delivery_info={"exchange": "", "routing_key": "celery"}),
    ),
    "too large": ("larger than", with_changes(more="x" * MOST_BYTES)),
    "no JSON": ("json_invalid", raw(SECRET.encode())),
    "no text": ("json_invalid", raw(b"\xff\xfe\x00")),
    "nothing": ("json_invalid", raw(b"")),
    "a list": ("model_type", raw(b"[]")),
    "an empty object": ("content-type: missing", raw(b"{}")),
    "protocol 1": (
        "content-type: missing",
        raw(
            json.dumps(
                {"task": "worker.tasks.migrate_project", "id": RUN, "args": [RUN, 1], "kwargs": {}}
            ).encode()
        ),
    ),
}


@pytest.fixture(scope="module")
def genuine(stack: Stack) -> bytes:
    """A message as the producer sends it, taken out of a queue that no worker looks at."""
    settings = Settings.model_construct(redis_url=SecretStr(empty_redis(stack)))
    ref = JobRef(run_id=uuid.UUID(RUN), subject_id=1)
    broker.send(settings, [Message(ref=ref, verb=Verb.MIGRATE, subject_name="Étude 🚬", size_bytes=3)])
    with redis.Redis.from_url(settings.broker.url) as client:
        message: bytes = client.rpop(QUEUE)
    return message


# What passes ------------------------------------------------------------------------------------------------


def test_messages_that_the_producer_sends_pass_the_filter(genuine: bytes):
    assert job_named_by(genuine) == JobRef(run_id=uuid.UUID(RUN), subject_id=1)


def test_messages_that_a_worker_handed_back_pass_the_filter(genuine: bytes):
    envelope = json.loads(genuine)
    envelope["headers"]["redelivered"] = envelope["properties"]["delivery_info"]["redelivered"] = True

    assert job_named_by(json.dumps(envelope).encode()).subject_id == 1


@pytest.mark.parametrize(
    "newer",
    [
        with_headers(published_at="2027-01-01T00:00:00Z", hops=1, traced=False, parent_trace=None),
        with_properties(published_by="producer"),
        without("headers", "group_index"),
        without("headers", "replaced_task_nesting"),
        without("properties", "kwargsrepr"),
    ],
    ids=["unknown headers", "an unknown property", "no group index", "no nesting", "no representation"],
)
def test_messages_that_a_newer_celery_might_send_pass_the_filter(genuine: bytes, newer: Forgery):
    assert job_named_by(_forged(genuine, newer)).subject_id == 1


@pytest.mark.parametrize("name", FORGERIES)
def test_every_other_message_is_refused_with_a_reason_that_quotes_nothing(genuine: bytes, name: str):
    reason, forge = FORGERIES[name]

    with pytest.raises(RefusedError) as refused:
        job_named_by(_forged(genuine, forge))

    assert str(refused.value).startswith(reason)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


def _forged(genuine: bytes, forge: Forgery) -> bytes:
    message = forge(json.loads(genuine))
    return message if isinstance(message, bytes) else json.dumps(message).encode()


def test_an_answer_to_a_command_names_no_task(genuine: bytes):
    """Where answers are waited for, Celery would do a task as well as anywhere."""
    answer = json.loads(genuine) | {"headers": {"ticket": RUN, "clock": 1}}
    for body in (b'{"task": "worker.tasks.migrate_project"}', b"[]", b"5", b"no JSON"):
        with pytest.raises(RefusedError):
            check_answer(json.dumps(with_body(body)(answer)).encode())
    with pytest.raises(RefusedError):
        check_answer(genuine)

    check_answer(json.dumps(with_body(b'{"worker@host": {"ok": "pong"}}')(answer)).encode())


# A real worker ----------------------------------------------------------------------------------------------


@pytest.fixture
def logs(shared_site: Site) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the module's worker has written since the test began."""
    (file,) = shared_site.folder.glob("*-worker1.log")
    start = file.stat().st_size

    def lines() -> list[dict[str, Any]]:
        with file.open("rb") as log:
            log.seek(start)
            return [json.loads(line) for line in log.read().splitlines() if line.startswith(b"{")]

    yield lines
    assert SECRET not in file.read_text(errors="replace")


def refusals(lines: list[dict[str, Any]]) -> list[str]:
    return [line["reason"] for line in lines if line["event"] == "message_refused"]


def test_a_worker_logs_one_line_for_each_refused_message_and_takes_the_next_job(
    shared_site: Site, genuine: bytes, logs: Callable[[], list[dict[str, Any]]]
):
    """Among them those for which Celery ends the worker and gives the message back to the queue."""
    site = shared_site
    with redis.Redis.from_url(site.redis_url) as client:
        for _, forge in FORGERIES.values():
            client.lpush(QUEUE, _forged(genuine, forge))
        # Remote control, which workers hear by publication, and a queue for another priority.
        database = site.settings.broker.url.rpartition("/")[2]
        for message in (b"{}", b"[]", b'{"body": "x", "headers": 5}'):
            assert client.publish(f"/{database}.celery.pidbox", message)
        client.lpush(f"{QUEUE}\x06\x163", b"{}")

        eventually(lambda: len(refusals(logs())) == len(FORGERIES) + 4, "a line each")

        assert client.llen(QUEUE) == 0
        assert client.hlen("unacked") == 0
        assert not list(client.scan_iter("celery-task-meta-*")), "a refusal is no result"
    reasons = refusals(logs())
    for reason, _ in FORGERIES.values():
        assert any(one.startswith(reason) for one in reasons), reason
    assert {line["level"] for line in logs()} <= {"info", "warning"}
    _migrate_one(site)


def test_a_job_that_the_ledger_does_not_know_is_refused(
    shared_site: Site, logs: Callable[[], list[dict[str, Any]]]
):
    """Well-formed, but of no run, of a project that is not in the run, and of another verb than the run's."""
    site = shared_site
    run_id = make_run(site.engine, (1,))
    wrong = [
        Message(
            ref=JobRef(run_id=uuid.uuid4(), subject_id=1),
            verb=Verb.MIGRATE,
            subject_name="of no run",
            size_bytes=1,
        ),
        Message(
            ref=JobRef(run_id=run_id, subject_id=2), verb=Verb.MIGRATE, subject_name="of none", size_bytes=1
        ),
        Message(
            ref=JobRef(run_id=run_id, subject_id=1), verb=Verb.ROLLBACK, subject_name="other", size_bytes=1
        ),
    ]
    broker.send(site.settings, wrong)

    eventually(lambda: len(refusals(logs())) == len(wrong), "a line each")

    assert set(refusals(logs())) == {
        "the ledger has no such job to migrate",
        "the ledger has no such job to rollback",
    }
    job = job_of(site.engine, run_id)
    assert (job["state"], job["attempt"]) == ("queued", 0)
    with site.engine.begin() as conn:
        conn.execute(text("delete from migration_runs"))
    _migrate_one(site)


def test_foreign_data_in_place_of_a_result_is_not_taken_for_one(shared_site: Site):
    site = shared_site
    run_id, number = _migrate_one(site)
    key = f"celery-task-meta-{JobRef(run_id=run_id, subject_id=number).task_id}"
    for rubbish in (b"no JSON", b"[]", b"5", b'{"status": "SUCCESS"}', b"[" * 100_000, b"\xff"):
        with redis.Redis.from_url(site.redis_url) as client:
            client.set(key, rubbish)

        with broker.results(site.settings) as read:
            assert read([JobRef(run_id=run_id, subject_id=number)]) == {}
    collected = site.run_producer("collect")

    assert collected.returncode == 0, collected.stderr


def test_foreign_data_in_place_of_the_epoch_can_be_kept(site: Site):
    with redis.Redis.from_url(site.redis_url) as client:
        client.set("label_migrator:epoch", b"\x00\xff" + b"x" * 1000)

    epoch = broker.condition(site.settings).epoch

    with site.engine.connect() as conn:
        assert conn.execute(text("select cast(:epoch as text)"), {"epoch": epoch}).scalar() == epoch
    assert len(epoch) < 300


def _migrate_one(site: Site) -> tuple[uuid.UUID, int]:
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, f"study {uuid.uuid4()}")
        record_session(conn, project, "day", seed=1)
    done = site.run_producer("enqueue", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["report"]["projects_migrated"] == 1
    return uuid.UUID(document["run_id"]), project.project_id
