"""The demo's five photos, from scikit-image's own data."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

from dataengine.run_folder import write_whole


def write_photos(folder: Path) -> list[Path]:
    """Write astronaut, cat, coffee, motorcycle and rocket as PNG files; those already there are kept."""
    photos: dict[str, Callable[[], Any]] = {
        "astronaut": data.astronaut,
        "cat": data.cat,
        "coffee": data.coffee,
        "motorcycle": _left_eye,
        "rocket": data.rocket,
    }
    paths = []
    for name, load in photos.items():
        path = folder / f"{name}.png"
        if not path.exists():
            buffer = io.BytesIO()
            Image.fromarray(load()).save(buffer, "PNG")
            write_whole(path, buffer.getvalue())
        paths.append(path)
    return paths


def _left_eye() -> Any:
    load: Callable[[], Any] = data.stereo_motorcycle
    return load()[0]
