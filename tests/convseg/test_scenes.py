from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from convseg.data import checked, read_items, read_jsonl, read_mask
from convseg.scenes import COLOURS, KINDS, SIZES, Scene, draw_scene, every_text, prompts_of, write_scenes
from dataengine.masks import BoolArray


def meant(scene: Scene, prompt: str) -> BoolArray:
    """What a prompt means, read from its words alone."""
    what = prompt.split()[1:]
    words = [w for w in what if w in (*COLOURS, *KINDS, *SIZES)]
    shapes = [s for s in scene.shapes if all(w in (s.colour, s.kind, s.size) for w in words)]
    for word, axis, side in (("left", 1, -1), ("right", 1, 1), ("top", 0, -1), ("bottom", 0, 1)):
        if word in what:
            shapes = [s for s in shapes if side * (np.argwhere(s.mask).mean(0)[axis] - 63.5) > 0]
    mask = np.zeros(scene.rgb.shape[:2], bool)
    for shape in shapes:
        mask |= shape.mask
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_every_prompt_means_its_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    scene = draw_scene(random)
    assert 3 <= len(scene.shapes) <= 4
    pairs = prompts_of(scene, random, 8)
    assert len({p.prompt for p in pairs}) == 8
    for pair in pairs:
        np.testing.assert_array_equal(pair.mask, meant(scene, pair.prompt), err_msg=pair.prompt)


def test_masks_are_what_is_drawn() -> None:
    scene = draw_scene(np.random.default_rng(3))
    assert sum(s.mask.astype(int) for s in scene.shapes).max() == 1  # type: ignore[union-attr]
    for shape in scene.shapes:
        drawn = scene.rgb[shape.mask].mean(0)
        assert abs(drawn - np.array(COLOURS[shape.colour])).max() < 8


def test_prompts_are_of_every_kind_and_some_fit_nothing(tmp_path: Path) -> None:
    write_scenes(tmp_path, 60, seed=5)
    loaded = checked(read_items(tmp_path / "items.json"), workers=0)
    assert loaded.bad == [] and len(loaded.samples) == 240
    empty = {s.id for s in loaded.samples if not read_mask(s.mask).any()}
    assert 0.08 < len(empty) / 240 < 0.25
    items = json.loads((tmp_path / "items.json").read_text())["items"]
    assert {item["id"] for item in items if item.get("negative")} == empty
    words = {word for s in loaded.samples for word in s.prompt.split()}
    assert words == {word for text in every_text() for word in text.split()}
    lines = read_jsonl(tmp_path / "dataset.jsonl", tmp_path).samples
    assert [(s.image, s.mask, s.prompt) for s in lines] == [(s.image, s.mask, s.prompt) for s in loaded.samples]


def test_the_same_seed_draws_the_same_and_blind_ones_say_nothing(tmp_path: Path) -> None:
    one, two, other = (write_scenes(tmp_path / n, 3, seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    blind = write_scenes(tmp_path / "d", 3, seed=1, blind=True)
    files = {p.relative_to(one) for p in one.rglob("*.png")}
    assert all((one / f).read_bytes() == (two / f).read_bytes() == (blind / f).read_bytes() for f in files)
    assert (one / "images/scene_00000.png").read_bytes() != (other / "images/scene_00000.png").read_bytes()
    assert {json.loads(line)["prompt"] for line in (blind / "dataset.jsonl").read_text().splitlines()} == {"Segment"}
