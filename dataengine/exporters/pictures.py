"""The image of an export's samples: the user's own file where it fits, else the one in the run folder."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageStat
from pydantic import BaseModel

from dataengine.finished import SkipError
from dataengine.run_folder import ORIGINAL, RUN
from dataengine.sources import Sources, inside, typed

Size = tuple[int, int]  # height, width

PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr"})  # `convert("RGB")` shows them as the engine saw them
ORIENTATION = 0x0112  # EXIF tag
SHAPE_TOLERANCE = 0.01  # of a mask's side; 1 px is always allowed, for rounding
ALIKE = 4.0  # mean difference in grey levels of two decodings of one picture


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file, whole.

    Attributes:
        data: the file's bytes.
        digest: of these.
        suffix: of its name, lower case, with the dot; never empty.
        rgb: as plain Pillow decodes it, not turned by EXIF.
        plain: whether plain decoding shows what the engine saw: upright, opaque, 8 bits a channel.
    """

    data: bytes
    digest: str
    suffix: str
    rgb: Image.Image
    plain: bool

    @property
    def size(self) -> Size:
        """Height and width as plain Pillow decodes them."""
        return self.rgb.height, self.rgb.width


class _Source(BaseModel):
    sha256: str


class _RunRecord(BaseModel):
    source: _Source


def choose_image(sources: Sources, named: str | None, size: Size | None) -> Picture:
    """The image for masks of one size (None: there are only negatives, and any size will do).

    The user's own file comes first, then `original_image.png`; one of another size but the same shape is the
    last choice, since masks must be scaled to it. Raises SkipError.
    """
    digest = _source_digest(sources)
    own = _own_file(sources, named, digest)
    if own and digest and size in (None, own.size):
        return own
    original = _picture(sources, inside(ORIGINAL))
    if own and original and own.size == original.size and not digest and not _alike(own, original):
        own = None
    exact = [picture for picture in (own, original) if picture and size in (None, picture.size)]
    scaled = [picture for picture in (original, own) if picture and size and _same_shape(size, picture.size)]
    if exact or scaled:
        return (exact or scaled)[0]
    raise SkipError("mask_and_image_differ_in_shape" if own or original else "image_missing")


def _source_digest(sources: Sources) -> str | None:
    """SHA-256 of the file a run was made from; None where unrecorded, empty where the record is damaged."""
    try:
        data = sources.read(inside(RUN))
        return None if data is None else _RunRecord.model_validate_json(data).source.sha256
    except (OSError, ValueError):
        return ""


def _own_file(sources: Sources, named: str | None, digest: str | None) -> Picture | None:
    """The user's file, if it is unchanged and plain decoding shows what the engine saw."""
    if not named:
        return None
    for place in [typed(named)] if Path(named).is_absolute() else [inside(named), typed(named)]:
        picture = _picture(sources, place)
        if picture and picture.plain and digest in (None, picture.digest):
            return picture
    return None


def _picture(sources: Sources, place: str) -> Picture | None:
    """An image file, decoded in full; None where that fails."""
    try:
        data = sources.read(place)
        if data is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large files and odd metadata
            with Image.open(io.BytesIO(data)) as image:
                plain = _is_plain(image)
                suffix = _suffix(sources.path(place), (image.format or "png").lower())
                return Picture(data, sources.digests[place], suffix, image.convert("RGB"), plain)
    except Exception:  # Pillow's decoders raise many types on broken bytes
        return None


def _is_plain(image: Image.Image) -> bool:
    """Must be asked before the image is loaded: loading a TIFF turns it and drops the tag."""
    upright = image.getexif().get(ORIENTATION, 1) == 1
    return upright and image.mode in PLAIN_MODES and "transparency" not in image.info


def _suffix(path: Path, kind: str) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix.isascii() and 1 < len(suffix) <= 16 else f".{kind}"


def _alike(first: Picture, second: Picture) -> bool:
    """Whether two pictures of one size show the same, as two decodings of one file do."""
    return max(ImageStat.Stat(ImageChops.difference(first.rgb, second.rgb)).mean) <= ALIKE


def _same_shape(mask: Size, image: Size) -> bool:
    """Whether a mask of one size is an image of another size scaled, within rounding."""
    (mask_h, mask_w), (image_h, image_w) = mask, image
    off_h = abs(mask_h - image_h * mask_w / image_w)
    off_w = abs(mask_w - image_w * mask_h / image_h)
    return off_h <= max(1, SHAPE_TOLERANCE * mask_h) or off_w <= max(1, SHAPE_TOLERANCE * mask_w)
