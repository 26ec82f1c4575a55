"""The file server: a disk with ext4 behind the kernel's NFS server; it can be restarted, frozen and filled.
Knows no client and no Label.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXPORT = Path("/srv/export")
DATA, LEGACY = EXPORT / "data", EXPORT / "legacy"
USER_ID = 1000
"""An ordinary user's, who is the same on the server and on every client."""

_DISK = "/dev/ubdb"
_NETWORK = "10.99.0.0/16"
_THREADS = "8"
_GRACE_S, _LEASE_S = 12, 30
_FILLER = EXPORT / "filler"


def run(*words: str) -> str:
    """What a command prints; `CalledProcessError` if it fails, after what it said."""
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def start() -> None:
    """Start all of it but the export itself, once."""
    run("modprobe", "-a", "nfsd", "nfs", "nfsv3", "nfsv4", "veth", "iptable_filter")
    for path, kind in (("/run/rpc_pipefs", "rpc_pipefs"), ("/proc/fs/nfsd", "nfsd")):
        os.makedirs(path, exist_ok=True)
        if not os.path.ismount(path):
            run("mount", "-t", kind, kind, path)
    run("ip", "link", "set", "lo", "up")
    run("rpcbind", "-w")
    # Without it no client gets its files back after a restart.
    run("nfsdcld")
    run("rpc.mountd")
    _serve()


@contextmanager
def exported() -> Iterator[None]:
    """A new and empty file system is exported while the block runs."""
    run("mkfs.ext4", "-q", "-F", "-m", "0", _DISK)
    EXPORT.mkdir(exist_ok=True)
    run("mount", _DISK, str(EXPORT))
    for folder in (DATA, LEGACY):
        folder.mkdir()
        os.chown(folder, USER_ID, USER_ID)
    run("exportfs", "-o", "rw,sync,root_squash,no_subtree_check,fsid=1", f"{_NETWORK}:{EXPORT}")
    try:
        yield
    finally:
        run("exportfs", "-u", f"{_NETWORK}:{EXPORT}")
        run("exportfs", "-f")
        # It holds the files of clients that have gone for as long as their leases.
        run("rpc.nfsd", "0")
        run("umount", str(EXPORT))
        _serve()


def restart() -> None:
    """As after a reboot: it has forgotten who had what open, and clients tell it again."""
    run("rpc.nfsd", "0")
    _serve()


@contextmanager
def frozen(seconds: float) -> Iterator[None]:
    """Let the block run while the server answers nothing, for at least so long."""
    begin = time.monotonic()
    requests = ("INPUT", "--protocol", "tcp", "--dport", "2049", "--jump", "DROP")
    run("iptables-legacy", "--insert", *requests)
    try:
        yield
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
    finally:
        run("iptables-legacy", "--delete", *requests)


@contextmanager
def full(*, but_for_bytes: int) -> Iterator[None]:
    """Let the block run while the file system has no more room than this."""
    room = os.statvfs(EXPORT)
    with _FILLER.open("xb") as filler:
        os.posix_fallocate(filler.fileno(), 0, room.f_bavail * room.f_frsize - but_for_bytes)
    try:
        yield
    finally:
        _FILLER.unlink()


def _serve() -> None:
    for name, seconds in (("nfsv4gracetime", _GRACE_S), ("nfsv4leasetime", _LEASE_S)):
        Path("/proc/fs/nfsd", name).write_text(f"{seconds}\n")
    run("rpc.nfsd", _THREADS)
