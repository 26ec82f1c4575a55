"""What must be true of every running container: little it may do, nothing secret to be seen, nobody reached
without need.
"""

from collections.abc import Iterator

from tests.compose.engine import Container, EngineError, docker
from tests.compose.installation import Installation

_REACHES = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"


def check(installation: Installation) -> None:
    """Fail with one line for each thing that is not as it should be."""
    containers = installation.compose.containers()
    found = [
        *(f"{each.service} {breach}" for each in containers for breach in _breaches(each)),
        *_told(installation, containers),
        *_reached(installation),
        *_written(installation),
    ]

    assert found == [], found


def _breaches(container: Container) -> Iterator[str]:
    config, host = container.described["Config"], container.described["HostConfig"]
    if config["User"].split(":")[0] in ("", "0", "root"):
        yield "runs as root"
    if not host["ReadonlyRootfs"]:
        yield "may write to its root file system"
    if host["CapDrop"] != ["ALL"] or host["CapAdd"]:
        yield f"has capabilities: all but {host['CapDrop']}, with {host['CapAdd']}"
    if "no-new-privileges:true" not in host["SecurityOpt"]:
        yield "may gain privileges"
    for bindings in host["PortBindings"].values():
        if any(one["HostIp"] != "127.0.0.1" for one in bindings):
            yield f"is published beyond loopback: {bindings}"


def _told(installation: Installation, containers: list[Container]) -> Iterator[str]:
    """Secrets in arguments, which everybody on the machine can read."""
    for container in containers:
        if container.main_pid:
            arguments = container.arguments()
            yield from (
                f"{container.service} shows {name}"
                for name, secret in installation.secrets.items()
                if secret in arguments
            )


def _reached(installation: Installation) -> Iterator[str]:
    """Connections that should be possible and are not, or the other way round."""
    for service, host, port, is_wanted in (
        ("worker", "postgres", 5432, True),
        ("worker", "redis", 6379, True),
        ("flower", "redis", 6379, True),
        ("flower", "postgres", 5432, False),
    ):
        container = installation.compose.containers(service)[0].container_id
        attempt = ("exec", container, "python", "-c", _REACHES, host, str(port))
        if _works(attempt) is not is_wanted:
            yield f"{service} {'does not reach' if is_wanted else 'reaches'} {host}"


def _written(installation: Installation) -> Iterator[str]:
    """Places that workers can write to and should not, or the other way round."""
    worker = installation.compose.containers("worker")[0].container_id
    for place, is_wanted in (
        (installation.data_dir, True),
        (installation.legacy_dir, False),
        ("/opt/migrator", False),
    ):
        if (
            _works(("exec", worker, "sh", "-c", f"touch {place}/written && rm {place}/written"))
            is not is_wanted
        ):
            yield f"a worker {'cannot' if is_wanted else 'can'} write to {place}"


def _works(words: tuple[str, ...]) -> bool:
    try:
        docker(*words)
    except EngineError:
        return False
    return True
