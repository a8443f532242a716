"""What is read from run folders: which prompts pass, whose masks, and which image goes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataengine import finished
from dataengine.errors import UsageError
from dataengine.exporters.runs import read_run
from dataengine.finished import find_runs
from dataengine.masks import BoolArray
from dataengine.records import CONCEPTS
from tests.exporters.folders import (
    LEFT,
    RIGHT,
    box,
    our_run,
    picture,
    prompt,
    published_run,
    save,
    write_masks,
    write_negatives,
    write_summaries,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "photos" / "a.png", picture())


# Discovery.


def test_runs_are_found_in_a_root_by_name_and_a_run_is_its_own_root(tmp_path: Path, source: Path) -> None:
    second = our_run(tmp_path / "runs", source, "out_region_refine_b")
    first = our_run(tmp_path / "runs", source, "out_region_refine_a")
    (tmp_path / "runs" / "logs" / "entities").mkdir(parents=True)
    assert find_runs(tmp_path / "runs") == [first, second]
    assert find_runs(first) == [first]


def test_a_root_given_relative_to_the_working_directory_keeps_its_name(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = our_run(tmp_path, source)
    monkeypatch.chdir(folder)
    assert find_runs(Path()) == [folder]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone", "no such folder"),
        ("photos/a.png", "not a folder"),
        ("photos", "no run folder in it"),
        ("x" * 300, "cannot be read"),
    ],
)
def test_a_root_without_runs_is_refused(tmp_path: Path, source: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        find_runs(tmp_path / name)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


# The filter.


def test_the_mask_is_the_union_of_all_satisfying_masks(tmp_path: Path, source: Path) -> None:
    run = read_run(our_run(tmp_path, source, prompts={"spatial": [prompt(4, (0, 1))]}))
    [sample] = run.samples
    assert (sample.concept, sample.index, sample.negative) == ("spatial", 4, False)
    np.testing.assert_array_equal(sample.mask.array(), LEFT | RIGHT)
    assert not run.skipped


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (prompt(verdict="REJECT"), "verdict_not_accept"),
        (prompt(verdict=None), "verdict_not_accept"),
        (prompt(satisfying=()), "satisfying_empty"),
        (prompt() | {"satisfying": None}, "satisfying_empty"),
        (prompt(satisfying=(0, 7)), "region_missing"),
        (prompt(satisfying=(-1,)), "region_missing"),
        (prompt(prompt=" \n"), "prompt_blank"),
        (prompt(prompt=None), "prompt_malformed"),
        (prompt(index=-1), "prompt_malformed"),
        (prompt() | {"satisfying": ["the left one"]}, "prompt_malformed"),
        ("Segment it", "prompt_malformed"),
        (prompt(satisfying=(2,)), "mask_empty"),
        (prompt(satisfying=(0, 3)), "masks_differ_in_size"),
    ],
)
def test_a_prompt_left_out_is_counted_by_its_reason(tmp_path: Path, source: Path, entry: object, reason: str) -> None:
    masks = [LEFT, RIGHT, np.zeros_like(LEFT), box(0, 0, 5, 5, 20, 30)]
    run = read_run(our_run(tmp_path, source, masks=masks, prompts={"entities": [entry]}))
    assert dict(run.skipped) == {reason: 1}
    assert (run.samples, run.image) == ([], None)


def test_a_prompt_left_out_does_not_touch_the_others(tmp_path: Path, source: Path) -> None:
    entries = [prompt(0), prompt(1, verdict="REJECT"), prompt(2, (1,))]
    run = read_run(our_run(tmp_path, source, prompts={"entities": entries}))
    assert [sample.index for sample in run.samples] == [0, 2]
    assert dict(run.skipped) == {"verdict_not_accept": 1}


def test_a_prompt_without_index_takes_its_position(tmp_path: Path, source: Path) -> None:
    entries = [prompt(0, verdict="REJECT"), {**prompt(), "index": None}]
    assert [s.index for s in read_run(our_run(tmp_path, source, prompts={"entities": entries})).samples] == [1]


def test_a_run_with_masks_of_several_sizes_is_left_out(tmp_path: Path, source: Path) -> None:
    masks = [LEFT, box(0, 0, 5, 5, 20, 30)]
    run = read_run(our_run(tmp_path, source, masks=masks, prompts={"entities": [prompt(0), prompt(1, (1,))]}))
    assert dict(run.skipped) == {"masks_differ_in_size": 2}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"prompt_verifications": 3}', "[" * 100_000, "\ud800"])
def test_a_damaged_summary_is_counted_and_the_others_are_read(tmp_path: Path, source: Path, text: str) -> None:
    folder = our_run(tmp_path, source)
    (folder / "physics").mkdir()
    (folder / "physics" / "summary.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    run = read_run(folder)
    assert dict(run.skipped) == {"summary_unreadable": 1}
    assert len(run.samples) == 1


def test_a_summary_without_prompts_gives_nothing(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path, source, prompts={})
    (folder / "entities").mkdir()
    (folder / "entities" / "summary.json").write_text('{"prompt_verifications": null}')
    run = read_run(folder)
    assert (run.samples, dict(run.skipped)) == ([], {})


# Masks.


def test_the_mask_of_a_region_is_read_once_however_many_prompts_mean_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read, decode = Path.read_bytes, finished.png_mask
    decoded: list[bytes] = []

    def noted(self: Path) -> bytes:
        opened.append(self.name)
        return read(self)

    def counted(data: bytes) -> BoolArray:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(Path, "read_bytes", noted)
    monkeypatch.setattr(finished, "png_mask", counted)
    entries = [prompt(index, satisfying) for index, satisfying in enumerate([(0,), (0, 1), (1, 0), (1,), (0, 0)])]
    folder = our_run(tmp_path, source, prompts=dict.fromkeys(("entities", "physics", "spatial"), entries))
    opened.clear()
    run = read_run(folder)
    assert len(run.samples) == 15
    assert sorted(name for name in opened if name.endswith("_mask.png")) == ["000_mask.png", "001_mask.png"]
    assert len(decoded) == 2
    assert len({id(sample.mask) for sample in run.samples}) == 3


def test_everything_that_was_looked_at_is_noted_with_its_digest(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path, source, prompts={"entities": [prompt(0, (1,))]})
    assert (noted := read_run(folder, negatives=True).sources) is not None
    assert {place for place, digest in noted.items() if digest} == {
        "run:entities/summary.json",
        "run:accepted_regions/accepted.json",
        "run:accepted_regions/masks/001_mask.png",
        "run:run.json",
        f"path:{source}",
    }
    assert {place for place, digest in noted.items() if not digest} == {
        *(f"run:{concept}/summary.json" for concept in ("affordances", "physics", "relations", "spatial")),
        *(f"run:negatives/{concept}.json" for concept in CONCEPTS),
        "run:reviews.jsonl",
    }


def test_a_file_that_cannot_be_read_leaves_the_sources_unknown(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = our_run(tmp_path, source)
    read = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == "000_mask.png":
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    run = read_run(folder)
    assert dict(run.skipped) == {"mask_unreadable": 1}
    assert run.sources is None


@pytest.mark.parametrize(("text", "reason"), [(None, "accepted_json_missing"), ("{", "accepted_json_unreadable")])
def test_prompts_without_a_list_of_regions_are_counted(
    tmp_path: Path, source: Path, text: str | None, reason: str
) -> None:
    folder = our_run(tmp_path, source, prompts={"entities": [prompt(0), prompt(1)]})
    listing = folder / "accepted_regions" / "accepted.json"
    listing.unlink()
    if text is not None:
        listing.write_text(text)
    assert dict(read_run(folder).skipped) == {reason: 2}


def test_a_malformed_region_is_no_region(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path, source)
    (folder / "accepted_regions" / "accepted.json").write_text('[7, {"index": "first"}]')
    assert dict(read_run(folder).skipped) == {"region_missing": 1}


def test_a_missing_mask_is_taken_from_the_npz_file(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path, source)
    masks = folder / "accepted_regions" / "masks"
    (masks / "000_mask.png").unlink()
    assert dict(read_run(folder).skipped) == {"mask_missing": 1}
    np.savez_compressed(masks / "000_mask.npz", mask=LEFT.astype(np.uint8))
    np.testing.assert_array_equal(read_run(folder).samples[0].mask.array(), LEFT)


def test_a_damaged_mask_is_counted(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path, source)
    for name in ("000_mask.png", "000_mask.npz"):
        (folder / "accepted_regions" / "masks" / name).write_bytes(b"\x89PNG\r\n")
    assert dict(read_run(folder).skipped) == {"mask_unreadable": 1}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_is_whatever_is_not_black(tmp_path: Path, source: Path, mode: str) -> None:
    folder = our_run(tmp_path, source)
    grey = Image.fromarray(LEFT.astype(np.uint8) * 255)
    grey.convert(mode).save(folder / "accepted_regions" / "masks" / "000_mask.png")
    np.testing.assert_array_equal(read_run(folder).samples[0].mask.array(), LEFT)


@pytest.mark.parametrize("base", ["", "runs/out_region_refine_p/", "/nowhere/", "C:\\runs\\", "n" * 300 + "/"])
def test_a_mask_is_found_where_its_folder_was_moved(tmp_path: Path, base: str) -> None:
    folder = published_run(tmp_path, "/nowhere/p.jpg", rgb=picture(), base=base)
    if base.startswith("C:"):
        listing = folder / "accepted_regions" / "accepted.json"
        listing.write_text(listing.read_text().replace("accepted_regions/masks/", "accepted_regions\\\\masks\\\\"))
    assert len(read_run(folder).samples) == 1


def test_a_mask_named_by_an_absolute_path_that_exists_is_the_last_choice(tmp_path: Path) -> None:
    folder = published_run(tmp_path, "/nowhere/p.jpg", rgb=picture())
    write_masks(folder, [LEFT], base=f"{tmp_path}/elsewhere/")
    (folder / "accepted_regions" / "masks").rename(folder / "gone")
    assert dict(read_run(folder).skipped) == {"mask_missing": 1}
    (tmp_path / "elsewhere" / "accepted_regions").mkdir(parents=True)
    (folder / "gone").rename(tmp_path / "elsewhere" / "accepted_regions" / "masks")
    assert len(read_run(folder).samples) == 1


# The image: the user's own file where it shows what the engine saw.


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".TIF", ".webp", ".bmp"])
def test_the_users_file_is_taken_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    own = save(tmp_path / f"a{suffix}", picture())
    image = read_run(our_run(tmp_path / "runs", own)).image
    assert image is not None
    assert image.data == own.read_bytes()
    assert image.suffix == suffix.lower()


def test_a_file_without_suffix_is_named_for_its_format(tmp_path: Path) -> None:
    own = save(tmp_path / "a.png", picture()).rename(tmp_path / "photo")
    image = read_run(our_run(tmp_path / "runs", own)).image
    assert image is not None
    assert (image.suffix, image.data) == (".png", own.read_bytes())


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_opaque_8_bit_modes_are_taken(tmp_path: Path, mode: str) -> None:
    own = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(picture()).convert(mode).save(own)
    assert _staged(our_run(tmp_path / "runs", own)) == own.read_bytes()


def _staged(folder: Path) -> bytes:
    image = read_run(folder).image
    assert image is not None
    return image.data


def _rotated(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.ascontiguousarray(np.rot90(picture()))
    Image.fromarray(turned).save(path, exif=exif)
    return path


def _half_turned(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture()).save(path, exif=exif)
    return path


def _rgba(path: Path) -> Path:
    Image.fromarray(picture()).convert("RGBA").save(path)
    return path


def _transparent_palette(path: Path) -> Path:
    Image.fromarray(picture()).quantize(16).save(path, transparency=3)
    return path


def _sixteen_bits(path: Path) -> Path:
    Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 257).save(path)
    return path


def _cut_off(path: Path) -> Path:
    whole = save(path, picture()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_rotated, "a.jpg"),
        (_half_turned, "a.jpg"),
        (_half_turned, "a.tif"),
        (_rgba, "a.png"),
        (_transparent_palette, "a.png"),
        (_sixteen_bits, "a.png"),
        (_cut_off, "a.png"),
    ],
)
def test_a_file_that_plain_decoding_shows_otherwise_gives_way_to_the_original_image(
    tmp_path: Path, make: object, name: str
) -> None:
    assert callable(make)
    folder = our_run(tmp_path / "runs", make(tmp_path / name))
    assert _staged(folder) == (folder / "original_image.png").read_bytes()


def test_a_file_changed_since_gives_way_to_the_original_image(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path / "runs", source)
    assert _staged(folder) == source.read_bytes()
    save(source, picture()[::-1].copy())
    assert _staged(folder) == (folder / "original_image.png").read_bytes()


def test_without_a_sound_record_the_file_is_not_trusted(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path / "runs", source)
    (folder / "original_image.png").write_bytes(save(tmp_path / "other.png", picture()).read_bytes() + b" ")
    (folder / "run.json").write_text("{")
    assert _staged(folder) == (folder / "original_image.png").read_bytes()


def test_another_picture_of_the_same_size_and_name_is_not_taken(tmp_path: Path, source: Path) -> None:
    folder = published_run(tmp_path / "runs", str(source), rgb=picture()[:, ::-1].copy())
    assert _staged(folder) == (folder / "original_image.png").read_bytes()
    save(folder / "original_image.png", picture())
    assert _staged(folder) == source.read_bytes()


@pytest.mark.parametrize("place", ["run folder", "working directory"])
def test_a_relative_image_path_is_of_the_run_folder_or_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = published_run(tmp_path / "runs", "photos/p.png")
    own = save((folder if place == "run folder" else tmp_path) / "photos" / "p.png", picture())
    assert _staged(folder) == own.read_bytes()


@pytest.mark.parametrize("named", ["/nowhere/p.jpg", "", "n" * 300, "nul\0byte", "/dev/null"])
def test_without_any_image_the_samples_are_counted(tmp_path: Path, named: str) -> None:
    run = read_run(published_run(tmp_path, named))
    assert dict(run.skipped) == {"image_missing": 1}
    assert run.samples == []


# Scaling: only where no image has the masks' size.


def test_published_masks_take_the_small_original_image(tmp_path: Path) -> None:
    own = save(tmp_path / "p.jpg", picture(400, 600))
    folder = published_run(tmp_path / "runs", str(own), rgb=picture())
    assert _staged(folder) == (folder / "original_image.png").read_bytes()


def test_a_photo_that_was_worked_on_at_a_smaller_size_takes_the_original_image(tmp_path: Path) -> None:
    own = save(tmp_path / "a.png", picture(400, 600))
    folder = our_run(tmp_path / "runs", own)
    assert _staged(folder) == (folder / "original_image.png").read_bytes()


def test_masks_are_scaled_to_the_users_file_where_nothing_else_is_left(tmp_path: Path) -> None:
    own = save(tmp_path / "p.jpg", picture(399, 601))
    run = read_run(published_run(tmp_path / "runs", str(own)))
    assert run.image is not None
    assert run.image.data == own.read_bytes()
    mask = run.samples[0].mask
    assert (mask.height, mask.width) == run.image.size == (399, 601)
    assert mask.array().sum() == pytest.approx(LEFT.sum() * 100, rel=0.05)


def test_masks_are_scaled_to_the_original_image_first(tmp_path: Path) -> None:
    own = save(tmp_path / "p.jpg", picture(400, 600))
    folder = published_run(tmp_path / "runs", str(own), rgb=picture(80, 120))
    assert _staged(folder) == (folder / "original_image.png").read_bytes()


@pytest.mark.parametrize("size", [(60, 40), (400, 400), (400, 620)])
def test_an_image_of_another_shape_is_never_paired(tmp_path: Path, size: tuple[int, int]) -> None:
    own = save(tmp_path / "p.png", picture(*size))
    run = read_run(published_run(tmp_path / "runs", str(own)))
    assert dict(run.skipped) == {"mask_and_image_differ_in_shape": 1}


def test_a_mask_that_vanishes_in_scaling_is_left_out(tmp_path: Path) -> None:
    folder = published_run(tmp_path, "/nowhere/p.jpg", rgb=picture(20, 30), masks=[box(1, 1, 2, 2), RIGHT])
    write_summaries(folder, {"entities": [prompt(0), prompt(1, (1,))]}, "")
    run = read_run(folder)
    assert [sample.index for sample in run.samples] == [1]
    assert dict(run.skipped) == {"mask_empty": 1}


# Negatives.


def test_negatives_come_last_with_empty_masks_of_the_images_size(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path / "runs", source, prompts={"entities": [prompt()], "physics": [prompt()]})
    write_negatives(folder, "entities", "REJECT", "ACCEPT")
    run = read_run(folder, negatives=True)
    assert [(s.concept, s.index, s.negative) for s in run.samples] == [
        ("entities", 0, False),
        ("physics", 0, False),
        ("entities", 1, True),
    ]
    mask = run.samples[-1].mask
    assert (*mask.size, mask.any) == (40, 60, False)
    assert dict(run.skipped) == {"negative_not_accept": 1}
    assert len(read_run(folder).samples) == 2


@pytest.mark.parametrize("source_left", [True, False])
def test_a_run_without_accepted_regions_gives_its_negatives(tmp_path: Path, source: Path, source_left: bool) -> None:
    folder = our_run(tmp_path / "runs", source, masks=[], prompts={"entities": []})
    write_negatives(folder, "spatial", "ACCEPT")
    wanted = (source if source_left else folder / "original_image.png").read_bytes()
    if not source_left:
        source.unlink()
    run = read_run(folder, negatives=True)
    assert [sample.negative for sample in run.samples] == [True]
    assert run.image is not None
    assert run.image.data == wanted


@pytest.mark.parametrize("text", ["{", "{}", "null"])
def test_damaged_negatives_are_counted(tmp_path: Path, source: Path, text: str) -> None:
    folder = our_run(tmp_path / "runs", source)
    (folder / "negatives").mkdir()
    (folder / "negatives" / "physics.json").write_text(text)
    run = read_run(folder, negatives=True)
    assert dict(run.skipped) == {"negatives_unreadable": 1}
    assert len(run.samples) == 1
