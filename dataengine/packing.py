"""PNG and NPZ files' bytes, fast: simple filters, and where the machine has it ISA-L's deflate in place of zlib's."""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dataengine.images import RgbArray

# Two modules with the same functions. ISA-L is several times as fast, and not built for every machine.
deflate: Any = importlib.import_module("isal.isal_zlib" if importlib.util.find_spec("isal") else "zlib")

LEVEL = 1  # the next is slower for 1 % fewer bytes
DOS_1980 = 0x21  # a zip's date: the same mask is the same file at any time
BAND = 256  # rows filtered and compressed at a time: little memory, which stays in the processor's cache
GREY, RGB = 0, 2  # colour types
AVERAGE = 3  # a row's filter, a value less the mean of its neighbours left and above: small files for little work


def png(picture: RgbArray) -> bytes:
    """A picture as a PNG file's bytes: (h, w, 3) uint8 RGB, or (h, w) uint8 grey, which is taken to be a mask."""
    height, width = picture.shape[:2]
    kind = RGB if picture.ndim == 3 else GREY
    rows = _averaged(picture) if kind == RGB else _plain(picture)
    squeeze = deflate.compressobj(LEVEL)
    data = b"".join([*(squeeze.compress(band.data) for band in rows), squeeze.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", deflate.crc32(data, deflate.crc32(name)))


def _plain(picture: RgbArray) -> Iterator[RgbArray]:
    """Bands of rows as they are, each row behind the number of its filter: a mask is long runs already."""
    for top in range(0, len(picture), BAND):
        yield np.pad(picture[top : top + BAND], ((0, 0), (1, 0)))


def _averaged(picture: RgbArray) -> Iterator[RgbArray]:
    """Bands of rows filtered by `AVERAGE`, each row behind that number."""
    rows = picture.reshape(len(picture), -1)
    for top in range(0, len(rows), BAND):
        band = rows[top : top + BAND]
        above = rows[top - 1 : top - 1 + len(band)] if top else np.concatenate([np.zeros_like(rows[:1]), band[:-1]])
        filtered = np.empty((len(band), 1 + band.shape[1]), np.uint8)
        filtered[:, 0] = AVERAGE
        filtered[:, 1:4] = band[:, :3] - (above[:, :3] >> 1)
        left, over = band[:, :-3], above[:, 3:]
        filtered[:, 4:] = band[:, 3:] - ((left & over) + ((left ^ over) >> 1))  # the mean of two bytes, in bytes
        yield filtered


def npz(array: RgbArray) -> bytes:
    """What `np.savez_compressed(file, mask=array)` writes of a uint8 array in rows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    content = header.getvalue() + array.tobytes()
    squeeze = deflate.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    data: bytes = squeeze.compress(content) + squeeze.flush()
    name, sizes = b"mask.npy", (deflate.crc32(content), len(data), len(content))
    entry = struct.pack("<5H3L2H", 20, 0, zlib.DEFLATED, 0, DOS_1980, *sizes, len(name), 0)
    local = b"PK\3\4" + entry + name + data
    listing = b"PK\1\2" + struct.pack("<H", 20) + entry + bytes(14) + name
    return local + listing + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, len(listing), len(local), 0)
