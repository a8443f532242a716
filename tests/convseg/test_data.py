from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from convseg.data import (
    Place,
    Sample,
    checked,
    data_digest,
    jittered,
    read_hf,
    read_items,
    read_jsonl,
    read_mask,
    split_by_image,
    target_of,
    usable,
)
from dataengine.errors import UsageError
from dataengine.masks import BoolArray
from tests.photos import coffee
from tests.scenes import photograph

LINE = {"image": "a.jpg", "mask_merged": "a.png", "prompt": "Segment the cup"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photo a.jpg of 120x80 px, its mask a.png, and files that are of no use."""
    coffee(120).save(tmp_path / "a.jpg")
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 30:90] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    Image.fromarray(mask[:, :100]).save(tmp_path / "narrow.png")
    Image.fromarray(np.zeros_like(mask)).save(tmp_path / "empty.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def write_lines(folder: Path, *lines: str | dict[str, Any]) -> Path:
    path = folder / "dataset.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_lines_become_samples_with_paths_from_the_folder(folder: Path) -> None:
    absolute = {**LINE, "image": str(folder / "a.jpg"), "more": 1}
    loaded = checked(read_jsonl(write_lines(folder, LINE, "", absolute), folder), workers=0)
    assert loaded.bad == []
    assert [(s.image, s.mask, s.prompt, s.where) for s in loaded.samples] == [
        (folder / "a.jpg", folder / "a.png", "Segment the cup", "dataset.jsonl line 1"),
        (folder / "a.jpg", folder / "a.png", "Segment the cup", "dataset.jsonl line 3"),
    ]


BAD: list[tuple[str | dict[str, Any], str]] = [
    ('{"image": "a.jpg", ', "not JSON"),
    ("[1, 2]", "no JSON object"),
    ({"image": "a.jpg", "prompt": "x"}, "has no 'mask_merged'"),
    ({**LINE, "prompt": 3}, "has no 'prompt'"),
    ({**LINE, "prompt": "  "}, "'prompt' is empty"),
    ({**LINE, "image": "gone.jpg"}, "gone.jpg: no such file"),
    ({**LINE, "mask_merged": "gone.png"}, "gone.png: no such file"),
    ({**LINE, "mask_merged": "narrow.png"}, "image is 120x80 px, its mask 100x80"),
    ({**LINE, "mask_merged": "cut.png"}, "cut.png: cannot be decoded"),
    ({**LINE, "mask_merged": "text.png"}, "text.png: cannot be decoded"),
    ({**LINE, "image": "cut.jpg"}, "cut.jpg: cannot be decoded"),
    ({**LINE, "image": "text.png"}, "text.png: not an image"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_told_with_its_number(line: str | dict[str, Any], reason: str, folder: Path) -> None:
    loaded = checked(read_jsonl(write_lines(folder, LINE, line), folder), workers=0)
    assert len(loaded.samples) == 1
    [told] = loaded.bad
    assert told.startswith("dataset.jsonl line 2: ") and reason in told and "\n" not in told


def test_all_bad_lines_are_told_and_can_be_passed_over(folder: Path) -> None:
    path = write_lines(folder, LINE, *(line for line, _ in BAD))
    loaded = checked(read_jsonl(path, folder), workers=2)
    told: list[str] = []
    with pytest.raises(UsageError, match=r"12 of 13 samples cannot be used\. .*--skip_bad"):
        usable(loaded, "data", skip_bad=False, say=told.append)
    assert len(told) == len(BAD)
    told.clear()
    assert len(usable(loaded, "data", skip_bad=True, say=told.append)) == 1
    assert told[-1] == "data: passing over 12 of 13 samples"


def test_of_very_many_bad_lines_the_rest_is_counted(folder: Path) -> None:
    loaded = read_jsonl(write_lines(folder, *["{"] * 50), folder)
    told: list[str] = []
    with pytest.raises(UsageError, match="50 of 50"):
        usable(loaded, "data", skip_bad=False, say=told.append)
    assert len(told) == 21 and told[-1] == "... and 30 more"


def test_nothing_is_left(folder: Path) -> None:
    for content in ("", "{\n"):
        loaded = read_jsonl(write_lines(folder, content), folder)
        with pytest.raises(UsageError, match="holds no sample"):
            usable(loaded, "data", skip_bad=True, say=lambda _: None)


def test_a_missing_list_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--dataset-jsonl .*gone.jsonl: cannot be read \(No such file"):
        read_jsonl(tmp_path / "gone.jsonl", tmp_path)
    with pytest.raises(UsageError, match=r"--input_json .*gone.json: cannot be read"):
        read_items(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "not JSON"), ("[]", "no list 'items'"), ('{"items": 3}', "no list")]
)
def test_what_is_no_items_json(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(content)
    with pytest.raises(UsageError, match=reason):
        read_items(tmp_path / "items.json")


def test_items_with_and_without_what_may_be_left_out(folder: Path) -> None:
    item = {"image": "a.jpg", "mask": "a.png", "prompt": "Segment the cup"}
    absent = {**item, "id": "x", "mask": "empty.png", "concept": "physics", "negative": True}
    path = folder / "items.json"
    path.write_text(json.dumps({"items": [absent, item, {**item, "mask": ""}, "no item"]}))
    loaded = checked(read_items(path), workers=0)
    assert [(s.id, s.concept, bool(read_mask(s.mask).any())) for s in loaded.samples] == [
        ("x", "physics", False),
        ("item_2", "none", True),
    ]
    assert loaded.bad == ["items.json item 3: 'mask' is empty", "items.json item 4: no JSON object"]
    assert len(read_items(path, limit=1).samples) == 1


def test_a_prompt_may_hold_any_character(folder: Path) -> None:
    prompt = "Segment\u2028the\x85cup\u00a0now"
    path = folder / "dataset.jsonl"
    path.write_text("\r\n".join(json.dumps({**LINE, "prompt": p}, ensure_ascii=False) for p in (prompt, "x")))
    told = [(s.prompt, s.where) for s in read_jsonl(path, folder).samples]
    assert told == [(prompt, "dataset.jsonl line 1"), ("x", "dataset.jsonl line 2")]


def test_ids_that_stand_twice_are_told_apart(folder: Path) -> None:
    item = {"id": "x", "image": "a.jpg", "mask": "a.png", "prompt": "p"}
    (folder / "items.json").write_text(json.dumps({"items": [item, item, {**item, "id": "y"}, item]}))
    assert [s.id for s in read_items(folder / "items.json").samples] == ["x", "x_2", "y", "x_3"]


def test_the_digest_follows_the_samples(folder: Path) -> None:
    samples = read_jsonl(write_lines(folder, LINE, {**LINE, "mask_merged": "empty.png"}), folder).samples
    digests = {data_digest(samples), data_digest(samples[:1]), data_digest(samples[::-1])}
    assert len(digests) == 3
    assert data_digest(samples) in digests


@pytest.mark.parametrize(
    "make",
    [
        lambda m: Image.fromarray(m.astype(np.uint8) * 255),
        lambda m: Image.fromarray(m.astype(np.uint8)),
        lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("1"),
        lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("RGB"),
        lambda m: Image.merge("LA", [Image.new("L", m.shape[::-1], 90), Image.fromarray(m.astype(np.uint8) * 255)]),
        lambda m: Image.fromarray(np.dstack([np.full((*m.shape, 3), 7, np.uint8), m.astype(np.uint8) * 200])),
        lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("RGBA"),
    ],
)
def test_masks_of_every_kind(make: Callable[[BoolArray], Image.Image], tmp_path: Path) -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    make(mask).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)


def samples_of(images: int, each: int) -> list[Sample]:
    return [Sample(f"{i}_{k}", Path(f"{i}.png"), Path(f"{i}_{k}.png"), "x") for i in range(images) for k in range(each)]


@pytest.mark.parametrize(("images", "held"), [(2, 1), (30, 1), (100, 1), (249, 2), (1000, 10)])
def test_prompts_of_one_photo_are_never_split(images: int, held: int) -> None:
    trained, validated = split_by_image(samples_of(images, 3), 0.01, seed=7)
    assert len({s.image for s in validated}) == held
    assert not {s.image for s in trained} & {s.image for s in validated}
    assert len(trained) + len(validated) == 3 * images
    assert (trained, validated) == split_by_image(samples_of(images, 3), 0.01, seed=7)


def test_a_single_photo_serves_for_both() -> None:
    trained, validated = split_by_image(samples_of(1, 3), 0.01, seed=7)
    assert trained == validated != []


# Bringing a photo to the model.


@pytest.mark.parametrize("size", [(100, 200), (200, 100), (64, 64), (1000, 30), (3, 1000)])
def test_a_photo_lies_in_the_middle_of_the_square(size: tuple[int, int]) -> None:
    place = Place.of(*size, 64)
    square = place.photo(np.full((*size, 3), 200, np.uint8))
    rows, columns = np.nonzero(square[:, :, 0])
    assert square.shape == (64, 64, 3)
    assert (rows.min(), rows.max() + 1) == (place.top, place.top + place.rows)
    assert (columns.min(), columns.max() + 1) == (place.left, place.left + place.columns)
    assert max(place.rows, place.columns) == 64
    assert abs(place.top - (64 - place.rows - place.top)) <= 1
    assert (square[place.part] == 200).all()


def test_photo_and_target_lie_on_each_other() -> None:
    """A mask of a drawn thing covers its pixels in the square, at any shape of the photo."""
    for size in ((90, 200), (200, 90)):
        mask = np.zeros(size, bool)
        mask[20:70, 30:80] = True
        place = Place.of(*size, 128)
        drawn = place.photo(np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2))[:, :, 0] > 127
        covered = target_of(mask, place, 32)
        by_cells = drawn.reshape(32, 4, 32, 4).mean((1, 3))
        assert abs(covered - by_cells).max() <= 0.25  # a pixel's row of a cell
        assert covered.sum() * 16 == pytest.approx(mask.sum() * (128 / 200) ** 2, rel=0.05)
        assert place.inside(32).mean() == pytest.approx(0.45, abs=0.02)


def test_masks_are_made_thinner_and_none_vanishes() -> None:
    place = Place.of(64, 64, 64)
    square, thin = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    square[20:40, 20:40] = True
    thin[:, 30:33] = True
    assert target_of(square, place, 64, erode=5).sum() == 16 * 16
    assert target_of(square, place, 64, erode=5, times=2).sum() == 12 * 12
    assert target_of(square, place, 64, erode=0).sum() == target_of(square, place, 64, 5, times=0).sum() == 400
    assert target_of(thin, place, 64, erode=5).sum() == thin.sum()


def test_jitter_changes_light_and_colour_but_no_place() -> None:
    rgb = photograph("coffee", 200)
    changed = [jittered(rgb, np.random.default_rng(seed)) for seed in range(5)]
    for other in changed:
        assert other.shape == rgb.shape and other.dtype == np.uint8 and (other != rgb).any()
        assert np.corrcoef(other.ravel(), rgb.ravel())[0, 1] > 0.97
    np.testing.assert_array_equal(changed[0], jittered(rgb, np.random.default_rng(0)))


# Hugging Face datasets.


@pytest.fixture
def published(tmp_path: Path, folder: Path) -> Path:
    """A local dataset with the published columns: 3 rows of two photos, and a split of one row with a bad mask."""
    data = {key: (folder / file).read_bytes() for key, file in (("a", "a.jpg"), ("mask", "a.png"), ("bad", "cut.png"))}
    buffer = folder / "b.png"
    coffee(120).rotate(180).save(buffer)
    rows: list[dict[str, Any]] = [
        {
            "id": "one",
            "image": {"bytes": data["a"]},
            "mask": {"bytes": data["mask"]},
            "prompt": "p1",
            "concept": "physics",
        },
        {
            "id": "two",
            "image": {"bytes": data["a"]},
            "mask": {"bytes": data["mask"]},
            "prompt": "p2",
            "concept": "spatial",
        },
        {
            "id": "",
            "image": {"bytes": buffer.read_bytes()},
            "mask": {"bytes": data["mask"]},
            "prompt": "p3",
            "concept": None,
        },
    ]
    features = datasets.Features(
        {
            **dict.fromkeys(("id", "prompt", "concept"), datasets.Value("string")),
            "image": datasets.Image(),
            "mask": datasets.Image(),
        }
    )
    where = tmp_path / "hub" / "data"
    where.mkdir(parents=True)
    for split, content in (("sam_seeded", rows), ("human_annotated", [{**rows[0], "mask": {"bytes": data["bad"]}}])):
        table = datasets.Dataset.from_list(content, features=features)
        table.to_parquet(str(where / f"{split}-00000-of-00001.parquet"))
    return where.parent


def loaded_hf(published: Path, tmp_path: Path, *splits: str, limit: int | None = None) -> Any:
    return read_hf(str(published), None, splits, tmp_path / "cache", limit, tmp_path / "files")


def test_a_published_dataset_is_read_and_each_photo_written_once(published: Path, tmp_path: Path) -> None:
    found = loaded_hf(published, tmp_path)
    assert sorted(found) == ["human_annotated", "sam_seeded"]
    samples = checked(found["sam_seeded"], workers=0).samples
    assert [(s.id, s.prompt, s.concept) for s in samples] == [
        ("one", "p1", "physics"),
        ("two", "p2", "spatial"),
        ("sam_seeded_2", "p3", "none"),
    ]
    assert samples[0].image == samples[1].image != samples[2].image
    assert read_mask(samples[0].mask).sum() == 40 * 60
    [told] = checked(found["human_annotated"], workers=0).bad
    assert told.startswith("human_annotated row 0: mask ")


def test_a_split_and_a_limit(published: Path, tmp_path: Path) -> None:
    found = loaded_hf(published, tmp_path, "sam_seeded", limit=2)
    assert list(found) == ["sam_seeded"] and len(found["sam_seeded"].samples) == 2


@pytest.mark.parametrize(
    ("split", "drop", "reason"),
    [("gone", "", "no split 'gone'"), ("sam_seeded", "mask", "has no column 'mask'"), ("", "all", "cannot be loaded")],
)
def test_what_is_no_such_dataset(split: str, drop: str, reason: str, published: Path, tmp_path: Path) -> None:
    for file in published.rglob("*.parquet") if drop else ():
        table = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "other"))
        table.remove_columns(["mask"]).to_parquet(str(file))
    if drop == "all":
        published = tmp_path / "gone"
    with pytest.raises(UsageError, match=reason) as caught:
        loaded_hf(published, tmp_path, *([split] if split else []))
    assert "\n" not in str(caught.value)
