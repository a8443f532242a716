"""`sam3` on tiny models: loading them, and that its features and masks are those of SAM 3's own tracker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataengine.errors import UsageError
from dataengine.images import Photo
from dataengine.parts import build
from dataengine.records import Xyxy
from dataengine.segmenters.sam3 import Sam3Segmenter
from dataengine.settings import Settings, load_settings
from tests.photos import photo as picture
from tests.standins.tiny_sam2 import save_tiny_sam2
from tests.standins.tiny_sam3 import SIDE, save_tiny_sam3_tracker, save_tiny_sam3_video

BOXES: list[Xyxy] = [(20, 10, 90, 60), (100.5, 40.2, 200, 130), (0, 0, 239, 159)]


def flags(folder: Path, **other: Any) -> Settings:
    options = {"preset": "offline", "segmenter": "sam3", "checkpoint": str(folder), "device": "cpu", **other}
    return load_settings({"points_per_side": 4, "min_pool_pixels": 20, **options})


def cup() -> Photo:
    return Photo(Path("coffee.jpg"), np.asarray(picture("coffee", 240)).copy(), "0" * 64)


@pytest.mark.parametrize("save", [save_tiny_sam3_tracker, save_tiny_sam3_video])
def test_it_loads_the_tracker_alone_and_within_the_published_layout(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    segmenter = build(flags(save(tmp_path))).segmenter
    assert isinstance(segmenter, Sam3Segmenter)
    photo = cup()

    async def work() -> tuple[Any, Any]:
        return await asyncio.gather(segmenter.propose(photo), segmenter.segment(photo, BOXES))

    pool, masks = asyncio.run(work())
    assert [(m.height, m.width) for m in masks.value] == [(160, 240)] * 3
    assert len(set(masks.value)) == 3
    assert all(m.height < m.width for m in pool.value)


@torch.no_grad()
def test_features_are_those_of_the_video_tracker(tmp_path: Path) -> None:
    """It leaves the neck's coarsest scale out before it adds the embedding of no memory to the last.

    transformers' Sam3TrackerModel (5.23) adds it to the scale that its decoder never sees.
    """
    from safetensors.torch import load_file
    from transformers import Sam3VideoConfig, Sam3VideoModel

    folder = save_tiny_sam3_video(tmp_path)
    whole: Any = Sam3VideoModel(Sam3VideoConfig.from_pretrained(folder))
    whole.eval()
    whole.load_state_dict(load_file(folder / "model.safetensors"))
    segmenter, photo = Sam3Segmenter(flags(folder)), cup()
    ours = asyncio.run(segmenter._features(photo)).maps
    pixels = segmenter.models["cpu"].pixels(photo.rgb)[None]
    seen = whole.detector_model.get_vision_features(pixel_values=pixels)
    theirs, _ = whole.get_vision_features_for_tracker(seen)
    assert len(ours) == len(theirs) == 3
    theirs[-1] = theirs[-1] + whole.tracker_model.no_memory_embedding
    for mine, rows in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.flatten(2).permute(2, 0, 1), rows, rtol=1e-4, atol=1e-4)
    assert whole.tracker_model.no_memory_embedding.abs().min() > 0


def test_pixels_are_those_of_its_processor_but_for_rounding(tmp_path: Path) -> None:
    from transformers import Sam3ImageProcessor

    photo, segmenter = cup(), Sam3Segmenter(flags(save_tiny_sam3_tracker(tmp_path)))
    theirs = Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})(photo.rgb, return_tensors="pt")
    away = (segmenter.models["cpu"].pixels(photo.rgb) - theirs["pixel_values"][0]).abs()
    assert away.max() < 1.01 / 255 / 0.5


def test_the_published_model_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def folder(flag: str, where: str) -> Path:
        asked.append((flag, where))
        raise UsageError("stop")

    monkeypatch.setattr("dataengine.segmenters.sam3.model_folder", folder)
    with pytest.raises(UsageError):
        Sam3Segmenter(load_settings({"preset": "offline", "segmenter": "sam3"}))
    assert asked == [("--checkpoint", "facebook/sam3")]


def test_a_model_of_another_kind_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--checkpoint .*'sam2'") as caught:
        Sam3Segmenter(flags(save_tiny_sam2(tmp_path)))
    assert "\n" not in str(caught.value)
