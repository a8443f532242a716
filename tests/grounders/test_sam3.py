from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from dataengine.errors import UsageError
from dataengine.grounders.sam3 import Sam3Grounder
from dataengine.images import Photo
from dataengine.masks import Mask
from tests.grounders.detecting import ask, build, check_batches, check_same, nearest, photos
from tests.photos import coffee
from tests.standins.tiny_detectors import cut_weight, save_tiny_owlv2, save_tiny_sam3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_sam3(tmp_path_factory.mktemp("sam3"))


def test_batches_long_labels_and_repeats(folder: Path) -> None:
    check_batches(Sam3Grounder, folder)


@pytest.mark.parametrize("which", [0, 1])
def test_it_finds_what_the_library_finds(folder: Path, which: int) -> None:
    """The library's own example: picture and text in one pass, then its post-processing."""
    photo = photos()[which]
    model: Any = transformers.Sam3Model.from_pretrained(folder)
    processor: Any = transformers.Sam3Processor.from_pretrained(folder)
    inputs = processor(images=photo.rgb, text="a mug", return_tensors="pt")
    sizes = inputs.pop("original_sizes").tolist()
    with torch.inference_mode():
        output = model.eval()(**inputs)
    (expected,) = processor.post_process_instance_segmentation(output, 0.5, 0.5, target_sizes=sizes)
    (found,) = ask(build(Sam3Grounder, folder), (photo, "a mug"))
    order = expected["scores"].argsort(descending=True)
    assert len(order) > 0
    assert [d.score for d in found] == pytest.approx(expected["scores"][order].tolist(), abs=1e-4)
    for detection, mask in zip(found, expected["masks"][order].numpy(), strict=True):
        assert detection.mask is not None
        own = Mask.from_rle(detection.mask)
        assert own.differing(Mask.from_array(mask)) <= 0.001 * mask.size


def test_boxes_and_masks_of_a_large_photo_agree_with_those_of_the_same_photo_shrunk(folder: Path) -> None:
    """Masks are as large as what the model saw; boxes are in pixels of the photo."""
    large = Photo(Path("large.png"), np.array(coffee(2016)), "0" * 64)
    small = Photo(Path("small.png"), np.array(coffee(2016).reduce(2)), "1" * 64)
    detector = build(Sam3Grounder, folder)
    of_large, of_small = ask(detector, (large, "a mug"), (small, "a mug"))
    assert len(of_large) == len(of_small) > 0
    best = of_large[0]
    doubled = [one.model_copy(update={"box": tuple(2 * side for side in one.box)}) for one in of_small]
    same = min(doubled, key=lambda one: nearest(best, [one]))
    assert nearest(best, [same]) < 10
    assert best.mask is not None and same.mask is not None
    assert best.mask.size == same.mask.size == (672, 1008)
    assert Mask.from_rle(best.mask).iou(Mask.from_rle(same.mask)) > 0.9


def test_a_photo_is_encoded_once_for_all_its_labels(folder: Path) -> None:
    detector = build(Sam3Grounder, folder, device_batch=2)
    passes: list[int] = []
    encoder = detector._loaded["cpu"][0].vision_encoder.backbone
    encoder.register_forward_hook(lambda module, given, output: passes.append(len(output.last_hidden_state)))
    both = photos()
    ask(detector, *((photo, f"thing {i}") for i in range(5) for photo in both))
    assert sum(passes) == 2


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    """The library would load it, with random weights."""
    with pytest.raises(UsageError, match="a model of type 'owlv2', which is no sam3"):
        build(Sam3Grounder, save_tiny_owlv2(tmp_path))


def test_a_weight_that_lacks(tmp_path: Path) -> None:
    name = cut_weight(save_tiny_sam3(tmp_path))
    with pytest.raises(UsageError, match=f"1 weights are not in its files, such as {name}"):
        build(Sam3Grounder, tmp_path)


def test_files_with_the_tracker_for_videos_load_as_well(folder: Path, tmp_path: Path) -> None:
    """The published files hold the detector's weights under a name of their own, and the tracker's beside them."""
    save_as_video(folder, tmp_path)
    photo = photos()[0]
    (one,), (other,) = (ask(build(Sam3Grounder, where), (photo, "a mug")) for where in (tmp_path, folder))
    assert len(one) > 0
    check_same(one, other)


def save_as_video(folder: Path, into: Path) -> None:
    for file in folder.iterdir():
        shutil.copy(file, into)
    config = json.loads((folder / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    weights = {f"detector_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    weights["tracker_model.no_memory_embedding"] = np.zeros((1, 1, 32), np.float32)
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})


def test_bfloat16_runs_and_keeps_places(folder: Path) -> None:
    photo = photos()[0]
    (half,) = ask(build(Sam3Grounder, folder, precision="bfloat16"), (photo, "a mug"))
    (full,) = ask(build(Sam3Grounder, folder, precision="float32"), (photo, "a mug"))
    assert 0 < nearest(full[0], half) < 3
