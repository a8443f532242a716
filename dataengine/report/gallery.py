"""One run folder for the report's gallery: a small picture, outlines over it, prompts and verdicts. Runs in workers."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel

from dataengine.errors import ImageError
from dataengine.figures import ImageSeen, seen
from dataengine.finished import Entry, Finished, SkipError, read_finished
from dataengine.images import read_photo, shrunk
from dataengine.jpeg import jpeg
from dataengine.outlines import path, shrunk_mask, widest
from dataengine.run_folder import ORIGINAL, path_text, slug, write_whole
from dataengine.sources import Sources, is_file, is_within

SIDE = 480  # pixels of the long side of a picture
QUALITY = 80  # of its JPEG


class GalleryRegion(BaseModel):
    """An accepted region: its label, its outline in the picture, and where its number stands."""

    index: int
    label: str
    path: str
    at: tuple[int, int]


class GalleryPrompt(BaseModel):
    """A prompt with the engine's verdict and people's words on it."""

    concept: str
    family: str
    negative: bool
    accepted: bool
    text: str
    reason: str
    satisfying: list[int]
    people: list[str]


class GalleryImage(BaseModel):
    """An image of the gallery.

    Attributes:
        name: of the photo.
        run: name of the run folder.
        picture: a data URL, or a file's name; empty where there is no picture.
        width, height: of the picture, in pixels.
        refused: label and reason of each region that was not accepted.
        seen: for the figures.
    """

    name: str
    run: str
    picture: str
    width: int
    height: int
    regions: list[GalleryRegion]
    refused: list[tuple[str, str]]
    prompts: list[GalleryPrompt]
    seen: ImageSeen


def look(folder: Path, pictures: Path | None) -> str:
    """A run folder as a `GalleryImage` in JSON.

    Args:
        pictures: a folder for its picture; None to have it as a data URL.

    Raises:
        OutputError: the picture cannot be written.
    """
    found = read_finished(Sources(folder, within=folder))
    photo = folder / ORIGINAL
    picture, size = _picture(found, photo, pictures)
    regions = []
    for index in found.masks.indices:
        try:
            mask = _small(found, index, *size)
        except SkipError:  # counted where its prompts are
            continue
        label = found.masks.regions[index].label
        regions.append(GalleryRegion(index=index, label=label, path=path(mask), at=widest(mask)))
    return GalleryImage(
        name=found.photo_name,
        run=path_text(Path(folder.name)),
        picture=picture,
        width=size[0],
        height=size[1],
        regions=regions,
        refused=[(described.label, described.reason) for described in found.described if not described.output],
        prompts=[_prompt(found, entry) for entry in found.entries],
        seen=seen(found),
    ).model_dump_json()


def _small(found: Finished, index: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """A region's mask at the size of the picture; raises SkipError."""
    told = found.masks.told(index)
    small = told.resized(height, width) if told else None
    if small and small.area:
        return small.array().view(np.uint8)
    return shrunk_mask(found.masks.mask(index), height, width)


def _prompt(found: Finished, entry: Entry) -> GalleryPrompt:
    words = found.reviews.words(found.key(entry)) if len(found.reviews) else {}
    said = []
    for name, word in words.items():
        verdict = {"ACCEPT": "accepted", "REJECT": "rejected", None: "changed"}[word.verdict]
        text = f", as “{word.prompt}”" if word.prompt != entry.prompt else ""
        regions = f", regions {word.satisfying}" if set(word.satisfying) != set(entry.satisfying) else ""
        said.append(f"{name}: {verdict}{text}{regions}")
    return GalleryPrompt(
        concept=entry.concept,
        family=entry.family,
        negative=entry.negative,
        accepted=entry.accepted,
        text=entry.prompt,
        reason=entry.reason,
        satisfying=list(entry.satisfying),
        people=said,
    )


def _picture(found: Finished, photo: Path, pictures: Path | None) -> tuple[str, tuple[int, int]]:
    """The picture, and its width and height; where there is no photo, only a size that its masks fit in."""
    if not is_file(photo) or not is_within(photo, found.folder):
        found.skipped["original_image_missing"] += 1
        return "", _size_of_masks(found)
    status = photo.stat()
    name = f"dataengine-{slug(found.folder.name, 80)}-{_digest(found.folder, status.st_size, status.st_mtime_ns)}.jpg"
    if pictures and (size := _size_of(pictures / name)):
        return name, size
    try:
        small = shrunk(read_photo(photo).rgb, SIDE)
    except ImageError:
        found.skipped["original_image_unreadable"] += 1
        return "", _size_of_masks(found)
    data = jpeg(small, QUALITY)
    if pictures:
        write_whole(pictures / name, data, durable=False)
    else:
        name = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return name, (small.shape[1], small.shape[0])


def _digest(folder: Path, *what: int) -> str:
    return hashlib.sha256(repr((path_text(folder), SIDE, QUALITY, *what)).encode()).hexdigest()[:12]


def _size_of(picture: Path) -> tuple[int, int] | None:
    """Width and height of a picture that was made before; None where there is none that can be read."""
    try:
        with Image.open(picture) as image:
            return image.size
    except OSError:
        return None


def _size_of_masks(found: Finished) -> tuple[int, int]:
    height, width = found.masks.size() or (3 * SIDE // 4, SIDE)
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))
