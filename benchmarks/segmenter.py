"""Our `sam2` against the published schedule on the same random weights, photos, boxes and thresholds.

    python -m benchmarks.segmenter --size tiny --images 1
    python -m benchmarks.segmenter --size large --images 8 --device cuda

The published schedule is written here for the comparison, on transformers' Sam2Model: what the published engine does
with SAM2AutomaticMaskGenerator and SAM2ImagePredictor: one pass of the encoder for the pool and one more for each
region, float32, 64 points at once, every mask brought to the photo's size before it is looked at, RLE and IoU at that
size. Both sides make a pool and, for each region, the mask of its box and the best mask of the pool.

Random weights have no opinion on masks: all of the image or nothing, speckled. They are changed so that masks are
smooth and as large as things are (`random_model`, `centre`), and both sides' thresholds are set on a coarse grid so
that a given share of masks passes each; what comes out is printed. Our time depends on that share: points without a
mask that passes cost less.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data
from torch.nn import functional
from torchvision.ops import nms
from transformers import Sam2Model
from transformers.models.sam2.image_processing_sam2 import (
    _batched_mask_to_box,
    _compute_stability_score,
    _mask_to_rle,
    _rle_to_mask,
)

from dataengine.devices import device_names
from dataengine.images import Photo
from dataengine.masks import BoolArray, Mask
from dataengine.records import Xyxy
from dataengine.segmenters.grid_decoder import GridDecoder, PoolRules
from dataengine.segmenters.promptable_model import PromptableModel
from dataengine.segmenters.sam2 import Sam2Segmenter
from dataengine.segmenters.sam2_checkpoint import sam2_config
from dataengine.settings import Settings, load_settings
from dataengine.stages.segment import take_best
from tests.standins.tiny_sam2 import random_state

CONFIGS = {"tiny": "sam2.1_hiera_t.yaml", "large": "sam2.1_hiera_l.yaml"}
PICTURES = ("coffee", "astronaut", "chelsea", "rocket")
POINTS_PER_BATCH = 64  # of SAM2AutomaticMaskGenerator
SPREAD = 10.0  # of a mask's logits, as real weights have it: stability is measured in such units
# Corners of the regions' boxes, in shares of the photo's width and height.
REGIONS = (
    (0.05, 0.05, 0.45, 0.5), (0.5, 0.1, 0.95, 0.6), (0.2, 0.5, 0.8, 0.95), (0.0, 0.0, 1.0, 0.3),
    (0.6, 0.6, 0.75, 0.9), (0.1, 0.7, 0.3, 0.85), (0.4, 0.3, 0.6, 0.5),
)  # fmt: skip


@dataclass
class Outcome:
    """What one side made, and what it took.

    Attributes:
        pools, initial, chosen: by photo: the pool, the mask of each box, and what was chosen for it from the pool.
        seconds, cpu_seconds: of the clock, and of all cores together.
        peak: most bytes of the GPU; 0 on a CPU.
        passes: photos that the encoder saw, and its calls.
    """

    pools: list[list[Mask]] = field(default_factory=list)
    initial: list[list[Mask]] = field(default_factory=list)
    chosen: list[list[Mask | None]] = field(default_factory=list)
    seconds: float = 0
    cpu_seconds: float = 0
    peak: int = 0
    passes: list[int] = field(default_factory=list)


def random_model(size: str, seed: int = 0) -> Sam2Model:
    """A published architecture with random weights by which masks are smooth and differ from point to point."""
    model = Sam2Model(sam2_config(CONFIGS[size]))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(random_state(shapes, seed))
    decoder: Any = model.mask_decoder
    places: Any = model.shared_image_embedding
    with torch.no_grad():
        for convolution in (decoder.conv_s0, decoder.conv_s1):
            convolution.weight.zero_()
            convolution.bias.zero_()
        for convolution in (decoder.upscale_conv1, decoder.upscale_conv2):
            mean = convolution.weight.mean((2, 3), keepdim=True)
            convolution.weight.copy_(2 * mean.expand_as(convolution.weight))
        for convolution in model.vision_encoder.neck.convs:
            convolution.weight.mul_(0.1)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(places.positional_embedding)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def photos_of(count: int, side: int) -> list[Photo]:
    """Photos of scikit-image with a long side of so many pixels."""
    photos = []
    for i in range(count):
        name = PICTURES[i % len(PICTURES)]
        rgb = getattr(data, name)()
        scale = side / max(rgb.shape[:2])
        size = (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))
        photos.append(Photo(Path(f"{name}.png"), cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC), f"{i:064}"))
    return photos


def boxes_of(photo: Photo) -> list[Xyxy]:
    w, h = photo.width, photo.height
    return [(x0 * w, y0 * h, x1 * w, y1 * h) for x0, y0, x1, y1 in REGIONS]


def centre(model: PromptableModel, photo: Photo, area: float = 0.15) -> None:
    """Change the decoder so that masks of a coarse grid cover this share of the photo in the middle of their range.

    One channel of the finest features is made constant; through it each mask loses its mean over the grid's points.
    """
    decoder = model.model.mask_decoder
    means: list[torch.Tensor] = []
    hook = decoder.upscale_conv2.register_forward_hook(
        lambda module, args, out: means.append(functional.gelu(out).mean((0, 2, 3)))
    )
    with torch.no_grad():
        maps, points = list(model.encode([photo.rgb])[0].maps), grid(model, 8, 4)
        for chunk in points:
            model.model(image_embeddings=maps, input_points=chunk[None, :, None])
        hook.remove()
        mean = torch.stack(means).mean(0)
        mean[0] = 0
        decoder.upscale_conv2.weight[:, 0], decoder.upscale_conv2.bias[0] = 0, 1
        constant = float(functional.gelu(torch.tensor(1.0)))
        heads = [head.proj_out for head in decoder.output_hypernetworks_mlps]
        for head in heads:
            head.weight[0] = -(mean[:, None] * head.weight).sum(0) / constant
            head.bias[0] = -(mean * head.bias).sum() / constant
        logits = torch.cat([GridDecoder(model.model, maps, torch.float32).logits(chunk) for chunk in points])
        cut = float(logits[..., ::8, ::8].quantile(1 - area))
        for head in heads:
            head.bias[0] -= cut / constant
            head.weight.mul_(SPREAD / logits.std((2, 3)).median())
            head.bias.mul_(SPREAD / logits.std((2, 3)).median())


def grid(model: PromptableModel, per_side: int, at_once: int) -> list[torch.Tensor]:
    """The points of a grid (n, 2) in pixels of the model's input, so many together."""
    line = ((torch.arange(per_side) + 0.5) / per_side * model.side).tolist()
    points = torch.tensor([[x, y] for y in line for x in line], device=model.device)
    return [points[i : i + at_once] for i in range(0, len(points), at_once)]


@torch.inference_mode()
def rules_for(model: PromptableModel, photo: Photo, share: float) -> PoolRules:
    """Thresholds that a share of the masks of a coarse grid passes, and again a share of those."""
    decoder = GridDecoder(model.model, list(model.encode([photo.rgb])[0].maps), torch.float32)
    chunks = grid(model, 8, 4)
    all_pass = PoolRules(score=-1, stability=0)
    scores = torch.cat([decoder.candidates(chunk, all_pass)[..., 0] for chunk in chunks]).flatten()
    logits = torch.cat([decoder.logits(chunk) for chunk in chunks]).flatten(0, 1)
    score = float(scores.quantile(1 - share))
    passing = logits[scores > score]
    stability = (passing > 1).sum((1, 2)) / (passing > -1).sum((1, 2)).clamp(min=1)
    return PoolRules(score=score, stability=float(stability.quantile(1 - share)))


class PublishedSchedule:
    """The published engine's way with its two tools, photo after photo."""

    def __init__(self, model: PromptableModel, settings: Settings, rules: PoolRules) -> None:
        self.model, self.settings, self.rules = model, settings, rules

    @torch.inference_mode()
    def run(self, photo: Photo, outcome: Outcome) -> None:
        pool = self._pool(photo)
        masks = [self._predicted(photo, box) for box in boxes_of(photo)]
        left = list(range(len(pool)))
        chosen = [_best(mask, pool, left, self.settings.iou_threshold) for mask in masks]
        outcome.pools.append([Mask.from_array(mask) for mask in pool])
        outcome.initial.append([Mask.from_array(mask) for mask in masks])
        outcome.chosen.append([None if best is None else Mask.from_array(pool[best]) for best in chosen])

    def _maps(self, photo: Photo) -> list[torch.Tensor]:
        return list(self.model.encode([photo.rgb])[0].maps)

    def _pool(self, photo: Photo) -> list[BoolArray]:
        """`SAM2AutomaticMaskGenerator._process_crop` for the one crop that is the whole photo."""
        maps = self._maps(photo)
        rles: list[Any] = []
        scores, boxes = [], []
        for chunk in grid(self.model, self.settings.points_per_side, POINTS_PER_BATCH):
            chunk_rles, chunk_scores, chunk_boxes = self._batch(maps, chunk, (photo.height, photo.width))
            rles += chunk_rles
            scores.append(chunk_scores)
            boxes.append(chunk_boxes)
        kept = nms(torch.cat(boxes).float(), torch.cat(scores), self.rules.overlap)
        masks = [_rle_to_mask(rles[i]).numpy() for i in kept.tolist()]
        return [mask for mask in masks if mask.sum() >= self.settings.min_pool_pixels]

    def _batch(
        self, maps: list[torch.Tensor], points: torch.Tensor, size: tuple[int, int]
    ) -> tuple[list[Any], torch.Tensor, torch.Tensor]:
        """`_process_batch`: all masks to the photo's size, then the filters."""
        labels = torch.ones(1, len(points), 1, dtype=torch.int, device=points.device)
        out = self.model.model(image_embeddings=maps, input_points=points[None, :, None], input_labels=labels)
        masks = functional.interpolate(out.pred_masks[0].float(), size, mode="bilinear", align_corners=False)
        masks, scores = masks.flatten(0, 1), out.iou_scores[0].flatten()
        good = scores > self.rules.score
        masks, scores = masks[good], scores[good]
        stable = _compute_stability_score(masks, 0, self.rules.offset) >= self.rules.stability  # type: ignore[arg-type]
        inside, scores = masks[stable] > 0, scores[stable]
        boxes = _batched_mask_to_box(inside)
        return _mask_to_rle(inside), scores, boxes

    def _predicted(self, photo: Photo, box: Xyxy) -> BoolArray:
        """`SAM2ImagePredictor`: `set_image` and `predict` for one region."""
        maps = self._maps(photo)
        scale = np.array([photo.width, photo.height] * 2) / self.model.side
        corners = torch.tensor(np.array([[box]]) / scale, dtype=torch.float32, device=self.model.device)
        out = self.model.model(image_embeddings=maps, input_boxes=corners, multimask_output=False)
        size = (photo.height, photo.width)
        mask = functional.interpolate(out.pred_masks[0].float(), size, mode="bilinear", align_corners=False)
        found: BoolArray = (mask[0, 0] > 0).cpu().numpy()
        return found


def _best(mask: BoolArray, pool: Sequence[BoolArray], left: list[int], threshold: float) -> int | None:
    """The pool mask with the best IoU, at full size in NumPy; it is taken."""
    if not left:
        return None
    ious = [float((mask & pool[i]).sum() / max(1, (mask | pool[i]).sum())) for i in left]
    best = int(np.argmax(ious))
    return left.pop(best) if ious[best] >= threshold else None


async def _ours(segmenter: Sam2Segmenter, photo: Photo, threshold: float) -> tuple[Any, Any, Any]:
    pool, masks = await asyncio.gather(segmenter.propose(photo), segmenter.segment(photo, boxes_of(photo)))
    left = list(pool.value)
    best = [take_best(mask, left, threshold) for mask in masks.value]
    return pool.value, masks.value, [b and b.resized(photo.height, photo.width) for b in best]


def run_ours(segmenter: Sam2Segmenter, photos: Sequence[Photo], threshold: float, outcome: Outcome) -> None:
    """All photos at once, as the engine asks."""

    async def work() -> None:
        for pool, initial, chosen in await asyncio.gather(*(_ours(segmenter, p, threshold) for p in photos)):
            outcome.pools.append(pool)
            outcome.initial.append(initial)
            outcome.chosen.append(chosen)

    asyncio.run(work())


@contextmanager
def measured(model: PromptableModel) -> Iterator[Outcome]:
    """Time, memory and passes of the encoder of what is done within."""
    outcome = Outcome()
    encoder: Any = model.model.vision_encoder
    hook = encoder.register_forward_pre_hook(lambda module, args: outcome.passes.append(len(args[0])))
    on_gpu = model.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield outcome
    finally:
        outcome.seconds, outcome.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        outcome.peak = torch.cuda.max_memory_allocated(model.device) if on_gpu else 0
        hook.remove()


def report(name: str, outcome: Outcome, images: int) -> None:
    masks = ", ".join(str(len(pool)) for pool in outcome.pools)
    refined = sum(best is not None for chosen in outcome.chosen for best in chosen)
    peak = f", peak {outcome.peak / 2**30:.2f} GiB" if outcome.peak else ""
    print(
        f"{name:10} {outcome.seconds:8.2f} s wall, {outcome.cpu_seconds:8.2f} s of all cores, "
        f"{images / outcome.seconds:.3f} images/s{peak}, {sum(outcome.passes) / images:g} encoder passes an image "
        f"in {len(outcome.passes)} calls; pool masks {masks}; {refined} regions refined"
    )


def agreement(ours: Outcome, published: Outcome) -> str:
    """How alike the answers are."""
    pairs = [(a, b) for x, y in zip(ours.initial, published.initial, strict=True) for a, b in zip(x, y, strict=True)]
    boxes = np.mean([1.0 if a == b else a.iou(b) for a, b in pairs])
    best = []
    for mine, theirs in zip(ours.pools, published.pools, strict=True):
        if mine and theirs:
            small = [mask.resized(mine[0].height, mine[0].width) for mask in theirs]
            best += [max(mask.iou(other) for other in small) for mask in mine]
    pools = f"{np.median(best):.4f}" if best else "none"
    return f"IoU of both sides: of boxes' masks {boxes:.4f} (mean), of a pool mask and its like {pools} (median)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=CONFIGS, default="tiny", help="Hiera of SAM 2.1, at 1024 px")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto", help="of our side")
    parser.add_argument("--points_per_side", type=int, default=64)
    parser.add_argument("--photo_side", type=int, default=768, help="pixels of the long side (768: as published)")
    parser.add_argument("--passing", type=float, default=0.5, help="share of masks that pass each of two thresholds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    device = device_names(options.device)[0]
    random_model(options.size, options.seed).save_pretrained(folder)
    kept = {"preset": "offline", "segmenter": "sam2", "checkpoint": str(folder)}
    asked = {"device": device, "precision": options.precision, "points_per_side": options.points_per_side}
    settings = load_settings({**kept, **asked, "iou_threshold": 0})  # so that each region gets a mask of the pool
    segmenter = Sam2Segmenter(settings)
    ours_model = segmenter.models[device]
    theirs = PromptableModel(ours_model.model, device, torch.float32, Sam2Segmenter.normalization)
    photos = photos_of(options.images, options.photo_side)
    centre(theirs, photos[0])
    segmenter.rules = rules_for(theirs, photos[0], options.passing)
    published = PublishedSchedule(theirs, settings, segmenter.rules)
    machine = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(device)
    print(
        f"sam2.1 hiera-{options.size}, random weights, {options.images} images of {options.photo_side} px, "
        f"{options.points_per_side} points a side, {len(REGIONS)} regions; {device} ({machine}), "
        f"torch {torch.__version__}; ours in {segmenter.detail['precision']}; thresholds of both: {segmenter.rules}"
    )
    warm_up(segmenter, published, settings, photos[0])
    with measured(ours_model) as mine:
        run_ours(segmenter, photos, settings.iou_threshold, mine)
    report("ours", mine, len(photos))
    with measured(theirs) as other:
        for photo in photos:
            published.run(photo, other)
    report("published", other, len(photos))
    print(agreement(mine, other))
    spent = other.cpu_seconds / mine.cpu_seconds
    print(f"published / ours: {other.seconds / mine.seconds:.1f} of wall time, {spent:.1f} of the cores' time")


def warm_up(segmenter: Sam2Segmenter, published: PublishedSchedule, settings: Settings, photo: Photo) -> None:
    """Both sides once on a few points: kernels are chosen and memory is found."""
    few = settings.model_copy(update={"points_per_side": 8})
    PublishedSchedule(published.model, few, published.rules).run(photo, Outcome())
    other = Photo(photo.path, photo.rgb, photo.sha256)
    asyncio.run(segmenter.segment(other, boxes_of(photo)))
    features = asyncio.run(segmenter._features(other))
    segmenter.models[features.device].pool(features, (photo.height, photo.width), 16, 1000, published.rules)


if __name__ == "__main__":
    main()
