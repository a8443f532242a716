"""`sam2` from a command's settings; for masks see `test_promptable`, for weights `test_sam2_checkpoint`."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataengine.errors import MissingPartError, UsageError
from dataengine.parts import build
from dataengine.segmenters.sam2 import Sam2Segmenter
from dataengine.settings import load_settings
from tests.standins.tiny_sam2 import save_tiny_sam2


def test_it_is_built_from_flags(tmp_path: Path) -> None:
    folder = save_tiny_sam2(tmp_path)
    flags = {"preset": "offline", "segmenter": "sam2", "checkpoint": str(folder), "device": "cpu"}
    parts = build(load_settings(flags))
    record = parts.records()["segmenter"]
    assert isinstance(parts.segmenter, Sam2Segmenter)
    assert (record.name, record.detail["model"], record.detail["precision"]) == ("sam2", str(folder), "float32")


def test_without_a_checkpoint_it_is_one_line() -> None:
    settings = load_settings({"preset": "offline", "segmenter": "sam2"})
    with pytest.raises(MissingPartError, match="--checkpoint"):
        build(settings)
    with pytest.raises(MissingPartError, match="--checkpoint"):
        Sam2Segmenter(settings)


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    flags = {"preset": "offline", "segmenter": "sam2", "checkpoint": str(tmp_path / "none.pt")}
    with pytest.raises(UsageError, match=r"--checkpoint .*none\.pt") as caught:
        Sam2Segmenter(load_settings(flags))
    assert "\n" not in str(caught.value)
