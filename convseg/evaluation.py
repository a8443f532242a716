"""Evaluation: predictions at the photo's own size, each photo encoded once for all its prompts, scored and shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from convseg.adapter import PromptEmbeddings, PromptReader
from convseg.batches import Shaping, leave_signals, read_by
from convseg.checkpoints import Model
from convseg.data import Place, Sample, read_mask, read_rgb
from convseg.distributed import computing_in
from convseg.metrics import Estimate, Metrics, Overlap, metrics, overlap
from convseg.network import ConvSeg, ImageMaps
from convseg.panels import panel
from dataengine.errors import TrainingError
from dataengine.images import RgbArray
from dataengine.masks import BoolArray
from dataengine.run_folder import write_whole

PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Photo:
    """A photo with its prompts, made ready by a worker.

    Attributes:
        rgb: (H, W, 3) uint8.
        pixels: (3, side, side) uint8, what SAM 2 sees.
        inputs: the language model's, some prompts at a time.
        truths: (H, W) bool, of each prompt.
    """

    samples: list[Sample]
    rgb: RgbArray
    place: Place
    pixels: Tensor
    inputs: list[dict[str, Tensor]]
    truths: list[BoolArray]


@dataclass(frozen=True)
class Prediction:
    """A prompt's predicted and true mask, (H, W) bool, on its photo."""

    sample: Sample
    rgb: RgbArray
    truth: BoolArray
    predicted: BoolArray
    overlap: Overlap

    def panel(self) -> RgbArray:
        """Photo, true mask and predicted one beside each other, (h, w, 3) uint8."""
        note = f"predicted, IoU {self.overlap.iou:.2f}"
        return panel(self.rgb, self.truth, self.predicted, self.sample.prompt, note)


class Photos(Dataset[Photo]):
    """The photos of samples, each with all its prompts."""

    def __init__(self, samples: Sequence[Sample], reader: PromptReader, shaping: Shaping, at_once: int) -> None:
        groups: dict[Path, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.image, []).append(sample)
        self._groups = list(groups.values())
        self._reader, self._shaping, self._at_once = reader, shaping, at_once

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Photo:
        samples = self._groups[index]
        rgb = read_rgb(samples[0].image)
        place = Place.of(rgb.shape[0], rgb.shape[1], self._shaping.square)
        return Photo(
            samples,
            rgb,
            place,
            self._shaping.pixels(rgb, place),
            list(_read(self._reader, rgb, [s.prompt for s in samples], self._at_once)),
            [read_mask(s.mask) for s in samples],
        )


def _read(reader: PromptReader, rgb: RgbArray, prompts: Sequence[str], at_once: int) -> Iterator[dict[str, Tensor]]:
    picture = reader.picture(rgb)
    for first in range(0, len(prompts), at_once):
        chunk = prompts[first : first + at_once]
        yield reader([picture] * len(chunk), chunk)


@torch.inference_mode()
def masks_of(
    network: ConvSeg, pixels: Tensor, inputs: Sequence[Mapping[str, Tensor]], place: Place, *, several: bool = False
) -> Iterator[BoolArray]:
    """The mask of each prompt of a photo, (H, W) bool, at the photo's size.

    Args:
        pixels: (3, side, side) uint8, on the network's device.
        inputs: the language model's, some prompts at a time, on any device.
        place: where the photo lies in the square.
        several: of the decoder's three masks, take the one it rates best, as the published evaluation does; else its
            single mask, which is the one that is trained.

    Raises:
        TrainingError: the network's answer is no number.
    """
    maps = network.encode(pixels[None])
    for chunk in inputs:
        prompts: PromptEmbeddings = network.adapter({k: v.to(pixels.device) for k, v in chunk.items()})
        which = torch.zeros(len(prompts.dense), dtype=torch.long, device=pixels.device)
        each: ImageMaps = maps[which]
        for logits in network.decode(each, prompts, several=several)[:, 0]:
            if not torch.isfinite(logits).all():
                hint = "Compute in --precision fp32, or use another checkpoint"
                raise TrainingError("the network's answer is no number", hint=hint, reason="not_finite")
            yield at_full_size(logits, place)


def at_full_size(logits: Tensor, place: Place) -> BoolArray:
    """Logits (h, w) of the padded square as a mask (H, W) of the photo: bilinear, inside where above 0."""
    size = (place.side, place.side)
    square = functional.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)
    part = square[(..., *place.part)]
    whole = functional.interpolate(part, (place.height, place.width), mode="bilinear", align_corners=False)
    mask: BoolArray = (whole[0, 0] > 0).cpu().numpy()
    return mask


def predictions(
    model: Model,
    samples: Sequence[Sample],
    device: str,
    dtype: torch.dtype,
    *,
    workers: int = 0,
    several: bool = False,
    at_once: int = PROMPTS_AT_ONCE,
) -> Iterator[Prediction]:
    """Predict every sample's mask, photo by photo. The network must be on the device, in evaluation mode.

    Args:
        dtype: of the matrix products.
        workers: processes that read photos; 0 for this one.
        several: as `masks_of`.
        at_once: prompts of a photo in one pass.
    """
    network = model.network
    photos = Photos(samples, model.reader, model.shaping(), at_once)
    loader: DataLoader[Photo] = DataLoader(
        photos, batch_size=None, num_workers=min(workers, len(photos)), worker_init_fn=leave_signals
    )
    for photo in read_by(loader):
        with computing_in(device, dtype):
            found = list(masks_of(network, photo.pixels.to(device), photo.inputs, photo.place, several=several))
        for sample, truth, predicted in zip(photo.samples, photo.truths, found, strict=True):
            compared = overlap(str(sample.image), predicted, truth)
            yield Prediction(sample, photo.rgb, truth, predicted, compared)


# Results.


@dataclass(frozen=True)
class Results:
    """Every prediction's overlap, and the metrics of all and of each concept."""

    samples: list[Sample]
    overlaps: list[Overlap]
    all: Metrics
    concepts: dict[str, Metrics]


def results_of(samples: Sequence[Sample], overlaps: Sequence[Overlap]) -> Results:
    """Metrics of predictions, and of each concept's."""
    by_concept: dict[str, list[Overlap]] = {}
    for sample, found in zip(samples, overlaps, strict=True):
        by_concept.setdefault(sample.concept, []).append(found)
    concepts = {concept: metrics(by_concept[concept]) for concept in sorted(by_concept)}
    return Results(list(samples), list(overlaps), metrics(overlaps), concepts)


def write_results(path: Path, results: Results, told: Mapping[str, Any]) -> None:
    """Write results.json.

    Args:
        told: what else it says: model, data, settings.

    Raises:
        OutputError: it cannot be written.
    """
    items = [
        {
            "id": sample.id,
            "concept": sample.concept,
            "prompt": sample.prompt,
            "iou": round(found.iou, 6),
            "intersection": found.intersection,
            "union": found.union,
            "predicted": found.predicted,
            "negative": found.negative,
        }
        for sample, found in zip(results.samples, results.overlaps, strict=True)
    ]
    content = {
        **told,
        "count": len(items),
        "metrics": asdict(results.all),
        "concepts": {concept: asdict(found) for concept, found in results.concepts.items()},
        "items": items,
    }
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def percent(estimate: Estimate) -> str:
    """A metric in percent with its interval, or a dash."""
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:.1f}"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
