from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from convseg.checkpoints import Model
from convseg.data import Place, Sample, read_items
from convseg.evaluation import at_full_size, masks_of, predictions, results_of, write_results
from convseg.metrics import Overlap
from convseg.network import ImageMaps
from dataengine.packing import png
from tests.scenes import photograph

FLOAT32 = torch.float32


@pytest.fixture
def items(tmp_path: Path) -> list[Sample]:
    """Two photos of other shapes than the model's with 3 and 2 prompts, one of which fits nothing."""
    content = []
    for name, prompts in (("coffee", 3), ("rocket", 2)):
        rgb = photograph(name, 200)[:, : 120 if name == "rocket" else 200]
        (tmp_path / f"{name}.png").write_bytes(png(np.ascontiguousarray(rgb)))
        for i in range(prompts):
            mask = np.zeros(rgb.shape[:2], np.uint8)
            mask[10 * i : 50, 20:60] = 255 * (i < 2)
            (tmp_path / f"{name}_{i}.png").write_bytes(png(mask))
            concept = ("entities", "spatial", "physics")[i]
            item = {"id": f"{name}/{i}", "image": f"{name}.png", "mask": f"{name}_{i}.png", "concept": concept}
            content.append({**item, "prompt": f"Segment number {i}"})
    (tmp_path / "items.json").write_text(json.dumps({"items": content[::-1]}))
    return read_items(tmp_path / "items.json").samples


def evaluating(model: Model) -> Model:
    model.network.train(False)
    return model


def test_predictions_have_the_photos_size_and_each_photo_is_encoded_once(
    model: Model, items: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    encode = model.network.encode

    def counted(pixels: torch.Tensor) -> ImageMaps:
        passes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(model.network, "encode", counted)
    found = list(predictions(evaluating(model), items, "cpu", FLOAT32))
    assert passes == [1, 1]
    assert sorted(p.sample.id for p in found) == sorted(s.id for s in items)
    for p in found:
        assert p.predicted.shape == p.truth.shape == p.rgb.shape[:2]
        assert p.predicted.dtype == np.bool_
        both, either = (p.predicted & p.truth).sum(), (p.predicted | p.truth).sum()
        assert (p.overlap.intersection, p.overlap.union) == (both, either)
    assert {p.sample.id for p in found if p.overlap.negative} == {"coffee/2"}


def test_neither_workers_nor_how_many_at_once_change_a_prediction(model: Model, items: list[Sample]) -> None:
    with torch.no_grad():
        for parameter in model.network.sam.mask_decoder.parameters():
            parameter.mul_(3)
    one = {p.sample.id: p.predicted for p in predictions(evaluating(model), items, "cpu", FLOAT32, at_once=1)}
    all_ = {p.sample.id: p.predicted for p in predictions(model, items, "cpu", FLOAT32, workers=2)}
    assert one.keys() == all_.keys()
    assert all((one[name] != all_[name]).mean() < 0.005 for name in one)


def test_a_mask_lies_where_its_logits_are_on_the_photo() -> None:
    """A drawn disc, brought to the square and back, is itself but for its edge."""
    for height, width in ((300, 200), (120, 500), (64, 64)):
        y, x = np.mgrid[:height, :width]
        disc = (x - 0.6 * width) ** 2 + (y - 0.4 * height) ** 2 < (0.25 * min(height, width)) ** 2
        place = Place.of(height, width, 256)
        cells = torch.from_numpy(place.mask(disc).astype(np.float32)).view(64, 4, 64, 4).mean((1, 3)) - 0.5
        back = at_full_size(cells, place)
        assert back.shape == disc.shape
        assert (back & disc).sum() / (back | disc).sum() > 0.93


@torch.inference_mode()
def test_the_published_choice_of_three_masks(model: Model) -> None:
    network = evaluating(model).network
    decoder = network.sam.mask_decoder
    with torch.no_grad():
        for i, head in enumerate(decoder.output_hypernetworks_mlps):
            head.proj_out.bias.fill_(50.0 if i == 2 else -50.0)
        for p in (decoder.upscale_conv2.weight, decoder.upscale_conv2.bias):
            p.zero_()
        decoder.conv_s0.weight.zero_()
        decoder.conv_s0.bias.fill_(1.0)
        decoder.iou_prediction_head.proj_out.weight.zero_()
        decoder.iou_prediction_head.proj_out.bias.copy_(torch.tensor([9.0, 0, 1, 0]))
    rgb = photograph("coffee", 128)
    inputs = [model.reader([model.reader.picture(rgb)], ["Segment the cup"])]
    pixels = torch.zeros(3, 128, 128, dtype=torch.uint8)
    place = Place.of(128, 128, 128)
    assert not next(masks_of(network, pixels, inputs, place)).any()
    assert next(masks_of(network, pixels, inputs, place, several=True)).all()


def test_results_are_of_all_and_of_each_concept(tmp_path: Path) -> None:
    samples = [
        Sample("a", Path("1.png"), Path("m"), "p", "physics"),
        Sample("b", Path("1.png"), Path("m"), "q", "entities"),
        Sample("c", Path("2.png"), Path("m"), "<&> r", "physics"),
    ]
    overlaps = [Overlap("1", 5, 10, 7, False), Overlap("1", 9, 9, 9, False), Overlap("2", 0, 0, 0, True)]
    results = results_of(samples, overlaps)
    write_results(tmp_path / "results.json", results, {"dataset": "d", "model": {"sam2": "0" * 12}})
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["dataset"] == "d" and told["model"] == {"sam2": "0" * 12} and told["count"] == 3
    assert told["metrics"]["giou"]["value"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert told["metrics"]["ciou"]["value"] == pytest.approx(14 / 19)
    assert told["metrics"]["left_empty"]["value"] == 1 and told["metrics"]["negatives"] == 1
    assert told["concepts"]["physics"]["giou"]["value"] == 0.75
    assert told["concepts"]["entities"]["left_empty"]["value"] is None
    assert [(i["id"], i["iou"], i["prompt"]) for i in told["items"]] == [
        ("a", 0.5, "p"),
        ("b", 1, "q"),
        ("c", 1, "<&> r"),
    ]
    assert {"intersection", "union", "predicted", "negative", "concept"} < told["items"][0].keys()
