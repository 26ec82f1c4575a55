"""The settings, read once from the environment and `.env` into one frozen object. Opens no connection."""

import difflib
import fcntl
import os
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import URL

from worker import broker_url, database_url
from worker.broker_url import BrokerUrl
from worker.errors import SettingsError
from worker.units import parse_bytes

_EXPLAINED = "explained"
"""The type of an error whose text is for people and holds nothing of the value."""

ENV_FILE = ".env"
"""Where settings may stand that the environment does not have, in the working directory."""

STACK_FILE = Path(".state/stack.env")
"""Where `producer up` leaves the addresses of the running local stack, below the working directory."""

STACK_LOCK = STACK_FILE.with_name("stack.lock")
"""Locked for as long as that stack lives."""

_EXPECTED = {
    "database_url": "postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    "redis_url": "redis://:PASSWORD@HOST:PORT/0, rediss://:PASSWORD@HOST:PORT/0?ssl_ca_certs=FILE or "
    "sentinel://:PASSWORD@HOST:PORT;sentinel://HOST:PORT/0?master_name=NAME",
    "data_dir": "an absolute path of a directory",
    "legacy_roots": "absolute paths of directories, separated by colons",
    "store_digest": "blake3 or sha256",
    "hash_threads": "a whole number from 1 to 64",
    "bwlimit": "bytes a second, such as 500M (suffixes K, M and G, of 1024)",
    "verify_after_days": "days, 0 or more",
    "lease_s": "seconds, from 1 to 3600",
    "log_format": "console or json",
    "log_level": "debug, info, warning or error",
    "alive_file": "an absolute path of a file",
}


_OF_OTHER_APPLICATIONS = {
    "CELERY_BROKER_URL": "broker",
    "CELERY_BROKER_READ_URL": None,
    "CELERY_BROKER_WRITE_URL": None,
    "CELERY_RESULT_BACKEND": "result_backend",
    "CELERY_LOADER": "loader",
    "CELERY_CONFIG_MODULE": "config",
    "FLOWER_BROKER_API": None,
}
"""What Celery and Flower take from the environment before any setting of ours, and the option of `celery`
that sets it. There they belong to another application: its Redis would get our messages, and we its results.
"""


def variables_of_other_applications() -> dict[str, str | None]:
    """Variables in the environment that name another Redis than `REDIS_URL` does, each with that option."""
    return {name: option for name, option in _OF_OTHER_APPLICATIONS.items() if os.environ.get(name)}


def _parse_bytes_per_second(value: Any) -> Any:
    """`500M` as a number of bytes; an empty text means no limit."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    return parse_bytes(value)


class Settings(BaseSettings):
    """What an operator can set. Sources, strongest first: environment, `.env`, the local stack, defaults."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: SecretStr
    redis_url: SecretStr
    data_dir: Path
    legacy_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    store_digest: Literal["blake3", "sha256"] = "blake3"
    hash_threads: int = Field(default_factory=lambda: min(8, len(os.sched_getaffinity(0))), ge=1, le=64)
    bwlimit: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_parse_bytes_per_second)] = None
    verify_after_days: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    lease_s: float = Field(default=60.0, ge=1, le=3600)
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    alive_file: Path | None = None
    """What a worker touches with each of its heartbeats, so that a health check can ask this one worker."""

    @field_validator("legacy_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: Any) -> Any:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("data_dir", "legacy_roots", "alive_file")
    @classmethod
    def _absolute(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        for path in value if isinstance(value, tuple) else (value,):
            if path is not None and not path.is_absolute():
                raise ValueError(str(path))
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr) -> SecretStr:
        try:
            database_url.parse(value.get_secret_value())
        except database_url.NotUnderstoodError as error:
            raise PydanticCustomError(_EXPLAINED, str(error)) from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        try:
            broker_url.parse(value.get_secret_value())
        except broker_url.NotUnderstoodError as error:
            raise PydanticCustomError(_EXPLAINED, str(error)) from None
        return value

    @field_validator("log_level", "log_format", "store_digest", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _default_roots(self) -> Self:
        if not self.legacy_roots:
            # The model is frozen; a default that depends on another field has no other place.
            object.__setattr__(self, "legacy_roots", (self.data_dir,))
        return self

    @cached_property
    def sqlalchemy_url(self) -> URL:
        """The database's address, with psycopg2 for the driver."""
        return database_url.parse(self.database_url.get_secret_value())

    @cached_property
    def broker(self) -> BrokerUrl:
        """The broker's address and how to speak to it."""
        return broker_url.parse(self.redis_url.get_secret_value())

    @property
    def granted_lease_s(self) -> float:
        """A lease's length in seconds: below LEASE_S, within which another worker has to get a dead one's
        job.
        """
        return self.lease_s * 0.75

    @property
    def reap_every_s(self) -> float:
        """How often each worker's reaper runs, in seconds."""
        return min(5.0, self.lease_s / 12)

    @property
    def root_patience_s(self) -> float:
        """How long a run whose jobs find their legacy root nowhere goes on until it is paused, in seconds."""
        return 2 * self.lease_s

    @property
    def common(self) -> dict[str, str]:
        """What every machine must have alike, by variable: not threads, limits and logging."""
        return {
            "DATA_DIR": _printable(self.data_dir),
            "LEGACY_ROOTS": ":".join(sorted(map(_printable, self.legacy_roots))),
            "STORE_DIGEST": self.store_digest,
            "VERIFY_AFTER_DAYS": f"{self.verify_after_days:g}",
            "LEASE_S": f"{self.lease_s:g}",
        }

    @property
    def datasets_dir(self) -> Path:
        """Where the application reads the trees of datasets."""
        return self.data_dir / "raw_datasets"

    @property
    def store_dir(self) -> Path:
        """Where blobs, manifests, staging and quarantine are."""
        return self.data_dir / "dataset_store"


def _printable(path: Path) -> str:
    """A path for JSON and for people, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def load() -> Settings:
    """Read the settings, or raise `SettingsError` naming each bad variable and what it should be; its value
    is never shown.
    """
    if sys.getfilesystemencoding().lower() != "utf-8":
        raise SettingsError(
            f"File names are read as {sys.getfilesystemencoding()}: expected UTF-8 (set PYTHONUTF8=1)"
        )
    try:
        _refuse_misspelt()
        return Settings(**_local_stack())
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f".env cannot be read ({type(error).__name__}): expected a text file in UTF-8"
        ) from None


_DISTINCTIVE = {
    "LEGACY_ROOTS",
    "STORE_DIGEST",
    "HASH_THREADS",
    "VERIFY_AFTER_DAYS",
    "BWLIMIT",
    "ALIVE_FILE",
}
"""Settings that no other program has: a name near one of these is meant for us, also in the environment."""

_PREFIXES = ("LABEL_MIGRATOR_", "MIGRATOR_")
_NEAR = 2
_ALIKE = 0.8


def _refuse_misspelt() -> None:
    """Raise `SettingsError` for names that would be silently ignored although a setting was meant: in `.env`
    all that come near one, in the environment only what comes near a name that no other program has.
    """
    known = {name.upper() for name in Settings.model_fields}
    problems = [
        f"{name} in {place} is no setting; {nearest} was meant, most likely"
        for place, names, candidates in (
            (ENV_FILE, dotenv_values(ENV_FILE, interpolate=False), known),
            ("the environment", os.environ, _DISTINCTIVE),
        )
        for name in names
        if name.upper() not in known and (nearest := _nearest(name.upper(), candidates))
    ]
    if problems:
        raise SettingsError("; ".join(problems))


def _nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The setting that a name was meant to be, if it looks like one."""
    bare = next((name.removeprefix(one) for one in _PREFIXES if name.startswith(one)), name)
    by_edits = sorted((_edits(bare, one), one) for one in candidates)
    for edits, one in by_edits:
        if edits <= _NEAR:
            return one
    alike = difflib.get_close_matches(bare, _DISTINCTIVE.intersection(candidates), 1, _ALIKE)
    return alike[0] if alike else None


def _edits(one: str, other: str) -> int:
    """How many letters to add, remove or replace to make one name of the other (Levenshtein's distance)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        above, row[0] = row[0], number
        for place, theirs in enumerate(other, start=1):
            above, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, above + (letter != theirs)),
            )
    return row[-1]


def _local_stack() -> dict[str, Any]:
    """The local stack's addresses, for those variables that neither environment nor `.env` sets."""
    set_already = {name.lower() for name in os.environ} | {name.lower() for name in dotenv_values(ENV_FILE)}
    if {"database_url", "redis_url"} & set_already or not _stack_is_running():
        return {}
    stack = {name.lower(): value for name, value in dotenv_values(STACK_FILE, interpolate=False).items()}
    return {name: value for name, value in stack.items() if name not in set_already}


def _stack_is_running() -> bool:
    """Is the stack's lock taken? A killed stack leaves its addresses behind, but not its lock."""
    try:
        with STACK_LOCK.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.access(STACK_FILE, os.R_OK)
    except OSError:  # there never was one here, or it is another user's
        return False
    return False


def _explain(error: ValidationError) -> str:
    """One sentence for each bad variable; both ways out where there is no database and no broker at all."""
    problems = [one for one in error.errors(include_input=False) if one["loc"]]
    fields = {str(one["loc"][0]): one["type"] for one in problems}
    details = {str(one["loc"][0]): f" ({one['msg']})" for one in problems if one["type"] == _EXPLAINED}
    missing = {name for name, kind in fields.items() if kind == "missing"}
    if {"database_url", "redis_url"} <= missing:
        return (
            "DATABASE_URL and REDIS_URL are not set and no local stack is running here: "
            "set both (environment or .env), or start a stack in this directory with: producer up"
        )
    return "; ".join(
        f"{name.upper()} is {'not set' if name in missing else 'not usable'}: "
        f"expected {_EXPECTED.get(name, 'another value')}{details.get(name, '')}"
        for name in sorted(fields)
    )
