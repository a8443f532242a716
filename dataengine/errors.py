"""Everything that can go wrong, as one tree.

DataEngineError            a message a user can act on: what, where, and what to do next
├── UsageError             a flag, a settings file or a path is wrong; nothing was started (exit code 2)
│   └── MissingPartError   a part cannot be built on this machine
├── ImageError             one image cannot be used; the others go on (exit code 1)
├── OutputError            results cannot be written; on a full disk the run stops (exit code 1)
├── KeyRefusedError        a service refuses the key; the run stops (exit code 1)
├── StoppedError           the run begins nothing more: its budget is used up, or it was interrupted
├── TrainingError          training or evaluation cannot go on (exit code 1)
└── StageError             one stage of one image failed; the others go on (exit code 1)
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataengine.records import Usage


class DataEngineError(Exception):
    """A failure with one clear line.

    Args:
        message: what is wrong, and where.
        hint: what to do next; may be empty.
        reason: a short stable name to count by, such as `truncated`.
        retryable: the same call may succeed a little later.
        retry_after: seconds after which the service wants to be asked again, where it says so.

    Attributes:
        stage: the stage of an image in which it was met; empty where there is none.
        usage: what the failed call cost all the same; None where it cost nothing.
    """

    reason = "error"
    stage = ""
    exit_code = 1
    usage: Usage | None = None

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        reason: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retryable = retryable
        self.retry_after = retry_after
        if reason is not None:
            self.reason = reason

    def __str__(self) -> str:
        return one_line(f"{self.message}. {self.hint}" if self.hint else self.message)


class UsageError(DataEngineError):
    """The command, its settings or its paths are wrong; nothing was started."""

    reason = "usage"
    exit_code = 2


class MissingPartError(UsageError):
    """An annotator, grounder or segmenter cannot be built on this machine."""

    reason = "missing_part"


class ImageError(DataEngineError):
    """One image cannot be read or is of no use."""

    reason = "unreadable"


class OutputError(DataEngineError):
    """Results cannot be written: the disk is full, or the folder is read-only."""

    reason = "output"


class KeyRefusedError(DataEngineError):
    """A service refuses the key: no call with it can succeed, so the run stops."""

    reason = "key_refused"


STOPPING = (OutputError, KeyRefusedError)  # what the next image would meet as well


class StoppedError(DataEngineError):
    """The run begins nothing more: its budget is used up, or somebody interrupts it. What is under way may end."""

    reason = "stopped"

    def __init__(self, message: str, *, hint: str = "", reason: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message, hint=hint, reason=reason)
        self.exit_code = exit_code


class StageError(DataEngineError):
    """One stage of one image failed, for a cause that is not the image file."""

    reason = "stage_failed"


class TrainingError(DataEngineError):
    """Training or evaluation cannot go on: memory is full, or the loss is no number."""

    reason = "training"


def one_line(text: str) -> str:
    """The text with control characters (a newline in a file name) made visible, so that it stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def output_error(error: OSError, where: object) -> OutputError:
    """The user's view of an OSError met while writing to `where`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"disk full while writing {where}",
            hint="Free some space and run the same command again; finished steps are kept",
            reason="disk_full",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"cannot write {where}: {error.strerror}", hint="Choose another output folder")
    return OutputError(f"cannot write {where}: {error.strerror or error}")
