"""The files of a run folder, as results are read from them: noted with their digests, and kept within a folder if told.

What was noted tells later, without knowing why a file was looked at, whether anything would come out otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

ABSENT = ""  # in place of a digest: no such file
_INSIDE, _TYPED = "run:", "path:"


def inside(name: str) -> str:
    """The place of a file named relative to the run folder."""
    return f"{_INSIDE}{name}"


def typed(path: str) -> str:
    """The place of a file named by an absolute path, or by one relative to the working directory."""
    return f"{_TYPED}{path}"


class Sources:
    """Reads the files of one run folder.

    Args:
        folder: the run folder.
        within: a folder that nothing is read from outside of, whatever a file names or links to; None: anywhere.

    Attributes:
        digests: SHA-256 of each file that was asked for, by place; `ABSENT` where there is none.
        sure: false once a file could not be read: nobody can tell whether it changes.
    """

    def __init__(self, folder: Path, within: Path | None = None) -> None:
        self.folder = folder
        self.within = within
        self.digests: dict[str, str] = {}
        self.sure = True

    def path(self, place: str) -> Path:
        """Where a place is."""
        name = place.removeprefix(_INSIDE)
        return self.folder / name if name != place else Path(place.removeprefix(_TYPED))

    def has(self, place: str) -> bool:
        """Whether there is such a file, and it may be read."""
        path = self.path(place)
        return is_file(path) and (self.within is None or is_within(path, self.within))

    def read(self, place: str) -> bytes | None:
        """A file's bytes; None where there is no such file. Raises OSError where it cannot be read."""
        if not self.has(place):
            self.digests[place] = ABSENT
            return None
        try:
            data = self.path(place).read_bytes()
        except OSError:
            self.sure = False
            raise
        self.digests[place] = digest(data)
        return data


def unchanged(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether every place still holds what was noted."""
    now = Sources(folder)
    try:
        for place, before in digests.items():
            now.read(place)
            if now.digests[place] != before:
                return False
    except OSError:
        return False
    return True


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def is_file(path: Path) -> bool:
    """Whether there is a file; false where the path is none that can be looked at."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, no permission, a NUL in the path
        return False


def is_within(path: Path, root: Path) -> bool:
    """Whether a path, with every link followed, is in a folder or is that folder."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError):
        return False
