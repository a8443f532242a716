from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dataengine.errors import StageError, UsageError
from dataengine.grounders import moondream_hf
from dataengine.grounders.moondream_hf import MoondreamHfGrounder
from dataengine.images import Photo
from dataengine.records import DescribedRegion, Detection
from dataengine.settings import Settings, load_settings
from tests.photos import coffee

# As Moondream's: a class beside the weights that `config.json` names, with `detect(picture, label)`; it calls no
# `post_init`, and computes a buffer that is in no file.
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class TinyConfig(PretrainedConfig):
    model_type = "tiny_moondream"


class TinyMoondream(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.side = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def DETECT(self, image, object):
        if object == "trouble":
            raise RuntimeError("size of tensor a (3)\\nmust match b (4)")
        if object == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if object == "nonsense":
            return {"objects": [{"x_min": 0.1}]}
        share = float(self.side) * image.size[0] / 768 * 2 * float(self.scale)
        box = {"x_min": share / 2, "y_min": 0.0, "x_max": share, "y_max": 0.5}
        return {"objects": [box] * object.count("cup")}
"""


def save_model(folder: Path, side: float = 0.5, detect: str = "detect") -> Path:
    folder.mkdir()
    config = {
        "model_type": "tiny_moondream",
        "architectures": ["TinyMoondream"],
        "auto_map": {"AutoConfig": "tiny.TinyConfig", "AutoModelForCausalLM": "tiny.TinyMoondream"},
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tiny.py").write_text(CODE.replace("DETECT", detect))
    save_file({"side": np.array([side], np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def _modules_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a model's code to its cache and imports it from there."""
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)


def settings(folder: Path | None, **other: Any) -> Settings:
    kept = {"preset": "offline", "grounder": "moondream-hf", "trust_remote_code": True, "device": "cpu"}
    return load_settings({**kept, **({"grounder_model": str(folder)} if folder else {}), **other})


def photo() -> Photo:
    return Photo(Path("coffee.png"), np.asarray(coffee(1200)), "0" * 64)


def ask(grounder: MoondreamHfGrounder, label: str) -> list[Detection]:
    return asyncio.run(grounder.ground(photo(), DescribedRegion(label=label, boxes=[]))).value


@pytest.mark.parametrize(
    ("label", "count"), [("cup", 1), ("cup and cup", 2), ("dog", 0), ("cup/\n\"'" + 5000 * "x", 1)]
)
def test_its_own_code_finds_boxes_in_the_view(tmp_path: Path, label: str, count: int) -> None:
    """The view is 768 px wide, so its code finds a box from a quarter to one half of the photo's width."""
    grounder = MoondreamHfGrounder(settings(save_model(tmp_path / "model")))
    assert [detection.box for detection in ask(grounder, label)] == [(300.0, 0.0, 600.0, 400.0)] * count


def test_code_that_is_not_trusted_is_not_run(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "tiny.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(UsageError, match="--trust_remote_code"):
        MoondreamHfGrounder(settings(folder, trust_remote_code=False))


@pytest.mark.parametrize(("named", "revision"), [({}, "2025-06-21"), ({"grounder_revision": "other"}, "other")])
def test_the_revision_is_pinned(monkeypatch: pytest.MonkeyPatch, named: dict[str, str], revision: str) -> None:
    asked: list[tuple[str, str | None]] = []

    def folder(flag: str, where: str, revision: str | None = None) -> Path:
        asked.append((where, revision))
        raise UsageError("nothing here")

    monkeypatch.setattr(moondream_hf, "model_folder", folder)
    with pytest.raises(UsageError, match="nothing here"):
        MoondreamHfGrounder(settings(None, **named))
    assert asked == [("vikhyatk/moondream2", revision)]


@pytest.mark.parametrize(
    ("label", "reason", "told"),
    [
        ("trouble", "model_failed", "RuntimeError: size of tensor"),
        ("nonsense", "bad_answer", "no boxes for 'nonsense'"),
        ("memory", "out_of_memory", "out of memory"),
    ],
)
def test_a_failure_of_its_code_is_one_line(tmp_path: Path, label: str, reason: str, told: str) -> None:
    grounder = MoondreamHfGrounder(settings(save_model(tmp_path / "model")))
    with pytest.raises(StageError) as caught:
        ask(grounder, label)
    assert caught.value.reason == reason
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no `detect`"):
        MoondreamHfGrounder(settings(save_model(tmp_path / "model", detect="caption")))


def test_weights_that_lack_are_told(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    save_file({"other": np.zeros(1, np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="1 weights are not in its files, such as side"):
        MoondreamHfGrounder(settings(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no \*\.safetensors in it"):
        MoondreamHfGrounder(settings(folder))


def test_code_that_is_broken(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "tiny.py").write_text("import no_such_library_at_all")
    with pytest.raises(UsageError, match="no_such_library_at_all"):
        MoondreamHfGrounder(settings(folder))


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_precision(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    """`auto` is as published."""
    grounder = MoondreamHfGrounder(settings(save_model(tmp_path / "model"), precision=precision))
    assert next(grounder._models["cpu"].parameters()).dtype == dtype


def test_the_version_changes_with_weights_code_and_view(tmp_path: Path) -> None:
    one, other, code = save_model(tmp_path / "one"), save_model(tmp_path / "two", 0.25), save_model(tmp_path / "three")
    (code / "tiny.py").write_text(f"{CODE.replace('DETECT', 'detect')}\n# newer\n")
    made = [MoondreamHfGrounder(settings(folder)).version for folder in (one, other, code)]
    made.append(MoondreamHfGrounder(settings(one, vlm_side=512)).version)
    assert len(set(made)) == 4
    assert MoondreamHfGrounder(settings(one)).version == made[0]
