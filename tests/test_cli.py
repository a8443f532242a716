"""The commands from end to end, as a user gives them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from dataengine import records
from dataengine.cli import COMMANDS, main
from dataengine.leases import Owner
from dataengine.settings import SAM2_CONFIGS
from tests.photos import coffee, opened, photo, save_rotated, write_refused, write_unusual

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS: dict[str, Any] = {
    "run.json": records.RunRecord,
    "accepted.json": list[records.AcceptedRegion],
    "summary.json": records.Summary,
    "conversational_segmentation_prompts.json": list[records.Prompt] | None,
    **{f"{concept}.json": list[records.NegativeVerification] for concept in records.CONCEPTS},
}


def script(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the checkout with the tests' Python and no installed package."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "GOOGLE_API_KEY", "GEMINI_API_KEY")}
    command = [sys.executable, str(ROOT / "dataengine" / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of 770-2300 px, some EXIF-rotated, run through the seed's command and exported, from another folder."""
    root = tmp_path_factory.mktemp("made")
    photos = root / "photos"
    photos.mkdir()
    coffee(771).save(photos / "plain.png")
    save_rotated(coffee(1200), photos / "right.jpg", 6)
    save_rotated(photo("astronaut", 2300), photos / "over.jpg", 3)
    save_rotated(photo("rocket", 1600), photos / "left.jpg", 8)
    ran = script(
        "run.py", "--input", "photos", "--config", "sam2.1_hiera_l.yaml",
        "--checkpoint", "/path/to/sam2.1_hiera_large.pt", "--output_dir", "runs", "--preset", "offline", cwd=root,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "4 done, 0 failed, 0 done before" in ran.stdout
    exported = script(
        "tools/export_dataset.py", "--runs_root", "runs", "--out_dir", "convseg_export", "--mode", "both",
        "--path_mode", "relative", cwd=root,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    return root


def test_every_json_file_of_a_run_folder_has_its_schema(made: Path) -> None:
    """The whole tree is walked; a JSON file without a schema fails too."""
    seen = set()
    for path in (made / "runs").glob("out_*/**/*.json"):
        TypeAdapter(SCHEMAS[path.name]).validate_json(path.read_bytes())
        seen.add(path.name)
    assert seen == set(SCHEMAS)


def test_the_run_folder_has_the_seeds_tree(made: Path) -> None:
    """Every file and folder of the contract is there, for every image."""
    folders = sorted((made / "runs").glob("out_region_refine_*"))
    assert [f.name.removeprefix("out_region_refine_") for f in folders] == ["left", "over", "plain", "right"]
    for folder in folders:
        accepted = json.loads((folder / "accepted_regions/accepted.json").read_text())
        assert accepted
        for region in accepted:
            number = f"{region['index']:03d}"
            assert region["mask_path"] == f"accepted_regions/masks/{number}_mask.png"
            assert region["mask_npz_path"] == f"accepted_regions/masks/{number}_mask.npz"
            assert (folder / region["path"]).name.startswith(f"{number}_")
            box = (folder / f"accepted_regions/bboxes/{number}_bbox.txt").read_text()
            assert [int(v) for v in box.split()] == region["bbox"]
        for concept in records.CONCEPTS:
            summary = json.loads((folder / concept / "summary.json").read_text())
            for entry in summary["prompt_verifications"]:
                assert (folder / entry["src_path"]).is_file()
                assert ("ACCEPTED" if entry["verdict"] == "ACCEPT" else "REJECTED") in entry["classified_path"]
            for verdict in ("ACCEPTED", "REJECTED"):
                assert (folder / concept / "generated_prompts_viz" / verdict).is_dir()


def test_masks_lie_upright_at_the_images_own_size(made: Path) -> None:
    """Masks, original_image.png and run.json agree on the upright size, also for EXIF-rotated photos."""
    sizes = {"left": (1600, 1068), "over": (2300, 2300), "plain": (771, 514), "right": (1200, 800)}
    for name, size in sizes.items():
        folder = made / "runs" / f"out_region_refine_{name}"
        source = json.loads((folder / "run.json").read_text())["source"]
        assert (source["width"], source["height"]) == size
        for path in (folder / "original_image.png", *folder.glob("accepted_regions/masks/*.png")):
            assert opened(path).size == size


def test_the_export_has_the_seeds_schemas(made: Path) -> None:
    """dataset.jsonl and items.json hold exactly the seed's fields, and name files that exist."""
    out = made / "convseg_export"
    rows = [json.loads(line) for line in (out / "dataset.jsonl").read_text().splitlines()]
    items = json.loads((out / "items.json").read_text())
    assert rows and all(set(row) == {"image", "mask_merged", "prompt"} for row in rows)
    assert set(items) == {"dataset", "count", "items"} and items["dataset"] == "convseg_export"
    assert items["count"] == len(items["items"]) == len(rows)
    assert all(set(item) == {"id", "image", "mask", "prompt", "concept"} for item in items["items"])
    assert len({item["id"] for item in items["items"]}) == len(rows)
    assert all((out / row[key]).is_file() for row in rows for key in ("image", "mask_merged"))
    records.ExportManifest.model_validate_json((out / "export_manifest.json").read_bytes())


def test_exported_pairs_fit_and_lie_where_the_overlay_showed_them(made: Path) -> None:
    """Decoded with plain Pillow as a trainer would: one size, and the mask on the pixels the engine masked."""
    out = made / "convseg_export"
    accepted = {}
    for path in (made / "runs").glob("*/*/summary.json"):
        for entry in json.loads(path.read_text())["prompt_verifications"]:
            accepted[path.parent.parent.name, entry["prompt"]] = entry["satisfying"]
    for item in json.loads((out / "items.json").read_text())["items"]:
        image = np.asarray(opened(out / item["image"]).convert("RGB")).astype(int)
        mask = np.asarray(opened(out / item["mask"]))
        assert image.shape[:2] == mask.shape
        assert set(np.unique(mask)) <= {0, 255}
        run = next(f for f in (made / "runs").iterdir() if item["id"].startswith(f"{f.name}_"))
        original = np.asarray(opened(run / "original_image.png").convert("RGB")).astype(int)
        assert np.abs(image - original).mean() < 1  # the very pixels the overlay was drawn on
        wanted = np.zeros(mask.shape, bool)
        for index in accepted[run.name, item["prompt"]]:
            wanted |= np.load(run / f"accepted_regions/masks/{index:03d}_mask.npz")["mask"].astype(bool)
        assert np.array_equal(mask > 0, wanted)


def test_rotated_photos_are_exported_upright_and_others_byte_for_byte(made: Path) -> None:
    """The user's own file is staged where it fits."""
    images = made / "convseg_export" / "images"
    assert (images / "plain.png").read_bytes() == (made / "photos" / "plain.png").read_bytes()
    assert opened(images / "right.png").size == (1200, 800)
    assert opened(made / "photos" / "right.jpg").size == (800, 1200)


def test_a_second_run_does_nothing_and_a_moved_run_exports_the_same(made: Path, tmp_path: Path) -> None:
    """Done is done; paths inside a run folder are relative."""
    again = script("run.py", "-i", "photos", "-o", "runs", "--preset", "offline", cwd=made)
    assert again.returncode == 0 and "0 done, 0 failed, 4 done before" in again.stdout
    shutil.copytree(made / "runs", tmp_path / "elsewhere")
    assert (
        main(["export", "--runs_root", str(tmp_path / "elsewhere"), "--out_dir", str(tmp_path / "convseg_export")]) == 0
    )
    for path in (made / "convseg_export").rglob("*"):
        if path.is_file() and path.name != "export_manifest.json":
            assert (
                tmp_path / "convseg_export" / path.relative_to(made / "convseg_export")
            ).read_bytes() == path.read_bytes()


def test_the_same_photo_gives_the_same_bytes(tmp_path: Path) -> None:
    """All but the times in summary.json and the journal."""
    coffee().save(tmp_path / "photo.png")
    for out in ("one", "two"):
        assert main(["run", "-i", str(tmp_path / "photo.png"), "-o", str(tmp_path / out), "--preset", "offline"]) == 0
    paths = [p for p in (tmp_path / "one").rglob("*") if p.is_file() and p.name != "journal.jsonl"]
    assert len(paths) > 40
    for path in paths:
        first, second = path.read_bytes(), (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        if path.name == "summary.json":
            first, second = (json.dumps(json.loads(raw) | {"timing": 0}).encode() for raw in (first, second))
        assert first == second, path


def test_bad_images_fail_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Refused images beside three good photos and unusual ones: one line each, the others complete, exit code 1."""
    photos, runs = tmp_path / "photos", tmp_path / "runs"
    photos.mkdir()
    for name in ("good1.jpg", "good2.png", "good3.webp"):
        coffee(260).save(photos / name)
    refused, unusual = write_refused(photos), write_unusual(photos)
    assert main(["run", "-i", str(photos), "-o", str(runs), "--preset", "offline", "--max_regions", "3"]) == 1
    said = capfd.readouterr()
    failures = [json.loads(line) for line in (runs / "failures.jsonl").read_text().splitlines()]
    assert {Path(f["image"]).name: f["reason"] for f in failures} == refused
    assert all(f["stage"] == "read" and f["message"].count("\n") == 0 for f in failures)
    assert len(said.err.splitlines()) == len(refused)
    assert all(any(name in line for line in said.err.splitlines()) for name in refused)
    records_made = [json.loads(p.read_text()) for p in runs.glob("*/run.json")]
    assert sorted(Path(r["source"]["path"]).name for r in records_made if r["complete"]) == sorted(
        ["good1.jpg", "good2.png", "good3.webp", *unusual]
    )

    coffee(260).save(photos / "one.png")  # mended: tried again, and only it and the other failures
    assert main(["run", "-i", str(photos), "-o", str(runs), "--preset", "offline", "--max_regions", "3"]) == 1
    assert f"1 done, {len(refused) - 1} failed, {len(unusual) + 3} done before" in capfd.readouterr().out
    assert len((runs / "failures.jsonl").read_text().splitlines()) == len(refused) - 1
    assert main(["export", "--runs_root", str(runs), "--out_dir", str(tmp_path / "export")]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-i", "{here}/no_such", "--preset", "offline"], "no such file or folder"),
        (["-i", "{here}/empty", "--preset", "offline"], "no image in this folder"),
        (["-i", "{here}/photo.png", "--preset", "nosuch"], "there is no preset 'nosuch'"),
        (
            ["-i", "{here}/photo.png", "--preset", "offline", "--config", "nosuch.yaml"],
            "there is no config 'nosuch.yaml'",
        ),
        (["-i", "{here}/photo.png", "--preset", "offline", "--settings", "{here}/no.toml"], "no such file"),
        (
            ["-i", "{here}/photo.png", "--preset", "offline", "--settings", "{here}/odd.toml"],
            "unknown setting 'max_region'",
        ),
        (["-i", "{here}/photo.png", "--preset", "offline", "--concepts", "entities,moods"], "unknown concept 'moods'"),
        (["-i", "{here}/photo.png", "--preset", "offline", "--max_regions", "0"], "--max_regions: "),
        (
            ["-i", "{here}/photo.png", "--preset", "offline", "--segmenter", "nosuch"],
            "segmenter 'nosuch' does not exist",
        ),
        (
            ["-i", "{here}/photo.png", "--preset", "offline", "--segmenter", "no.such:Part"],
            "cannot be built: Module",
        ),
        (["-i", "{here}/photo.png", "--preset", "offline", "-o", "{here}/photo.png"], "a file is in the way"),
        (["-i", "{here}/photo.png", "--preset", "offline", "-o", "{here}/photo.png/runs"], "a file is in the way"),
        (["-i", "{here}/photo.png"], "a key (set GOOGLE_API_KEY)"),
        (["-i", "{here}/photo.png"], "a checkpoint (--checkpoint FILE.pt"),
        (["-i", "{here}/photo.png"], "--preset offline"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong, where, and what to do next; nothing is started."""
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    coffee(64).save(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.toml").write_text("max_region = 3\n")
    given = [a.format(here=tmp_path) for a in arguments]
    if "-o" not in given:
        given += ["-o", str(tmp_path / "runs")]
    assert main(["run", *given]) == 2
    error = capfd.readouterr().err
    assert said in error and error.startswith("error: ") and len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_unknown_flags_are_refused_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    """Also abbreviated ones: a flag added later must not change what a script means."""
    for flag in ("--speed", "--max_region"):
        with pytest.raises(SystemExit) as stopped:
            main(["run", "-i", "a", "-o", "b", flag, "1"])
        assert stopped.value.code == 2
        assert flag in capfd.readouterr().err


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_shows_an_example_and_imports_nothing_heavy(command: list[str]) -> None:
    """What makes `--help` quick is what it does not import."""
    code = (
        "import sys\nfrom dataengine.cli import main\n"
        "try:\n    main([*sys.argv[1:], '--help'])\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'cv2', 'skimage', 'pydantic', 'PIL', 'asyncio'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout


def test_settings_file_flags_and_config_names(tmp_path: Path) -> None:
    """Flags win over the file; Meta's config names are taken with their folder."""
    coffee(96).save(tmp_path / "photo.png")
    file = tmp_path / "settings.toml"
    file.write_text('preset = "offline"\nmax_regions = 2\nconcepts = ["physics", "entities"]\nnegatives = false\n')
    config = f"configs/sam2.1/{SAM2_CONFIGS[-1]}"
    arguments = ["-i", str(tmp_path / "photo.png"), "-o", str(tmp_path / "runs"), "--settings", str(file)]
    assert main(["run", *arguments, "--max_regions", "3", "--config", config]) == 0
    folder = tmp_path / "runs" / "out_region_refine_photo"
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert (settings["max_regions"], settings["concepts"]) == (3, ["entities", "physics"])
    assert not (folder / "negatives").exists() and not (folder / "spatial").exists()


def test_demo_writes_five_runs_and_an_export_and_show_prints_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The main job of the README, and the command it names next."""
    assert main(["demo", "--output_dir", str(tmp_path)]) == 0
    runs = sorted((tmp_path / "runs").glob("out_region_refine_*"))
    assert len(runs) == 5
    items = json.loads((tmp_path / "export" / "items.json").read_text())["items"]
    assert len(items) >= 15 and {item["concept"] for item in items} == set(records.CONCEPTS)
    said = capsys.readouterr().out
    assert f"Next: dataengine show {runs[0]}" in said
    assert all(
        Path(line.removeprefix("Look at ")).is_file() for line in said.splitlines() if line.startswith("Look at")
    )
    assert f"Report: {tmp_path / 'report.html'} (" in said
    assert (tmp_path / "report.html").read_bytes().count(b"data:image/jpeg") == 5
    assert (tmp_path / "export" / "DATASET_CARD.md").is_file()
    assert main(["show", str(runs[0])]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("Regions", "Prompts: physics", "Negatives", "ACCEPT", "REJECT"))
    assert main(["export", "--runs_root", str(tmp_path / "runs"), "--out_dir", str(tmp_path / "photos")]) == 2
    assert main(["show", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_include_negatives(made: Path, tmp_path: Path) -> None:
    """Accepted negatives come with an all-black mask of the image's size."""
    out = tmp_path / "export"
    assert main(["export", "--runs_root", str(made / "runs"), "--out_dir", str(out), "--include_negatives"]) == 0
    items = json.loads((out / "items.json").read_text())["items"]
    negatives = [item for item in items if item.get("negative")]
    assert negatives and len(negatives) < len(items)
    for item in negatives:
        assert opened(out / item["mask"]).size == opened(out / item["image"]).size
        assert not np.asarray(opened(out / item["mask"])).any()


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Ctrl-C is no traceback."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    coffee(64).save(tmp_path / "photo.png")
    monkeypatch.setattr("dataengine.engine.remember", interrupt)
    assert main(["run", "-i", str(tmp_path / "photo.png"), "-o", str(tmp_path / "runs"), "--preset", "offline"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_damaged_file_is_one_line_of_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` names the file and what to do."""
    coffee(96).save(tmp_path / "photo.png")
    arguments = ["-i", str(tmp_path / "photo.png"), "-o", str(tmp_path / "runs"), "--preset", "offline"]
    assert main(["run", *arguments, "--concepts", "spatial"]) == 0
    folder = tmp_path / "runs" / "out_region_refine_photo"
    for name in ("spatial/summary.json", "negatives/spatial.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text("{")
        capsys.readouterr()
        assert main(["show", str(folder)]) == 1
        error = capsys.readouterr().err
        assert name in error and "damaged" in error and len(error.splitlines()) == 1
        (folder / name).write_text(whole)
    assert main(["show", str(folder)]) == 0


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    """As with `dataengine run … | head -1`."""
    for name in "abc":
        coffee(64).save(tmp_path / f"{name}.png")
    command = f"{sys.executable} {ROOT / 'dataengine' / 'run.py'} -i . -o runs --preset offline | true"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_paths_in_the_next_command_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quoted where the shell needs it, and on one line."""
    coffee(64).save(tmp_path / "photo.png")
    for name, said in (("plain", "plain --out"), ("two words", "two words' --out"), ("a\nb'c", "a\\nb\\'c' --out")):
        assert main(["run", "-i", str(tmp_path / "photo.png"), "-o", str(tmp_path / name), "--preset", "offline"]) == 0
        assert said in capsys.readouterr().out.splitlines()[-1]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget must know of all calls."""
    coffee(64).save(tmp_path / "photo.png")
    (tmp_path / "runs").mkdir()
    with Owner(tmp_path / "runs"):
        bounded = ["--preset", "offline", "--budget_tokens", "5"]
        assert main(["run", "-i", str(tmp_path / "photo.png"), "-o", str(tmp_path / "runs"), *bounded]) == 2
    assert "another run is writing there, and a budget is kept by one alone" in capsys.readouterr().err


WITHOUT_EXTRAS = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        missing = {"pydantic_ai", "genai_prices", "httpx2", "tenacity", "torch", "transformers", "fastapi", "uvicorn"}
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from dataengine.cli import main
run = ["run", "-i", "photo.png", "-o", "runs", "--preset", "offline", "--max_regions", "2"]
looks = [[name, "runs"] for name in ("status", "retry", "stats", "report", "agreement")]
for command in (run, [*run, "--explain"], [*run, "--dry_run"], *looks):
    assert main(command) == 0, command
assert main(["review", "runs"]) == 2
"""


def test_the_offline_preset_needs_no_extra(tmp_path: Path) -> None:
    """What `pip install -e .` brings is enough, also to look at what was done."""
    coffee(64).save(tmp_path / "photo.png")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "error: the review page needs fastapi and uvicorn. pip install 'dataengine[review]'\n"
