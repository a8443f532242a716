"""Run folders made by hand: as DataEngine writes them, and as the published engine does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
from PIL import Image

from dataengine.finished import read_finished
from dataengine.images import RgbArray
from dataengine.masks import BoolArray
from dataengine.records import Decision, Judged, RunRecord, Source, Verdict
from dataengine.reviews import append
from dataengine.sources import Sources

Prompt = dict[str, object]

HEIGHT, WIDTH = 40, 60


def picture(height: int = HEIGHT, width: int = WIDTH) -> RgbArray:
    """A gradient (H, W, 3): no two corners look alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = (rows * 255 // height, columns * 255 // width, np.full((height, width), 90))
    return np.stack(planes, axis=2).astype(np.uint8)


def box(x0: int, y0: int, x1: int, y1: int, height: int = HEIGHT, width: int = WIDTH) -> BoolArray:
    """A mask (H, W); x1 and y1 are outside."""
    inside = np.zeros((height, width), bool)
    inside[y0:y1, x0:x1] = True
    return inside


LEFT, RIGHT = box(2, 5, 12, 30), box(40, 5, 55, 30)


def prompt(index: int = 0, satisfying: Sequence[int] = (0,), **other: object) -> Prompt:
    """An accepted entry of `prompt_verifications`, with other fields replaced."""
    entry: Prompt = {
        "index": index,
        "prompt": f"Segment thing {index}",
        "satisfying": list(satisfying),
        "verdict": "ACCEPT",
        "reason": "it fits",
        "src_path": "a.png",
        "classified_path": "b.png",
    }
    return entry | other


def save(path: Path, rgb: RgbArray) -> Path:
    """Write a picture, PNG or JPEG by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_masks(folder: Path, masks: Sequence[BoolArray], base: str = "") -> None:
    """`accepted.json` and the PNG masks; `base` is put before each path."""
    entries = []
    for index, mask in enumerate(masks):
        name = f"accepted_regions/masks/{index:03d}_mask"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{name}.png"), mask.astype(np.uint8) * 255)
        entries.append(
            {
                "index": index,
                "label": "thing",
                "path": f"{base}accepted_regions/{index:03d}_thing.png",
                "bbox": [0, 0, 1, 1],
                "mask_path": f"{base}{name}.png",
                "mask_npz_path": f"{base}{name}.npz",
            }
        )
    write_json(folder / "accepted_regions" / "accepted.json", entries)


def write_summaries(folder: Path, prompts: Mapping[str, Sequence[object]], image_path: str) -> None:
    for concept, entries in prompts.items():
        summary = {"image_path": image_path, "accepted_dir": "x", "prompt_verifications": list(entries)}
        write_json(folder / concept / "summary.json", summary)


def our_run(
    root: Path,
    source: Path,
    name: str = "out_region_refine_a",
    *,
    rgb: RgbArray | None = None,
    masks: Sequence[BoolArray] = (LEFT, RIGHT),
    prompts: Mapping[str, Sequence[object]] | None = None,
) -> Path:
    """A run folder of DataEngine's, made from `source` as it is now; `rgb` is the picture the engine saw."""
    folder = root / name
    save(folder / "original_image.png", picture() if rgb is None else rgb)
    write_masks(folder, masks)
    write_summaries(folder, {"entities": [prompt()]} if prompts is None else prompts, str(source))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    made_from = Source(path=str(source), sha256=digest, bytes=1, mtime_ns=0, width=WIDTH, height=HEIGHT)
    record = RunRecord(
        dataengine="0",
        complete=True,
        fingerprint="",
        source=made_from,
        parts={},
        prompt_digests={},
        concepts=[],
        settings={},
        note="",
    )
    (folder / "run.json").write_text(record.model_dump_json(), encoding="utf-8")
    return folder


def published_run(
    root: Path,
    image_path: str,
    name: str = "out_region_refine_p",
    *,
    rgb: RgbArray | None = None,
    masks: Sequence[BoolArray] = (LEFT, RIGHT),
    base: str = "/nowhere/runs/out_region_refine_p/",
) -> Path:
    """A run folder of the published engine's: no `run.json`, paths of another machine."""
    folder = root / name
    if rgb is not None:
        save(folder / "original_image.png", rgb)
    write_masks(folder, masks, base)
    write_summaries(folder, {"entities": [prompt()]}, image_path)
    return folder


def write_negatives(folder: Path, concept: str, *verdicts: str) -> None:
    """`negatives/<concept>.json`, an entry for each verdict."""
    entries = [
        {
            "prompt": f"Segment absent thing {number}",
            "strategy": "object_level_neighbor",
            "concept_family": "unusual_entity",
            "target_decoy": "a thing",
            "verdict": verdict,
            "reason": "",
        }
        for number, verdict in enumerate(verdicts)
    ]
    write_json(folder / "negatives" / f"{concept}.json", entries)


def decide(
    folder: Path,
    number: int,
    verdict: Verdict | None = "ACCEPT",
    *,
    by: str = "ana",
    text: str | None = None,
    regions: Sequence[int] | None = None,
    undoes: Decision | None = None,
) -> Decision:
    """Write a decision on one of a run folder's entries; its text and regions stay where no others are given."""
    found = read_finished(Sources(folder))
    entry = found.entries[number]
    before = Judged(verdict=None, prompt=entry.prompt, satisfying=list(entry.satisfying))
    after = Judged(
        verdict=verdict,
        prompt=entry.prompt if text is None else text,
        satisfying=list(entry.satisfying if regions is None else regions),
    )
    told = {"reviewer": by, "blind": False, "engine": "ACCEPT" if entry.accepted else "REJECT"}
    done = {"action": "undo" if undoes else "accept", "undoes": undoes.id if undoes else None}
    about = vars(found.key(entry)) | told | done | {"before": before, "after": after}
    decision = Decision.model_validate({**about, "id": uuid4().hex, "at": "2026-01-01T00:00:00.000+00:00"})
    append(folder, decision)
    return decision
