"""The report: what is on the page, where its pictures are, and that names and prompts stay text."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataengine import report
from dataengine.cli import main
from dataengine.errors import OutputError, UsageError
from dataengine.records import Spread, Usage
from dataengine.report import bars, policy, write_report
from dataengine.stats import figures_of
from tests.exporters.folders import (
    decide,
    our_run,
    picture,
    prompt,
    published_run,
    save,
    write_json,
    write_negatives,
)

HARM = "</script><script>alert(1)</script><b>\"quoted\" & 'more'"


def gallery(page: Path) -> list[dict[str, Any]]:
    """What the page's script is given."""
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found
    images: list[dict[str, Any]] = json.loads(found[1])
    return images


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    source = save(tmp_path / "photos" / "a.png", picture())
    prompts = {"entities": [prompt(), prompt(1, (0, 1), verdict="REJECT", reason="rule words: too many")]}
    folder = our_run(tmp_path / "runs", source, prompts=prompts)
    write_negatives(folder, "spatial", "ACCEPT")
    our_run(tmp_path / "runs", source, "out_region_refine_b")
    return tmp_path / "runs"


def test_every_image_and_prompt_is_in_the_gallery(runs: Path, tmp_path: Path) -> None:
    written = write_report(runs, tmp_path / "new" / "report.html")
    assert (written.page, written.folder) == (tmp_path / "new" / "report.html", None)
    assert written.bytes == written.page.stat().st_size
    first, second = gallery(written.page)
    assert (first["name"], first["run"], second["run"]) == ("a.png", "out_region_refine_a", "out_region_refine_b")
    assert [(p["text"], p["accepted"], p["negative"], p["satisfying"]) for p in first["prompts"]] == [
        ("Segment thing 0", True, False, [0]),
        ("Segment thing 1", False, False, [0, 1]),
        ("Segment absent thing 0", True, True, []),
    ]
    assert [region["index"] for region in first["regions"]] == [0, 1]
    assert all(region["path"].startswith("M") for region in first["regions"])
    data = base64.b64decode(first["picture"].partition(",")[2])
    assert data.startswith(b"\xff\xd8") and (first["width"], first["height"]) == (60, 40)


def test_the_figures_stand_in_the_page_without_a_script(runs: Path, tmp_path: Path) -> None:
    text = write_report(runs, tmp_path / "report.html").page.read_text(encoding="utf-8")
    tiles = re.findall(r"<div><b>([^<]*)</b>([^<]*)</div>", text)
    assert [(number, words.strip()) for number, words in tiles[:4]] == [
        ("2", "images"),
        ("4", "regions accepted"),
        ("2", "of 3 prompts accepted"),
        ("1", "negatives accepted"),
    ]
    assert "rule words" in text
    assert "Nobody has judged a prompt" in text


def test_what_people_said_is_told(runs: Path, tmp_path: Path) -> None:
    decide(runs / "out_region_refine_a", 0, "REJECT")
    decide(runs / "out_region_refine_a", 1, by="ben", text="Segment both")
    page = write_report(runs, tmp_path / "report.html").page
    told = [prompt["people"] for prompt in gallery(page)[0]["prompts"]]
    assert told == [["ana: rejected"], ["ben: accepted, as “Segment both”"], []]
    assert "ana judged 1 prompts" in page.read_text(encoding="utf-8")


def test_names_and_prompts_cannot_be_anything_but_text(tmp_path: Path) -> None:
    source = save(tmp_path / "photos" / "a.png", picture())
    prompts = {"entities": [prompt(i, (0,), prompt=f"{HARM} {i}", reason=HARM) for i in range(2)]}
    folder = our_run(tmp_path / "runs", source, "out_region_refine_<b>&", prompts=prompts)
    path = folder / "entities" / "summary.json"
    summary = json.loads(path.read_text())
    families = [{"concept_family": HARM}] * 2
    write_json(path, summary | {"conversational_prompts": families, "timing": [timing(HARM)], "image_path": HARM})
    text = write_report(tmp_path / "runs", tmp_path / "report.html").page.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2  # the data and the page's own
    assert "<b>&quot;" not in text and '<b>"quoted"' not in text
    [image] = gallery(tmp_path / "report.html")
    assert [found["text"] for found in image["prompts"]] == [f"{HARM} 0", f"{HARM} 1"]
    assert image["prompts"][0]["family"] == HARM


def timing(step: str) -> dict[str, object]:
    return {"step": step, "total_seconds": 1.0, "count": 1}


def test_the_page_may_load_nothing() -> None:
    told = policy("a", "b", pictures="data: blob:")
    assert told.startswith("default-src 'none'; img-src data: blob:; style-src 'sha256-")
    assert "unsafe" not in told
    assert policy("a", "c", pictures="") != policy("a", "b", pictures="")


# Pictures beside the page.


def test_many_images_have_their_pictures_beside_the_page_and_they_are_made_once(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "INLINE", 1)
    out = tmp_path / "my report.html"
    written = write_report(runs, out)
    assert written.folder == tmp_path / "my report_files"
    names = [image["picture"] for image in gallery(out)]
    assert sorted(names) == sorted(path.name for path in written.folder.iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in written.folder.iterdir()}
    first = out.read_bytes()
    write_report(runs, out)
    assert out.read_bytes() == first
    assert {path.name: path.stat().st_mtime_ns for path in written.folder.iterdir()} == before
    save(runs / "out_region_refine_a" / "original_image.png", np.zeros((40, 60, 3), np.uint8))
    (written.folder / "mine.txt").write_text("a user's")
    write_report(runs, out)
    after = {path.name: path.stat().st_mtime_ns for path in written.folder.glob("*.jpg")}
    assert len(after) == 2 and len(after.keys() & before.keys()) == 1
    assert (written.folder / "mine.txt").exists()


def test_run_folders_of_one_name_have_pictures_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that differ only in what a file name cannot hold."""
    monkeypatch.setattr(report, "INLINE", 1)
    source = save(tmp_path / "a.png", picture())
    for name in ("out_region_refine_ä", "out_region_refine_a", "out_region_refine_日", "out_region_refine_本"):
        our_run(tmp_path / "runs", source, name)
    write_report(tmp_path / "runs", tmp_path / "report.html")
    assert len({image["picture"] for image in gallery(tmp_path / "report.html")}) == 4


# What is not as it should be.


def test_a_broken_run_folder_is_shown_as_far_as_it_goes(runs: Path, tmp_path: Path) -> None:
    first, second = runs / "out_region_refine_a", runs / "out_region_refine_b"
    (first / "original_image.png").write_bytes(b"no picture")
    (second / "original_image.png").unlink()
    (second / "accepted_regions" / "masks" / "000_mask.png").write_bytes(b"")
    page = write_report(runs, tmp_path / "report.html").page
    images = gallery(page)
    assert [image["picture"] for image in images] == ["", ""]
    assert [(image["width"], image["height"]) for image in images] == [(60, 40)] * 2
    assert [len(image["regions"]) for image in images] == [2, 1]
    text = page.read_text(encoding="utf-8")
    assert "original_image_unreadable" in text and "original_image_missing" in text and "mask_unreadable" in text


def test_a_photo_that_is_a_link_out_of_its_folder_is_not_shown(runs: Path, tmp_path: Path) -> None:
    photo = runs / "out_region_refine_a" / "original_image.png"
    photo.unlink()
    photo.symlink_to(save(tmp_path / "private.png", picture()))
    images = gallery(write_report(runs, tmp_path / "report.html").page)
    assert [bool(image["picture"]) for image in images] == [False, True]


def test_the_published_engines_folders_are_shown(tmp_path: Path) -> None:
    published_run(tmp_path / "runs", "/elsewhere/photo.jpg", rgb=picture())
    [image] = gallery(write_report(tmp_path / "runs", tmp_path / "report.html").page)
    assert (image["name"], len(image["regions"]), len(image["prompts"])) == ("photo.jpg", 2, 1)


def test_a_report_that_cannot_be_written_says_so(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_report(runs, tmp_path / "file" / "report.html")
    with pytest.raises(UsageError, match="a folder"):
        write_report(runs, tmp_path)
    with pytest.raises(UsageError, match="no run folder"):
        write_report(tmp_path / "photos", tmp_path / "report.html")


def test_nothing_but_its_own_pictures_is_removed(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "INLINE", 1)
    folder = tmp_path / "photos_files"
    folder.mkdir()
    (folder / "mine.jpg").write_bytes(b"a user's")
    (folder / "dataengine-gone-0123456789ab.jpg").write_bytes(b"of an earlier report")
    write_report(runs, tmp_path / "photos.html")
    assert (folder / "mine.jpg").exists() and not (folder / "dataengine-gone-0123456789ab.jpg").exists()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/report.html"])
def test_a_place_that_cannot_be_is_one_clear_line(runs: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError):
        write_report(runs, tmp_path / name)


def test_what_is_no_plain_file_is_not_replaced(runs: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no plain file"):
        write_report(runs, tmp_path / "pipe")


def test_odd_numbers_and_names_are_no_traceback(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture())
    made = our_run(tmp_path / "runs", source)
    folder = made.rename(made.with_name(os.fsdecode(b"out_region_refine_\xff\xfe")))
    step = {"step": "align", "key": "k", "usage": Usage().model_dump(), "result": {}}
    lines = [json.dumps({**step, "seconds": seconds}) for seconds in (float("nan"), 1e400, -1, None, 2.5)]
    (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))
    path = folder / "entities" / "summary.json"
    write_json(path, json.loads(path.read_text()) | {"image_path": None})
    page = write_report(tmp_path / "runs", tmp_path / "report.html").page
    assert gallery(page)[0]["name"].startswith("out_region_refine_")
    assert figures_of(tmp_path / "runs").stages["align"].seconds == 2.5


def test_the_command_says_where_it_is(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs)]) == 0
    assert f"Report: {runs / 'report.html'} (" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "gone")]) == 2
    assert main(["stats", str(runs)]) == 0  # the page in the folder of the run folders is in nobody's way


def test_bars_are_those_from_the_first_to_the_last_that_is_filled() -> None:
    spread = Spread(count=5, least=1, median=1, mean=1, greatest=3, edges=[0, 1, 2, 3, 4], counts=[0, 4, 0, 1, 0])
    assert [(bar.name, bar.number, bar.height) for bar in bars(spread)] == [("1", 4, 100), ("2", 0, 0), ("3", 1, 25)]
    empty = spread.model_copy(update={"counts": [0] * 5})
    assert list(bars(empty)) == []
