"""Photos: finding them, reading them upright as RGB, and the reduced view a model sees."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from dataengine.errors import ImageError, UsageError
from dataengine.records import VIEW_SIDE

RgbArray = npt.NDArray[np.uint8]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
RUN_FOLDER_PREFIX = "out_region_refine_"
EXPORT_MANIFEST = "export_manifest.json"
MAX_PIXELS = 178_956_970  # where Pillow calls a file a decompression bomb
MIN_SIDE = 16
MAX_ASPECT = 48  # a longer strip is under 16 px wide in a 768 px view


@dataclass(frozen=True, eq=False)
class Photo:
    """One image, upright.

    Attributes:
        path: the file it was read from.
        rgb: (H, W, 3) uint8.
        sha256: of the file's bytes.
        view_side: long side in pixels of what a model sees.
    """

    path: Path
    rgb: RgbArray
    sha256: str
    view_side: int = VIEW_SIDE

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @cached_property
    def view(self) -> RgbArray:
        """(h, w, 3) uint8 with a long side of at most `view_side`: what a model sees."""
        return shrunk(self.rgb, self.view_side)

    @cached_property
    def digest(self) -> str:
        """What identifies the pixels, for the keys of durable steps: the file's content and the size used."""
        return hashlib.sha256(f"{self.sha256}:{self.width}x{self.height}".encode()).hexdigest()[:16]

    @cached_property
    def view_digest(self) -> str:
        """What identifies the view's pixels, for the keys of steps that look at it."""
        return f"{self.digest}@{min(self.view_side, max(self.rgb.shape[:2]))}"


def shrunk(rgb: RgbArray, side: int) -> RgbArray:
    """The picture with a long side of at most `side` pixels; the same array where it is small enough."""
    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return rgb
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def read_photo(path: Path, max_side: int | None = None, view_side: int = VIEW_SIDE) -> Photo:
    """Read an image file: first frame, EXIF-upright, 8-bit RGB; transparency on white; 16 bits scaled to 8.

    Raises:
        ImageError: with reason missing, unreadable, empty_file, not_an_image, truncated, too_many_pixels,
            too_small or too_thin.
    """
    data = _file_bytes(path)
    # Pillow warns of odd metadata; what cannot be decoded raises. Not catch_warnings: photos are read in threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.size, path)
            rgb = _upright_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: over {MAX_PIXELS:,} pixels", hint="Shrink it", reason="too_many_pixels") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image", hint="Remove or replace it", reason="not_an_image") from None
    except Exception as error:  # Pillow's decoders raise many types on broken bytes
        raise ImageError(
            f"{path}: cannot be decoded ({error})",
            hint="The file is damaged or cut off; replace it",
            reason="truncated",
        ) from None
    if max_side is not None:
        rgb = shrunk(rgb, max_side)
    photo = Photo(path, rgb, hashlib.sha256(data).hexdigest(), view_side)
    _ = photo.view  # made by who reads the photo, in a thread: the event loop may be the first to ask for it
    return photo


def _file_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file", hint="Check the path", reason="missing") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(f"{path}: cannot be read ({reason})", hint="Check its permissions") from None
    if not data:
        raise ImageError(f"{path}: empty file", hint="Remove or replace it", reason="empty_file")
    return data


def _check_size(size: tuple[int, int], path: Path) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{path}: {width}x{height} px is over {MAX_PIXELS:,} pixels",
            hint="Shrink it",
            reason="too_many_pixels",
        )
    if min(size) < MIN_SIDE:
        message = f"{path}: {width}x{height} px is too small, {MIN_SIDE} px a side is the least"
        raise ImageError(message, hint="Remove it", reason="too_small")
    if max(size) > MAX_ASPECT * min(size):
        message = f"{path}: {width}x{height} px is too thin a strip, {MAX_ASPECT}:1 is the most"
        raise ImageError(message, hint="Cut it into pieces", reason="too_thin")


def _upright_rgb(image: Image.Image) -> RgbArray:
    image.load()
    with contextlib.suppress(Exception):  # broken EXIF is no reason to refuse good pixels
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return np.repeat(_to_8_bits(np.asarray(image))[:, :, None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_8_bits(values: npt.NDArray[np.generic]) -> RgbArray:
    """Grey values scaled to 8 bits: those up to 16 bits by the depth that holds them (cameras write 10, 12 and 14 bits
    in files of 16), others stretched from their least to their greatest."""
    wide = np.nan_to_num(values.astype(np.float64))
    if values.dtype.itemsize == 2 or (wide.min() >= 0 and 255 < wide.max() <= 65535):
        depth = next(bits for bits in (8, 10, 12, 14, 16) if wide.max() < 2**bits)
        return np.asarray(wide * 255 // (2**depth - 1), dtype=np.uint8)
    span = max(float(wide.max() - wide.min()), 1e-9)
    return np.asarray((wide - wide.min()) / span * 255, dtype=np.uint8)


def list_images(source: str, *, recursive: bool = False) -> list[Path]:
    """The images that `--input` names, sorted, each once.

    Args:
        source: an image, a folder, a glob, or a text file with a path a line (relative to the working directory,
            else to the list's own folder).
        recursive: look into a folder's sub-folders too. Run folders and exports are passed over, by globs as well;
            a sub-folder that cannot be read is listed itself, so that it fails as an image does.

    Raises:
        UsageError: nothing is there, it cannot be read, or it holds no image.
    """
    root = Path(source)
    if _is_dir(root):
        found = sorted(_walk(root, recursive))
        if not found:
            deeper = "" if recursive else " (sub-folders are read with --recursive)"
            known = " ".join(sorted(s[1:] for s in SUFFIXES))
            raise UsageError(f"--input {root}: no image in this folder{deeper}", hint=f"Looked for {known}")
    elif root.is_file():
        found = [root] if root.suffix.lower() in SUFFIXES else _read_list(root) or [root]
    else:
        matches = (Path(match) for match in glob.glob(source, recursive=True))  # noqa: PTH207 - also absolute patterns
        images = (p for p in matches if p.suffix.lower() in SUFFIXES and p.is_file())
        found = sorted(p for p in images if not any(map(_is_ours, (p.parent, *p.parent.parents))))
        if not found:
            raise UsageError(f"--input {source}: no such file or folder", hint="Check the path")
    return list(dict.fromkeys(Path(os.path.abspath(p)) for p in found))  # noqa: PTH100 - keeps symbolic links


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a run folder or an export."""
    return folder.name.startswith(RUN_FOLDER_PREFIX) or (folder / EXPORT_MANIFEST).is_file()


def _is_dir(root: Path) -> bool:
    try:
        return root.is_dir()
    except OSError as error:
        raise UsageError(f"--input {root}: {error.strerror}", hint="Check the path") from None


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UsageError(f"--input {folder}: cannot be read ({error.strerror})", hint="Check permissions") from None
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):  # hidden files; macOS leaves ._photo.jpg beside photo.jpg
            continue
        if entry.is_dir(follow_symlinks=False):
            if recursive and not _is_ours(path):
                try:
                    yield from _walk(path, recursive)
                except UsageError:
                    yield path
        elif path.suffix.lower() in SUFFIXES:
            yield path


def _read_list(listing: Path) -> list[Path]:
    """The paths a text file names; none where it is no text."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return []
    except OSError as error:
        raise UsageError(f"--input {listing}: cannot be read ({error.strerror})", hint="Check permissions") from None
    named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not named:
        raise UsageError(f"--input {listing}: no path in this list", hint="Write one path a line")
    return [Path(name) if os.path.exists(name) else listing.parent / name for name in named]  # noqa: PTH110 - never raises
