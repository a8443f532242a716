"""What an export writes, and what it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dataengine
from dataengine.card import CARD
from dataengine.errors import OutputError, UsageError
from dataengine.exporters import FORMATS, convseg, exporter, staging
from dataengine.exporters.convseg import export
from dataengine.exporters.state import STATE_FILE
from dataengine.records import EvalItems, ExportManifest, TrainRow
from dataengine.run_folder import write_whole
from tests.exporters.folders import LEFT, RIGHT, our_run, picture, prompt, published_run, save, write_negatives


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two run folders: `a` with three accepted prompts and a rejected one, `b` with one."""
    source = save(tmp_path / "photos" / "a.JPG", picture())
    prompts = {
        "entities": [prompt(0), prompt(1, verdict="REJECT"), prompt(2, (0, 1))],
        "physics": [prompt(0, (1,), prompt="Segment the „schwere“ Kiste")],
    }
    our_run(tmp_path / "runs", source, "out_region_refine_a", prompts=prompts)
    our_run(tmp_path / "runs", source, "out_region_refine_b")
    return tmp_path / "runs"


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "dataset.jsonl").read_text(encoding="utf-8").splitlines()]


def items_of(out: Path) -> dict[str, Any]:
    items: dict[str, Any] = json.loads((out / "items.json").read_text(encoding="utf-8"))
    return items


def files_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def assert_pairs_fit(out: Path) -> None:
    """Every pair, as a reader without knowledge of EXIF decodes it, has one size; masks are 0 or 255."""
    for item in items_of(out)["items"]:
        with Image.open(out / item["image"]) as image, Image.open(out / item["mask"]) as mask:
            assert image.convert("RGB").size == mask.size
            assert mask.mode == "L"
            assert set(np.unique(np.asarray(mask))) <= {0, 255}


# What is written.


def test_every_row_has_exactly_the_documented_fields(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "convseg_export"
    export(runs, out)
    rows, items = rows_of(out), items_of(out)
    assert len(rows) == len(items["items"]) == items["count"] == 4
    assert items["dataset"] == "convseg_export"
    assert set(items) == {"dataset", "count", "items"}
    for row, item in zip(rows, items["items"], strict=True):
        assert set(row) == {"image", "mask_merged", "prompt"}
        assert set(item) == {"id", "image", "mask", "prompt", "concept"}
        assert (row["image"], row["mask_merged"], row["prompt"]) == (item["image"], item["mask"], item["prompt"])
        TrainRow.model_validate(row)
    EvalItems.model_validate(items)
    assert_pairs_fit(out)


def test_ids_names_and_masks(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(runs, out)
    items = items_of(out)["items"]
    assert [item["id"] for item in items] == [
        "out_region_refine_a_entities_000_000000",
        "out_region_refine_a_entities_002_000001",
        "out_region_refine_a_physics_000_000002",
        "out_region_refine_b_entities_000_000000",
    ]
    assert [item["image"] for item in items] == ["images/a.jpg"] * 3 + ["images/b.jpg"]
    assert all(item["mask"] == f"masks/{item['id']}.png" for item in items)
    assert items[2]["prompt"] == "Segment the „schwere“ Kiste"
    with Image.open(out / items[1]["mask"]) as mask:
        np.testing.assert_array_equal(np.asarray(mask) > 0, LEFT | RIGHT)
    assert (out / "images" / "a.jpg").read_bytes() == (tmp_path / "photos" / "a.JPG").read_bytes()


def test_the_manifest_accounts_for_everything(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = export(runs, out)
    assert manifest == ExportManifest.model_validate_json((out / "export_manifest.json").read_bytes())
    assert manifest.complete
    assert manifest.counts.model_dump() == {
        "train_rows": 4,
        "eval_items": 4,
        "copied_images": 2,
        "written_masks": 4,
    }
    assert manifest.skipped_reason_counts == {"verdict_not_accept": 1}
    assert [(run.exported_samples, run.skipped_in_run) for run in manifest.per_run] == [(3, 1), (1, 0)]
    assert manifest.discovered_run_dirs == [run.run_dir for run in manifest.per_run]
    assert manifest.runs_root == str(runs)
    assert sorted(manifest.written_files) == sorted(files_of(out))


@pytest.mark.parametrize(
    ("mode", "names"),
    [("train", {"dataset.jsonl"}), ("eval", {"items.json"}), ("both", {"dataset.jsonl", "items.json"})],
)
def test_the_mode_decides_which_lists_are_written(runs: Path, tmp_path: Path, mode: Any, names: set[str]) -> None:
    out = tmp_path / "out"
    counts = export(runs, out, mode=mode).counts
    assert {p.name for p in out.iterdir() if p.is_file()} == names | {"export_manifest.json", CARD, STATE_FILE}
    assert (counts.train_rows, counts.eval_items) == (4 * (mode != "eval"), 4 * (mode != "train"))


def test_absolute_paths_lead_to_the_files(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export(runs, Path("out"), path_mode="absolute")
    for row in rows_of(tmp_path / "out"):
        assert row["image"].startswith(f"{tmp_path}/out/images/")
        assert Path(row["image"]).is_file()
        assert Path(row["mask_merged"]).is_file()


def test_the_published_layout_is_exported_in_one_size(tmp_path: Path) -> None:
    own = save(tmp_path / "photos" / "big.jpg", picture(900, 1200))
    small = picture(576, 768)
    mask = np.zeros((576, 768), bool)
    mask[100:200, 300:500] = True
    published_run(tmp_path / "runs", str(own), rgb=small, masks=[mask])
    manifest = export(tmp_path / "runs", tmp_path / "out")
    assert manifest.counts.train_rows == 1
    assert_pairs_fit(tmp_path / "out")
    assert [row["image"] for row in rows_of(tmp_path / "out")] == ["images/p.png"]
    (tmp_path / "runs" / "out_region_refine_p" / "original_image.png").unlink()
    export(tmp_path / "runs", tmp_path / "out")
    assert [row["image"] for row in rows_of(tmp_path / "out")] == ["images/p.jpg"]
    assert_pairs_fit(tmp_path / "out")


def test_an_exif_rotated_photo_is_exported_upright(tmp_path: Path) -> None:
    own = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(picture()))).save(own, exif=exif)
    our_run(tmp_path / "runs", own)
    export(tmp_path / "runs", tmp_path / "out")
    assert [row["image"] for row in rows_of(tmp_path / "out")] == ["images/a.png"]
    assert_pairs_fit(tmp_path / "out")


def test_a_run_of_another_shape_is_counted_and_the_others_are_exported(runs: Path, tmp_path: Path) -> None:
    published_run(runs, "/nowhere/p.jpg", rgb=picture(60, 40))
    manifest = export(runs, tmp_path / "out")
    assert manifest.counts.train_rows == 4
    assert manifest.skipped_reason_counts["mask_and_image_differ_in_shape"] == 1
    assert manifest.per_run[2].skipped_in_run == 1


def test_runs_of_nothing_still_make_an_export(tmp_path: Path) -> None:
    published_run(tmp_path / "runs", "/nowhere/p.jpg")
    manifest = export(tmp_path / "runs", tmp_path / "out")
    assert manifest.complete
    assert rows_of(tmp_path / "out") == []
    assert items_of(tmp_path / "out") == {"dataset": "out", "count": 0, "items": []}


# Negatives.


def test_negatives_are_added_on_request_only(runs: Path, tmp_path: Path) -> None:
    write_negatives(runs / "out_region_refine_a", "spatial", "ACCEPT")
    export(runs, tmp_path / "plain")
    manifest = export(runs, tmp_path / "out", include_negatives=True)
    assert manifest.include_negatives
    items = items_of(tmp_path / "out")["items"]
    assert [item.get("negative") for item in items] == [None, None, None, True, None]
    assert [item for item in items if "negative" not in item] == items_of(tmp_path / "plain")["items"]
    assert items[3]["id"] == "out_region_refine_a_spatial_000_000003"
    assert "negative" not in rows_of(tmp_path / "out")[3]
    with Image.open(tmp_path / "out" / items[3]["mask"]) as mask:
        assert not np.asarray(mask).any()
    assert_pairs_fit(tmp_path / "out")


# Names.


def test_another_run_folder_never_changes_an_id(runs: Path, tmp_path: Path) -> None:
    export(runs, tmp_path / "before")
    our_run(runs, tmp_path / "photos" / "a.JPG", "out_region_refine_0_first")
    export(runs, tmp_path / "after")
    before = items_of(tmp_path / "before")["items"]
    assert [item for item in items_of(tmp_path / "after")["items"] if item in before] == before


def test_runs_that_differ_only_in_the_prefix_do_not_share_an_image(runs: Path, tmp_path: Path) -> None:
    own = save(tmp_path / "photos" / "other.jpg", picture()[::-1].copy())
    our_run(runs, own, "a", rgb=picture()[::-1].copy())
    export(runs, tmp_path / "out")
    images = {item["id"]: item["image"] for item in items_of(tmp_path / "out")["items"]}
    assert (tmp_path / "out" / images["a_entities_000_000000"]).read_bytes() == own.read_bytes()
    assert len(set(images.values())) == 3


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "out_region_refine_" + "n" * 230])
def test_long_names_are_shortened_and_stay_different(tmp_path: Path, name: str) -> None:
    source = save(tmp_path / "a.png", picture())
    our_run(tmp_path / "runs", source, name)
    our_run(tmp_path / "runs", source, name[:-1] + "m")
    export(tmp_path / "runs", tmp_path / "out")
    items = items_of(tmp_path / "out")["items"]
    assert len({item["id"] for item in items}) == len({item["image"] for item in items}) == 2
    assert_pairs_fit(tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only Unicode names")
def test_a_name_that_is_not_utf_8_is_exported(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture())
    our_run(tmp_path / "runs", source).rename(tmp_path / "runs" / os.fsdecode(b"caf\xe9"))
    export(tmp_path / "runs", tmp_path / "out")
    assert_pairs_fit(tmp_path / "out")
    with pytest.raises(UsageError, match="UTF-8"):
        export(tmp_path / "runs", tmp_path / os.fsdecode(b"\xe9"))


# Exporting again.


def test_exporting_again_gives_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    export(runs, tmp_path / "out")
    before = files_of(tmp_path / "out")
    export(runs, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_what_is_no_longer_exported_is_removed(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(runs, out)
    (out / "notes.txt").write_text("mine")
    (out / "images" / "mine.png").write_text("mine")
    (runs / "out_region_refine_b").rename(tmp_path / "elsewhere")
    manifest = export(runs, out, mode="train")
    left = set(files_of(out))
    assert left == {*manifest.written_files, "notes.txt", "images/mine.png"}
    assert "items.json" not in left
    assert "images/b.jpg" not in left


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 7])
def test_an_export_cut_off_anywhere_can_be_made_again(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "out"
    export(runs, tmp_path / "whole" / "out", path_mode="relative")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt(patch, after)
        export(runs, out)
    if after:
        assert not json.loads((out / "export_manifest.json").read_text())["complete"]
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        if after:
            (out / folder / "stray.png").write_text("left by the export that was cut off")
    if not after:
        (out / "images").rmdir()
        (out / "masks").rmdir()
    manifest = export(runs, out)
    made, whole = files_of(out), files_of(tmp_path / "whole" / "out")
    assert sorted(manifest.written_files) == sorted(made) == sorted(whole)
    assert {n: b for n, b in made.items() if "manifest" not in n} == {
        n: b for n, b in whole.items() if "manifest" not in n
    }


def _interrupt(patch: pytest.MonkeyPatch, after: int) -> None:
    """Let some files be written, then interrupt."""
    left = [after]

    def limited(path: Path, data: bytes, **how: bool) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write_whole(path, data, **how)

    for module in (convseg, staging):
        patch.setattr(module, "write_whole", limited)


def test_an_old_list_is_removed_also_after_a_cut_off(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    export(runs, out, mode="both")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convseg, "stage", interrupt)
        export(runs, out, mode="train")
    assert (out / "items.json").exists()
    export(runs, out, mode="train")
    assert not (out / "items.json").exists()


@pytest.mark.parametrize(
    "entry", ["../x", "images/../../x", "images/..", "{tmp}/x", "notes.txt", "images", "images/sub/x"]
)
def test_a_manifest_cannot_have_other_files_removed(runs: Path, tmp_path: Path, entry: str) -> None:
    out = tmp_path / "out"
    export(runs, out)
    for precious in (tmp_path / "x", out / "notes.txt", out / "images" / "sub" / "x"):
        precious.parent.mkdir(exist_ok=True)
        precious.write_text("precious")
    manifest = json.loads((out / "export_manifest.json").read_text())
    manifest["written_files"].append(entry.replace("{tmp}", str(tmp_path)))
    (out / "export_manifest.json").write_text(json.dumps(manifest))
    export(runs, out)
    assert (tmp_path / "x").exists()
    assert (out / "notes.txt").exists()
    assert (out / "images" / "sub" / "x").exists()


def test_a_linked_folder_is_not_cleaned(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(runs, out)
    manifest = json.loads((out / "export_manifest.json").read_text())
    (out / "export_manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    (out / "images").rename(tmp_path / "gone")
    (out / "images").symlink_to(tmp_path / "photos")
    export(runs, out)
    assert (tmp_path / "photos" / "a.JPG").exists()


# Refusals.


@pytest.mark.parametrize("manifest", [None, "", "{}", "[]", '{"runs_root": "x", "written_files": []}'])
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(
    runs: Path, tmp_path: Path, manifest: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    if manifest is not None:
        (out / "export_manifest.json").write_text(manifest)
    before = files_of(out)
    with pytest.raises(UsageError, match="holds files") as caught:
        export(runs, out)
    assert caught.value.hint
    assert files_of(out) == before


def test_out_dir_must_be_a_folder(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="not a folder"):
        export(runs, tmp_path / "out")


def test_a_wrong_root_leaves_no_export_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        export(tmp_path / "gone", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_one_clear_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OutputError, match=r"export_manifest\.json"):
        export(runs, tmp_path / "out")


def test_a_stale_file_that_cannot_be_removed_is_one_clear_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name == "items.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(self, missing_ok)

    export(runs, tmp_path / "out")
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match=r"items\.json"):
        export(runs, tmp_path / "out", mode="train")


# Getting there.


def test_formats_are_found_by_name(runs: Path, tmp_path: Path) -> None:
    assert exporter("convseg") is export
    for name in FORMATS:
        assert callable(exporter(name))
    with pytest.raises(UsageError, match=r"no export format 'coco'. There are: convseg"):
        exporter("coco")


def test_the_script_works_from_any_folder(runs: Path, tmp_path: Path) -> None:
    script = Path(dataengine.__file__).parent / "tools" / "export_dataset.py"
    flags = ["--runs_root", str(runs), "--out_dir", "out", "--mode", "both", "--path_mode", "relative"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(script), *flags], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_pairs_fit(tmp_path / "out")
