"""The Docker engine, asked by its command line: one Compose project and its containers. Knows nothing of
Label and no run.
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
_ANSWER_WITHIN_S = 60.0
_DOCUMENTED = re.compile(r"^#?([A-Z_]+)=", re.MULTILINE)


class EngineError(Exception):
    """A command of the engine failed; what it said."""


def documented() -> set[str]:
    """Every variable that `.env.example` names."""
    return set(_DOCUMENTED.findall((CHECKOUT / ".env.example").read_text(encoding="utf-8")))


def why_not() -> str | None:
    """Why nothing can be run here, in one sentence; None if it can."""
    for words in (("docker", "info"), ("docker", "compose", "version")):
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=_ANSWER_WITHIN_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        else:
            if done.returncode == 0:
                continue
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        return f"This test needs a Docker engine with Compose, and `{' '.join(words)}` fails here: {reason}"
    return None


def docker(*words: str, within_s: float = _ANSWER_WITHIN_S, exit_code: int = 0) -> str:
    """What a docker command prints. Raises `EngineError` if it ends otherwise than with `exit_code`."""
    return _ended(["docker", *words], os.environ, within_s, exit_code).stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container as the engine describes it."""

    service: str
    described: Mapping[str, Any]

    @property
    def container_id(self) -> str:
        """The whole id; a container's host name is its first twelve digits."""
        return str(self.described["Id"])

    @property
    def is_healthy(self) -> bool:
        """Does its own health check say so?"""
        return bool(self.described["State"].get("Health", {}).get("Status") == "healthy")

    @property
    def starts_again(self) -> int:
        """How often the engine has started it again after it died."""
        return int(self.described["RestartCount"])

    @property
    def main_pid(self) -> int:
        """Its first process, as this machine numbers it."""
        return int(self.described["State"]["Pid"])

    def arguments(self) -> str:
        """What everybody on this machine can read of its processes: their arguments, one process a line."""
        return docker("top", self.container_id, "-eo", "pid,args")


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The checkout's `docker-compose.yml` as a Compose project of the name, with one more file and variables
    of its own, and `also` files of the checkout.
    """

    name: str
    override: Path
    env_file: Path
    also: tuple[str, ...] = ()

    def __call__(
        self, *words: str, within_s: float = 300, exit_code: int = 0, stdin: str | None = None
    ) -> str:
        """What `docker compose WORDS` prints. Raises `EngineError` if it ends otherwise than with
        `exit_code`.
        """
        command, env = self._command(*words)
        return _ended(command, env, within_s, exit_code, stdin).stdout

    def terminal(self, *words: str, exit_code: int = 0) -> str:
        """What an operator reads when `docker compose WORDS` ends, with `exit_code`: output and errors."""
        done = _ended(*self._command(*words), within_s=300, exit_code=exit_code)
        return done.stdout + done.stderr

    def _command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        command = [
            *("docker", "compose", "--ansi=never", "--progress=quiet", f"--project-name={self.name}"),
            *(f"--project-directory={CHECKOUT}", f"--env-file={self.env_file}"),
            *(f"--file={CHECKOUT / file}" for file in ("docker-compose.yml", *self.also)),
            *(f"--file={self.override}", *words),
        ]
        # The environment is stronger than the file: what is set for an installation of somebody's own is none
        # of ours.
        foreign = documented()
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in foreign and not name.startswith("COMPOSE_")
        }
        return command, env

    def containers(self, service: str = "") -> list[Container]:
        """Every container of the project, or of one of its services, ended ones included."""
        ids = docker(
            "ps", "--all", "--quiet", f"--filter=label=com.docker.compose.project={self.name}"
        ).split()
        found = json.loads(docker("inspect", *ids)) if ids else []
        containers = [
            Container(service=each["Config"]["Labels"]["com.docker.compose.service"], described=each)
            for each in found
        ]
        return [each for each in containers if service in ("", each.service)]

    def last_words(self) -> str:
        """The last lines of all containers, for whoever has to find out what went wrong."""
        return self("logs", "--no-color", "--tail=30")

    def remove(self) -> None:
        """Take everything down: containers, networks, volumes. Nothing to take down is fine."""
        self("--profile=*", "down", "--volumes", "--remove-orphans", "--timeout=20")


def _ended(
    command: list[str], env: Mapping[str, str], within_s: float, exit_code: int, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command, env=env, input=stdin, capture_output=True, text=True, timeout=within_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"{_short(command)} did not end within {within_s:.0f} s") from None
    if done.returncode != exit_code:
        raise EngineError(
            f"{_short(command)} ended with {done.returncode} in place of {exit_code}:\n{done.stdout}{done.stderr}"
        )
    return done


def _short(command: list[str]) -> str:
    """The command without the options that are always the same."""
    return " ".join(
        word
        for word in command
        if not word.startswith(("--ansi", "--progress", "--project", "--env", "--file"))
    )
