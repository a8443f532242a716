"""Tiny models and drawn data, written once for all tests of convseg."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from convseg.checkpoints import Build, Model, new_model
from convseg.scenes import every_text, write_scenes
from convseg.tiny import write_tiny_qwen, write_tiny_sam2

PICTURE_SIDE = 56  # of what the language model reads: four tokens


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """What is this small takes longer on many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sam2(tmp_path_factory.mktemp("tiny") / "sam2", channels=8, width=32)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen(tmp_path_factory.mktemp("tiny") / "qwen", every_text(), width=32)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 scenes with 3 prompts each, as an export."""
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 12, prompts=3, seed=3)


def fresh(sam2: Path, qwen: Path, *, train_encoder: bool = False, seed: int = 0) -> Model:
    """An untrained network on the tiny models."""
    torch.manual_seed(seed)
    build = Build(sam2={}, plm_model_name=str(qwen), lora_r=4, lora_alpha=8, plm_image_side=PICTURE_SIDE)
    return new_model("", str(sam2), build, dtype=torch.float32, train_encoder=train_encoder)


@pytest.fixture
def model(sam2: Path, qwen: Path) -> Model:
    return fresh(sam2, qwen)
