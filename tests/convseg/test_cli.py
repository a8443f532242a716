from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convseg.checkpoints import Model, save_weights
from convseg.cli import file_stem, main
from convseg.flags import parser
from tests.convseg.conftest import PICTURE_SIDE
from tests.photos import coffee, opened

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights(model: Model, tmp_path: Path) -> list[str]:
    """The flags that name a saved model."""
    save_weights(tmp_path / "ckpts", "run", "final", model, frozen=True)
    stem = tmp_path / "ckpts" / "run"
    return ["--final_ckpt", f"{stem}_final.torch", "--plm_ckpt", f"{stem}_plm_final.torch", "--device", "cpu"]


HF_ROW = ("id", "image", "mask", "prompt", "concept")


def failed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard error of a command that must fail with exit code 2 and without a traceback."""
    code: object
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr().err
    assert code == 2 and "Traceback" not in told
    return told.splitlines()[-1]


def test_the_whole_way_from_scenes_to_a_score(
    sam2: Path, qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["scenes", "--out", "scenes", "--count", "6"]) == 0
    train = ["train", "--data-dir", "scenes", "--checkpoint", str(sam2), "--plm-model-name", str(qwen)]
    how = [
        "--plm-image-side",
        str(PICTURE_SIDE),
        "--steps",
        "4",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--log-every",
        "2",
    ]
    assert main([*train, *how, "--device", "cpu", "--out", "ck", "--name", "tiny"]) == 0
    told = capsys.readouterr().out
    assert "step 4/4: loss " in told and "validation at step 4: gIoU " in told
    assert told.splitlines()[-1].startswith("Next: python eval.py --input_json scenes/items.json --final_ckpt ck/tiny_")
    files = ["--final_ckpt", "ck/tiny_final.torch", "--plm_ckpt", "ck/tiny_plm_final.torch"]
    where = ["--out", "ev", "--save_preds", "preds", "--device", "cpu", "--workers", "0"]
    evaluate = ["eval", "--input_json", "scenes/items.json", *files, *where]
    assert main(evaluate) == 0
    assert "left empty" in capsys.readouterr().out
    results = json.loads(Path("ev/results.json").read_text())
    assert results["count"] == 24 and results["mask"] == "single" and results["precision"] == "float32"
    assert len(results["data_digest"]) == 12 and sorted(results["model"]) == ["adapter", "language", "sam2"]
    assert "<figure>" in Path("ev/report.html").read_text()
    saved = {p.name for p in Path("preds").iterdir()}
    assert {f"scene_00000_0_{kind}" for kind in ("pred.png", "gt.png", "panel.jpg", "prompt.txt")} <= saved
    first = next(i for i in results["items"] if i["id"] == "scene_00000_0")
    assert (np.asarray(opened(Path("preds/scene_00000_0_pred.png"))) > 0).sum() == first["predicted"]
    assert Path("preds/scene_00000_0_prompt.txt").read_text().strip() == first["prompt"]


def test_predict_writes_a_mask_and_an_overlay_a_prompt(
    weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "my cup.jpg"
    coffee(300).save(image)
    prompts = ["--prompt", "Segment the cup", "--prompt", "Segment the spoon"]
    assert main(["predict", "--image", str(image), *prompts, *weights, "--out_dir", str(tmp_path / "out")]) == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    stem = file_stem("my cup")
    assert names == [f"{stem}_{i}_{kind}.png" for i in (0, 1) for kind in ("mask", "overlay")]
    mask = np.asarray(opened(tmp_path / "out" / names[0]))
    assert mask.shape == (200, 300) and set(np.unique(mask)) <= {0, 255}
    assert "Segment the spoon: " in capsys.readouterr().out


def test_a_dataset_of_the_hub_is_scored_by_split(
    weights: list[str], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    items = json.loads((scenes / "items.json").read_text())["items"][:5]
    rows = [
        {
            **{k: i[k] for k in ("id", "prompt", "concept")},
            **{k: {"bytes": (scenes / i[k]).read_bytes()} for k in ("image", "mask")},
        }
        for i in items
    ]
    table = (
        datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    )
    for split in ("sam_seeded", "human_annotated"):
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"))
    out = tmp_path / "ev"
    hf = ["--hf_dataset", str(tmp_path / "hub"), "--hf_cache_dir", str(tmp_path / "cache"), "--limit", "4"]
    splits = ["--hf_splits", "sam_seeded,human_annotated"]
    assert main(["eval", *hf, *splits, *weights, "--workers", "0", "--out", str(out), "--multimask"]) == 0
    for split in ("sam_seeded", "human_annotated"):
        results = json.loads((out / split / "results.json").read_text())
        assert results["count"] == 4 and results["mask"] == "best of three"
        assert f"Results of {split}" in capsys.readouterr().out or split != "sam_seeded"


BAD_TRAIN = [
    (["--data-dir", "gone"], "error: --dataset-jsonl gone/dataset.jsonl: cannot be read"),
    (["--steps", "0"], "error: --steps 0: must be at least 1"),
    (["--lr", "nan"], "error: --lr nan: must be at least 0"),
    (["--steps", "many"], "error: argument --steps: invalid int value: 'many'"),
    (["--max-dim", "5"], "error: --max-dim 5: must be 16 to 4096"),
    (["--num-samples", "-1"], "error: --num-samples -1: must be at least 1"),
    (["--device", "cuda:7"], "error: --device cuda:7: torch sees "),
    (["--precision", "int8"], "error: --precision int8: no such precision"),
    (["--checkpoint", "gone.pt"], "error: --checkpoint gone.pt: no such file or folder"),
    (["--model-cfg", "sam3.yaml", "--checkpoint", "{meta}"], "error: --model-cfg sam3.yaml: no such config"),
    (["--checkpoint", "{meta}"], "error: --checkpoint {meta} with --model-cfg sam2_hiera_s.yaml: the "),
    (["--plm-model-name", "gone/gone/gone"], "error: --plm-model-name gone/gone/gone: there is no such folder"),
    (["--name", "a/b"], "error: --name a/b: must be a plain file name"),
    (["--seed", "99999999999"], "error: --seed 99999999999: must be at most 4294967295"),
    (["--precision", "fp16"], "error: --precision float16: gradients are lost in it"),
    (["--frobnicate"], "error: unrecognized arguments: --frobnicate"),
    (["--resume"], "error: --resume: no such checkpoint of "),
]


@pytest.mark.parametrize(("more", "told"), BAD_TRAIN)
def test_train_says_what_is_wrong_before_it_begins(
    more: list[str], told: str, sam2: Path, qwen: Path, scenes: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    meta = tmp_path / "meta.pt"
    torch.save({"model": {"no_mem_embed": torch.zeros(1, 1, 8)}}, meta)
    given = {"--data-dir": str(scenes), "--checkpoint": str(sam2), "--plm-model-name": str(qwen), "--workers": "0"}
    flags = [part for name, value in given.items() if name not in more for part in (name, value)]
    arguments = ["train", *flags, *(part.format(meta=meta) for part in more)]
    assert failed(arguments, capsys).startswith(told.format(meta=meta))
    assert not list(tmp_path.rglob("*.torch"))


def test_bad_lines_are_told_before_any_model_is_loaded(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (scenes / "dataset.jsonl").read_text().splitlines()[:3]
    changed = [
        lines[0].replace("images/", str(scenes) + "/images/").replace("masks/", str(scenes) + "/masks/"),
        "{",
        lines[1],
    ]
    (tmp_path / "dataset.jsonl").write_text("\n".join(changed))
    told = failed(["train", "--data-dir", str(tmp_path), "--checkpoint", "gone.pt", "--workers", "0"], capsys)
    assert told.startswith(f"error: {tmp_path}/dataset.jsonl: 2 of 3 samples cannot be used.")


def test_eval_and_predict_say_what_is_wrong(
    weights: list[str], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items, cup = str(scenes / "items.json"), tmp_path / "cup.png"
    coffee(200).save(cup)
    table: list[tuple[list[str], str]] = [
        (["eval", *weights], "error: name what to evaluate on"),
        (["eval", "--input_json", items, "--hf_dataset", "x", *weights], "error: name what to evaluate on"),
        (["eval", "--input_json", "gone.json", *weights], "error: --input_json gone.json: cannot be read"),
        (["eval", "--input_json", items, "--limit", "0", *weights], "error: --limit 0: must be at least 1"),
        (["eval", "--input_json", items, "--workers", "-1", *weights], "error: --workers -1: must be at least 0"),
        (["eval", "--input_json", items, "--show", "-1", *weights], "error: --show -1: must be at least 0"),
        (
            ["eval", "--input_json", items, "--hf_config", "x", *weights],
            "error: --hf_config says nothing of --input_json",
        ),
        (["eval", "--input_json", items, *weights, "--precision", "x"], "error: --precision x: no such precision"),
        (["eval", "--input_json", items], "error: the following arguments are required: --final_ckpt, --plm_ckpt"),
        (["eval", "--input_json", items, *weights, "--final_ckpt", "gone"], "error: --final_ckpt gone: no such file"),
        (["predict", "--image", str(cup), "--prompt", " ", *weights], "error: --prompt is empty"),
        (["predict", "--image", str(cup), *weights], "error: the following arguments are required: --prompt"),
        (["scenes", "--out", str(scenes)], f"error: --out {scenes}: is not empty"),
        ([], "error: the following arguments are required: COMMAND"),
    ]
    for arguments, told in table:
        assert failed(arguments, capsys).startswith(told), arguments
    for flag in ("--out", "--save_preds"):  # found before anything is computed
        assert main(["eval", "--input_json", items, *weights, flag, f"{cup}/out"]) == 1
        assert capsys.readouterr().err.startswith(f"error: cannot write {cup}/out")
    assert main(["predict", "--image", str(tmp_path / "gone.jpg"), "--prompt", "x", *weights]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/gone.jpg: no such file")


def test_a_library_that_is_missing_is_named(
    scenes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Any) -> int:
        raise ModuleNotFoundError("No module named 'peft'", name="peft")

    monkeypatch.setitem(main.__globals__["COMMANDS"], "scenes", missing)
    told = failed(["scenes", "--out", str(scenes)], capsys)
    assert told == "error: peft is not installed. Install it with: pip install -e '.[train]'"


def test_either_spelling_of_a_flag_is_taken() -> None:
    given = ["train", "--data_dir", "a", "--batch_size=3", "--cache-features", "f", "--skip-bad"]
    options = parser().parse_args(given)
    assert (options.data_dir, options.batch_size, options.cache_features) == (Path("a"), 3, Path("f"))
    assert options.skip_bad
    other = parser().parse_args(["eval", "--input-json", "i", "--final-ckpt", "f", "--plm-ckpt=p"])
    assert (other.input_json, other.final_ckpt, other.plm_ckpt) == (Path("i"), "f", "p")


SEED = {
    "train": "data-dir dataset-jsonl model-cfg checkpoint device steps lr wd batch-size acc out name max-dim er-k "
    "er-it log-every save-every workers seed num-samples val-every val-count val-dir min-lr warmup-updates "
    "resume-sam-path resume-plm-path resume-lora-path lora-r lora-alpha plm-model-name",
    "eval": "input_json hf_dataset hf_config hf_splits hf_cache_dir final_ckpt plm_ckpt lora_ckpt model_cfg base_ckpt "
    "device precision limit save_preds",
}


@pytest.mark.parametrize("command", SEED)
def test_the_scripts_have_the_published_flags(command: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{command}.py"), "--help"], capture_output=True, text=True, check=True
    )
    for flag in SEED[command].split():
        assert f"--{flag}" in done.stdout
    assert f"python {command}.py" in done.stdout


def test_help_needs_no_torch() -> None:
    code = """
import sys
from convseg.cli import main
try:
    main(["train", "--help"])
finally:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a_1.b-c", "a_1.b-c"), ("a/b", "a_b_"), ("../../etc/passwd", "_.._etc_passwd_"), ("日本 x", "日本_x_"), ("", "")],
)
def test_ids_become_file_names(name: str, stem: str) -> None:
    found = file_stem(name)
    assert found.startswith(stem) and "/" not in found and not found.startswith(".")
    assert (found == name) == (stem == name)


def test_long_ids_stay_apart() -> None:
    one, other = file_stem("x" * 300 + "1"), file_stem("x" * 300 + "2")
    assert one != other and len(one) < 200


def test_tiny_models_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "sam2" / "model.safetensors").is_file() and (tmp_path / "qwen" / "tokenizer.json").is_file()
    assert capsys.readouterr().out.startswith(f"Next: python train.py --checkpoint {tmp_path}/sam2")


def test_an_image_with_a_rotated_photo_keeps_its_upright_size(weights: list[str], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    coffee(300).save(tmp_path / "turned.jpg", exif=exif)
    out = tmp_path / "out"
    assert (
        main(["predict", "--image", str(tmp_path / "turned.jpg"), "--prompt", "x", *weights, "--out_dir", str(out)])
        == 0
    )
    assert opened(out / "turned_0_mask.png").size == (200, 300)


@torch.no_grad()
def test_an_answer_that_is_no_number_is_told(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.network.adapter.to_sparse.bias.fill_(float("nan"))
    save_weights(tmp_path, "run", "final", model, frozen=False)
    coffee(200).save(tmp_path / "cup.png")
    files = ["--final_ckpt", str(tmp_path / "run_final.torch"), "--plm_ckpt", str(tmp_path / "run_plm_final.torch")]
    assert main(["predict", "--image", str(tmp_path / "cup.png"), "--prompt", "x", *files, "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("error: the network's answer is no number. Compute in --precision fp32")


def test_the_loop_empties_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    script = ROOT / "scripts" / "loop.py"
    done = subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "holds what this script did not write" in done.stderr
    assert (tmp_path / "photos").is_dir()
