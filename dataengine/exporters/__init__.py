"""Export formats by name, imported when used and not before; another format is one file and one line here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from dataengine.errors import UsageError
from dataengine.records import ExportManifest, ExportMode, PathMode, ReviewMode

FORMATS = {
    "convseg": "dataengine.exporters.convseg:export",
}


class Exporter(Protocol):
    """Writes the accepted samples of finished run folders as one data set."""

    def __call__(
        self,
        runs_root: Path,
        out_dir: Path,
        *,
        mode: ExportMode = "both",
        path_mode: PathMode = "relative",
        include_negatives: bool = False,
        reviews: ReviewMode = "apply",
        workers: int | None = None,
    ) -> ExportManifest:
        """Export the runs of `runs_root` into `out_dir`; returns the manifest that was written.

        People's decisions on prompts are applied, ignored, or needed for each. `workers` processes share the run
        folders; None: as many as are worth it.
        """
        ...


def exporter(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        UsageError: there is no such format.
    """
    if name not in FORMATS:
        raise UsageError(f"no export format {name!r}", hint=f"There are: {', '.join(FORMATS)}")
    module, _, function = FORMATS[name].partition(":")
    return cast(Exporter, getattr(importlib.import_module(module), function))
