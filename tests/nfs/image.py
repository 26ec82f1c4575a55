"""The machine's kernel and root file system, made of Debian's packages once and kept in the user's cache.

The kernel is Linux as a program (user-mode Linux): it needs no acceleration and emulates no processor. Knows
no NFS beyond the packages' names.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]

_PACKAGES = (
    *("user-mode-linux", "kmod", "nfs-kernel-server", "nfs-common", "rpcbind", "iptables", "iproute2"),
    "python3",
)
_START = """\
#!/bin/sh
# The machine's first process: what it is to do stands in a folder of the host.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/shm /run/start
mount -t tmpfs tmpfs /dev/shm
mount -t hostfs -o "$start" none /run/start
exec /bin/sh /run/start/start.sh
"""
_PROGRAMS = ("mmdebstrap", "mke2fs")
_ROOT_BYTES = 4 << 30
"""Room for the servers of a run; what is not written takes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a machine starts from. `root` is never written to."""

    kernel: Path
    root: Path


def why_not() -> str | None:
    """Why no machine can be run here, in one sentence; None if it can."""
    if os.geteuid() != 0:
        return "this test makes a root file system, and only root can"
    if platform.machine() != "x86_64":
        return f"Debian has user-mode Linux for x86_64, and this machine is {platform.machine()}"
    if _suite() is None:
        return "this test makes a root file system of Debian's packages, and this machine is none of Debian's"
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"{' and '.join(missing)} must be installed: apt-get install mmdebstrap e2fsprogs"
    return None


def image(say: Say) -> Image:
    """The image from the cache, or a new one in it. Takes minutes then, and this machine's apt."""
    folder = _cache() / f"nfs-{_key()}"
    if not folder.exists():
        say(f"the root file system is being made in {folder}, once, of packages that apt gets")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as unfinished:
            made = Path(unfinished) / "image"
            made.mkdir()
            _make(Path(unfinished) / "root", made)
            made.rename(folder)
    return Image(kernel=folder / "linux", root=folder / "root.ext4")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "label-migrator"


def _key() -> str:
    """Of all that makes the image but the packages' versions: to renew those, remove the folder."""
    parts = (_suite(), *_PACKAGES, _START, str(_ROOT_BYTES))
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


def _suite() -> str | None:
    """The name of this Debian's release: then Python is the same inside, and so are the libraries."""
    described = platform.freedesktop_os_release()
    return described.get("VERSION_CODENAME") if described.get("ID") == "debian" else None


def _make(root: Path, made: Path) -> None:
    options = ("--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(_PACKAGES)}")
    _run("mmdebstrap", *options, str(_suite()), str(root))
    (version,) = (root / "usr/lib/uml/modules").iterdir()
    (root / "usr/lib/modules").mkdir(exist_ok=True)
    version.rename(root / "usr/lib/modules" / version.name)
    _run("chroot", str(root), "depmod", version.name)
    start = root / "sbin" / "label-start"
    start.write_text(_START)
    start.chmod(0o755)
    shutil.copy(root / "usr/bin/linux.uml", made / "linux")
    with (made / "root.ext4").open("xb") as disk:
        disk.truncate(_ROOT_BYTES)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(made / "root.ext4"))


def _run(*words: str) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}; what it said stands above")
