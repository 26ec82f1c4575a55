"""How a worker's parent answers the doctor: at once, whatever hangs, and only for whom it is meant."""

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.sites import Site
from tests.support.waiting import eventually
from worker.doctor import checkup
from worker.doctor.checkup import Checkups
from worker.doctor.probe import WITHIN_S
from worker.doctor.protocol import Evidence, Step
from worker.findings import passed


@pytest.fixture
def ask(site: Site) -> Callable[..., dict[str, Any]]:
    """Ask one worker's parent."""
    checkups = Checkups(site.settings, lambda: {"reaper": passed("works")})

    def ask(token: str, step: str = Step.EXAMINE, *marks: str) -> dict[str, Any]:
        begin = time.monotonic()
        answer = checkups.answer(token, step, marks, processes=3)
        assert time.monotonic() - begin < WITHIN_S, "the event loop does not wait for a look at the machine"
        return answer

    return ask


def test_a_question_is_answered_at_once_and_asking_again_gives_the_findings(
    site: Site, ask: Callable[..., dict[str, Any]]
):
    token = str(uuid.uuid4())

    first = ask(token)
    eventually(lambda: ask(token)["state"] == "done", "the examination is done")
    said = Evidence.from_json(ask(token)["evidence"])
    assert said.machine.mark is not None
    ask(token, Step.LOOK, said.machine.mark)
    eventually(lambda: ask(token, Step.LOOK)["state"] == "done", "marks are looked for")
    marks = ask(token, Step.LOOK)["marks"]
    ask(token, Step.END)
    eventually(lambda: not any(site.data_dir.iterdir()), "its mark is gone")

    assert first == {"state": "examining"}
    assert marks == [said.machine.mark]
    assert (said.processes, said.settings, said.sampled) == (3, site.settings.common, 0)
    assert list(said.checks) == ["database from workers", "clocks of workers", "reaper"]


def test_a_worker_that_hangs_answers_where_it_hangs(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    """A new process that gets no time at all stands for one that the kernel does not let begin."""
    monkeypatch.setattr(checkup, "WITHIN_S", 0.0)
    monkeypatch.setattr(checkup, "_GRACE_S", 0.0)
    token = uuid.uuid4().hex

    eventually(lambda: ask(token)["state"] != "examining", "it gives up")

    assert ask(token) == {
        "state": "silent",
        "because": "it did not get beyond looking at its machine's files",
    }


def test_an_examination_that_takes_too_long_is_over_though_it_still_runs(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkup, "_LIMIT_S", 0.0)

    assert ask(uuid.uuid4().hex)["state"] == "silent"


def test_only_a_few_examinations_run_at_once(ask: Callable[..., dict[str, Any]]):
    tokens = [uuid.uuid4().hex for _ in range(checkup._MOST + 1)]

    for token in tokens:
        ask(token)

    assert ask(tokens[-1], Step.LOOK)["state"] == "silent", "it was not begun"
    # One that a busy machine does not end within its time limit is over as well.
    eventually(lambda: all(ask(token)["state"] != "examining" for token in tokens[:-1]), "the others end")
    for token in tokens[:-1]:
        ask(token, Step.END)
    eventually(lambda: ask(tokens[-1])["state"] != "examining", "then there is room for it")
    ask(tokens[-1], Step.END)


@pytest.mark.parametrize(("token", "step"), [("../../etc", "examine"), ("0" * 32, "format")])
def test_a_question_without_a_valid_token_and_step_is_refused(
    ask: Callable[..., dict[str, Any]], token: str, step: str
):
    """Both come through the broker, to which others may write."""
    with pytest.raises(ValueError, match=r"badly formed|not a valid Step"):
        ask(token, step)
