"""One table for what people read of verbs and statuses."""

import pytest

from worker.messages import ByteCounts, Outcome, Status, Verb
from worker.wording import STATUS_WORDS, VERB_WORDS, run_words, status_words, summary


def test_every_verb_and_every_status_has_words():
    assert set(VERB_WORDS) == set(Verb)
    assert set(STATUS_WORDS) == set(Status)


@pytest.mark.parametrize(
    ("verb", "stem", "key", "predicted"),
    [
        (Verb.MIGRATE, "migration_report", "projects_migrated", "would be migrated"),
        (Verb.ROLLBACK, "rollback_report", "projects_rolled_back", "would be rolled back"),
        (Verb.VERIFY, "verification_report", "projects_verified", "verified"),
    ],
)
def test_keys_and_file_names_of_reports_follow_from_the_table(verb, stem, key, predicted):
    words = VERB_WORDS[verb]

    assert (words.report_stem, words.done_key) == (stem, key)
    assert status_words(words.success(dry_run=True), dry_run=True) == predicted


def test_a_dry_run_predicts_failures():
    assert status_words(Status.FAILED, dry_run=True) == "would fail"
    assert status_words(Status.FAILED, dry_run=False) == "failed"
    assert run_words(Verb.MIGRATE, dry_run=True) == "migrate (dry run)"


def test_the_line_for_flower_says_what_became_of_the_bytes():
    outcome = Outcome(
        project_id=1,
        project_name="one",
        status=Status.WOULD_MIGRATE,
        reason="content is new",
        sessions_count=1,
        bytes=ByteCounts(stored=2_000_000),
    )

    assert summary(outcome) == "would be migrated: 1 session, 2 MB stored (content is new)"
    assert summary(outcome.with_changes(bytes=ByteCounts())) == "would be migrated: content is new"
