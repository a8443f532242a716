"""The published engine's schedule for one image, written for comparison: what it does, one step after another.

It makes 35 calls with 7 regions and 15 prompts: describe, verify and pick for each region, five concepts, a judgement
for each prompt. Its picture work is that of the published code: photos shrunk to 768 px, every picture drawn with
Pillow and NumPy, encoded as a PNG for each call that shows it and again for each of the files it is written to, the
largest piece of a mask found by a flood fill in pure Python. Models are stubbed as on our side.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from benchmarks.rig import uneven_ellipse
from dataengine.images import Photo
from dataengine.records import CONCEPTS, VIEW_SIDE

BoolArray = npt.NDArray[np.bool_]
SCHEMA = {"type": "object", "properties": {"reason": {"type": "string"}, "accept": {"type": "boolean"}}}


@dataclass
class Spent:
    """What one image took: seconds of the clock and of the processor, and calls."""

    seconds: float
    cpu_seconds: float
    calls: int


class Published:
    """The schedule, asking the stand-in at `url`."""

    def __init__(self, url: str, regions: int, prompts: int) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port)
        self._regions, self._prompts = regions, prompts
        self._calls = 0

    def run(self, path: Path, out: Path) -> Spent:
        """One image, its files written to `out`."""
        began, cpu, self._calls = time.perf_counter(), time.process_time(), 0
        with Image.open(path) as image:
            photo = image.convert("RGB")
        photo.thumbnail((VIEW_SIDE, VIEW_SIDE))
        self._ask("describe", photo)
        masks = self._masks(path, photo)
        (out / "masks").mkdir(parents=True)
        for index, mask in enumerate(masks):
            self._region(photo, mask, out, index)
        numbered = self._numbered(photo, masks)
        for name, picture in (("original_image", photo), ("all_regions_colored", numbered)):
            write_twice(picture, out / f"{name}.png")
        for position, concept in enumerate(CONCEPTS):
            self._concept(concept, position, photo, numbered, masks, out)
        return Spent(time.perf_counter() - began, time.process_time() - cpu, self._calls)

    def _masks(self, path: Path, photo: Image.Image) -> list[BoolArray]:
        stub = Photo(path, np.asarray(photo), "")
        across = 1 + self._regions // 2
        w, h = photo.width / across, photo.height / 2
        cells = [divmod(index, across) for index in range(self._regions)]
        return [uneven_ellipse(stub, (x * w, y * h, (x + 1) * w, (y + 1) * h)).array() for y, x in cells]

    def _region(self, photo: Image.Image, mask: BoolArray, out: Path, index: int) -> None:
        """Verify on the region cut out and on its overlay, pick on the overlays of both masks, and write."""
        self._ask(f"verify {index}", dimmed(photo, mask), overlay(photo, mask))
        self._ask(f"pick {index}", photo, overlay(photo, mask), overlay(photo, mask))
        write_twice(overlay(photo, mask), out / f"{index:03d}.png")
        write_twice(Image.fromarray(mask.astype(np.uint8) * 255), out / "masks" / f"{index:03d}_mask.png")
        np.savez_compressed(out / "masks" / f"{index:03d}_mask.npz", mask=mask.astype(np.uint8))

    def _concept(
        self,
        concept: str,
        position: int,
        photo: Image.Image,
        numbered: Image.Image,
        masks: Sequence[BoolArray],
        out: Path,
    ) -> None:
        (out / concept).mkdir()
        self._ask(concept, photo, numbered)
        for index in range(self._prompts):
            meant = masks[(index + position) % len(masks)]
            picture = overlay(dimmed(photo, meant), meant)
            ImageDraw.Draw(picture).text((6, 4), f"Segment what is meant by {concept}", fill="white")
            self._ask(f"{concept} {index}", photo, picture)
            write_twice(picture, out / concept / f"{index:03d}.png")

    def _numbered(self, photo: Image.Image, masks: Sequence[BoolArray]) -> Image.Image:
        picture = photo
        for index, mask in enumerate(masks):
            picture = overlay(picture, mask)
            rows, columns = zip(*largest_piece(mask), strict=True)
            place = (int(np.median(columns)), int(np.median(rows)))
            ImageDraw.Draw(picture).text(place, str(index), fill="white")
        return picture

    def _ask(self, instruction: str, *pictures: Image.Image) -> None:
        """One call; the pictures are encoded for it."""
        inline = [
            {"inlineData": {"mime_type": "image/png", "data": base64.b64encode(png(p)).decode()}} for p in pictures
        ]
        body = {
            "contents": [{"role": "user", "parts": inline}],
            "systemInstruction": {"parts": [{"text": instruction}]},
            "generationConfig": {"responseJsonSchema": SCHEMA},
        }
        path = "/v1beta/models/gemini-flash-latest:generateContent"
        self._http.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = self._http.getresponse()
        said = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"the stand-in says {answer.status}: {said}")
        self._calls += 1


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_twice(picture: Image.Image, path: Path) -> None:
    """Write a picture as the published code does: where it is made, and where it is kept."""
    picture.save(path)
    picture.save(path.with_name(f"kept_{path.name}"))


def dimmed(photo: Image.Image, mask: BoolArray) -> Image.Image:
    """The photo with all but the mask dimmed."""
    pixels = np.asarray(photo)
    return Image.fromarray(np.where(mask[:, :, None], pixels, (pixels * 0.35).astype(np.uint8)))


def overlay(photo: Image.Image, mask: BoolArray) -> Image.Image:
    """The photo with the mask in red and a green box."""
    pixels = np.asarray(photo).astype(np.float32)
    pixels[mask] = 0.55 * pixels[mask] + 0.45 * np.array([230, 25, 25])
    picture = Image.fromarray(pixels.astype(np.uint8))
    rows, columns = np.where(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max()))
    ImageDraw.Draw(picture).rectangle(box, outline=(40, 220, 60), width=2)
    return picture


def largest_piece(mask: BoolArray) -> list[tuple[int, int]]:
    """The pixels (row, column) of the largest 4-connected piece, by a flood fill in pure Python."""
    height, width = mask.shape
    seen = np.zeros_like(mask)
    best: list[tuple[int, int]] = []
    for row in range(height):
        for column in range(width):
            if not mask[row, column] or seen[row, column]:
                continue
            piece, waiting = [], [(row, column)]
            seen[row, column] = True
            while waiting:
                y, x = waiting.pop()
                piece.append((y, x))
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if 0 <= v < height and 0 <= u < width and mask[v, u] and not seen[v, u]:
                        seen[v, u] = True
                        waiting.append((v, u))
            best = max(best, piece, key=len)
    return best
