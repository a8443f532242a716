from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convseg.batches import FeatureCache, Order, Shaping, batches, leave_signals
from convseg.checkpoints import Model
from convseg.data import Place, Sample, read_jsonl
from convseg.network import ImageMaps
from dataengine.errors import ImageError, OutputError

SHAPING = Shaping(square=128, side=128, cells=32, erode=0, times=1, augment=False)


def samples_of(scenes: Path) -> list[Sample]:
    return read_jsonl(scenes / "dataset.jsonl", scenes).samples


def made(
    model: Model,
    scenes: Path,
    steps: range,
    *,
    batch: int = 4,
    cache: FeatureCache | None = None,
    shaping: Shaping = SHAPING,
    workers: int = 0,
) -> list[Any]:
    samples = samples_of(scenes)
    order = Order(len(samples), batch, seed=1)
    how: dict[str, Any] = {"seed": (1, 0), "cache": cache, "workers": workers, "pin": False}
    return list(batches(samples, model.reader, shaping, order, steps, **how))


@pytest.mark.parametrize(("count", "batch", "ranks"), [(10, 5, 1), (7, 3, 1), (12, 2, 3), (3, 4, 2)])
def test_every_sample_comes_once_before_any_comes_again(count: int, batch: int, ranks: int) -> None:
    orders = [Order(count, batch, seed=3, rank=rank, ranks=ranks) for rank in range(ranks)]
    told = [i for step in range(1, 3 * count) for order in orders for i in order.at(step)]
    epochs = [told[first : first + count] for first in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1 or count < 4


def test_the_order_follows_from_seed_and_step_alone() -> None:
    straight = [Order(50, 4, seed=9).at(step) for step in range(1, 40)]
    assert [Order(50, 4, seed=9).at(step) for step in (39, 7)] == [straight[38], straight[6]]
    assert Order(50, 4, seed=8).at(1) != straight[0]


def test_a_batch_holds_each_photo_once(model: Model, scenes: Path) -> None:
    [batch] = made(model, scenes, range(1, 2), batch=20)
    photos = {s.image for s in batch.samples}
    assert len(batch.pixels) == len(photos) < 20
    for sample, place in zip(batch.samples, batch.which.tolist(), strict=True):
        others = {p for s, p in zip(batch.samples, batch.which.tolist(), strict=True) if s.image == sample.image}
        assert others == {place}
    assert batch.target.shape == batch.inside.shape == (20, 32, 32)
    assert batch.inputs["input_ids"].shape[0] == 20
    assert batch.maps is None


def test_workers_make_the_same_batches(model: Model, scenes: Path) -> None:
    here, there = made(model, scenes, range(3, 6)), made(model, scenes, range(3, 6), workers=2)
    for one, other in zip(here, there, strict=True):
        assert one.samples == other.samples
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.target, other.target)
        assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])


def test_changes_at_random_follow_from_the_step(model: Model, scenes: Path) -> None:
    shaping = dataclasses.replace(SHAPING, augment=True)
    [first], [again] = (made(model, scenes, range(2, 3), batch=20, shaping=shaping) for _ in range(2))
    [plain] = made(model, scenes, range(2, 3), batch=20)
    assert len(first.pixels) == 20  # each changed in its own way
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels[0], plain.pixels[plain.which[0]])
    assert torch.equal(first.target, plain.target)


def test_another_square_is_brought_to_the_models_side() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
    for square in (64, 128, 300):
        shaping = dataclasses.replace(SHAPING, square=square)
        pixels = shaping.pixels(rgb, Place.of(60, 90, square))
        assert pixels.shape == (3, 128, 128) and pixels.dtype == torch.uint8
        assert pixels[:, :16].max() == 0 and pixels[:, 64].min() > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_is_gone_is_one_line(workers: int, model: Model, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "scenes")
    for image in (tmp_path / "scenes" / "images").iterdir():
        image.unlink()
    with pytest.raises(ImageError) as caught:
        made(model, tmp_path / "scenes", range(1, 3), workers=workers)
    assert multiprocessing.active_children() == []  # or the process would wait for them at its end
    assert re.fullmatch(r"/.*/scene_\d+\.png: no such file.*", str(caught.value))


def test_a_worker_that_is_told_to_stop_has_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convseg.batches.GRACE", 1)
    worker = multiprocessing.get_context("fork").Process(target=worker_of_a_second)
    worker.start()
    time.sleep(0.3)
    os.kill(worker.pid or 0, signal.SIGINT)
    worker.terminate()
    worker.join(0.3)
    assert worker.is_alive()
    worker.join(20)
    assert worker.exitcode == -signal.SIGALRM


def worker_of_a_second() -> None:
    leave_signals(0)
    time.sleep(30)


# The cache of features.


def maps_of(count: int, seed: int = 0) -> ImageMaps:
    torch.manual_seed(seed)
    return ImageMaps(torch.randn(count, 4, 32, 32), torch.randn(count, 8, 16, 16), torch.randn(count, 32, 8, 8))


def test_features_come_back_as_they_were(model: Model, scenes: Path, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features", ["weights"])
    [fresh] = made(model, scenes, range(1, 2), cache=cache)
    maps = maps_of(len(fresh.keys))
    cache.put(fresh.keys, maps, fresh.pictures)
    cache.close()
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == len(fresh.keys)
    [known] = made(model, scenes, range(1, 2), cache=FeatureCache(tmp_path / "features", ["weights"]), workers=1)
    assert len(known.pixels) == 0 and known.keys == []
    for name in ("fine", "middle", "coarse"):
        torch.testing.assert_close(getattr(known.maps, name)[known.which], getattr(maps, name)[fresh.which])
    for key in ("input_ids", "pixel_values"):  # what the language model reads is the same
        assert torch.equal(known.inputs[key], fresh.inputs[key])
    assert torch.equal(known.target, fresh.target)


def test_features_of_some_photos_of_a_batch(model: Model, scenes: Path, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, ["weights"])
    [fresh] = made(model, scenes, range(1, 2), cache=cache)
    maps = maps_of(len(fresh.keys))
    cache.put(fresh.keys[1:2], maps[torch.tensor([1])], fresh.pictures[1:2])
    cache.close()
    [mixed] = made(model, scenes, range(1, 2), cache=cache)
    assert len(mixed.pixels) == len(fresh.pixels) - 1
    computed = maps_of(len(mixed.pixels), seed=1)
    joined = mixed.maps.joined(computed)
    for i, sample in enumerate(mixed.samples):
        if cache.key(sample.image) == fresh.keys[1]:
            torch.testing.assert_close(joined.coarse[mixed.which[i]], maps.coarse[1])
        else:
            assert mixed.which[i] > 0


@pytest.mark.parametrize("harm", ["cut", "empty", "other"])
def test_a_damaged_file_is_made_anew(harm: str, model: Model, scenes: Path, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, ["weights"])
    [fresh] = made(model, scenes, range(1, 2), cache=cache)
    cache.put(fresh.keys, maps_of(len(fresh.keys)), fresh.pictures)
    cache.close()
    for file in tmp_path.rglob("*.safetensors"):
        content = file.read_bytes()
        file.write_bytes({"cut": content[:-50], "empty": b"", "other": b"not safetensors" * 9}[harm])
    [again] = made(model, scenes, range(1, 2), cache=cache)
    assert again.keys == fresh.keys and again.maps is None


def test_another_photo_or_encoder_has_other_features(scenes: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes((scenes / "images/scene_00000.png").read_bytes())
    cache = FeatureCache(tmp_path, ["weights", 128])
    first = cache.key(image)
    assert cache.key(image) == first
    os.utime(image, ns=(1, 1))
    assert cache.key(image) != first
    assert FeatureCache(tmp_path, ["weights", 256]).key(image) != cache.key(image)


def test_a_full_disk_is_told(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("convseg.batches.save_file", full)
    cache = FeatureCache(tmp_path / "features", [])
    cache.put(["ab" * 16], maps_of(1), [np.zeros((56, 56, 3), np.uint8)])
    with pytest.raises(OutputError, match="disk full"):
        cache.close()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_cache_goes_to_workers_without_its_writer(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, [])
    cache.put(["ab" * 16], maps_of(1), [np.zeros((56, 56, 3), np.uint8)])
    cache.close()
    assert pickle.loads(pickle.dumps(cache)).get("ab" * 16) is not None
