from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dataengine.errors import UsageError
from dataengine.grounders.grounding_dino import GroundingDinoGrounder, query
from dataengine.images import Photo
from tests.grounders.detecting import ask, build, check_batches, nearest, photos
from tests.standins.tiny_detectors import cut_weight, save_tiny_grounding_dino, save_tiny_owlv2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_grounding_dino(tmp_path_factory.mktemp("grounding-dino"))


def test_batches_long_labels_and_repeats(folder: Path) -> None:
    check_batches(GroundingDinoGrounder, folder)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("A Red Mug", "a red mug."),
        ("cup.", "cup."),
        ("the cup. on the table?", "the cup on the table."),
        ("???", "."),
    ],
)
def test_a_label_is_one_phrase(label: str, expected: str) -> None:
    assert query(label) == expected


@pytest.mark.parametrize("which", [0, 1])
def test_it_finds_what_the_library_finds(folder: Path, which: int) -> None:
    """The published way: text and picture through the processor, thresholds 0.35 and 0.25."""
    photo = photos()[which]
    model: Any = transformers.GroundingDinoForObjectDetection.from_pretrained(folder)
    processor: Any = transformers.GroundingDinoProcessor.from_pretrained(folder)
    inputs = processor(images=photo.rgb, text="spoon.", return_tensors="pt")
    with torch.inference_mode():
        output = model.eval()(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        output, inputs.input_ids, threshold=0.35, text_threshold=0.25, target_sizes=[(photo.height, photo.width)]
    )
    (found,) = ask(build(GroundingDinoGrounder, folder), (photo, "Spoon"))
    order = expected["scores"].argsort(descending=True)
    assert len(order) > 0
    assert [d.score for d in found] == pytest.approx(expected["scores"][order].tolist(), abs=1e-4)
    sides = torch.tensor([photo.width, photo.height, photo.width, photo.height])
    inside = expected["boxes"][order].clamp(min=torch.zeros(4), max=sides)
    assert [x for d in found for x in d.box] == pytest.approx(inside.flatten().tolist(), abs=0.01)


def test_photos_of_one_size_go_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(GroundingDinoGrounder, folder, device_batch=8)
    model = detector._loaded["cpu"][0]
    passes: list[int] = []

    def counted(module: Any, arguments: Any, named: dict[str, torch.Tensor]) -> None:
        passes.append(len(named["pixel_values"]))

    model.register_forward_pre_hook(counted, with_kwargs=True)
    lying, standing = photos()
    twin = Photo(Path("twin.png"), lying.rgb[::-1].copy(), "2" * 64)
    jobs = [(photo, "cup") for photo in (lying, standing, twin)]
    with torch.inference_mode():
        found = detector._detect("cpu", jobs)
    assert sorted(passes) == [1, 2]
    assert len({str(one) for one in found}) == 3


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    """The library would load it: both are zero-shot detectors."""
    with pytest.raises(UsageError, match="a model of type 'owlv2', which is no grounding-dino"):
        build(GroundingDinoGrounder, save_tiny_owlv2(tmp_path))


def test_a_weight_that_lacks(tmp_path: Path) -> None:
    name = cut_weight(save_tiny_grounding_dino(tmp_path))
    with pytest.raises(UsageError, match=f"1 weights are not in its files, such as {name}"):
        build(GroundingDinoGrounder, tmp_path)


def test_bfloat16_runs_and_keeps_places(folder: Path) -> None:
    photo = photos()[0]
    (half,) = ask(build(GroundingDinoGrounder, folder, precision="bfloat16"), (photo, "spoon"))
    (full,) = ask(build(GroundingDinoGrounder, folder, precision="float32"), (photo, "spoon"))
    assert 0 < nearest(full[0], half) < 3
