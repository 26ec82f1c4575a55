"""The bundled database as an operator gets it going: restored, backed up, used by a role of its own,
upgraded. Knows no run.
"""

from tests.compose.installation import Installation

_NOT_RESTORED = 5
_OF_AN_UPGRADE = "migration_recording_counts"
"""A table that stands for what a new version brings."""


def check_what_is_said_without_labels_tables(installation: Installation) -> None:
    """Whether or not the terminal stays attached: what is missing, and the command that restores it."""
    compose = installation.compose
    detached = compose.terminal("up", "--detach", exit_code=1)
    service = "label-tables-restored-with-docker-compose-run-restore"
    assert f'service "{service}" didn\'t complete successfully: exit {_NOT_RESTORED}' in detached, detached
    assert not any(each.described["State"]["Running"] for each in compose.containers("worker"))

    said = compose.terminal("run", "--rm", "--no-TTY", service, exit_code=_NOT_RESTORED)
    assert "has no table projects" in said
    assert "docker compose run --rm --no-TTY restore < label.dump" in said
    assert said.strip() in "\n".join(
        line.partition("| ")[2] for line in compose("logs", "--no-color", service).splitlines()
    )


def check_backup_and_restore(installation: Installation) -> None:
    """What is dumped comes back, from the directory or from standard input; a restore is all or nothing."""
    compose = installation.compose
    installation.make_labels_tables()
    participant = "insert into participants (participant_code) values ('P001')"
    installation.psql("--command", participant)
    name = compose("run", "--rm", "--no-TTY", "backup").strip()
    dump = installation.backups / name
    assert dump.stat().st_mode & 0o777 == 0o600, "it says who the participants are"
    assert [each.name for each in installation.backups.iterdir()] == [name]

    installation.psql("--command", participant.replace("P001", "P002"))
    compose.terminal("run", "--rm", "--no-TTY", "restore", name, exit_code=1)
    assert _participants(installation) == ["P001", "P002"], "nothing is replaced, and nothing added"
    _empty(installation)
    compose("run", "--rm", "--no-TTY", "restore", name)
    assert _participants(installation) == ["P001"]


def check_upgrade(installation: Installation) -> None:
    """Tables that a new version brings are made by their owner; the role that workers use has rights on them
    at once.
    """
    owner = installation.psql("--tuples-only", "--no-align", "--command", "select current_user").strip()
    with installation.engine() as engine, engine.begin() as conn:
        conn.exec_driver_sql(f"drop table {_OF_AN_UPGRADE}")
        conn.exec_driver_sql(
            "update schema_steps set checksum = 'another' where name = 'create_migration_ledger'"
        )

    installation.compose("up", "--detach")

    asked = (
        f"select tableowner, has_table_privilege('label_migrator', '{_OF_AN_UPGRADE}', 'insert')"
        f" from pg_tables where tablename = '{_OF_AN_UPGRADE}'"
    )
    assert installation.psql("--tuples-only", "--no-align", "--command", asked).strip() == f"{owner}|t"
    doctor = installation.compose.terminal("run", "--rm", "--no-TTY", "producer", "doctor")
    assert "database label as label_migrator" in doctor, doctor


def _participants(installation: Installation) -> list[str]:
    asked = "select participant_code from participants order by 1"
    return installation.psql("--tuples-only", "--no-align", "--command", asked).split()


def _empty(installation: Installation) -> None:
    """As docs/operations.md says, before a backup comes in the place of what is there."""
    again = ("--command=drop database label with (force)", "--command=create database label")
    installation.psql("--dbname=postgres", *again)
