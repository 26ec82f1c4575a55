"""What file servers, version control and desktops leave in directories, by name. Reads nothing."""

from dataclasses import dataclass

_NAMES = frozenset(
    {
        "$RECYCLE.BIN",
        "#recycle",
        "#snapshot",
        "@eaDir",
        "@Recycle",
        "@tmp",
        "__MACOSX",
        ".AppleDouble",
        ".bzr",
        ".DS_Store",
        ".fseventsd",
        ".git",
        ".hg",
        ".snapshot",
        ".snapshots",
        ".Spotlight-V100",
        ".stfolder",
        ".stversions",
        ".svn",
        ".TemporaryItems",
        ".zfs",
        "desktop.ini",
        "lost+found",
        "System Volume Information",
        "Thumbs.db",
    }
)
"""What file servers, version control and desktops leave in directories; no watch recorded it."""

_BEGINNINGS = ("._", ".nfs0", ".Trash", ".smbdelete", ".fuse_hidden")

_MOST_NAMED = 10
"""So many of them are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Entries that other programs left: how many, and the paths of the first.

    What lies in such a directory is not counted by itself.
    """

    count: int = 0
    first: tuple[str, ...] = ()

    def and_one_at(self, path: str) -> "Noise":
        """One entry more."""
        named = (*self.first, path) if len(self.first) < _MOST_NAMED else self.first
        return Noise(count=self.count + 1, first=named)


def is_noise(name: str) -> bool:
    """Is this the name of something that another program left?"""
    return name in _NAMES or name.startswith(_BEGINNINGS)
