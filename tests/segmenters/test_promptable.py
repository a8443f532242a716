"""What `sam2` and `sam3` share, on the tiny SAM 2: how often it encodes, what it makes of a photo, what it frees."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataengine.errors import StageError
from dataengine.images import Photo
from dataengine.journal import Journal
from dataengine.masks import Mask
from dataengine.records import DescribedRegion, Xyxy
from dataengine.segmenters import promptable_model
from dataengine.segmenters.grid_decoder import GridDecoder, PoolRules
from dataengine.segmenters.sam2 import Sam2Segmenter
from dataengine.stages.propose import propose
from dataengine.stages.segment import segment
from tests.photos import photo as picture
from tests.scripted import Script, settings
from tests.standins.tiny_sam2 import SIDE, save_tiny_sam2

LOOSE = PoolRules(score=0.1, stability=0.1, overlap=0.97)  # by which random weights leave a pool of some masks
BOXES: list[Xyxy] = [(20, 10, 90, 60), (100.5, 40.2, 200, 130), (0, 0, 239, 159), (150, 5, 230, 20)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """What is this small takes longer on many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam2(tmp_path_factory.mktemp("sam2"), seed=2)  # the masks of others all span the image


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Sam2Segmenter:
    return built(checkpoint)


@pytest.fixture
def passes(shared: Sam2Segmenter) -> Iterator[list[int]]:
    """How many images each pass of the encoder took."""
    taken: list[int] = []
    encoder = shared.models["cpu"].model.vision_encoder
    hook = encoder.register_forward_pre_hook(lambda module, args: taken.append(len(args[0])))
    yield taken
    hook.remove()


def built(checkpoint: Path, **other: Any) -> Sam2Segmenter:
    options = {"checkpoint": str(checkpoint), "points_per_side": 8, "min_pool_pixels": 20, "device": "cpu", **other}
    segmenter = Sam2Segmenter(settings(**options))
    segmenter.rules = LOOSE
    return segmenter


def cup(width: int = 240, height: int = 160, name: str = "coffee") -> Photo:
    return Photo(Path(f"{name}.jpg"), np.asarray(picture(name, width).resize((width, height))).copy(), "0" * 64)


def cut(segmenter: Sam2Segmenter, photo: Photo, boxes: Sequence[Xyxy]) -> list[Mask]:
    return asyncio.run(segmenter.segment(photo, boxes)).value


def pool_of(segmenter: Sam2Segmenter, photo: Photo) -> list[Mask]:
    return asyncio.run(segmenter.propose(photo)).value


def mean_iou(ours: Sequence[Mask], theirs: Sequence[Mask]) -> float:
    return float(np.mean([a.iou(b) for a, b in zip(ours, theirs, strict=True)]))


def run_out_above(number: int, work: Callable[..., Any], jobs: Callable[..., Any]) -> Callable[..., Any]:
    """The work, for which memory ends where `jobs` finds more than so many in its arguments."""

    def limited(*args: Any) -> Any:
        if len(jobs(*args)) > number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*args)

    return limited


def test_the_pool_and_all_boxes_take_one_pass_of_the_encoder(shared: Sam2Segmenter, passes: list[int]) -> None:
    photo = cup()

    async def work() -> None:
        await asyncio.gather(shared.propose(photo), *(shared.segment(photo, [box]) for box in BOXES))
        await shared.segment(photo, BOXES)

    asyncio.run(work())
    asyncio.run(shared.propose(photo))  # in another loop
    assert passes == [1]


def test_waiting_photos_are_encoded_together_and_cut_as_if_alone(shared: Sam2Segmenter, passes: list[int]) -> None:
    photos = [cup(), cup(150, 200), cup(name="chelsea"), cup(300, 90), cup(name="astronaut"), cup(130, 128)]
    boxes = [(5.0, 5.0, 0.6 * photo.width, 0.7 * photo.height) for photo in photos]

    async def work() -> list[list[Mask]]:
        return [
            answer.value
            for answer in await asyncio.gather(*(shared.segment(p, [b]) for p, b in zip(photos, boxes, strict=True)))
        ]

    together = asyncio.run(work())
    assert sum(passes) == len(photos)
    assert len(passes) < len(photos)
    alone = [cut(shared, Photo(p.path, p.rgb, p.sha256), [b]) for p, b in zip(photos, boxes, strict=True)]
    assert [masks[0].iou(other[0]) > 0.99 for masks, other in zip(together, alone, strict=True)] == [True] * 6


def test_what_was_made_of_a_photo_goes_with_it(shared: Sam2Segmenter) -> None:
    photo = cup()
    pool_of(shared, photo)
    features = weakref.ref(shared._encoded[photo].result())
    kept = len(shared._encoded)
    del photo
    gc.collect()
    deadline = time.monotonic() + 10
    while features() is not None and time.monotonic() < deadline:
        time.sleep(0.01)  # the device's thread lets go a moment after it has answered
    assert features() is None
    assert len(shared._encoded) == kept - 1


def test_the_mask_of_a_box_is_that_of_transformers_own_processor(shared: Sam2Segmenter) -> None:
    """On a photo that is not square, so that x and y are told apart, and so are the photo's pixels and the model's."""
    from transformers import Sam2ImageProcessor, Sam2Processor

    photo, model = cup(), shared.models["cpu"].model
    side = {"height": SIDE, "width": SIDE}
    processor: Any = Sam2Processor(Sam2ImageProcessor(size=side), target_size=SIDE)
    inputs = processor(photo.rgb, input_boxes=[[list(box) for box in BOXES]], return_tensors="pt")
    sizes = inputs.pop("original_sizes")
    inputs["pixel_values"] = shared.models["cpu"].pixels(photo.rgb)[None]  # not rounded to 8 bits: see the next test
    with torch.no_grad():
        logits = model(**inputs, multimask_output=False).pred_masks
    theirs = [Mask.from_array(m[0].numpy()) for m in processor.post_process_masks(logits, sizes)[0]]
    ours = cut(shared, photo, BOXES)
    assert mean_iou(ours, theirs) > 0.999
    swapped = cut(shared, photo, [(y0, x0, y1, x1) for x0, y0, x1, y1 in BOXES])
    assert mean_iou(swapped, theirs) < 0.9


def test_pixels_are_those_of_transformers_processor_but_for_its_rounding(shared: Sam2Segmenter) -> None:
    from transformers import Sam2ImageProcessor

    photo = cup(300, 500)
    theirs = Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})(photo.rgb, return_tensors="pt")
    away = (shared.models["cpu"].pixels(photo.rgb) - theirs["pixel_values"][0]).abs()
    step = 1 / 255 / 0.224  # of 8 bits, normalised
    assert away.max() < 1.01 * step
    assert away.mean() < 0.3 * step


@pytest.mark.parametrize(("least", "fewest"), [(20, 3), (12000, 1)])
def test_the_pool_is_that_of_the_published_schedule(checkpoint: Path, least: int, fewest: int) -> None:
    """The same grid and filters, done one after another on what transformers' own model answers."""
    from torchvision.ops import nms

    segmenter, photo = built(checkpoint, min_pool_pixels=least), cup()
    model = segmenter.models["cpu"].model
    maps = list(asyncio.run(segmenter._features(photo)).maps)
    line = (np.arange(8) + 0.5) / 8 * SIDE
    points = torch.tensor([[x, y] for y in line for x in line], dtype=torch.float32)
    with torch.no_grad():
        out = model(image_embeddings=maps, input_points=points[None, :, None])
    logits, scores = out.pred_masks[0].flatten(0, 1), out.iou_scores[0].flatten()
    areas = [(logits > level).sum((1, 2)) for level in (1.0, 0.0, -1.0)]
    enough = areas[1] * (160 * 240 / logits[0].numel()) >= least
    able = (scores > LOOSE.score) & (areas[0] / areas[2] >= LOOSE.stability) & enough
    logits, scores = logits[able], scores[able]
    boxes = torch.tensor(
        [[v + (i > 1) for i, v in enumerate(Mask.from_array(m.numpy() > 0).xyxy or ())] for m in logits]
    )
    kept = nms(boxes.float(), scores, LOOSE.overlap)
    pool = pool_of(segmenter, photo)
    assert fewest <= len(kept) < int(able.sum())
    assert {(m.height, m.width) for m in pool} == {(26, 39)}  # 32 * 32 pixels in the photo's shape
    grown = torch.nn.functional.interpolate(logits[kept][:, None], (26, 39), mode="bilinear")[:, 0]
    assert mean_iou(pool, [Mask.from_array(m.numpy() > 0) for m in grown]) > 0.999


@pytest.mark.parametrize(("width", "height"), [(240, 160), (90, 400), (768, 16), (16, 16), (17, 30)])
def test_masks_have_the_photos_size_and_the_pool_its_shape(shared: Sam2Segmenter, width: int, height: int) -> None:
    photo = cup(width, height)
    masks = cut(shared, photo, [(0, 0, width, height), (width - 2, height - 2, width, height)])
    assert {(m.height, m.width) for m in masks} == {(height, width)}
    pool = pool_of(shared, photo)
    ((h, w),) = {(m.height, m.width) for m in pool}
    assert h * w < 1.2 * 32 * 32  # sides are rounded
    assert (h, w) == (height, width) or w / h == pytest.approx(width / height, rel=0.15)


def test_boxes_at_edges_of_a_pixel_and_none(shared: Sam2Segmenter, passes: list[int]) -> None:
    photo = cup()
    assert cut(shared, photo, []) == []
    assert passes == []
    tiny: list[Xyxy] = [(0, 0, 1, 1), (239, 159, 240, 160), (0, 80, 1, 81), (120, 80, 120, 80), (0, 0, 240, 160)]
    masks = cut(shared, photo, tiny)
    assert [(m.height, m.width) for m in masks] == [(160, 240)] * 5
    assert len(set(masks)) == 5


def test_an_image_in_which_nothing_is_found_gives_empty_answers(
    shared: Sam2Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared.models["cpu"].model
    forward = model.mask_decoder.forward
    photo = cup()
    monkeypatch.setattr(shared, "rules", PoolRules(score=1))
    monkeypatch.setattr(model.mask_decoder, "forward", lambda *args: (-forward(*args)[0].abs() - 1, None))
    assert pool_of(shared, photo) == []
    assert cut(shared, photo, BOXES[:2]) == [Mask.empty(160, 240)] * 2


def test_memory_that_does_not_hold_a_batch_halves_it(
    checkpoint: Path, shared: Sam2Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points, boxes and photos: the masks are those made with memory enough."""
    photos = [cup(), cup(name="chelsea"), cup(name="astronaut")]

    async def work(segmenter: Sam2Segmenter) -> list[list[Mask]]:
        asked: list[Awaitable[Any]] = [segmenter.propose(photo) for photo in photos]
        asked += [segmenter.segment(photo, BOXES) for photo in photos]
        return [answer.value for answer in await asyncio.gather(*asked)]

    expected = asyncio.run(work(shared))
    monkeypatch.setattr(promptable_model, "POINTS_AT_ONCE", {"cpu": 64})
    poor = built(checkpoint)
    model = poor.models["cpu"]
    for name in ("candidates", "logits"):
        limited = run_out_above(5, getattr(GridDecoder, name), lambda decoder, points, *rest: points)
        monkeypatch.setattr(GridDecoder, name, limited)
    decoder = model.model.mask_decoder
    limited = run_out_above(1, decoder.forward, lambda image, places, prompts, *rest: prompts[0])
    monkeypatch.setattr(decoder, "forward", limited)
    monkeypatch.setattr(model, "encode", run_out_above(1, model.encode, lambda photos: photos))
    got = asyncio.run(work(poor))
    assert [len(masks) for masks in got] == [len(masks) for masks in expected]
    assert min(mean_iou(ours, theirs) for ours, theirs in zip(got, expected, strict=True)) > 0.999


def test_memory_that_does_not_hold_one_is_one_line_and_tried_again(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, photo = built(checkpoint), cup()
    model = segmenter.models["cpu"]
    with monkeypatch.context() as patched:
        patched.setattr(model, "encode", run_out_above(0, model.encode, lambda photos: photos))

        async def work() -> list[Any]:
            asked: list[Awaitable[Any]] = [segmenter.propose(photo), segmenter.segment(photo, BOXES)]
            return await asyncio.gather(*asked, return_exceptions=True)

        failures = asyncio.run(work())
    assert [f.reason for f in failures if isinstance(f, StageError)] == ["out_of_memory"] * 2
    assert len(cut(segmenter, photo, BOXES)) == 4


def test_memory_that_does_not_hold_one_keeps_neither_photo_nor_tensors(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, photo = built(checkpoint), cup()
    made: list[weakref.ref[Any]] = [weakref.ref(photo)]

    def encode(photos: Sequence[Any]) -> None:
        pixels = torch.stack([torch.tensor(rgb) for rgb in photos])
        made.append(weakref.ref(pixels))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segmenter.models["cpu"], "encode", encode)
    for _ in range(2):
        with pytest.raises(StageError, match="out of memory"):
            cut(segmenter, photo, BOXES)
    assert len(segmenter._encoded) == 0
    del photo
    gc.collect()
    assert [one() for one in made] == [None] * 3


INTERRUPTED = """
import sys
from dataengine.cli import main
from dataengine.segmenters.grid_decoder import GridDecoder

candidates = GridDecoder.candidates

def told(*args):
    if not told.busy:
        print("busy", flush=True)
    told.busy = True
    return candidates(*args)

told.busy = False
GridDecoder.candidates = told
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_is_interrupted_while_the_model_works_ends_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    picture("coffee", 240).save(tmp_path / "coffee.png")
    where = ["run", "-i", str(tmp_path / "coffee.png"), "-o", str(tmp_path / "runs"), "--checkpoint", str(checkpoint)]
    parts = ["--annotator", "measured", "--grounder", "annotator", "--segmenter", "sam2", "--device", "cpu"]
    command = [sys.executable, "-c", INTERRUPTED, *where, *parts, "--points_per_side", "200"]
    few = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=few) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "busy\n"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, "1 waiting" in out) == (130, True)
    assert err == "stopped: interrupted (SIGINT). Run the same command again to go on where it was\n"


def test_who_gives_up_does_not_take_it_from_others(shared: Sam2Segmenter, passes: list[int]) -> None:
    photo = cup()

    async def work() -> int:
        first = asyncio.create_task(shared.propose(photo))
        second = asyncio.create_task(shared.segment(photo, BOXES))
        await asyncio.sleep(0)
        first.cancel()
        return len((await second).value)

    assert asyncio.run(work()) == 4
    assert passes == [1]


def test_an_encoding_cut_off_with_its_loop_is_made_again(shared: Sam2Segmenter) -> None:
    photo = cup()

    async def leave() -> None:
        asyncio.create_task(shared.propose(photo))  # noqa: RUF006 - to be cancelled with the loop
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert len(cut(shared, photo, BOXES)) == 4


def test_answers_repeat_and_a_copy_of_the_model_gives_the_same(checkpoint: Path, shared: Sam2Segmenter) -> None:
    first, again = cup(), cup()
    other = built(checkpoint)
    assert pool_of(shared, first) == pool_of(shared, again) == pool_of(other, first)
    assert cut(shared, first, BOXES) == cut(shared, again, BOXES) == cut(other, first, BOXES)


def test_bfloat16_on_request(checkpoint: Path, shared: Sam2Segmenter) -> None:
    photo, rough = cup(), built(checkpoint, precision="bfloat16")
    assert rough.detail["precision"] == "bfloat16"
    assert 0.5 < mean_iou(cut(rough, photo, BOXES), cut(shared, photo, BOXES)) < 1
    assert len(pool_of(rough, photo)) > 1


def test_a_copy_on_each_device_and_masks_from_where_the_features_are(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cpu` and `cpu:0` are one device to torch and two to us."""
    monkeypatch.setattr("dataengine.segmenters.promptable.device_names", lambda setting: ("cpu", "cpu:0"))
    segmenter = built(checkpoint, device_batch=1)
    assert segmenter.models["cpu"].model is not segmenter.models["cpu:0"].model
    photos = [cup(), cup(name="chelsea"), cup(name="astronaut"), cup(90, 400)]

    async def work() -> list[Any]:
        return await asyncio.gather(*(segmenter.segment(photo, BOXES[:1]) for photo in photos))

    answers = asyncio.run(work())
    where = [asyncio.run(segmenter._features(photo)).device for photo in photos]
    assert set(where) == {"cpu", "cpu:0"}
    one = built(checkpoint)
    assert [a.value for a in answers] == [cut(one, photo, BOXES[:1]) for photo in photos]


def test_the_version_names_all_that_changes_answers(checkpoint: Path, shared: Sam2Segmenter, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{"precision": "bfloat16"}, {"points_per_side": 9}, {"min_pool_pixels": 21}]
    others = {built(checkpoint, **change).version for change in changes}
    others.add(built(save_tiny_sam2(tmp_path, seed=1)).version)
    assert len(others | {shared.version}) == 5
    assert built(checkpoint, device_batch=7).version == shared.version
    assert shared.detail["device"] == "cpu"
    assert {"model", "weights", "transformers", "torch"} <= set(shared.detail)


def test_the_stages_cut_and_refine_with_it(shared: Sam2Segmenter, passes: list[int], tmp_path: Path) -> None:
    photo, options = cup(), settings(iou_threshold=0.3)
    parts = Script().parts()
    object.__setattr__(parts, "segmenter", shared)
    regions = [DescribedRegion(label=f"thing {i}", boxes=[box]) for i, box in enumerate(BOXES)]

    async def work() -> list[Any]:
        steps = Journal(tmp_path / "journal.jsonl")
        pool = asyncio.create_task(propose(photo, parts, options, steps))
        return list(await segment(photo, regions, pool, parts, options, steps))

    cuts = asyncio.run(work())
    assert [len(one.instances) for one in cuts] == [1, 1, 1, 1]
    assert {one.instances[0].initial.size for one in cuts} == {(160, 240)}
    assert any(one.instances[0].refined for one in cuts)
    assert passes == [1]


def test_torch_is_not_imported_with_the_module() -> None:
    code = "import sys, dataengine.segmenters.sam2, dataengine.segmenters.sam3; print({'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
