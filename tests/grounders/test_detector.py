from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataengine.grounders.detector import Detector, Job, detections, plain
from dataengine.images import Photo, RgbArray
from dataengine.masks import Mask
from dataengine.records import Detection, Xyxy
from tests.grounders.detecting import ask, build


class Counting(Detector):
    """Finds a box as wide as the label is long; no model."""

    name, default_model, kinds, classes, least_score, side = "counting", "", (), ("", ""), 0.5, 64

    def _load(self, where: str, folder: Path, device: str) -> tuple[Any, Any]:
        return device, []

    def _encode(self, model: Any, processor: Any, pictures: Sequence[RgbArray]) -> list[Any]:
        processor.append([picture.shape[:2] for picture in pictures])
        return [model] * len(pictures)

    def _find(self, model: Any, processor: Any, jobs: Sequence[Job], features: Sequence[Any]) -> list[list[Detection]]:
        assert set(features) == {model}, "a photo's features are on another device"
        return [[Detection(box=(0, 0, len(label), 1))] for _, label in jobs]


def photo(width: int = 100, height: int = 50) -> Photo:
    return Photo(Path("x.png"), np.zeros((height, width, 3), np.uint8), "0" * 64)


@pytest.fixture
def two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    monkeypatch.setattr("dataengine.grounders.detector.device_names", lambda setting: ("cpu", "cpu:0"))
    return build(Counting, tmp_path)


def test_a_photo_keeps_to_one_device_and_devices_take_turns(two_devices: Detector) -> None:
    photos = [photo() for _ in range(4)]
    found = ask(two_devices, *((one, "x" * i) for i in range(1, 6) for one in photos))
    assert [one[0].box[2] for one in found] == [i for i in range(1, 6) for _ in photos]
    encoded = [sum(map(len, calls)) for _, calls in two_devices._loaded.values()]
    assert encoded == [2, 2]


def test_features_go_with_the_photo(two_devices: Detector) -> None:
    one = photo()
    ask(two_devices, (one, "a"), (one, "b"))
    assert sum(map(len, two_devices._kept.values())) == 1
    ask(two_devices, (photo(), "c"), (photo(), "d"))  # a device's thread holds on to its last jobs
    del one
    gc.collect()
    assert sum(map(len, two_devices._kept.values())) <= 2


def test_a_large_photo_is_shrunk_to_what_the_model_sees(tmp_path: Path) -> None:
    detector = build(Counting, tmp_path)
    ask(detector, (photo(640, 320), "a"))
    assert detector._loaded["cpu"][1] == [[(32, 64)]]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 10, 20, 20), (10, 10, 20, 20)),
        ((-5, -5, 200, 200), (0, 0, 100, 50)),
        ((90, 40, 120, 45), (90, 40, 100, 45)),
        ((100, 10, 120, 20), None),
        ((10, 60, 20, 70), None),
        ((20, 10, 10, 20), None),
    ],
)
def test_boxes_are_cut_at_the_photos_edges(box: Xyxy, expected: Xyxy | None) -> None:
    found = detections(photo(), torch.tensor([0.5]), torch.tensor([box]))
    assert [one.box for one in found] == ([] if expected is None else [expected])


def test_the_best_comes_first_with_its_own_mask() -> None:
    masks = torch.zeros(2, 4, 8, dtype=torch.long)
    masks[0, 0, 0] = masks[1, :2] = 1
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 20, 20]])
    first, second = detections(photo(), torch.tensor([0.5, 0.75]), boxes, masks)
    assert (first.score, second.score) == (0.75, 0.5)
    assert first.mask is not None and second.mask is not None
    assert (Mask.from_rle(first.mask).area, Mask.from_rle(second.mask).area) == (16, 1)
    assert first.mask.size == (4, 8)


def test_nothing_found_is_an_empty_list() -> None:
    assert detections(photo(), torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 4, 8)) == []


@pytest.mark.parametrize(
    ("label", "expected"),
    [("cup", "cup"), (" a\n\tred  cup ", "a red cup"), ("half \ud800 pair", "half ? pair"), ("", "")],
)
def test_plain(label: str, expected: str) -> None:
    assert plain(label) == expected
