"""The demo's five photos, from scikit-image's own data."""

from __future__ import annotations

import io
from pathlib import Path

import skimage.data
from PIL import Image

from dataengine.run_folder import write_whole


def write_photos(folder: Path) -> list[Path]:
    """Write astronaut, cat, coffee, motorcycle and rocket as PNG files; those already there are kept."""
    photos = {
        "astronaut": skimage.data.astronaut,
        "cat": skimage.data.cat,
        "coffee": skimage.data.coffee,
        "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
        "rocket": skimage.data.rocket,
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
