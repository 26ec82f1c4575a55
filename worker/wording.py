"""What people read of verbs, statuses and runs: one table for terminal, reports and Flower."""

from collections.abc import Collection
from dataclasses import dataclass

from worker.messages import Outcome, Status, Subject, Verb
from worker.units import human_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbWords:
    """What a verb's runs are called, and which status is a success: of a real run, and of a dry run.

    A verb without a dry run has the same for both.
    """

    noun: str
    done: Status
    predicted: Status
    also: frozenset[Status] = frozenset()
    """Other successes: of what the verb does with an option."""

    def success(self, *, dry_run: bool) -> Status:
        """The status of a project for which the run did, or in a dry run would do, what it is for."""
        return self.predicted if dry_run else self.done

    def successes(self, *, dry_run: bool) -> frozenset[Status]:
        """Every status that is a success of a real run, or of a dry run."""
        also = {status for status in self.also if status.value.startswith("would_") == dry_run}
        return frozenset({self.success(dry_run=dry_run), *also})

    @property
    def done_word(self) -> str:
        """What a project is when it went well: `migrated`."""
        return STATUS_WORDS[self.done]

    @property
    def done_key(self) -> str:
        """Under which key a report counts these: `projects_migrated`."""
        return self.key_of(Subject.PROJECT)

    def key_of(self, subject: Subject) -> str:
        """Under which key a report counts its subjects that went well: `datasets_verified`."""
        return f"{subject}s_{self.done}"

    @property
    def report_stem(self) -> str:
        """How the names of its reports begin: `migration_report`."""
        return f"{self.noun}_report"


VERB_WORDS = {
    Verb.MIGRATE: VerbWords(noun="migration", done=Status.MIGRATED, predicted=Status.WOULD_MIGRATE),
    Verb.ROLLBACK: VerbWords(noun="rollback", done=Status.ROLLED_BACK, predicted=Status.WOULD_ROLL_BACK),
    Verb.VERIFY: VerbWords(
        noun="verification",
        done=Status.VERIFIED,
        predicted=Status.VERIFIED,
        also=frozenset({Status.REPAIRED}),
    ),
    Verb.RECLAIM: VerbWords(
        noun="reclaim",
        done=Status.RECLAIMED,
        predicted=Status.WOULD_RECLAIM,
        also=frozenset(
            {
                *(Status.UNDONE, Status.WOULD_UNDO, Status.PURGED, Status.WOULD_PURGE),
                *(Status.SHARED, Status.WOULD_SHARE),
            }
        ),
    ),
    Verb.GC: VerbWords(
        noun="gc", done=Status.COLLECTED, predicted=Status.WOULD_COLLECT, also=frozenset({Status.RESTORED})
    ),
    Verb.ADOPT: VerbWords(
        noun="adoption",
        done=Status.ADOPTED,
        predicted=Status.WOULD_ADOPT,
        also=frozenset({Status.UNDONE, Status.WOULD_UNDO}),
    ),
}

STATUS_WORDS = {
    Status.MIGRATED: "migrated",
    Status.WOULD_MIGRATE: "would be migrated",
    Status.ROLLED_BACK: "rolled back",
    Status.WOULD_ROLL_BACK: "would be rolled back",
    Status.VERIFIED: "verified",
    Status.REPAIRED: "repaired",
    Status.RECLAIMED: "reclaimed",
    Status.WOULD_RECLAIM: "would be reclaimed",
    Status.UNDONE: "moved back",
    Status.WOULD_UNDO: "would be moved back",
    Status.PURGED: "purged",
    Status.WOULD_PURGE: "would be purged",
    Status.SHARED: "sharing blocks",
    Status.WOULD_SHARE: "would share blocks",
    Status.COLLECTED: "collected",
    Status.WOULD_COLLECT: "would be collected",
    Status.RESTORED: "restored",
    Status.ADOPTED: "adopted",
    Status.WOULD_ADOPT: "would be adopted",
    Status.SKIPPED: "skipped",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


_PREDICTIONS = {Status.FAILED: "would fail", Status.SKIPPED: "would be skipped"}


def status_words(status: Status, *, dry_run: bool) -> str:
    """How a status reads, of a dry run as a prediction: `would fail`."""
    return _PREDICTIONS.get(status, STATUS_WORDS[status]) if dry_run else STATUS_WORDS[status]


def counted_as(subjects: Collection[Subject], count: int) -> str:
    """What so many jobs about these subjects are called: `projects`, one of them `project`; `jobs` where they
    are about several kinds or about the store.
    """
    kinds = set(subjects)
    noun = str(kinds.pop()) if len(kinds) == 1 and Subject.STORE not in kinds else "job"
    return noun if count == 1 else f"{noun}s"


def run_words(verb: Verb, *, dry_run: bool) -> str:
    """How a run is called in lists and headings: `migrate (dry run)`."""
    return f"{verb} (dry run)" if dry_run else verb.value


def summary(outcome: Outcome) -> str:
    """One line: what became of a project, and of its bytes where there were any."""
    status = STATUS_WORDS[outcome.status]
    if not outcome.bytes.read:
        return f"{status}: {outcome.reason}"
    parts = [f"{outcome.sessions_count} session{'' if outcome.sessions_count == 1 else 's'}"]
    parts += [
        f"{human_bytes(count)} {what}"
        for count, what in ((outcome.bytes.stored, "stored"), (outcome.bytes.reused, "reused"))
        if count
    ]
    return f"{status}: {', '.join(parts)} ({outcome.reason})"
