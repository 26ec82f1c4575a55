"""What can be said of image and Compose files without an engine. `make compose-test` builds and runs them."""

import re
import subprocess
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.compose.engine import documented
from worker.settings import Settings

CHECKOUT = Path(__file__).parents[1]
COMPOSE = (CHECKOUT / "docker-compose.yml").read_text(encoding="utf-8")
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (CHECKOUT / ".env.example").read_text(encoding="utf-8")
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "FLOWER_BASIC_AUTH")
LABELS_TABLES = "label-tables-restored-with-docker-compose-run-restore"
OURS = {"schema", "worker", "flower", "producer", "metrics", "clock"}
CLIENTS = {LABELS_TABLES, "rights", "psql", "backup", "restore"}
"""Of PostgreSQL, by the programs of its own image."""

_KEY = re.compile(r"^([\w.<-]+):", re.MULTILINE)
_VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)")
_PIN = re.compile(r"^([a-z0-9-]+==\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)

Keys = dict[str, str]


def keys(block: str) -> Keys:
    """The keys of a block of YAML, each with its value: what stands beside it, and the lines below. Comments
    are gone.
    """
    lines = [line for line in block.splitlines() if line.strip() and not line.strip().startswith("#")]
    plain = textwrap.dedent("\n".join(lines))
    starts = list(_KEY.finditer(plain))
    ends = [*(start.start() for start in starts[1:]), len(plain)]
    return {
        start[1]: plain[start.end() : end].strip(" ").removeprefix("\n").rstrip()
        for start, end in zip(starts, ends, strict=True)
    }


TOP = keys(COMPOSE)
ANCHORS = {text.split()[0].removeprefix("&"): text for text in TOP.values() if text.startswith("&")}


def resolved(block: str) -> Keys:
    """The keys of a block with those that it merges; its own win."""
    own = keys(block)
    merged = own.pop("<<", "").removeprefix("*")
    return (resolved(below(ANCHORS[merged])) if merged else {}) | own


def below(anchored: str) -> str:
    """What comes after an anchor."""
    return anchored.partition("\n")[2]


SERVICES = {name: resolved(block) for name, block in keys(TOP["services"]).items()}
LONG_LIVED = {name for name, service in SERVICES.items() if "restart" in service}


def networks(service: str) -> set[str]:
    return set(SERVICES[service]["networks"].strip("[]").split(", "))


def mounts(service: str) -> list[Keys]:
    """The bind mounts of a service."""
    volumes = textwrap.dedent(SERVICES[service].get("volumes", ""))
    return [
        keys("  " + mount) for mount in re.split(r"^- ", volumes, flags=re.MULTILINE) if "source:" in mount
    ]


def test_the_compose_file_has_these_services():
    assert set(SERVICES) == {"postgres", "redis"} | OURS | CLIENTS
    assert {"postgres", "redis", "worker", "flower", "metrics", "clock"} == LONG_LIVED
    assert {name: SERVICES[name]["profiles"] for name in SERVICES if "profiles" in SERVICES[name]} == {
        **dict.fromkeys(("producer", "psql", "backup", "restore"), "[tools]"),
        "metrics": "[metrics]",
        "clock": "[clock]",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_few_privileges(name: str):
    service = SERVICES[name]

    assert service["read_only"] == "true"
    assert service["cap_drop"] == "[ALL]"
    assert service["security_opt"] == '["no-new-privileges:true"]'
    assert "cap_add" not in service
    assert "privileged" not in service
    assert "/tmp" in service["tmpfs"]  # noqa: S108 - a mount of its own


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_that_stays_says_whether_it_is_well(name: str):
    check = SERVICES[name]["healthcheck"]

    # The clock sleeps: what it starts says how it ended.
    if name in LONG_LIVED - {"clock"}:
        assert {"test", "interval", "timeout", "retries", "start_period"} <= keys(check).keys()
    else:
        assert check == "{disable: true}"


def test_workers_wait_for_servers_and_tables():
    for name in ("worker", "producer", "metrics", "clock"):
        assert SERVICES[name]["depends_on"] == "*tables-are-there"
    waits = resolved(below(ANCHORS["tables-are-there"]))
    assert waits == {
        "postgres": "{condition: service_healthy, required: false}",
        "redis": "{condition: service_healthy}",
        "schema": "{condition: service_completed_successfully}",
        "rights": "{condition: service_completed_successfully}",
    }
    assert keys(SERVICES["rights"]["depends_on"]) == {"schema": "{condition: service_completed_successfully}"}
    assert (
        resolved(SERVICES["schema"]["depends_on"])[LABELS_TABLES]
        == "{condition: service_completed_successfully}"
    )


def test_tables_are_applied_by_an_address_of_their_own():
    urls = {
        name: resolved(environment)["DATABASE_URL"]
        if not (environment := SERVICES[name]["environment"]).startswith("*")
        else keys(below(ANCHORS[environment[1:]]))["DATABASE_URL"]
        for name in ("schema", "worker", "producer", "metrics", "clock")
    }

    owner = urls.pop("schema")
    assert owner.startswith("${SCHEMA_DATABASE_URL:-${DATABASE_URL:-postgresql://label:${POSTGRES_PASSWORD}@")
    (restricted,) = set(urls.values())
    assert restricted.startswith("${DATABASE_URL:-postgresql://${MIGRATOR_PASSWORD:+label_migrator:}")


def test_services_on_the_bundled_database_have_its_version_and_its_password():
    assert {SERVICES[name]["image"] for name in CLIENTS} == {SERVICES["postgres"]["image"]}
    assert {keys(SERVICES[name]["environment"])["PGPASSWORD"] for name in CLIENTS} == {"${POSTGRES_PASSWORD}"}


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_no_service_uses_the_bundled_database_when_another_one_is_named(name: str):
    own = (CHECKOUT / "docker-compose.own-database.yml").read_text(encoding="utf-8")
    replaced = keys(keys(own)["services"])[name].removeprefix("*")

    assert "entrypoint:" in keys(own)[f"x-{replaced}"]


def test_one_service_builds_the_image_that_the_others_name():
    ours = {name for name, service in SERVICES.items() if "MIGRATOR_IMAGE" in service["image"]}

    assert ours == OURS
    assert [name for name, service in SERVICES.items() if "build" in service] == ["schema"]
    assert {SERVICES[name]["init"] for name in ours} == {"true"}


def test_no_service_of_ours_runs_as_root():
    assert SERVICES["postgres"]["user"] == "postgres"
    assert SERVICES["redis"]["user"] == '"999"'
    with_files = CLIENTS | {"worker", "producer", "metrics", "clock"}
    assert {SERVICES[name]["user"] for name in with_files} == {"${RUN_AS:-10001:10001}"}
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE) == ["10001:10001"]


def test_only_services_that_need_postgresql_reach_it():
    assert {name for name in SERVICES if "database" in networks(name)} == {
        "postgres",
        "schema",
        "worker",
        "producer",
        "metrics",
        "clock",
        *CLIENTS,
    }
    assert {name for name in SERVICES if "broker" in networks(name)} == {
        "redis",
        "worker",
        "flower",
        "producer",
        "metrics",
        "clock",
    }
    assert keys(TOP["networks"])["database"] == keys(TOP["networks"])["broker"] == "{internal: true}"


def test_what_is_published_is_on_loopback_unless_a_variable_says_otherwise():
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "flower": '["${FLOWER_BIND:-127.0.0.1:5555}:5555"]',
        "metrics": '["${METRICS_BIND:-127.0.0.1:9187}:9187"]',
    }


def test_only_workers_write_to_the_store_and_no_service_to_legacy_directories():
    writable = {
        (name, mount["target"])
        for name in SERVICES
        for mount in mounts(name)
        if mount.get("read_only") != "true"
    }

    assert writable == {
        ("worker", "${DATA_DIR}"),
        ("producer", "/reports"),
        ("clock", "/reports"),
        ("backup", "/backups"),
        ("restore", "/backups"),
    }
    for name in ("worker", "producer"):
        *_, legacy, data = (mount["target"] for mount in mounts(name))
        # Of two mounts at one place Compose takes the last.
        assert (legacy, data) == ("${LEGACY_DIR:-/mnt/data-dir-again}", "${DATA_DIR}")
    assert {mount["target"] for mount in mounts("metrics")} == {"${DATA_DIR}"}, "to see the store's room"
    assert all(mount["bind"] == "{create_host_path: false}" for name in SERVICES for mount in mounts(name))


def test_a_worker_has_time_to_hand_back_its_jobs_and_a_limit():
    assert SERVICES["worker"]["stop_grace_period"] == "90s"
    assert "mem_limit" in SERVICES["worker"]


@pytest.mark.parametrize("file", sorted(CHECKOUT.glob("docker-compose*.yml")), ids=lambda file: file.name)
def test_every_variable_is_documented(file: Path):
    assert set(_VARIABLE.findall(file.read_text(encoding="utf-8"))) <= documented()


def test_every_documented_variable_exists():
    passed_on = {name for name, value in keys(below(ANCHORS["settings"])).items() if not value}

    assert documented() - {"COMPOSE_FILE"} == set(_VARIABLE.findall(COMPOSE)) | passed_on


def test_every_setting_reaches_the_containers():
    set_by_the_image = {"ALIVE_FILE"}

    assert keys(below(ANCHORS["settings"])).keys() | set_by_the_image == {
        name.upper() for name in Settings.model_fields
    }


@pytest.mark.parametrize("name", SECRETS)
def test_no_password_has_a_default(name: str):
    assert f"{name}: ${{{name}:?" in COMPOSE, "it is refused where it is missing"
    assert not re.search(rf"\${{{name}:?[-+]", COMPOSE)
    assert re.search(rf"^{name}=$", EXAMPLE, re.MULTILINE)


def test_no_password_is_an_argument():
    for service in SERVICES.values():
        words = service.get("command", "") + service.get("entrypoint", "") + service["healthcheck"]
        assert not set(_VARIABLE.findall(words)) & {*SECRETS, "MIGRATOR_PASSWORD", "DATABASE_URL"}


def test_the_image_is_built_from_what_a_variable_names():
    assert not re.search(r"^# *syntax=", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert "ARG PYTHON_IMAGE=python:3.11-slim\n" in DOCKERFILE
    defaults = dict(re.findall(r"\$\{([A-Z]+_IMAGE):-([^}]+)\}", COMPOSE))
    assert defaults == {
        "PYTHON_IMAGE": "python:3.11-slim",
        "POSTGRES_IMAGE": "postgres:17-alpine",
        "REDIS_IMAGE": "valkey/valkey:8-alpine",
        "MIGRATOR_IMAGE": "label-dataset-migrator",
    }


def test_the_build_sees_what_the_image_is_made_of_and_nothing_else():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    ignored = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert {name for names in copied for name in names.split()} == {
        line.removeprefix("!") for line in ignored if line.startswith("!")
    }
    assert "*" in ignored


def pins(file: str) -> dict[str, set[str]]:
    """Each pinned requirement with its hashes."""
    text = (CHECKOUT / file).read_text(encoding="utf-8")
    return {pin: set(re.findall(r"--hash=(\S+)", hashes)) for pin, hashes in _PIN.findall(text)}


@pytest.mark.parametrize("file", ["requirements-runtime.txt", "requirements-build.txt"])
def test_the_image_has_the_versions_that_are_tested(file: str):
    assert pins(file)
    assert pins(file).items() <= pins("requirements.txt").items()


def test_the_image_has_what_the_program_needs_and_no_more():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    in_image = {pin.partition("==")[0] for pin in pins("requirements-runtime.txt")}

    assert names(project["dependencies"]) <= in_image
    assert not names(project["optional-dependencies"]["local"]) & in_image
    assert not names(project["optional-dependencies"]["dev"]) & in_image


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}


@pytest.mark.parametrize(
    ("now", "waits", "asked"),
    [
        ("2026-11-29 01:16:59", 2, ["gc --yes --wait", "verify --store --sample 25 --repair"]),
        ("2026-11-30 01:17:00", 1, ["gc --yes --wait"]),
        ("2026-11-30 01:17:01", 86_400, ["gc --yes --wait"]),
        ("2026-11-28 23:59:59", 4_622, ["gc --yes --wait"]),
    ],
)
def test_the_clock_strikes_after_one_each_night_and_on_sundays_reads(
    now: str, waits: int, asked: list[str], tmp_path: Path
):
    """The day on which it awakes is that of `now` here. What fails does not stop it."""
    program = textwrap.dedent(SERVICES["clock"]["command"].partition("- |\n")[2]).replace("$$", "$")
    (tmp_path / "sleep").write_text(
        f'#!/bin/sh\n[ ! -e "{tmp_path}/slept" ] && echo "$1" > "{tmp_path}/slept"\n'
    )
    (tmp_path / "date").write_text(f'#!/bin/sh\nexec /bin/date --utc --date="{now} UTC" "$@"\n')
    (tmp_path / "producer").write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/asked"\nexit 5\n')
    for name in ("sleep", "date", "producer"):
        (tmp_path / name).chmod(0o755)

    done = subprocess.run(
        ["sh", "-uc", program], env={"PATH": f"{tmp_path}:/bin"}, capture_output=True, text=True, check=False
    )

    assert (tmp_path / "slept").read_text() == f"{waits}\n"
    assert (tmp_path / "asked").read_text().splitlines() == asked
    assert done.stderr.splitlines() == [f"{call.split()[0]} ended with 5" for call in asked]
