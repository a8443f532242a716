from __future__ import annotations

import io
import zipfile
import zlib
from types import ModuleType

import cv2
import numpy as np
import pytest
from PIL import Image

from dataengine import packing
from dataengine.images import RgbArray
from dataengine.packing import BAND, npz, png

SHAPES = [(1, 1), (1, 7), (9, 1), (BAND - 1, 5), (BAND, 3), (BAND + 1, 40), (2 * BAND + 3, 2)]


@pytest.fixture(autouse=True, params=["as here", "zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The deflate of this machine, and zlib's, which is there on all."""
    if request.param == "zlib":
        monkeypatch.setattr(packing, "deflate", zlib)
    chosen: ModuleType = packing.deflate
    return chosen


def pictures(shape: tuple[int, ...]) -> list[RgbArray]:
    """Noise, black, white and a ramp that overflows."""
    random = np.random.default_rng(0)
    ramp = np.arange(int(np.prod(shape))).reshape(shape) * 7
    made = [random.integers(0, 256, shape), np.zeros(shape), np.full(shape, 255), ramp]
    return [picture.astype(np.uint8) for picture in made]


def read_by_pillow(data: bytes) -> RgbArray:
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # checks each chunk's sum
        return np.asarray(image)


@pytest.mark.parametrize("shape", SHAPES)
def test_colours_come_back(shape: tuple[int, int]) -> None:
    for picture in pictures((*shape, 3)):
        data = png(picture)
        np.testing.assert_array_equal(read_by_pillow(data), picture)
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(read, picture)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_come_back_as_one_channel(shape: tuple[int, int]) -> None:
    for picture in pictures(shape):
        data = png(picture)
        np.testing.assert_array_equal(read_by_pillow(data), picture)
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read, picture)


def test_a_picture_that_is_a_part_of_another_comes_back() -> None:
    whole = pictures((40, 50, 3))[0]
    part = whole[3:33:2, 41:5:-1]
    np.testing.assert_array_equal(read_by_pillow(png(part)), part)
    np.testing.assert_array_equal(read_by_pillow(png(part[:, :, 1])), part[:, :, 1])


@pytest.mark.parametrize("shape", SHAPES)
def test_an_npz_is_numpys(shape: tuple[int, int]) -> None:
    for picture in pictures(shape):
        data = npz(picture)
        with np.load(io.BytesIO(data)) as read:
            assert read.files == ["mask"]
            assert read["mask"].dtype == np.uint8
            np.testing.assert_array_equal(read["mask"], picture)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
        assert npz(picture) == data


def test_a_mask_is_small_and_a_photo_no_larger_than_its_pixels() -> None:
    mask = np.zeros((400, 600), np.uint8)
    mask[100:300, 50:500] = 1
    assert len(png(mask * 255)) < mask.nbytes / 80
    assert len(npz(mask)) < mask.nbytes / 80
    noise = pictures((200, 300, 3))[0]
    assert len(png(noise)) < 1.01 * noise.nbytes
    smooth = cv2.resize(noise[:5, :5], (300, 200), interpolation=cv2.INTER_CUBIC)
    assert len(png(np.asarray(smooth, np.uint8))) < 0.4 * smooth.nbytes
