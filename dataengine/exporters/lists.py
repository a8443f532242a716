"""`dataset.jsonl` and `items.json`, written row by row and seen only whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from dataengine.errors import output_error
from dataengine.exporters.state import replace_if_other
from dataengine.records import EvalItem, EvalItems, ExportMode, TrainRow

TRAIN_FILE = "dataset.jsonl"
EVAL_FILE = "items.json"
_WHOLE = f"{EVAL_FILE}.whole"


class Lists:
    """The lists of an export that is under way. Use as a context; where that ends before `finish`, nothing is left.

    Args:
        out: the export's folder, which must be there.
        mode: which lists to write.

    Attributes:
        names: the files that `finish` writes.
        count: rows so far.

    Raises:
        OutputError: a list cannot be written.
    """

    def __init__(self, out: Path, mode: ExportMode) -> None:
        self._out = out
        self.names = [
            *([TRAIN_FILE] if mode in ("train", "both") else []),
            *([EVAL_FILE] if mode in ("eval", "both") else []),
        ]
        self.count = 0
        self._files: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Lists:
        with contextlib.suppress(OSError):
            self._remove_temporaries()  # of a process that was killed
        for name in self.names:
            with _told_of(self._out / name):
                self._files[name] = self._stack.enter_context(self._temporary(name).open("w+b"))
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk was told of already
            self._stack.close()
        with contextlib.suppress(OSError):
            self._remove_temporaries()

    def add(self, item: EvalItem) -> None:
        """Write the next row of each list."""
        for name, file in self._files.items():
            with _told_of(self._out / name):
                file.write(_train_line(item) if name == TRAIN_FILE else _eval_entry(item, first=self.count == 0))
        self.count += 1

    def finish(self) -> None:
        """The lists take their names; a list that would be the same again is left as it is."""
        for name, file in self._files.items():
            with _told_of(self._out / name):
                if name == EVAL_FILE:
                    self._close_items(file)
                file.close()
                replace_if_other(self._temporary(name), self._out / name)

    def _close_items(self, file: IO[bytes]) -> None:
        """Put what comes before and after the entries around them: their count stands before them."""
        frame = EvalItems(dataset=self._out.name, count=self.count, items=[]).model_dump_json(indent=2).encode()
        if not self.count:
            file.write(frame + b"\n")
            return
        before, after = frame.rsplit(b"]", 1)
        file.seek(0)
        whole = self._temporary(_WHOLE)
        with whole.open("wb") as to:
            to.write(before)
            shutil.copyfileobj(file, to)
            to.write(b"\n  ]" + after + b"\n")
        whole.replace(self._temporary(EVAL_FILE))

    def _remove_temporaries(self) -> None:
        for name in (TRAIN_FILE, EVAL_FILE, _WHOLE):
            self._temporary(name).unlink(missing_ok=True)

    def _temporary(self, name: str) -> Path:
        return self._out / f".{name}.tmp"


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(error, path) from error


def _train_line(item: EvalItem) -> bytes:
    row = TrainRow(image=item.image, mask_merged=item.mask, prompt=item.prompt)
    return row.model_dump_json().encode() + b"\n"


def _eval_entry(item: EvalItem, *, first: bool) -> bytes:
    text = item.model_dump_json(indent=2, exclude_none=True).replace("\n", "\n    ")  # no string holds a line break
    return f"{'' if first else ','}\n    {text}".encode()
