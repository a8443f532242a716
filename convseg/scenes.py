"""Drawn scenes with exact masks: coloured shapes, and prompts by colour, shape, size and place, some of absent things.

Data to try and to test training on, where every right answer is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dataengine.images import RgbArray
from dataengine.masks import BoolArray
from dataengine.packing import png
from dataengine.run_folder import write_whole

COLOURS = {
    "red": (205, 40, 40), "green": (45, 150, 60), "blue": (45, 75, 205), "yellow": (235, 215, 55),
    "white": (240, 240, 240), "black": (25, 25, 25),
}  # fmt: skip
KINDS = ("circle", "square", "triangle")
PLACES = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}  # axis, side
SIZES = {"small": (12, 15), "large": (22, 27)}  # radius in pixels
VERBS = ("Segment", "Identify", "Select")
SIDE = 128  # pixels
SHAPES = (3, 4)  # a scene has at least and at most
TRIES = 200
APART = 5  # pixels between the middle of the picture and the middle of any shape, across and down
NEGATIVES = 0.15  # share of prompts that fit nothing


@dataclass(frozen=True)
class Shape:
    """A drawn shape around x, y; `mask` is (SIDE, SIDE) bool."""

    colour: str
    kind: str
    size: str
    x: float
    y: float
    mask: BoolArray


@dataclass(frozen=True)
class Scene:
    """A picture (SIDE, SIDE, 3) uint8 and what is drawn on it."""

    rgb: RgbArray
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Pair:
    """A prompt, the mask it means, which is empty where nothing fits, and what the prompt speaks of."""

    prompt: str
    mask: BoolArray
    concept: str


def draw_scene(random: np.random.Generator) -> Scene:
    """Shapes that do not touch, each of another colour, on grey with a little noise."""
    rgb = np.repeat(random.uniform(95, 150) + random.normal(0, 4, (SIDE, SIDE, 1)), 3, axis=2)
    taken = np.zeros((SIDE, SIDE), np.uint8)
    shapes: list[Shape] = []
    wanted = int(random.integers(SHAPES[0], SHAPES[1] + 1))
    tries = 0
    while len(shapes) < wanted:
        tries += 1
        if tries > TRIES:
            return draw_scene(random)  # what is there leaves no place
        colour, kind, size = (str(random.choice(list(names))) for names in (COLOURS, KINDS, SIZES))
        radius = float(random.uniform(*SIZES[size]))
        x, y = random.uniform(radius + 2, SIDE - radius - 2, 2)
        mask = _drawn(kind, x, y, radius)
        is_clear = min(abs(x - SIDE / 2), abs(y - SIDE / 2)) >= APART and not (taken & mask).any()
        if not is_clear or any(s.colour == colour for s in shapes):
            continue
        taken = np.asarray(cv2.dilate(taken | mask, np.ones((3, 3), np.uint8)), np.uint8)
        rgb[mask > 0] = np.array(COLOURS[colour]) + random.normal(0, 6, (int(mask.sum()), 1))
        shapes.append(Shape(colour, kind, size, float(x), float(y), mask > 0))
    return Scene(rgb.clip(0, 255).astype(np.uint8), tuple(shapes))


def _drawn(kind: str, x: float, y: float, radius: float) -> npt.NDArray[np.uint8]:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    r, side = radius, 0.8 * radius
    corners = {
        "square": [(-side, -side), (side, -side), (side, side), (-side, side)],
        "triangle": [(0, -r), (0.9 * r, 0.75 * r), (-0.9 * r, 0.75 * r)],
    }
    if kind == "circle":
        cv2.circle(mask, (round(x), round(y)), round(0.9 * r), 1, -1)
    else:
        points = np.array([(x + dx, y + dy) for dx, dy in corners[kind]])
        cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return mask


def prompts_of(scene: Scene, random: np.random.Generator, count: int) -> list[Pair]:
    """`count` different prompts for a scene, of kinds drawn at random; some fit nothing."""
    found: dict[str, Pair] = {}
    makers = (_by_both, _by_colour, _by_kind, _by_place, _by_size)
    while len(found) < count:
        maker = _absent if random.random() < NEGATIVES else makers[random.integers(len(makers))]
        pair = maker(scene, random)
        if pair is not None:
            found.setdefault(pair.prompt, pair)
    return list(found.values())


def _said(random: np.random.Generator, what: str, chosen: list[Shape], concept: str) -> Pair:
    mask = np.any([s.mask for s in chosen], axis=0) if chosen else np.zeros((SIDE, SIDE), bool)
    return Pair(f"{random.choice(VERBS)} {what}", mask, concept)


def _one(scene: Scene, random: np.random.Generator) -> Shape:
    return scene.shapes[int(random.integers(len(scene.shapes)))]


def _by_both(scene: Scene, random: np.random.Generator) -> Pair:
    shape = _one(scene, random)
    return _said(random, f"the {shape.colour} {shape.kind}", [shape], "colour and shape")


def _by_colour(scene: Scene, random: np.random.Generator) -> Pair:
    colour = _one(scene, random).colour
    return _said(random, f"everything {colour}", [s for s in scene.shapes if s.colour == colour], "colour")


def _by_kind(scene: Scene, random: np.random.Generator) -> Pair:
    kind = _one(scene, random).kind
    return _said(random, f"every {kind}", [s for s in scene.shapes if s.kind == kind], "shape")


def _by_place(scene: Scene, random: np.random.Generator) -> Pair | None:
    place = str(random.choice(list(PLACES)))
    axis, side = PLACES[place]
    chosen = [s for s in scene.shapes if side * ((s.x, s.y)[axis] - SIDE / 2) > 0]
    return _said(random, f"everything {place}", chosen, "place") if chosen else None


def _by_size(scene: Scene, random: np.random.Generator) -> Pair:
    size = _one(scene, random).size
    return _said(random, f"every {size} shape", [s for s in scene.shapes if s.size == size], "size")


def _absent(scene: Scene, random: np.random.Generator) -> Pair | None:
    """Something of a colour that is nowhere."""
    colour, kind = str(random.choice(list(COLOURS))), str(random.choice(KINDS))
    if any(s.colour == colour for s in scene.shapes):
        return None
    return _said(random, f"the {colour} {kind}", [], "absent")


def every_text() -> Iterator[str]:
    """All words that prompts of scenes are made of: for a tokenizer to learn."""
    for verb in VERBS:
        for colour in COLOURS:
            yield from (f"{verb} the {colour} {kind}" for kind in KINDS)
            yield f"{verb} everything {colour}"
        yield from (f"{verb} every {kind}" for kind in KINDS)
        yield from (f"{verb} everything {place}" for place in PLACES)
        yield from (f"{verb} every {size} shape" for size in SIZES)


def write_scenes(folder: Path, count: int, *, prompts: int = 4, seed: int = 0, blind: bool = False) -> Path:
    """Write `count` scenes in the form of an export: images/, masks/, dataset.jsonl and items.json.

    Args:
        prompts: for each scene.
        blind: every prompt is the same word, so that nothing can be learnt from it.

    Returns:
        The folder.
    """
    random = np.random.default_rng(seed)
    lines, items = [], []
    for number in range(count):
        scene = draw_scene(random)
        image = f"images/scene_{number:05d}.png"
        write_whole(folder / image, png(scene.rgb), durable=False)
        for position, pair in enumerate(prompts_of(scene, random, prompts)):
            name = f"scene_{number:05d}_{position}"
            mask = f"masks/{name}.png"
            write_whole(folder / mask, png(pair.mask.astype(np.uint8) * 255), durable=False)
            prompt = "Segment" if blind else pair.prompt
            lines.append(json.dumps({"image": image, "mask_merged": mask, "prompt": prompt}))
            negative = {"negative": True} if not pair.mask.any() else {}
            items.append(
                {"id": name, "image": image, "mask": mask, "prompt": prompt, "concept": pair.concept, **negative}
            )
    write_whole(folder / "dataset.jsonl", "".join(f"{line}\n" for line in lines).encode())
    content = {"dataset": folder.name, "count": len(items), "items": items}
    write_whole(folder / "items.json", json.dumps(content, indent=1).encode())
    return folder
