"""Every setting: its default, what it may be, and a message that names variable and expectation but never the
value.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.folders import passable_folder
from tests.support.trees import as_ordinary_user
from worker import settings as settings_module
from worker.errors import PermanentError, SettingsError
from worker.settings import STACK_FILE, STACK_LOCK, Settings, load

PASSWORD = "s3cret-p@ss"  # noqa: S105 - made up; must never be seen again
DATABASE_URL = "postgresql://label:s3cret-p%40ss@db.lab:5433/label"
REDIS_URL = f"redis://:{PASSWORD}@redis.lab:6380/2"
NEEDED = {"DATABASE_URL": DATABASE_URL, "REDIS_URL": REDIS_URL, "DATA_DIR": "/srv/label"}


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be in an empty directory, with nothing set."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.lower() in Settings.model_fields:
            monkeypatch.delenv(name)


@pytest.fixture
def _needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what has no default."""
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)


def dotenv(**values: str) -> None:
    Path(".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))


@pytest.fixture
def _running_stack() -> Iterator[None]:
    """Leave behind what `producer up` does, and hold its lock."""
    STACK_FILE.parent.mkdir()
    STACK_FILE.write_text(
        "DATABASE_URL='postgresql://stack@localhost:1/label'\n"
        "REDIS_URL='redis://localhost:2/0'\n"
        "DATA_DIR='/stack/data ${HOME}'\n"
    )
    with STACK_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# Values -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_needed")
def test_settings_that_are_not_set_have_a_default():
    settings = load()

    assert settings.legacy_roots == (Path("/srv/label"),)
    assert settings.store_digest == "blake3"
    assert settings.hash_threads == min(8, len(os.sched_getaffinity(0)))
    assert settings.bwlimit is None
    assert settings.lease_s == 60.0
    assert settings.log_format == "console"
    assert settings.log_level == "info"


@pytest.mark.usefixtures("_needed")
@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("DATA_DIR", "/other/", Path("/other")),
        ("LEGACY_ROOTS", "/a", (Path("/a"),)),
        ("LEGACY_ROOTS", "/a:/b c/", (Path("/a"), Path("/b c"))),
        ("LEGACY_ROOTS", ":/a::/b:", (Path("/a"), Path("/b"))),
        ("LEGACY_ROOTS", "", (Path("/srv/label"),)),
        ("STORE_DIGEST", "sha256", "sha256"),
        ("STORE_DIGEST", "BLAKE3", "blake3"),
        ("HASH_THREADS", "1", 1),
        ("HASH_THREADS", "64", 64),
        ("BWLIMIT", "", None),
        ("BWLIMIT", "1", 1),
        ("BWLIMIT", "500M", 500 * 1024**2),
        ("BWLIMIT", "2k", 2048),
        ("BWLIMIT", "1.5 G", 3 * 1024**3 // 2),
        ("VERIFY_AFTER_DAYS", "0", 0.0),
        ("VERIFY_AFTER_DAYS", "0.5", 0.5),
        ("LEASE_S", "1", 1.0),
        ("LEASE_S", "0.25e2", 25.0),
        ("LEASE_S", "3600", 3600.0),
        ("LOG_FORMAT", "JSON", "json"),
        ("LOG_LEVEL", "Debug", "debug"),
        ("LOG_LEVEL", "warning", "warning"),
        ("LOG_LEVEL", "error", "error"),
        ("ALIVE_FILE", "/tmp/alive", Path("/tmp/alive")),  # noqa: S108 - nothing is written there
    ],
)
def test_a_good_value_of_a_setting_is_accepted(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any
):
    monkeypatch.setenv(name, text)

    assert getattr(load(), name.lower()) == value


EXPECTED = {
    "DATABASE_URL": "postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    "REDIS_URL": "redis://:PASSWORD@HOST:PORT/0, rediss://:PASSWORD@HOST:PORT/0?ssl_ca_certs=FILE or "
    "sentinel://:PASSWORD@HOST:PORT;sentinel://HOST:PORT/0?master_name=NAME",
    "DATA_DIR": "an absolute path of a directory",
    "LEGACY_ROOTS": "absolute paths of directories, separated by colons",
    "STORE_DIGEST": "blake3 or sha256",
    "HASH_THREADS": "a whole number from 1 to 64",
    "BWLIMIT": "bytes a second, such as 500M (suffixes K, M and G, of 1024)",
    "VERIFY_AFTER_DAYS": "days, 0 or more",
    "LEASE_S": "seconds, from 1 to 3600",
    "LOG_FORMAT": "console or json",
    "LOG_LEVEL": "debug, info, warning or error",
    "ALIVE_FILE": "an absolute path of a file",
}


def test_every_setting_has_words_for_what_is_expected():
    assert EXPECTED.keys() == {name.upper() for name in Settings.model_fields}


@pytest.mark.usefixtures("_needed")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DATABASE_URL", ""),
        ("DATABASE_URL", PASSWORD),
        ("DATABASE_URL", f"mysql://label:{PASSWORD}@db/label"),
        ("DATABASE_URL", f"postgresql+psycopg://label:{PASSWORD}@db/label"),
        ("DATABASE_URL", f"postgresql+asyncpg://label:{PASSWORD}@db/label"),
        ("DATABASE_URL", f"postgresql://label:{PASSWORD}@db:port/label"),
        ("REDIS_URL", ""),
        ("REDIS_URL", PASSWORD),
        ("REDIS_URL", f"amqp://:{PASSWORD}@redis:1/0"),
        ("REDIS_URL", f"http://:{PASSWORD}@redis:1/0"),
        pytest.param(
            "REDIS_URL",
            f"redis://:{PASSWORD}@redis:port/0",
        ),
        ("DATA_DIR", ""),
        ("DATA_DIR", f"relative/{PASSWORD}"),
        ("DATA_DIR", f"~/{PASSWORD}"),
        ("LEGACY_ROOTS", f"relative/{PASSWORD}"),
        ("LEGACY_ROOTS", f"/a:relative/{PASSWORD}"),
        ("STORE_DIGEST", ""),
        ("STORE_DIGEST", f"md5{PASSWORD}"),
        ("HASH_THREADS", ""),
        ("HASH_THREADS", "0"),
        ("HASH_THREADS", "65"),
        ("HASH_THREADS", "-1"),
        ("HASH_THREADS", "1.5"),
        ("HASH_THREADS", PASSWORD),
        ("BWLIMIT", "0"),
        ("BWLIMIT", "0.1"),
        ("BWLIMIT", "-5M"),
        ("BWLIMIT", "500MB"),
        ("BWLIMIT", "M"),
        ("BWLIMIT", PASSWORD),
        ("VERIFY_AFTER_DAYS", "-1"),
        ("VERIFY_AFTER_DAYS", "soon"),
        ("LEASE_S", ""),
        ("LEASE_S", "0"),
        ("LEASE_S", "0.9"),
        ("LEASE_S", "3601"),
        ("LEASE_S", "nan"),
        ("LEASE_S", "inf"),
        ("LEASE_S", PASSWORD),
        ("LOG_FORMAT", ""),
        ("LOG_FORMAT", PASSWORD),
        ("LOG_LEVEL", ""),
        ("LOG_LEVEL", "critical"),
        ("LOG_LEVEL", PASSWORD),
        ("ALIVE_FILE", ""),
        ("ALIVE_FILE", f"relative/{PASSWORD}"),
    ],
)
def test_a_bad_value_is_refused_with_name_and_expectation_and_never_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
):
    monkeypatch.setenv(name, text)

    with pytest.raises(SettingsError) as raised:
        load()

    # Of addresses it is said as well what is wrong with them.
    told, _, detail = str(raised.value).partition(" (" if name.endswith("_URL") else "\0")
    assert told == f"{name} is not usable: expected {EXPECTED[name]}"
    assert "s3cret" not in detail
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.usefixtures("_needed")
def test_every_bad_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEASE_S", "0")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    monkeypatch.delenv("DATA_DIR")

    with pytest.raises(SettingsError) as raised:
        load()

    assert str(raised.value) == (
        "DATA_DIR is not set: expected an absolute path of a directory; "
        "LEASE_S is not usable: expected seconds, from 1 to 3600; "
        "LOG_LEVEL is not usable: expected debug, info, warning or error"
    )


@pytest.mark.usefixtures("_needed")
@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.delenv(name)

    with pytest.raises(SettingsError, match=f"^{name} is not set: expected {re.escape(EXPECTED[name])}$"):
        load()


def test_with_nothing_set_both_ways_out_are_named():
    with pytest.raises(
        SettingsError, match=r"set both \(environment or \.env\), or start .*: producer up"
    ) as raised:
        load()

    assert "DATABASE_URL and REDIS_URL are not set" in str(raised.value)
    assert isinstance(raised.value, PermanentError)
    assert ".env" in raised.value.remedy


@pytest.mark.usefixtures("_needed")
def test_names_count_in_any_case_and_foreign_variables_do_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("lease_s", "7")
    monkeypatch.setenv("LEASE", "bad")
    monkeypatch.setenv("POSTGRES_PASSWORD", "bad")

    assert load().lease_s == 7


# Addresses and secrets --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_needed")
@pytest.mark.parametrize("spelling", ["postgresql", "postgresql+psycopg2"])
def test_both_spellings_of_the_database_mean_psycopg2(monkeypatch: pytest.MonkeyPatch, spelling: str):
    monkeypatch.setenv("DATABASE_URL", DATABASE_URL.replace("postgresql", spelling))

    url = load().sqlalchemy_url

    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "label",
        PASSWORD,
        "db.lab",
        5433,
        "label",
    )


@pytest.mark.usefixtures("_needed")
def test_secrets_do_not_show_when_the_settings_are_shown():
    settings = load()
    _ = settings.sqlalchemy_url

    for shown in (repr(settings), str(settings), repr(settings.sqlalchemy_url), str(settings.model_dump())):
        assert PASSWORD not in shown
        assert "s3cret" not in shown
    assert settings.redis_url.get_secret_value() == REDIS_URL


@pytest.mark.usefixtures("_needed")
def test_settings_are_frozen():
    settings = load()

    with pytest.raises(ValidationError):
        settings.lease_s = 5.0  # type: ignore[misc]


@pytest.mark.usefixtures("_needed")
def test_the_directories_of_trees_and_store_are_beside_each_other():
    settings = load()

    assert settings.datasets_dir == Path("/srv/label/raw_datasets")
    assert settings.store_dir == Path("/srv/label/dataset_store")


# Sources ----------------------------------------------------------------------------------------------------


def test_a_dotenv_file_in_the_working_directory_is_read():
    dotenv(**NEEDED, LEASE_S="9", LEGACY_ROOTS="/a:/b", FOREIGN="ignored")

    settings = load()

    assert settings.database_url.get_secret_value() == DATABASE_URL
    assert settings.lease_s == 9
    assert settings.legacy_roots == (Path("/a"), Path("/b"))


def test_a_bad_value_in_the_dotenv_file_is_refused_like_any_other():
    dotenv(**NEEDED, BWLIMIT=PASSWORD)

    with pytest.raises(
        SettingsError, match=f"^BWLIMIT is not usable: expected {re.escape(EXPECTED['BWLIMIT'])}$"
    ):
        load()


def test_the_environment_is_stronger_than_the_dotenv_file(monkeypatch: pytest.MonkeyPatch):
    dotenv(**NEEDED, LEASE_S="9", LOG_LEVEL="error")
    monkeypatch.setenv("LEASE_S", "8")

    settings = load()

    assert settings.lease_s == 8
    assert settings.log_level == "error"


def test_a_dotenv_file_that_is_not_text_is_a_settings_error():
    Path(".env").write_bytes(b"DATA_DIR=/caf\xe9\n")

    with pytest.raises(SettingsError, match=r"\.env"):
        load()


def test_a_dotenv_file_that_may_not_be_read_is_a_settings_error(monkeypatch: pytest.MonkeyPatch):
    with passable_folder() as folder:
        monkeypatch.chdir(folder)
        dotenv(**NEEDED)
        Path(".env").chmod(0o000)

        with pytest.raises(SettingsError, match=r"\.env"):
            as_ordinary_user(load)


@pytest.mark.usefixtures("_running_stack")
def test_the_running_local_stack_is_used_when_no_address_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEASE_S", "8")

    settings = load()

    assert settings.database_url.get_secret_value() == "postgresql://stack@localhost:1/label"
    assert settings.redis_url.get_secret_value() == "redis://localhost:2/0"
    assert settings.data_dir == Path("/stack/data ${HOME}")
    assert settings.lease_s == 8


@pytest.mark.usefixtures("_running_stack")
@pytest.mark.parametrize("by_dotenv", [True, False])
def test_another_data_dir_may_be_used_with_the_running_stack(monkeypatch: pytest.MonkeyPatch, by_dotenv: Any):
    if by_dotenv:
        dotenv(DATA_DIR="/mine")
    else:
        monkeypatch.setenv("DATA_DIR", "/mine")

    settings = load()

    assert settings.data_dir == Path("/mine")
    assert settings.redis_url.get_secret_value() == "redis://localhost:2/0"


@pytest.mark.usefixtures("_running_stack")
@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
@pytest.mark.parametrize("by_dotenv", [True, False])
def test_addresses_are_never_mixed_with_those_of_the_stack(
    monkeypatch: pytest.MonkeyPatch, name: str, by_dotenv: Any
):
    if by_dotenv:
        dotenv(**{name: NEEDED[name]})
    else:
        monkeypatch.setenv(name, NEEDED[name])

    with pytest.raises(SettingsError) as raised:
        load()

    (other,) = {"DATABASE_URL", "REDIS_URL"} - {name}
    assert f"{other} is not set" in str(raised.value)
    assert "DATA_DIR is not set" in str(raised.value)


def test_the_addresses_of_a_stack_that_died_are_not_used():
    STACK_FILE.parent.mkdir()
    STACK_FILE.write_text(f"DATABASE_URL={DATABASE_URL}\nREDIS_URL={REDIS_URL}\nDATA_DIR=/srv\n")
    STACK_LOCK.touch()

    with pytest.raises(SettingsError, match="no local stack is running here"):
        load()


def test_looking_for_a_stack_leaves_its_lock_free():
    STACK_FILE.parent.mkdir()
    STACK_LOCK.touch()
    with pytest.raises(SettingsError):
        load()

    with STACK_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_reading_settings_creates_no_file():
    with pytest.raises(SettingsError):
        settings_module.load()

    assert os.listdir() == []


# Names that are nearly settings -----------------------------------------------------------------------------


@pytest.mark.usefixtures("_needed")
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LEGACY_ROOT", "LEGACY_ROOTS"),
        ("LEGACY_ROOT_DIRS", "LEGACY_ROOTS"),
        ("legacy_rots", "LEGACY_ROOTS"),
        ("DATADIR", "DATA_DIR"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("REDIS_ULR", "REDIS_URL"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("BW_LIMIT", "BWLIMIT"),
        ("LEASE", "LEASE_S"),
        ("LEASE_SEC", "LEASE_S"),
        ("VERIFY_AFTER", "VERIFY_AFTER_DAYS"),
        ("MIGRATOR_DATA_DIR", "DATA_DIR"),
    ],
)
def test_a_misspelt_setting_in_env_is_refused_with_the_one_that_was_meant(name: str, meant: str):
    dotenv(**{name: "x"})

    with pytest.raises(
        SettingsError, match=f"^{name} in .env is no setting; {meant} was meant, most likely$"
    ):
        load()


@pytest.mark.usefixtures("_needed")
def test_settings_of_other_applications_are_ignored(monkeypatch: pytest.MonkeyPatch):
    """What Compose reads from the same file, and what a shell is full of."""
    example = Path(__file__).parents[2] / ".env.example"
    names = re.findall(r"^#?([A-Z][A-Z_]+)=", example.read_text(encoding="utf-8"), re.MULTILINE)
    ours = {field.upper() for field in Settings.model_fields}
    dotenv(
        **{name: "x" for name in [*names, "DATABASE_USER", "SECRET_KEY", "DEBUG", "PORT"] if name not in ours}
    )
    for name in ("DATABASE_URI", "LOGLEVEL", "DATADIR", "HOME_DIR", "REDIS_URI"):
        monkeypatch.setenv(name, "x")

    assert load().data_dir == Path("/srv/label")
    assert len(names) > 20


@pytest.mark.usefixtures("_needed")
def test_a_misspelt_setting_in_the_environment_is_refused_where_it_can_be_ours_only(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("HASH_THREAD", "2")

    with pytest.raises(SettingsError, match=r"^HASH_THREAD in the environment is no setting; HASH_THREADS"):
        load()


# Addresses as others write them -----------------------------------------------------------------------------


@pytest.mark.usefixtures("_needed")
@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("postgres://u:p@h:5433/d", {"host": "h", "port": 5433, "user": "u", "password": "p", "dbname": "d"}),
        ("postgresql://u@h/d\n", {"host": "h", "user": "u", "dbname": "d"}),
        (
            "postgresql://u:p@a:1,b:2/d?target_session_attrs=read-write",
            {"host": "a,b", "port": "1,2", "user": "u", "password": "p", "dbname": "d"}
            | {"target_session_attrs": "read-write"},
        ),
        ("postgresql://u@[::1]:1,b/d", {"host": "::1,b", "port": "1,", "user": "u", "dbname": "d"}),
        ("postgresql://u@/d?host=a:1&host=b:2", {"host": "a,b", "port": "1,2", "user": "u", "dbname": "d"}),
        (
            "postgresql://u@%2Fvar%2Frun:5433/d",
            {"host": "/var/run", "port": "5433", "user": "u", "dbname": "d"},
        ),
        ("postgresql:///d", {"dbname": "d"}),
        ("postgresql://?service=lab", {"service": "lab"}),
    ],
)
def test_a_database_is_named_as_libpq_allows(
    text: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", text)

    url = load().sqlalchemy_url

    assert url.get_dialect()().create_connect_args(url)[1] == arguments


@pytest.mark.usefixtures("_needed")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("postgresql+psycopg://u:s3cret@h/d", "the driver is psycopg2; write postgresql://"),
        ("postgresql://mig@lab:s3cret@h/d", "in user and password write %40 for @"),
        ("postgresql://u:s3cret/x@h/d", "in user and password write %40 for @, %2F for /"),
        ("postgresql://u:s3cret@h:x/d", "it is no URL; in user and password write"),
        ("host=h dbname=d password=s3cret", "libpq's keywords are not understood; write the same as a URL"),
        ('"postgresql://u:s3cret@h/d"', "the quotation marks are a part of the value"),
        ("sqlite://u:s3cret@h/d", "the scheme is neither postgresql nor postgres"),
        (
            "mysql://u:s3cret@h/d",
            "Label's database has to be in PostgreSQL; docs/from-mysql.md brings it there",
        ),
        ("mariadb+pymysql://u:s3cret@h/d", "Label's database has to be in PostgreSQL; docs/from-mysql.md"),
        ("postgresql://u:s3cret@a:x,b/d", "several hosts are written HOST:PORT,HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_with_the_reason(
    text: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", text)

    with pytest.raises(SettingsError, match=re.escape(f"({reason}")) as refused:
        load()

    assert "s3cret" not in str(refused.value)
