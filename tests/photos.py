"""Photos for end-to-end tests, from scikit-image's data, and files that are no photos."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data


def coffee(width: int = 320) -> Image.Image:
    """The cup of coffee, 3:2."""
    return photo("coffee", width)


def photo(name: str, width: int) -> Image.Image:
    """One of scikit-image's photos, at a width."""
    load: Callable[[], np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = getattr(data, name)
    whole = Image.fromarray(load())
    return whole.resize((width, round(whole.height * width / whole.width)))


def opened(path: Path) -> Image.Image:
    """An image file as plain Pillow decodes it, closed again."""
    with Image.open(path) as image:
        image.load()
        return image


def save_rotated(photo: Image.Image, path: Path, orientation: int) -> None:
    """Save a JPEG whose pixels are turned and whose EXIF orientation turns them back."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.transpose(undo[orientation]).save(path, exif=exif, quality=95)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return b"\x89PNG\r\n\x1a\n" + chunks


def write_refused(folder: Path) -> dict[str, str]:
    """Write images that cannot be used: the reason each must be refused for, by file name."""
    whole = folder / "whole.jpg"
    coffee(200).save(whole)
    (folder / "truncated.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()
    (folder / "empty.png").write_bytes(b"")
    (folder / "zero.png").write_bytes(png_header(0, 0))
    (folder / "text.jpg").write_text("not a photo")
    (folder / "bomb.png").write_bytes(png_header(20000, 20000))
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (20000, 20)).save(folder / "strip.png")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    return {
        "truncated.jpg": "truncated",
        "empty.png": "empty_file",
        "zero.png": "not_an_image",
        "text.jpg": "not_an_image",
        "bomb.png": "too_many_pixels",
        "one.png": "too_small",
        "strip.png": "too_thin",
        "gone.jpg": "missing",
    }


def write_unusual(folder: Path) -> list[str]:
    """Write images of unusual kinds and names that must work; their file names."""
    cup = coffee(240)
    grey = np.asarray(cup.convert("L")).astype(np.uint16) * 257
    rgba = cup.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    made: dict[str, Image.Image] = {
        "sixteen bits.png": Image.fromarray(grey),
        "cmyk.jpg": cup.convert("CMYK"),
        "palette.png": cup.quantize(32),
        "alpha.png": rgba,
        "grey.JPG": cup.convert("L"),
        "Umläut 日本.Png": cup,
        'it\'s "quoted".bmp': cup,
        "new\nline.webp": cup,
        f"{'long' * 50}.tif": cup,
        "-dash.TIFF": cup,
    }
    for name, image in made.items():
        image.save(folder / name)
    cup.save(folder / "animated.webp", save_all=True, append_images=[Image.new("RGB", cup.size)])
    save_rotated(cup, folder / "rotated.jpeg", 6)
    return [*made, "animated.webp", "rotated.jpeg"]
