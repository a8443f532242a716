"""The command line with tiny models of random weights, saved to a folder and loaded by the real loading code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataengine.cli import main
from dataengine.records import AcceptedRegion, RunRecord
from tests.photos import coffee
from tests.standins.tiny_detectors import save_tiny_grounding_dino, save_tiny_owlv2, save_tiny_sam3
from tests.standins.tiny_sam2 import save_tiny_sam2
from tests.standins.tiny_sam3 import save_tiny_sam3_tracker
from tests.standins.vlm_server import KEY, VlmServer

GROUNDERS = {"grounding-dino": save_tiny_grounding_dino, "owlv2": save_tiny_owlv2, "sam3": save_tiny_sam3}
SEGMENTERS = {"sam2": save_tiny_sam2, "sam3": save_tiny_sam3_tracker}
SIZE = (240, 160)


@pytest.mark.parametrize(
    ("grounder", "segmenter"),
    [("annotator", "sam2"), ("annotator", "sam3"), ("grounding-dino", "sam2"), ("owlv2", "sam3"), ("sam3", "sam2")],
)
def test_a_photo_becomes_a_run_folder_and_an_export(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    grounder: str,
    segmenter: str,
) -> None:
    """Random models find random boxes and cut random masks; what is made of them must be whole all the same."""
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    coffee(SIZE[0]).save(tmp_path / "coffee.png")
    flags = ["--grounder", grounder, "--segmenter", segmenter, "--points_per_side", "4", "--min_pool_pixels", "10"]
    flags += ["--checkpoint", str(SEGMENTERS[segmenter](tmp_path / "segmenter"))]
    if grounder in GROUNDERS:
        flags += ["--grounder_model", str(GROUNDERS[grounder](tmp_path / "grounder")), "--box_threshold", "0.01"]
    with VlmServer() as server:
        common = ["-i", str(tmp_path / "coffee.png"), "-o", str(tmp_path / "runs"), "--vlm_base_url", server.url]
        assert main(["run", *common, *flags]) == 0, capfd.readouterr()
        assert server.refused == []
        asked = len(server.asked)
        assert main(["run", *common, *flags]) == 0
        assert len(server.asked) == asked
    run = tmp_path / "runs" / "out_region_refine_coffee"
    record = RunRecord.model_validate_json((run / "run.json").read_bytes())
    assert record.complete
    assert (record.parts["grounder"].name, record.parts["segmenter"].name) == (grounder, segmenter)
    accepted = [
        AcceptedRegion.model_validate(e) for e in json.loads((run / "accepted_regions/accepted.json").read_text())
    ]
    assert len(accepted) == 2
    for region in accepted:
        mask = np.asarray(Image.open(run / region.mask_path))
        assert (mask.shape, set(np.unique(mask))) == (SIZE[::-1], {0, 255})
    assert main(["export", "--runs_root", str(tmp_path / "runs"), "--out_dir", str(tmp_path / "export")]) == 0
    assert len((tmp_path / "export" / "dataset.jsonl").read_text().splitlines()) == 10
