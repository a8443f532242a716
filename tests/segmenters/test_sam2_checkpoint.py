from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from dataengine.errors import UsageError
from dataengine.segmenters.sam2_checkpoint import VIDEO_ONLY, load_sam2, meta_names, model_from_state, read_state
from dataengine.settings import SAM2_CONFIGS
from tests.standins.tiny_sam2 import SIDE, random_state, save_tiny_sam2, tiny_config

Floats = npt.NDArray[np.float32]
Shapes = dict[str, list[int]]


class Answer(NamedTuple):
    """Logits (prompts, masks, h, w), predicted IoUs (prompts, masks), logits that there is an object (prompts, 1)."""

    logits: Floats
    ious: Floats
    objects: Floats


# Written by test_sam2_agreement.py from an independent implementation of SAM 2, whose predictor gives logits between
# -32 and 32.
RECORDED = Path(__file__).with_name("meta_sam2.json.gz")
BOXES = [[8.0, 8.0, 100.0, 60.0], [40.0, 30.0, 90.0, 120.0], [0.0, 70.0, 127.0, 127.0], [60.0, 60.0, 80.0, 80.0]]
# For each mask a point inside and one outside, on the drawn image.
POINTS = [[[20.0, 30.0], [90.0, 90.0]], [[64.0, 64.0], [10.0, 120.0]], [[100.0, 20.0], [30.0, 80.0]]]
LABELS = [[1, 0]] * len(POINTS)


@cache
def recorded() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress(RECORDED.read_bytes()))
    return content


def drawn() -> npt.NDArray[np.uint8]:
    """Waves of colour, (128, 128, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(9 * x + 4 * y), np.sin(14 * y * x + 1), np.cos(21 * x - 11 * y)]
    return np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8)


def pixels_of(rgb: npt.NDArray[np.uint8]) -> Tensor:
    """(1, 3, H, W), normalized as SAM 2 was trained (ImageNet's mean and deviation)."""
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    values = (rgb.astype(np.float32) / 255 - mean) / deviation
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def answer(model: Any, pixels: Tensor, *, multimask: bool = False, **prompts: Tensor) -> Answer:
    """What our model says to the prompts of one image."""
    with torch.inference_mode():
        output = model(pixel_values=pixels, multimask_output=multimask, **prompts)
    return Answer(*(value[0].numpy() for value in (output.pred_masks, output.iou_scores, output.object_score_logits)))


def save_pt(path: Path, content: object, **how: Any) -> str:
    torch.save(content, path, **how)
    return str(path)


def tiny_state(seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint of Meta's at tiny size, also its parts for video."""
    return random_state(recorded()["tiny"], seed)


def full_state(config: str) -> dict[str, Tensor]:
    """A checkpoint of Meta's: names and shapes as in the real one, each tensor filled with a number of its own."""
    shapes: Shapes = recorded()["configs"][config]
    return {name: torch.full((1,), float(i)).expand(shape or [1]) for i, (name, shape) in enumerate(shapes.items())}


def refused(config: str, checkpoint: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_sam2(config, checkpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("config", SAM2_CONFIGS)
def test_a_checkpoint_of_each_config_loads_completely(config: str, tmp_path: Path) -> None:
    state = full_state(config)
    model, _ = load_sam2(config, save_pt(tmp_path / "meta.pt", {"model": state}))
    used = {meta for name in model.state_dict() for meta in meta_names(name)}
    assert used == {name for name in state if not name.startswith(VIDEO_ONLY)}
    for name, value in model.state_dict().items():
        parts = [state[meta].flatten()[0] for meta in meta_names(name)]
        assert value.reshape(len(parts), -1)[:, 0].tolist() == parts, name
        assert value.reshape(len(parts), -1)[:, -1].tolist() == parts, name
    assert not model.training
    assert {(value.dtype, value.device.type) for value in model.state_dict().values()} == {(torch.float32, "cpu")}


def test_every_part_for_video_is_in_some_checkpoint() -> None:
    names = {name for shapes in recorded()["configs"].values() for name in shapes}
    assert [part for part in VIDEO_ONLY if not any(name.startswith(part) for name in names)] == []


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("boxes", {"input_boxes": torch.tensor([BOXES])}),
        ("points", {"input_points": torch.tensor([POINTS]), "input_labels": torch.tensor([LABELS])}),
    ],
)
def test_masks_are_those_of_an_independent_implementation(name: str, prompts: dict[str, Tensor]) -> None:
    model = model_from_state(tiny_config(), tiny_state(), "tiny")
    ours = answer(model, pixels_of(drawn()), multimask=name == "points", **prompts)
    theirs = Answer(*(np.array(value, np.float32) for value in recorded()[name]))
    inside, expected = ours.logits > 0, theirs.logits > 0
    assert np.all((expected.mean((-1, -2)) > 0.02) & (expected.mean((-1, -2)) < 0.98))
    assert ((inside & expected).sum((-1, -2)) / (inside | expected).sum((-1, -2))).min() >= 0.99
    np.testing.assert_allclose(ours.logits.clip(-32, 32), theirs.logits, rtol=0, atol=0.01)
    np.testing.assert_allclose(ours.ious, theirs.ious, rtol=0, atol=0.001)
    np.testing.assert_allclose(ours.objects, theirs.objects, rtol=0, atol=0.01)


@pytest.mark.parametrize("folder", ["", "configs/sam2.1/"])
def test_a_config_is_named_with_or_without_folder(folder: str, tmp_path: Path) -> None:
    path = save_pt(tmp_path / "meta.pt", {"model": full_state("sam2.1_hiera_t.yaml")})
    model: Any = load_sam2(f"{folder}sam2.1_hiera_t.yaml", path)[0]
    assert len(model.vision_encoder.backbone.blocks) == 12


def test_an_unknown_config_is_refused(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "meta.pt", {"model": full_state("sam2.1_hiera_t.yaml")})
    assert "sam2.1_hiera_b+.yaml" in refused("sam2.1_hiera_xl.yaml", path)


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (lambda state: state, {}),
        (lambda state: {"model": state, "epoch": 3}, {}),
        (lambda state: {"model": state}, {"_use_new_zipfile_serialization": False}),
    ],
    ids=["bare", "beside others", "torch's older format"],
)
def test_other_forms_of_a_checkpoint(
    content: Callable[[dict[str, Tensor]], object], how: dict[str, Any], tmp_path: Path
) -> None:
    state = tiny_state()
    path = save_pt(tmp_path / "meta.pt", content(state), **how)
    model = model_from_state(tiny_config(), read_state(Path(path)), path)
    assert torch.equal(model.state_dict()["no_memory_embedding"], state["no_mem_embed"])


def test_half_precision_becomes_float32() -> None:
    state = {name: value.half() for name, value in tiny_state().items()}
    assert {value.dtype for value in model_from_state(tiny_config(), state, "").state_dict().values()} == {
        torch.float32
    }


def test_the_model_does_not_depend_on_the_file_once_loaded(tmp_path: Path) -> None:
    path = tmp_path / "meta.pt"
    save_pt(path, {"model": tiny_state()})
    model = model_from_state(tiny_config(), read_state(path), "")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_identity_is_the_files_digest(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "meta.pt", {"model": full_state("sam2.1_hiera_t.yaml")})
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert load_sam2("sam2.1_hiera_t.yaml", path)[1] == digest[:12]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("loaded",)


def cut(path: Path) -> None:
    save_pt(path, {"model": tiny_state()})
    path.write_bytes(path.read_bytes()[:-1000])


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no checkpoint")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(random.Random(0).randbytes(4096)), "not a checkpoint of PyTorch"),
        (lambda path: path.write_text("<!DOCTYPE html><title>Not found</title>"), "is a web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
        (cut, "is cut off or damaged"),
        (zipped, "is cut off or damaged"),
        (lambda path: save_pt(path, {"model": Evil()}), "print"),
        (lambda path: save_pt(path, [1, 2]), "holds no weights, by themselves or as 'model', but a list"),
        (lambda path: save_pt(path, {"epoch": 3, "lr": 0.1}), "but a dict of 'epoch', 'lr'"),
        (lambda path: save_pt(path, {"model": {}}), "but a dict of 'model'"),
    ],
    ids=["empty", "random", "html", "lfs", "cut", "zip", "classes", "list", "no model", "empty model"],
)
def test_a_file_that_is_no_checkpoint(
    write: Callable[[Path], object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "meta.pt"
    write(path)
    error = refused("sam2.1_hiera_l.yaml", str(path))
    assert says in error
    assert str(path) in error
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["checkpoints/sam2.1_hiera_large.pt", "./there", "a/b/c", "there"])
def test_nothing_there(name: str) -> None:
    assert "no such file or folder" in refused("sam2.1_hiera_l.yaml", name)


def test_a_checkpoint_of_another_size_names_its_config(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "meta.pt", {"model": full_state("sam2.1_hiera_s.yaml")})
    error = refused("sam2.1_hiera_l.yaml", path)
    assert f"{path} with --config sam2.1_hiera_l.yaml" in error
    assert "390 missing, 6 left over, 200 of another shape" in error
    assert error.endswith("--config sam2.1_hiera_s.yaml")
    path = save_pt(tmp_path / "meta.pt", {"model": full_state("sam2_hiera_b+.yaml")})
    assert refused("sam2.1_hiera_t.yaml", path).endswith("--config sam2_hiera_b+.yaml")


def test_a_checkpoint_of_the_other_family_has_the_same_model_for_images(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "meta.pt", {"model": full_state("sam2_hiera_t.yaml")})
    load_sam2("sam2.1_hiera_t.yaml", path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda state: state.pop("sam_prompt_encoder.point_embeddings.2.weight"),
            "(1 missing, 0 left over, 0 of another shape; first: missing sam_prompt_encoder.point_embeddings.2.weight)",
        ),
        (
            lambda state: state.update({"sam_mask_decoder.extra.weight": torch.zeros(2)}),
            "(0 missing, 1 left over, 0 of another shape; first: left over sam_mask_decoder.extra.weight)",
        ),
        (
            lambda state: state.update({"no_mem_embed": torch.zeros(1, 1, 8)}),
            "(0 missing, 0 left over, 1 of another shape; first: no_mem_embed is [1, 1, 8], not [1, 1, 256])",
        ),
    ],
)
def test_keys_that_do_not_fit(change: Callable[[dict[str, Tensor]], object], says: str, tmp_path: Path) -> None:
    state = full_state("sam2.1_hiera_t.yaml")
    change(state)
    error = refused("sam2.1_hiera_t.yaml", save_pt(tmp_path / "meta.pt", {"model": state}))
    assert says in error
    assert "The size is right" in error


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "meta.pt", {"model": {"encoder.weight": torch.zeros(3)}})
    assert "of no size of SAM 2" in refused("sam2.1_hiera_t.yaml", path)


def test_a_saved_folder_loads_and_its_identity_is_of_its_weights(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, other = save_tiny_sam2(tmp_path / "first"), save_tiny_sam2(tmp_path / "other", seed=1)
    again = Path(shutil.copytree(first, tmp_path / "again"))
    capfd.readouterr()
    model, identity = load_sam2("sam2.1_hiera_l.yaml", str(first))
    assert capfd.readouterr().err == ""
    assert not model.training
    assert identity == load_sam2("", str(again))[1] != load_sam2("", str(other))[1]


def test_a_folder_gives_the_same_masks_as_the_checkpoint_it_was_saved_from(tmp_path: Path) -> None:
    model = model_from_state(tiny_config(), tiny_state(), "tiny")
    model.save_pretrained(tmp_path)
    again, _ = load_sam2("", str(tmp_path))
    boxes = torch.tensor([BOXES])
    for one, other in zip(*(answer(m, pixels_of(drawn()), input_boxes=boxes) for m in (model, again)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_folder_of_the_video_model_loads_as_the_hub_has_them(tmp_path: Path) -> None:
    from transformers import Sam2VideoConfig, Sam2VideoModel

    config = tiny_config()
    parts = {name: getattr(config, name).to_dict() for name in PARTS}
    video = Sam2VideoModel(Sam2VideoConfig(image_size=SIDE, **parts))
    video.save_pretrained(tmp_path)
    model, _ = load_sam2("", str(tmp_path))
    theirs = video.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_checkpoint_only(folder: Path) -> None:
    without_config(folder)
    (folder / "sam2.1_hiera_large.pt").touch()


def of_another_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def with_less(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["mask_decoder.conv_s1.weight"] = torch.zeros(3, 4)
    state["more"] = state.pop("no_memory_embedding")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_config, "has no config.json. Name a folder"),
        (with_checkpoint_only, "Name the file: --checkpoint"),
        (of_another_model, "holds a model of type 'bert'"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(bytes(100)), "cannot be loaded"),
        (with_less, "(1 missing, 1 left over, 1 of another shape; first: missing no_memory_embedding)"),
    ],
    ids=["no config", "a .pt in it", "another model", "config", "no weights", "weights", "keys"],
)
def test_a_folder_that_is_not_whole(damage: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    folder = save_tiny_sam2(tmp_path / "model")
    damage(folder)
    error = refused("", str(folder))
    assert says in error
    assert str(folder) in error


@contextlib.contextmanager
def hub_cache(folder: Path) -> Iterator[None]:
    """The hub's client without network, and with its cache in `folder`."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        yield


def test_a_hub_id_is_taken_from_the_cache_and_identified_by_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--sam2-tiny"
    save_tiny_sam2(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with hub_cache(tmp_path):
        model, identity = load_sam2("", "someone/sam2-tiny")
    assert identity == commit[:12]
    assert not model.training


def test_a_hub_id_that_cannot_be_reached(tmp_path: Path) -> None:
    with hub_cache(tmp_path):
        assert "someone/sam2-tiny" in refused("", "someone/sam2-tiny")
