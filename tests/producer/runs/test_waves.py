"""Dividing a run's projects into waves: what may be asked for, and which project is in which wave."""

import re

import pytest

from producer.runs.waves import asked
from worker.db.ledger import NewJob
from worker.db.waves import NewWave
from worker.errors import UsageError
from worker.messages import Gate, JobState, Outcome, Status


def jobs(count: int, *, unseen: int = 0) -> list[NewJob]:
    """So many projects, each 10 bytes larger than the one before; then some that cannot be seen from here."""
    seen = [
        NewJob(
            subject_id=number, subject_name="study", path="/s", sessions=1, files=1, size_bytes=10 * number
        )
        for number in range(1, count + 1)
    ]
    return [
        *seen,
        *(NewJob(subject_id=1000 + number, subject_name="away", path="/a") for number in range(unseen)),
    ]


def divide(text: str, found: list[NewJob], *, hold: bool = True) -> tuple[list[NewJob], list[NewWave]]:
    waves = asked(text, None)
    assert waves is not None
    return waves.divide(found, hold=hold)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,1,100%", "1 after 1 adds nothing"),
        ("10%,5%,100%", "5% after 10% adds nothing"),
        ("1,5%", "end with 100%"),
        ("1,5%,101%", "101% is more than all projects"),
        ("0,100%", "0 is no project at all"),
        ("0%,100%", "0% is no project at all"),
        ("-1,100%", "'-1' is neither"),
        ("1.5,100%", "'1.5' is neither"),
        ("1,,100%", "'' is neither"),
        ("", "'' is neither"),
        ("1e2,100%", "'1e2' is neither"),
        ("one,100%", "'one' is neither"),
    ],
)
def test_what_cannot_be_meant_is_refused_whatever_there_is(text: str, says: str):
    with pytest.raises(UsageError, match=re.escape(says)):
        asked(text, None)


def test_a_gate_without_waves_is_refused():
    with pytest.raises(UsageError, match="add --waves"):
        asked(None, Gate.VERIFY)

    assert asked(None, None) is None


@pytest.mark.parametrize(
    ("text", "count", "says"),
    [
        ("1,100%", 0, "nothing to migrate"),
        ("3,5%,100%", 20, "of 20 projects 5% is 1, fewer than the 3"),
        ("1,10", 11, "ends with 10 of 11 projects"),
    ],
)
def test_waves_that_do_not_add_up_to_these_projects_are_refused(text: str, count: int, says: str):
    with pytest.raises(UsageError, match=re.escape(says)):
        divide(text, jobs(count))


def test_a_run_without_anything_but_skipped_jobs_has_no_waves():
    skipped = Outcome(project_id=1, project_name="s", status=Status.SKIPPED, reason="path is NULL")

    with pytest.raises(UsageError, match="nothing to migrate"):
        divide("1,100%", [NewJob(subject_id=1, subject_name="s", path=None, skipped=skipped)])


@pytest.mark.parametrize(
    ("text", "count", "sizes"),
    [
        ("1,5%,100%", 200, [1, 9, 190]),
        ("1,5%,100%", 21, [1, 1, 19]),
        ("1,5%,100%", 10, [1, 9]),
        ("1,5%,100%", 1, [1]),
        ("0.5%,50%,100%", 7, [1, 3, 3]),
        ("2,40", 30, [2, 28]),
    ],
)
def test_numbers_and_parts_count_the_waves_before(text: str, count: int, sizes: list[int]):
    divided, waves = divide(text, jobs(count))

    assert [one.projects for one in waves] == sizes
    assert [one.wave for one in waves] == list(range(1, len(sizes) + 1))
    assert [one.gate for one in waves] == [Gate.VERIFY] * (len(sizes) - 1) + [Gate.NONE]
    assert [sum(job.wave == one.wave for job in divided) for one in waves] == sizes
    assert [job.subject_id for job in divided] == [job.subject_id for job in jobs(count)]
    assert {job.state for job in divided if job.wave == 1} == {JobState.QUEUED}
    assert {job.state for job in divided if job.wave != 1} <= {JobState.HELD}


def test_each_wave_has_projects_of_all_sizes_and_the_first_one_of_middling_size():
    divided, waves = divide("1,20%,100%", jobs(100))

    (first,) = (job.subject_id for job in divided if job.wave == 1)
    second = [job.subject_id for job in divided if job.wave == 2]
    assert 45 <= first <= 55
    assert all(a < b <= a + 7 for a, b in zip([0, *second], [*second, 100], strict=True)), second
    assert waves[1].size_bytes == sum(10 * number for number in second)
    assert divided[-1].wave == 3, "the largest one"


def test_what_cannot_be_seen_from_here_comes_last():
    divided, _ = divide("2,5,100%", jobs(3, unseen=4))

    waves = {job.subject_id: job.wave for job in divided}
    assert sorted(number for number, wave in waves.items() if wave == 1 and number < 1000) == [1, 3]
    assert waves[2] == 2
    assert sorted(wave or 0 for number, wave in waves.items() if number >= 1000) == [2, 2, 3, 3]


def test_a_dry_run_holds_nothing_back():
    divided, _ = divide("1,100%", jobs(5), hold=False)

    assert {job.state for job in divided} == {JobState.QUEUED}
    assert {job.wave for job in divided} == {1, 2}
