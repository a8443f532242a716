from __future__ import annotations

import numpy as np
import pytest

from dataengine.images import RgbArray
from dataengine.masks import Mask
from dataengine.overlays import GREEN, PALETTE, TEXT_SIZE, numbered, prompt_picture, region_overlay
from tests.scenes import Drawing

HEIGHT, WIDTH = 90, 120
VIEW: RgbArray = np.random.default_rng(0).integers(60, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def square(x0: int = 30, y0: int = 20, x1: int = 70, y1: int = 60, scale: int = 1) -> Mask:
    box = (x0 * scale, y0 * scale, x1 * scale, y1 * scale)
    return Drawing.ground(WIDTH * scale, HEIGHT * scale).box("a", (0, 0, 0), *box).mask("a")


def caption_height(picture: RgbArray) -> int:
    return len(picture) - HEIGHT


@pytest.mark.parametrize("scale", [1, 3])
def test_region_overlay_changes_the_mask_and_nothing_away_from_it(scale: int) -> None:
    before = VIEW.copy()
    picture = region_overlay(VIEW, square(scale=scale))
    assert picture.dtype == np.uint8
    assert picture.shape == VIEW.shape
    changed = (picture != VIEW).any(axis=2)
    near = np.zeros((HEIGHT, WIDTH), bool)
    near[17:63, 27:73] = True
    assert changed[20:60, 30:70].all()
    assert not changed[~near].any()
    assert picture[20, 50].tolist() == list(GREEN)
    assert int(picture[40, 50, 0]) - int(VIEW[40, 50, 0]) > 0 > int(picture[40, 50, 2]) - int(VIEW[40, 50, 2])
    np.testing.assert_array_equal(VIEW, before)


def test_prompt_picture_dims_what_is_outside() -> None:
    picture = prompt_picture(VIEW, [square()], "Segment the square")[-HEIGHT:]
    near = np.zeros((HEIGHT, WIDTH), bool)
    near[17:63, 27:73] = True
    np.testing.assert_allclose(picture[~near], VIEW[~near] * 0.35, atol=1)
    assert picture[20:60, 30:70].mean() > 2 * picture[~near].mean()


def test_several_masks_have_several_colours() -> None:
    flat = np.full_like(VIEW, 128)
    masks = [square(5, 5, 35, 35), square(45, 5, 75, 35), square(85, 5, 115, 35)]
    for picture in (numbered(flat, masks), prompt_picture(flat, masks, "x")[-HEIGHT:]):
        hues = [picture[8:32, x + 3 : x + 9].reshape(-1, 3).mean(axis=0) - 128 for x in (5, 45, 85)]
        for hue, colour in zip(hues, PALETTE, strict=False):
            assert np.corrcoef(hue, np.array(colour) - 128.0)[0, 1] > 0.9


def test_more_masks_than_colours() -> None:
    masks = [square(2 + 8 * i, 10, 8 + 8 * i, 80) for i in range(len(PALETTE) + 2)]
    assert numbered(VIEW, masks).shape == VIEW.shape


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 3, 3),
        (117, 0, 120, 3),
        (0, 87, 3, 90),
        (117, 87, 120, 90),
        (0, 0, 120, 2),
        (118, 0, 120, 90),
        (0, 0, 120, 90),
    ],
)
def test_the_number_is_whole_at_any_border(box: tuple[int, int, int, int]) -> None:
    flat = np.full_like(VIEW, 128)
    inner, picture = numbered(flat, [square()]), numbered(flat, [square(*box)])
    plates = [(p == 0).all(axis=2).sum() for p in (inner, picture)]
    figures = [(p > 230).all(axis=2).sum() for p in (inner, picture)]
    assert figures[0] == figures[1] > 10
    assert plates[1] > 0.85 * plates[0]


def test_an_empty_mask_leaves_the_picture_alone() -> None:
    empty = Mask.empty(HEIGHT, WIDTH)
    np.testing.assert_array_equal(region_overlay(VIEW, empty), VIEW)
    np.testing.assert_array_equal(numbered(VIEW, [empty]), VIEW)
    for masks in ([], [empty]):
        np.testing.assert_allclose(prompt_picture(VIEW, masks, "x")[-HEIGHT:], VIEW * 0.35, atol=1)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 1, 1),
        ("Segment it", 1, 1),
        ("Segment the large red area resting on the table", 3, 6),
        ("word " * 1000, 10, 60),
        ("a" * 5000, 1, 1),
        ("naïve 日本 😀 עברית", 1, 4),
        ("two\nlines\tand\x00more \ud83d", 1, 4),
    ],
)
def test_the_caption_wraps(text: str, least: int, most: int) -> None:
    picture = prompt_picture(VIEW, [square()], text)
    rows, rest = divmod(caption_height(picture) - 8, TEXT_SIZE + 6)
    assert rest == 0
    assert least <= rows <= most
    assert picture.shape[1:] == (WIDTH, 3)
    caption = picture[: caption_height(picture)]
    assert (caption < 100).any() == bool(text)
    if len(text) < 100:
        assert (caption[:, :3] == 255).all()
        assert (caption[:, -3:] == 255).all()


@pytest.mark.parametrize("shape", [(16, 768, 3), (768, 16, 3), (16, 16, 3)])
def test_the_thinnest_views(shape: tuple[int, int, int]) -> None:
    view = np.full(shape, 99, np.uint8)
    mask = Mask.from_array(np.ones(shape[:2]))
    assert region_overlay(view, mask).shape == shape
    assert numbered(view, [mask] * 30).shape == shape
    assert prompt_picture(view, [mask], "Segment the thing")[-shape[0] :].shape == shape
