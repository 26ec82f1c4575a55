"""Redis and PostgreSQL over TLS, with certificates of an afternoon: everything works, and nothing falls back
to plain text.
"""

import asyncio
import base64
import http.client
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from flower.utils.broker import Broker
from kombu.exceptions import OperationalError
from pydantic import SecretStr
from sqlalchemy import make_url, text

from producer.cli.exit_codes import exit_code
from producer.local.servers import LOOPBACK, free_port
from producer.local.stack import FLOWER_PASSWORD, Stack, run_flower
from tests.estate import make_project, record_session
from tests.support import certificates as certificates_room
from tests.support import encrypted_servers
from tests.support.certificates import Certificates
from tests.support.encrypted_servers import OTHER_ADDRESS
from tests.support.forking import Forks
from tests.support.servers import empty_redis
from tests.support.sites import Site, site_in
from tests.support.waiting import PATIENCE_S
from worker import settings as settings_module
from worker.broker import client as broker
from worker.broker.config import create_app
from worker.db import schema, tables
from worker.db.engine import connect
from worker.errors import BrokerUnavailableError, MigratorError
from worker.messages import QUEUE
from worker.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Encrypted:
    """A site whose servers speak TLS only, their addresses without a word about certificates, and the
    certificates.
    """

    site: Site
    database_url: str
    redis_url: str
    certificates: Certificates

    @property
    def secrets(self) -> set[str]:
        """The passwords, as they are and as they stand in URLs."""
        urls = (make_url(self.database_url), make_url(self.redis_url))
        return {str(url.password) for url in urls} | {
            url.partition("@")[0].rpartition(":")[2] for url in (self.database_url, self.redis_url)
        }


@pytest.fixture(scope="module")
def encrypted(
    _starts_servers: None, programs: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Encrypted]:
    postgres_programs, redis_program = encrypted_servers.programs()
    # Not below pytest's own temporary directory: that is closed to the user whom root runs PostgreSQL as.
    folder = Path(tempfile.mkdtemp(prefix="label-tls-"))
    folder.chmod(0o755)
    with ExitStack() as parts:
        parts.callback(shutil.rmtree, folder)
        made = certificates_room.make(folder, LOOPBACK)
        database = parts.enter_context(encrypted_servers.postgres(postgres_programs, folder, made))
        broker_server = parts.enter_context(encrypted_servers.redis_server(redis_program, folder, made))
        url = f"{database.url}?sslmode=verify-full&sslrootcert={made.authority}"
        engine = connect(make_url(url).set(drivername="postgresql+psycopg2"), application_name="tests")
        parts.callback(engine.dispose)
        site = parts.enter_context(
            site_in(
                tmp_path_factory.mktemp("encrypted"),
                engine,
                f"{broker_server.url}?ssl_ca_certs={made.authority}",
                programs,
            )
        )
        yield Encrypted(site=site, database_url=database.url, redis_url=broker_server.url, certificates=made)


# It works ---------------------------------------------------------------------------------------------------


def test_the_whole_path_is_encrypted_when_the_addresses_say_so(encrypted: Encrypted):
    """Tables, a worker, a run, its collection: the servers have no other door."""
    site = encrypted.site
    schema.apply(site.engine, with_baseline=True)
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        record_session(conn, project, "day", seed=1)

    with site.workers(1):
        applied = site.run_producer("schema", "apply")
        queued = site.run_producer("enqueue", "--wait", "--json")
        with site.engine.connect() as conn:
            ours = conn.execute(
                text("""
                    select application_name, ssl from pg_stat_ssl join pg_stat_activity using (pid)
                    where application_name like 'label-migrator%'""")
            ).all()
    collected = site.run_producer("collect", "--json")

    assert applied.returncode == 0, applied.stderr
    for done in (queued, collected):
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["report"]["projects_migrated"] == 1
    assert "No worker is online" not in queued.stderr
    assert ours
    assert all(row.ssl for row in ours)
    for log in site.folder.glob("*.log"):
        written = log.read_text()
        assert "insecure" not in written
        assert not any(secret in written for secret in encrypted.secrets)


def test_flower_speaks_tls_as_well(encrypted: Encrypted, tmp_path: Path):
    with run_flower(encrypted.site.env, tmp_path) as flower:
        credentials = f"label:{(tmp_path / FLOWER_PASSWORD).read_text()}"
        connection = http.client.HTTPConnection(flower.url.removeprefix("http://"), timeout=PATIENCE_S)
        authorization = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        connection.request("GET", "/api/queues/length", headers={"Authorization": authorization})
        queues = json.load(connection.getresponse())["active_queues"]
        connection.close()

    assert {queue["name"]: queue["messages"] for queue in queues} == {QUEUE: 0}


# It is refused ----------------------------------------------------------------------------------------------


def settings_for(redis_url: str) -> Settings:
    return Settings.model_construct(redis_url=SecretStr(redis_url))


def by_redis_py(settings: Settings) -> None:
    broker.check(settings)


def by_celery_s_broker(settings: Settings) -> None:
    with create_app(settings).connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


def by_celery_s_results(settings: Settings) -> None:
    create_app(settings).backend.client.ping()


def by_flower(settings: Settings) -> None:
    conf = create_app(settings).conf
    asyncio.run(Broker(conf.broker_url, broker_use_ssl=conf.broker_use_ssl).queues([QUEUE]))


CLIENTS = [by_redis_py, by_celery_s_broker, by_celery_s_results, by_flower]


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_gets_in_with_the_authority_alone(
    encrypted: Encrypted, client: Callable[[Settings], None]
):
    client(settings_for(encrypted.site.env["REDIS_URL"]))


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("case", ["a strange authority", "no authority", "another address"])
def test_every_client_refuses_a_certificate_that_it_cannot_trust(
    encrypted: Encrypted, client: Callable[[Settings], None], case: str
):
    url = {
        "a strange authority": f"{encrypted.redis_url}?ssl_ca_certs={encrypted.certificates.stranger}",
        "no authority": encrypted.redis_url,
        "another address": encrypted.site.env["REDIS_URL"].replace(LOOPBACK, OTHER_ADDRESS),
    }[case]

    with pytest.raises(
        (BrokerUnavailableError, OperationalError, redis.ConnectionError), match="certificate verify failed"
    ):
        client(settings_for(url))


def test_a_certificates_name_need_not_match_when_the_operator_says_so(encrypted: Encrypted):
    url = encrypted.site.env["REDIS_URL"].replace(LOOPBACK, OTHER_ADDRESS)

    for client in CLIENTS:
        client(settings_for(f"{url}&ssl_check_hostname=false"))
        client(settings_for(f"{encrypted.redis_url}?ssl_cert_reqs=none"))


def test_plain_text_on_an_encrypted_port_is_a_clear_error(encrypted: Encrypted):
    plain = encrypted.redis_url.replace("rediss://", "redis://")

    with pytest.raises(BrokerUnavailableError, match=r"TLS only there, its URL begins with rediss://"):
        broker.check(settings_for(plain))


def test_tls_on_a_plain_port_is_a_clear_error(stack: Stack, monkeypatch: pytest.MonkeyPatch):
    """Valkey takes the greeting for the beginning of a command, and waits for its end."""
    monkeypatch.setattr(broker, "_TIMEOUT_S", 0.5)
    encrypted = empty_redis(stack).replace("redis://", "rediss://")

    with pytest.raises(BrokerUnavailableError, match="no TLS there, its URL begins with redis://"):
        broker.check(settings_for(encrypted))


def _refused(encrypted: Encrypted) -> Mapping[str, tuple[dict[str, str], str]]:
    """Settings that lead nowhere, and what is said of each."""
    stranger, authority = encrypted.certificates.stranger, encrypted.certificates.authority
    of_database, of_broker = encrypted.database_url, encrypted.redis_url
    return {
        "a strange authority for the broker": (
            {"REDIS_URL": f"{of_broker}?ssl_ca_certs={stranger}"},
            "certificate verify failed",
        ),
        "plain text to the broker": (
            {"REDIS_URL": of_broker.replace("rediss://", "redis://")},
            "TLS only there, its URL begins with rediss://",
        ),
        "a file that is not there": (
            {"REDIS_URL": f"{of_broker}?ssl_ca_certs=/nowhere"},
            "ssl_ca_certs names no file that can be read",
        ),
        "a strange authority for the database": (
            {"DATABASE_URL": f"{of_database}?sslmode=verify-full&sslrootcert={stranger}"},
            "certificate verify failed",
        ),
        "another name for the database": (
            {
                "DATABASE_URL": f"{of_database}?sslmode=verify-full&sslrootcert={authority}".replace(
                    LOOPBACK, OTHER_ADDRESS
                )
            },
            f'does not match host name "{OTHER_ADDRESS}"',
        ),
        "plain text to the database": ({"DATABASE_URL": f"{of_database}?sslmode=disable"}, "no encryption"),
        "a mode that is none": (
            {"DATABASE_URL": f"{of_database}?sslmode=perhaps"},
            'invalid sslmode value: "perhaps"',
        ),
        "an option that is none": ({"DATABASE_URL": f"{of_database}?sslmod=require"}, "sslmod"),
    }


def test_an_untrusted_certificate_ends_with_exit_code_5_and_a_clear_message(
    encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch
):
    schema.apply(encrypted.site.engine, with_baseline=True)
    for case, (env, words) in _refused(encrypted).items():
        for name, value in (encrypted.site.env | env).items():
            monkeypatch.setenv(name, value)

        with pytest.raises(MigratorError) as refused:
            _call_on_both()

        assert (case, exit_code(refused.value)) == (case, 5)
        assert words in str(refused.value), case
        assert not any(secret in str(refused.value) for secret in encrypted.secrets), case


def _call_on_both() -> None:
    """What every verb begins with, and then those that send."""
    settings = settings_module.load()
    engine = connect(settings.sqlalchemy_url, application_name="tests")
    try:
        tables.require(engine)
    finally:
        engine.dispose()
    broker.check(settings)


@pytest.mark.parametrize("server", ["broker", "database"])
def test_a_command_without_a_trusted_connection_ends_with_exit_code_5(encrypted: Encrypted, server: str):
    env, words = _refused(encrypted)[f"a strange authority for the {server}"]
    schema.apply(encrypted.site.engine, with_baseline=True)

    done = encrypted.site.run_producer("enqueue", **env)

    assert (done.returncode, words in done.stderr) == (5, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not any(secret in done.stderr + done.stdout for secret in encrypted.secrets)


def test_a_worker_never_falls_back_to_plain_text(encrypted: Encrypted):
    """Nothing listens there; whatever the reason, the next attempt is encrypted again."""
    url = encrypted.site.env["REDIS_URL"].replace(encrypted.redis_url.rpartition(":")[2], f"{free_port()}/0")
    conf = create_app(settings_for(url)).conf

    for used in (conf.broker_use_ssl, conf.redis_backend_use_ssl):
        assert used["ssl_cert_reqs"] == "required"
        assert used["ssl_check_hostname"] is True
    assert conf.broker_url.startswith("rediss://")
    assert conf.result_backend.startswith("rediss://")
