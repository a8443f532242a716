"""Packed masks: sizes that are no multiple of eight, unions, equality, and the PNG they become."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dataengine.bits import Bits

SIZES = [(1, 1), (3, 5), (8, 8), (40, 60), (7, 13)]


@pytest.mark.parametrize("size", SIZES)
def test_packing_loses_nothing(size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).random(size) < 0.5
    bits = Bits.from_array(array)
    assert bits.size == size
    np.testing.assert_array_equal(bits.array(), array)
    assert bits.any == array.any()
    assert Bits.from_array(array * 7.5) == bits
    assert hash(Bits.from_array(array)) == hash(bits)


@pytest.mark.parametrize("size", SIZES)
def test_the_union_is_what_is_inside_any(size: tuple[int, int]) -> None:
    arrays = [np.random.default_rng(seed).random(size) < 0.2 for seed in range(3)]
    union = Bits.union([Bits.from_array(array) for array in arrays])
    np.testing.assert_array_equal(union.array(), np.logical_or.reduce(arrays))


@pytest.mark.parametrize("size", SIZES)
def test_the_png_has_one_8_bit_channel_of_0_and_255(size: tuple[int, int]) -> None:
    array = np.random.default_rng(1).random(size) < 0.5
    with Image.open(io.BytesIO(Bits.from_array(array).png())) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), array * 255)


def test_an_empty_mask_has_nothing_inside() -> None:
    assert not Bits.empty(7, 13).any
    assert Bits.empty(7, 13) == Bits.from_array(np.zeros((7, 13), bool))
    assert Bits.empty(7, 13) != Bits.empty(13, 7)


def test_resizing_takes_the_nearest_pixel() -> None:
    bits = Bits.from_array(np.array([[0, 1], [1, 0]]))
    np.testing.assert_array_equal(bits.resized(4, 4).array(), np.kron([[0, 1], [1, 0]], np.ones((2, 2), bool)) > 0)
    assert bits.resized(2, 2) is bits


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2, 3)), np.zeros((0, 4))])
def test_only_planes_are_masks(array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        Bits.from_array(array)


def test_masks_of_two_sizes_have_no_union() -> None:
    with pytest.raises(ValueError, match="one size"):
        Bits.union([Bits.empty(2, 3), Bits.empty(3, 2)])
