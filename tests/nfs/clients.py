"""A machine that mounts the file server: in a network and a mount namespace of its own it is one to the
server. What runs there sees its mounts, and the machine's network. Knows no project.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.nfs.file_server import DATA, LEGACY, USER_ID, run
from tests.support.forking import PROGRAMS, Forks, forks

_NAMESPACES = Path("/run/clients")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client. `programs` runs what it is told as an ordinary user who sees the client's mounts."""

    name: str
    programs: Forks


@contextmanager
def clients(
    names: Sequence[str], version: str, *, data_dir: Path, legacy_root: Path, folder: Path
) -> Iterator[list[Client]]:
    """Clients that have mounted the server's two directories at these places with this version of NFS."""
    if not _NAMESPACES.exists():
        _NAMESPACES.mkdir()
        # A mount that others would see as well cannot keep a mount namespace.
        run("mount", "--bind", str(_NAMESPACES), str(_NAMESPACES))
        run("mount", "--make-private", str(_NAMESPACES))
    with ExitStack() as parts:
        made: list[Client] = []
        for number, name in enumerate(names, 1):
            parts.callback(_disconnect, name)
            server = _connect(name, number)
            parts.callback(_unmount, name, data_dir, legacy_root)
            _mount(name, version, f"{server}:{DATA}", data_dir, "lookupcache=positive")
            _mount(name, version, f"{server}:{LEGACY}", legacy_root, "actimeo=0")
            own = folder / name
            own.mkdir()
            os.chown(own, USER_ID, USER_ID)
            programs = parts.enter_context(forks(own, PROGRAMS, within=_as_user(name)))
            made.append(Client(name=name, programs=programs))
        yield made


def _connect(name: str, number: int) -> str:
    """Make the namespaces and a network of two; the server's address in it."""
    server, own = f"10.99.{number}.1", f"10.99.{number}.2"
    run("ip", "netns", "add", name)
    run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
    run("ip", "address", "add", f"{server}/24", "dev", f"to-{name}")
    run("ip", "link", "set", f"to-{name}", "up")
    for words in (("address", "add", f"{own}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
        run("ip", "-n", name, *words)
    # Both have the machine's host name, by which the server would take them for one.
    identifier = "/sys/fs/nfs/net/nfs_client/identifier"
    run("ip", "netns", "exec", name, "sh", "-c", f"echo {name} > {identifier}")
    (_NAMESPACES / name).touch()
    run("unshare", f"--mount={_NAMESPACES / name}", "--propagation=private", "true")
    return server


def _mount(name: str, version: str, there: str, here: Path, options: str) -> None:
    # The program takes no lock on files; for version 3 that would need daemons on each client.
    locks = ",nolock" if version == "3" else ""
    every = f"vers={version},hard,noatime,{options}{locks}"
    run(*_within(name), f"--net=/run/netns/{name}", "mount", "-t", "nfs", "-o", every, there, str(here))


def _unmount(name: str, *places: Path) -> None:
    for place in places:
        run(*_within(name), "umount", "--lazy", str(place))


def _within(name: str) -> list[str]:
    return ["nsenter", f"--mount={_NAMESPACES / name}"]


def _as_user(name: str) -> list[str]:
    user = str(USER_ID)
    return [*_within(name), "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def _disconnect(name: str) -> None:
    run("umount", str(_NAMESPACES / name))
    os.unlink(_NAMESPACES / name)
    run("ip", "netns", "delete", name)
