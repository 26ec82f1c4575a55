"""The message filter: which messages are ours and harmless. Knows no task, and not where messages come from.

Another client of the broker can put anything there. For some of it Celery ends the worker's parent and gives
the message back to the queue, where it goes on to end the next worker. So each message is validated at the
moment it comes out of the queue (`worker.broker.transport`), before Celery acts on a field of it. One that is
refused is gone: it is neither tried again nor in need of an acknowledgement.
"""

import base64
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

from celery.app.task import Context
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from worker.messages import TASKS, JobRef, SubjectId

MOST_BYTES = 1 << 16
"""A message of ours has one KiB and a project's name twice."""

MOST_NAME = 64
"""The longest name of a header, in characters."""

MOST_TEXT = 4096
"""The longest text in a field, in characters."""


class RefusedError(ValueError):
    """The message is not one of ours. The text says what is wrong with it and quotes nothing of it."""


def job_of(message: bytes) -> JobRef:
    """The job that a message, as it lies in the queue, names.

    Raises `RefusedError` for another task or other arguments, and for every field that would make Celery
    wait, repeat, limit, unpack or go on with something. A header that this Celery does not know, as a newer
    one may add, passes: the ledger decides what is done in any case.
    """
    if len(message) > MOST_BYTES:
        raise RefusedError(f"larger than {MOST_BYTES} bytes")
    with _refusals():
        envelope = _JobEnvelope.model_validate_json(message)
        (run_id, subject_id), _, _ = _BODY.validate_json(base64.b64decode(envelope.body, validate=True))
    _, subject = TASKS[envelope.headers.task]
    ref = JobRef(run_id=run_id, subject_id=subject_id, subject=subject)
    if envelope.headers.id != ref.task_id:
        # Its result would be stored as another task's.
        raise RefusedError("headers.id: not the id of this job's task")
    return ref


def check_command(message: Any) -> None:
    """Raise `RefusedError` for a decoded remote-control message that Celery could not even begin to read."""
    with _refusals():
        base64.b64decode(_CommandEnvelope.model_validate(message).body, validate=True)


def check_answer(message: bytes) -> None:
    """Raise `RefusedError` for what is no answer to a command. One that names a task would be taken for a
    job, whichever queue it came out of.
    """
    with _refusals():
        envelope = _AnswerEnvelope.model_validate_json(message)
        answers = _ANSWERS.validate_json(base64.b64decode(envelope.body, validate=True))
    if "task" in answers:
        raise RefusedError("body: names a task")


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise what validation finds as `RefusedError`."""
    try:
        yield
    except ValidationError as error:
        raise RefusedError(_first_fault(error)) from None
    except ValueError:
        raise RefusedError("body: not base64") from None


def _first_fault(error: ValidationError) -> str:
    """Which of our fields is wrong; the name of a field that is not ours is foreign text and left out."""
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = fault["loc"][:-1] if fault["type"] == "extra_forbidden" else fault["loc"]
    return ": ".join(filter(None, (".".join(map(str, place)), fault["type"])))


# What a message of ours looks like --------------------------------------------------------------------------


def _one_of_ours(name: str) -> str:
    if name not in TASKS:
        raise ValueError
    return name


_Text = Annotated[str, StringConstraints(max_length=MOST_TEXT)]


class _Exactly(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Nothing(_Exactly):
    """An object without fields."""


_READ_BY_CELERY = {name for name in vars(Context) if not name.startswith("__")} | {"compression"}
"""Headers become attributes of the task's request, and kombu unpacks what is compressed."""


class _Open(BaseModel):
    """Fields that are named here must be as described; others are let pass if Celery acts on no such name."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @model_validator(mode="after")
    def _others_are_harmless(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in _READ_BY_CELERY or len(name) > MOST_NAME or not _is_plain(value):
                raise PydanticCustomError("not_harmless", "a field that this program does not let pass")
        return self


def _is_plain(value: Any) -> bool:
    """A value that is harmless to any reader: short, and not nested."""
    return (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and len(value) <= MOST_TEXT)
    )


class _Headers(_Open):
    """Celery's protocol 2 without all that delays, repeats, limits or continues a task.

    Only what identifies the message must be there; the rest may be absent, and otherwise has to say nothing.
    """

    task: Annotated[str, AfterValidator(_one_of_ours)]
    id: _Text
    root_id: _Text | None = None
    origin: _Text | None = None
    argsrepr: _Text | None = None
    kwargsrepr: Literal[""] | None = None
    lang: Literal["py"]
    retries: Literal[0] = 0
    replaced_task_nesting: Literal[0] = 0
    # False where the sender knows the task, as a worker does.
    ignore_result: Literal[False] | None = None
    timelimit: tuple[None, None] = (None, None)
    stamps: _Nothing | None = None
    stamped_headers: None = None
    parent_id: None = None
    shadow: None = None
    eta: None = None
    expires: None = None
    group: None = None
    group_index: None = None
    redelivered: bool = False


class _DeliveryInfo(_Exactly):
    """Where a worker puts a message that it gives back."""

    exchange: Literal[""]
    routing_key: Literal["label_migration"]
    redelivered: bool = False


class _Properties(_Open):
    """What kombu adds for its own use."""

    correlation_id: _Text | None = None
    reply_to: _Text | None = None
    argsrepr: _Text | None = None
    kwargsrepr: Literal[""] | None = None
    delivery_tag: _Text
    delivery_info: _DeliveryInfo
    delivery_mode: Literal[2]
    priority: Literal[0]
    body_encoding: Literal["base64"]


class _JobEnvelope(_Exactly):
    """A message as it lies in the queue. The body is Celery's: arguments, keywords, what to do afterwards."""

    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties
    body: str


class _NothingAfterwards(_Exactly):
    """No task to go on with."""

    callbacks: None
    errbacks: None
    chain: None
    chord: None


_BODY: TypeAdapter[tuple[tuple[uuid.UUID, SubjectId], _Nothing, _NothingAfterwards]] = TypeAdapter(
    tuple[tuple[uuid.UUID, SubjectId], _Nothing, _NothingAfterwards]
)


# What Celery's remote control looks like --------------------------------------------------------------------


class _LooseProperties(BaseModel):
    """What kombu needs of any message before it can be read."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    delivery_tag: _Text
    delivery_info: dict[str, Any]
    body_encoding: Literal["base64"]


class _CommandEnvelope(_Exactly):
    """A command, for Celery to understand or to decline."""

    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: dict[str, Any]
    properties: _LooseProperties
    body: str


class _AnswerHeaders(_Exactly):
    """Which question is answered, and when."""

    ticket: _Text
    clock: int


class _AnswerEnvelope(_CommandEnvelope):
    """A worker's answer to a command."""

    headers: _AnswerHeaders  # type: ignore[assignment]


_ANSWERS = TypeAdapter(dict[str, Any])
