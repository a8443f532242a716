"""Processes that share an output folder: an image is one's at a time, and a dead one's images are taken over.

In `<output_dir>/.dataengine/`, `owners/<id>` is a file that its process keeps locked, and touches every few seconds,
while it lives; `leases/<run folder's name>` says whose an image is. Of a process on this machine the lock tells at once
whether it lives; of one on another machine, which may not see the lock, the time it last touched its file. Leases are
read and written under one lock, `claims`, so that no two processes take the same image.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from dataengine.errors import OutputError, UsageError, output_error

try:
    import fcntl
except ImportError:  # Windows has none: there the touched file alone tells who lives
    fcntl = None  # type: ignore[assignment]

STATE = ".dataengine"  # what runs keep in an output folder
BEAT = 5.0  # seconds between two touches
DEAD = 60.0  # seconds without a touch after which a process on another machine counts as dead


Claim = Literal["ours", "theirs", "taken"]


class Owner:
    """This process, as one of those that work in an output folder. Enter it (`with`) before claiming.

    Args:
        alone: no other process may work there at the same time, as one that keeps a budget must know of all calls.
    """

    def __init__(self, output_dir: Path, *, alone: bool = False) -> None:
        self._state, self._alone = output_dir / STATE, alone
        self.id = f"{_machine()}_{os.getpid()}_{secrets.token_hex(4)}"
        self._file: IO[str] | None = None
        self._locks = False  # whether this file system has locks
        self._lost = False
        self._ended = threading.Event()

    def __enter__(self) -> Owner:
        """Register.

        Raises:
            UsageError: another process works there, and one of the two must be alone.
            OutputError: the folder cannot be written.
        """
        try:
            for folder in ("owners", "leases"):
                (self._state / folder).mkdir(parents=True, exist_ok=True)
            with self.locked():
                self._register()
                self._forget_the_dead()
        except OSError as error:
            self.__exit__()
            raise output_error(error, self._state) from error
        except UsageError:
            self.__exit__()
            raise
        threading.Thread(target=self._beat, name="dataengine heartbeat", daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._path(self.id).unlink(missing_ok=True)
        if self._file:
            self._file.close()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While inside, no other process reads or writes what they share.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            file = (self._state / "claims").open("w")
        except OSError as error:
            raise output_error(error, self._state) from error
        with file:
            _lock(file, wait=True)
            yield

    def claim(self, name: str, image: str) -> Claim:
        """Take the run folder of that name for an image.

        Returns:
            "ours"; "theirs" where another living process does the image; "taken" where one has the name for another.

        Raises:
            OutputError: it cannot be written, or this process was taken for dead and its images are others'.
        """
        if self._lost:
            raise OutputError(
                f"{self._path(self.id)} is gone: another process took this one for dead",
                hint="Run the same command again to go on",
            )
        lease = self._state / "leases" / name
        try:
            with self.locked():
                found = _read(lease)
                if found and found["owner"] != self.id:
                    if self._lives(found["owner"]):
                        return "theirs" if found["image"] == image else "taken"
                    self._path(found["owner"]).unlink(missing_ok=True)  # which tells it so, if it was only away
                lease.write_text(json.dumps({"owner": self.id, "image": image}), encoding="utf-8")
                return "ours"
        except OSError as error:
            raise output_error(error, lease) from error

    def release(self, name: str) -> None:
        """Give a run folder back."""
        lease = self._state / "leases" / name
        with (
            contextlib.suppress(OSError, OutputError),
            self.locked(),
        ):  # of a process that has ended it is free all the same
            if (_read(lease) or {}).get("owner") == self.id:
                lease.unlink(missing_ok=True)

    def _path(self, owner: str) -> Path:
        return self._state / "owners" / owner

    def _register(self) -> None:
        self._file = self._path(self.id).open("w", encoding="utf-8")
        self._file.write(json.dumps({"alone": self._alone}))
        self._file.flush()
        self._locks = _lock(self._file, wait=False)

    def _forget_the_dead(self) -> None:
        """Remove what processes that have ended left; see that none is alive beside one that must be alone."""
        for other in [path for path in (self._state / "owners").iterdir() if path.name != self.id]:
            if not self._lives(other.name):
                other.unlink(missing_ok=True)
            elif self._alone or (_read(other) or {}).get("alone"):
                where = f"--output_dir {self._state.parent}"
                message = f"{where}: another run is writing there, and a budget is kept by one alone"
                raise UsageError(message, hint="Wait for it to end, or name another folder")
        for lease in (self._state / "leases").iterdir():
            found = _read(lease)
            if found is None or not self._lives(found["owner"]):
                lease.unlink(missing_ok=True)

    def _lives(self, owner: str) -> bool:
        path = self._path(owner)
        try:
            if self._locks and owner.split("_")[0] == self.id.split("_")[0]:
                with path.open("r+") as file:
                    return not _lock(file, wait=False)
            beaten = path.stat().st_mtime
        except FileNotFoundError:
            return False
        os.utime(self._path(self.id))  # so that both times are by the clock of the machine that holds the files
        return self._path(self.id).stat().st_mtime - beaten < DEAD

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                os.utime(self._path(self.id))
            except FileNotFoundError:
                self._lost = not self._ended.is_set()
                return
            except OSError:  # a network's folder that is away for a moment
                continue


def _machine() -> str:
    """What tells machines apart; those of one kernel, as containers are, see each other's locks."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node().replace("_", "-") or "unknown"


def _lock(file: IO[str], *, wait: bool) -> bool:
    """Lock an open file until it is closed; False where another has it, or the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """A small JSON file; None where there is none, or one that a killed process left half written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(found, dict) and ({"owner", "image"} <= found.keys() or "alone" in found)
    return found if known else None
