from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from dataengine.errors import UsageError
from dataengine.grounders.detector import Detector
from dataengine.grounders.owlv2 import Owlv2Grounder
from dataengine.images import Photo
from dataengine.records import Xyxy
from tests.grounders.detecting import ask, build, check_batches, nearest, photos
from tests.standins.tiny_detectors import cut_weight, save_tiny_grounding_dino, save_tiny_owlv2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_owlv2(tmp_path_factory.mktemp("owlv2"))


def test_batches_long_labels_and_repeats(folder: Path) -> None:
    check_batches(Owlv2Grounder, folder)


def published(folder: Path, photo: Photo, label: str) -> list[tuple[float, tuple[float, ...]]]:
    """Scores and boxes as the library's own example finds them, picture and text in one pass, best first."""
    model: Any = transformers.Owlv2ForObjectDetection.from_pretrained(folder)
    processor: Any = transformers.Owlv2Processor.from_pretrained(folder)
    inputs = processor(images=photo.rgb, text=[[label]], return_tensors="pt")
    with torch.inference_mode():
        output = model.eval()(**inputs)
    (found,) = processor.post_process_grounded_object_detection(
        output, threshold=0.2, target_sizes=[(photo.height, photo.width)]
    )
    pairs = zip(found["scores"].tolist(), map(tuple, found["boxes"].tolist()), strict=True)
    return sorted(pairs, reverse=True)


@pytest.mark.parametrize("which", [0, 1])
def test_it_finds_what_the_library_finds(folder: Path, which: int) -> None:
    """The tiny model's boxes overlap too little to be doubles."""
    photo = photos()[which]
    inside = [
        (score, (max(x0, 0), max(y0, 0), min(x1, photo.width), min(y1, photo.height)))
        for score, (x0, y0, x1, y1) in published(folder, photo, "a mug")
        if x0 < photo.width and y0 < photo.height
    ]
    (found,) = ask(build(Owlv2Grounder, folder), (photo, "a mug"))
    assert len(inside) > 0
    assert [d.score for d in found] == pytest.approx([score for score, _ in inside], abs=1e-4)
    for detection, (_, box) in zip(found, inside, strict=True):
        assert detection.box == pytest.approx(box, abs=0.01)


def answered(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, boxes: Sequence[Sequence[float]], logits: Sequence[float]
) -> None:
    """Give the model these boxes (centre and size, 0..1) and logits, over and over for its 36 patches."""
    model = detector._loaded["cpu"][0]
    all_boxes = torch.tensor([boxes[i % len(boxes)] for i in range(36)])
    all_logits = torch.tensor([logits[i % len(logits)] for i in range(36)])[:, None]
    monkeypatch.setattr(model, "box_predictor", lambda patches, grid: all_boxes.expand(len(patches), 36, 4))
    monkeypatch.setattr(model, "class_predictor", lambda patches, query: (all_logits.expand(len(patches), 36, 1), 0))


def blank(width: int, height: int) -> Photo:
    return Photo(Path("blank.png"), np.zeros((height, width, 3), np.uint8), "0" * 64)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (96, 96, (24, 24, 72, 72)),
        (192, 96, (48, 48, 144, 96)),  # the square is 192 px; below 96 it is padding
        (96, 192, (48, 48, 96, 144)),
        (1500, 3000, (750, 750, 1500, 2250)),  # shrunk before the model sees it
    ],
)
def test_a_box_of_the_padded_square_is_put_where_the_photo_has_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, width: int, height: int, expected: Xyxy
) -> None:
    detector = build(Owlv2Grounder, folder)
    answered(detector, monkeypatch, [(0.5, 0.5, 0.5, 0.5)], [3.0])
    ((found,),) = ask(detector, (blank(width, height), "cup"))
    assert found.box == pytest.approx(expected, abs=0.5)
    assert found.score == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-3)


def test_of_many_boxes_of_a_thing_the_best_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, off = (0.25, 0.5, 0.3, 0.6), (0.75, 0.5, 0.3, 0.6), (0.28, 0.52, 0.3, 0.6)
    detector = build(Owlv2Grounder, folder)
    answered(detector, monkeypatch, [left, right, off, left], [1.0, 2.0, 0.5, -3.0])
    (found,) = ask(detector, (blank(100, 100), "cup"))
    assert [box for one in found for box in one.box] == pytest.approx([60, 20, 90, 80, 10, 20, 40, 80], abs=1e-3)


def test_a_box_in_the_padding_is_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(Owlv2Grounder, folder)
    answered(detector, monkeypatch, [(0.5, 0.8, 0.2, 0.2)], [3.0])
    low, high = ask(detector, (blank(200, 100), "cup"), (blank(200, 190), "cup"))
    assert (len(low), len(high)) == (0, 1)


def test_a_photo_is_encoded_once_for_all_its_labels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(Owlv2Grounder, folder, device_batch=2)
    model = detector._loaded["cpu"][0]
    passes: list[int] = []
    encode = model.image_embedder

    def counted(pixels: torch.Tensor) -> Any:
        passes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(model, "image_embedder", counted)
    both = photos()
    ask(detector, *((photo, f"thing {i}") for i in range(5) for photo in both))
    assert sum(passes) == 2
    del both
    assert len(detector._kept["cpu"]) <= 2


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a model of type 'grounding-dino', which is no owlv2"):
        build(Owlv2Grounder, save_tiny_grounding_dino(tmp_path))


def test_a_weight_that_lacks(tmp_path: Path) -> None:
    name = cut_weight(save_tiny_owlv2(tmp_path))
    with pytest.raises(UsageError, match=f"1 weights are not in its files, such as {name}"):
        build(Owlv2Grounder, tmp_path)


def test_the_threshold_is_settable(folder: Path) -> None:
    photo = photos()[0]
    (few,) = ask(build(Owlv2Grounder, folder, box_threshold=0.9), (photo, "a mug"))
    (many,) = ask(build(Owlv2Grounder, folder, box_threshold=0.05), (photo, "a mug"))
    assert len(few) < len(many)
    assert all(d.score is not None and d.score > 0.9 for d in few)


def test_bfloat16_runs_and_keeps_places(folder: Path) -> None:
    photo = photos()[0]
    (half,) = ask(build(Owlv2Grounder, folder, precision="bfloat16"), (photo, "a mug"))
    (full,) = ask(build(Owlv2Grounder, folder, precision="float32"), (photo, "a mug"))
    assert 0 < nearest(full[0], half) < 1


def test_the_version_changes_with_what_changes_answers(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_owlv2(tmp_path, seed=1)
    made = [
        build(Owlv2Grounder, folder),
        build(Owlv2Grounder, other),
        build(Owlv2Grounder, folder, box_threshold=0.3),
        build(Owlv2Grounder, folder, precision="bfloat16"),
    ]
    assert len({detector.version for detector in made}) == 4
    assert build(Owlv2Grounder, folder, device_batch=1).version == made[0].version
    assert made[0].detail.keys() == {"torch", "transformers", "model", "files", "precision"}
