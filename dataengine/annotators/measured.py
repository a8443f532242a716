"""The annotator `measured`: no model; it measures the pixels and writes only what it measured.

It exists to try, test and load the whole engine without key, network or weights. Its regions are areas of even
colour and its prompts speak of colour, place, shape and contact: true of the picture, but no training data.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from dataengine.annotators import Scene
from dataengine.annotators.look import (
    DARK,
    LARGE,
    LIGHT,
    MEDIUM,
    PLACES,
    ROUGH,
    SMOOTH,
    Look,
    place_word,
    size_word,
    texture_word,
    tone_word,
)
from dataengine.annotators.predicates import NO_PIXELS, Predicate, decoys, predicates
from dataengine.images import Photo, RgbArray
from dataengine.journal import Answer
from dataengine.masks import Mask
from dataengine.measures import COLOURS, Picture, Region
from dataengine.once import OncePer
from dataengine.records import (
    CONCEPTS,
    PROMPTS_A_CONCEPT,
    Alignment,
    Choice,
    DescribedRegion,
    Negative,
    Prompt,
    RegionVerdict,
    Xyxy,
)
from dataengine.settings import Settings

SMALLEST, LARGEST = 0.004, 0.7  # share of the picture
SAME_COLOUR = 12.0  # distance in L*a*b* within a group of alike regions
IN_A_ROW = 0.08  # of the picture's side
LEAST_COLOUR = 0.6  # share of a mask's pixels that must have the label's colour
LEAST_CONTRAST = 3.0  # distance in L*a*b* across a mask's outline
# A region is clear where it stands out from its surroundings and is of one colour itself. A refined mask follows edges
# found in the whole picture, an initial one only those in its box, so it must be the clearer by a sixth to be kept.
CLARITY_WEIGHT: Mapping[Choice, float] = {"initial": 0.85, "refined": 1.0}
COUNTS = {2: "two", 3: "three", 4: "four"}
TOLERANCES = {"lightness": 6.0, "texture": 1.5, "size": 1.6, "place": 0.12}

Sentences = dict[str, dict[str, Predicate]]  # by concept, by text
_UNMEASURED = Alignment(accept=False, unmasked_match=False, reason="not a sentence that can be measured")

T = TypeVar("T")


class MeasuredAnnotator:
    """Answers every question from measurements; the same photo always gets the same answers."""

    name = "measured"
    version = "1"
    local = True

    def __init__(self, settings: Settings) -> None:
        self.detail: Mapping[str, str] = {"scikit-image": importlib.metadata.version("scikit-image")}
        self.templates: Mapping[str, str] = {}
        self._picture: OncePer[Photo, Picture] = OncePer(lambda photo: Picture.of(photo.view))
        self._look: OncePer[Scene, Look] = OncePer(Look.at)
        self._sentences: OncePer[Look, Sentences] = OncePer(lambda look: {c: predicates(look, c) for c in CONCEPTS})
        self._decoys: OncePer[Look, Sentences] = OncePer(lambda look: {c: decoys(look, c) for c in CONCEPTS})

    def basis(self, question: str, concept: str = "") -> Mapping[str, object]:
        """Nothing: its answers change with its version alone."""
        return {}

    async def describe(self, photo: Photo, max_regions: int, with_boxes: bool) -> Answer[list[DescribedRegion]]:
        """The even regions that stand out most; alike ones that lie apart share a label."""
        return Answer(await asyncio.to_thread(self._describe, photo, max_regions, with_boxes))

    def _describe(self, photo: Photo, max_regions: int, with_boxes: bool) -> list[DescribedRegion]:
        picture = self._picture(photo)
        labels = range(int(picture.regions.max()) + 1)
        regions = [Region(picture, picture.regions == label) for label in labels]
        striking = sorted((r for r in regions if SMALLEST <= r.area <= LARGEST), key=_salience, reverse=True)
        groups = _grouped(striking)[:max_regions]
        return [
            DescribedRegion(label=_label(group), boxes=[_box(r, photo) for r in group] if with_boxes else [])
            for group in groups
        ]

    async def verify(
        self, photo: Photo, label: str, masks: Mapping[Choice, Mask], pictures: Mapping[Choice, RgbArray]
    ) -> Answer[RegionVerdict]:
        """The mask in which the label's words measure true and whose outline is the clearest."""
        return Answer(await asyncio.to_thread(self._verify, photo, label, masks))

    def _verify(self, photo: Photo, label: str, masks: Mapping[Choice, Mask]) -> RegionVerdict:
        picture = self._picture(photo)
        height, width = picture.size
        said: list[str] = []
        best: tuple[float, Choice, Region] | None = None
        for choice, mask in masks.items():
            inside = mask.resized(height, width).array()
            if inside.sum() < 9:
                said.append(f"{choice}: nothing left at {width}x{height}")
                continue
            region = Region(picture, inside)
            false = list(_untrue(label, region))
            clarity = region.contrast / (5 + region.spread) * CLARITY_WEIGHT[choice]
            said.append(f"{choice}: {', '.join(false) if false else f'as said, clarity {clarity:.2f}'}")
            if not false and (best is None or clarity > best[0]):
                best = (clarity, choice, region)
        if best is None:
            return RegionVerdict(choice="neither", description="", reason="; ".join(said))
        _, choice, region = best
        description = f"{_label([region])}, {region.area:.0%} of the picture"
        return RegionVerdict(choice=choice, description=description, reason="; ".join(said))

    async def compose(self, scene: Scene, concept: str) -> Answer[list[Prompt]]:
        """The sentences that hold for some regions and not for all, the clearest first, families mixed."""
        return Answer(await asyncio.to_thread(self._compose, scene, concept))

    def _compose(self, scene: Scene, concept: str) -> list[Prompt]:
        look = self._look(scene)
        usable = []
        for predicate in self._sentences(look)[concept].values():
            true, asked = predicate.holds(look.known), predicate.spoken_of(look.known)
            if 0 < len(true) < len(asked):
                usable.append((min(predicate.clearance(look.known), 2.0), predicate, true, asked))
        usable.sort(key=lambda entry: -entry[0])
        return [
            Prompt(
                prompt=predicate.text,
                concept_family=predicate.family,
                candidates=[look.indices[i] for i in asked],
                satisfying=[look.indices[i] for i in true],
            )
            for _, predicate, true, asked in _mixed(usable, lambda entry: (entry[0] < 1, entry[1].family))
        ]

    async def align(self, scene: Scene, prompt: Prompt, picture: RgbArray) -> Answer[Alignment]:
        """Accepts where the prompt is clear for every candidate and fits nothing unmasked."""
        return Answer(await asyncio.to_thread(self._align, scene, prompt))

    def _align(self, scene: Scene, prompt: Prompt) -> Alignment:
        look = self._look(scene)
        predicate = _found(self._sentences(look), prompt.prompt, prompt.concept_family)
        if predicate is None:
            return _UNMEASURED
        return _judged(look, predicate, set(prompt.satisfying))

    async def compose_negatives(self, scene: Scene, concept: str) -> Answer[list[Negative]]:
        """Sentences that no region comes near to fitting, both strategies mixed."""
        return Answer(await asyncio.to_thread(self._compose_negatives, scene, concept))

    def _compose_negatives(self, scene: Scene, concept: str) -> list[Negative]:
        look = self._look(scene)
        false = [p for p in self._decoys(look)[concept].values() if not any(p.values > p.threshold)]
        # The colours next to those in the picture make the harder negatives: they are there in traces.
        false.sort(key=lambda p: -float(np.nanmax(p.values, initial=0.0)))
        return [
            Negative(prompt=p.text, strategy=p.strategy, concept_family=p.family, target_decoy=p.decoy)
            for p in _mixed(false, lambda p: (not p.absent(), p.strategy))
        ]

    async def align_negative(self, scene: Scene, negative: Negative) -> Answer[Alignment]:
        """Accepts where every region, masked or not, misses the sentence by the margin."""
        return Answer(await asyncio.to_thread(self._align_negative, scene, negative))

    def _align_negative(self, scene: Scene, negative: Negative) -> Alignment:
        look = self._look(scene)
        predicate = _found(self._decoys(look), negative.prompt, negative.concept_family)
        if predicate is None:
            return _UNMEASURED
        nearest = float(np.nanmax(predicate.values, initial=0.0))
        clear = predicate.absent()
        most = predicate.say(predicate.threshold - predicate.margin)
        reason = f"nearest region: {predicate.say(nearest)}; at most {most}"
        if predicate.strategy == "object_level_neighbor":
            reason += f"; {predicate.anywhere:.2%} of the picture's pixels, at most {NO_PIXELS:.2%}"
        return Alignment(accept=clear, unmasked_match=not clear, reason=reason)


def _salience(region: Region) -> float:
    return float(region.contrast * region.area**0.5 * region.solidity * region.shares.max())


def _grouped(regions: Iterable[Region]) -> list[list[Region]]:
    """Regions of one look that do not touch, in groups of at most four; each in one group, order kept."""
    groups: list[list[Region]] = []
    for region in regions:
        home = next((g for g in groups if len(g) < max(COUNTS) and all(_alike(region, other) for other in g)), None)
        if home is None:
            groups.append([region])
        else:
            home.append(region)
    return groups


def _alike(one: Region, other: Region) -> bool:
    """Whether two regions look like two of a kind in a row: of one colour, size and shape, level or in a column."""
    x, y = (abs(a - b) for a, b in zip(one.centre, other.centre, strict=True))
    return (
        (one.colour, tone_word(one)) == (other.colour, tone_word(other))
        and max(one.area, other.area) < 2.5 * min(one.area, other.area)
        and max(one.axes[0], other.axes[0]) < 2 * min(one.axes[0], other.axes[0])
        and min(x, y) < IN_A_ROW
        and float(np.linalg.norm(one.lab - other.lab)) < SAME_COLOUR
        and one.contact(other) < 0.02
    )


def _label(group: list[Region]) -> str:
    """Such as `large dark red region, smooth, centre` or `two small blue regions`."""
    first = group[0]
    count = COUNTS.get(len(group), "")
    noun = "regions" if count else "region"
    head = " ".join(f"{count} {size_word(first)} {tone_word(first)} {first.colour} {noun}".split())
    if count:
        return head
    return ", ".join(word for word in (head, texture_word(first), place_word(first)) if word)


def _box(region: Region, photo: Photo) -> Xyxy:
    x0, y0, x1, y1 = region.box
    return x0 * photo.width, y0 * photo.height, x1 * photo.width, y1 * photo.height


def _colour_of(label: str) -> str:
    return next((word for word in label.replace(",", "").split() if word in COLOURS), COLOURS[0])


def _untrue(label: str, region: Region) -> Iterable[str]:
    """What in a label does not measure true of a region, with the numbers."""
    words = set(label.replace(",", "").split())
    colour = _colour_of(label)
    share = float(region.shares[COLOURS.index(colour)])
    if share < LEAST_COLOUR:
        yield f"{share:.0%} {colour}, at least {LEAST_COLOUR:.0%} needed"
    if region.contrast < LEAST_CONTRAST:
        yield f"contrast {region.contrast:.1f} across its outline, at least {LEAST_CONTRAST} needed"
    slack = TOLERANCES["lightness"]
    if ("dark" in words and region.lightness > DARK + slack) or ("light" in words and region.lightness < LIGHT - slack):
        yield f"lightness {region.lightness:.0f}"
    slack = TOLERANCES["texture"]
    if ("smooth" in words and region.texture > SMOOTH + slack) or ("rough" in words and region.texture < ROUGH - slack):
        yield f"texture {region.texture:.1f}"
    yield from _wrong_size_or_place(label, words, region)


def _wrong_size_or_place(label: str, words: set[str], region: Region) -> Iterable[str]:
    several = bool(words & set(COUNTS.values()))
    slack = TOLERANCES["size"]
    bounds = {"large": (LARGE, 1.0), "medium": (MEDIUM, LARGE), "small": (0.0, MEDIUM)}
    for word, (low, high) in bounds.items():
        top = high * (max(COUNTS) if several else 1)  # each of a group has the size; the mask is their union
        if word in words and not low / slack <= region.area <= top * slack:
            yield f"{region.area:.1%} of the picture is not {word}"
    place = label.rsplit(", ", 1)[-1]
    for row, names in enumerate(PLACES):
        if place in names and not several:
            column = names.index(place)
            x, y = region.centre
            off = max(abs(x - (column + 0.5) / 3), abs(y - (row + 0.5) / 3)) - 1 / 6
            if off > TOLERANCES["place"]:
                yield f"its centre at {x:.0%} across and {y:.0%} down is not {place}"


def _found(sentences: Sentences, text: str, family: str) -> Predicate | None:
    """The sentence with this text and concept family."""
    of_text = (by_text[text] for by_text in sentences.values() if text in by_text)
    return next((predicate for predicate in of_text if predicate.family == family), None)


def _judged(look: Look, predicate: Predicate, satisfying: set[int]) -> Alignment:
    """ACCEPT only where every satisfying region clears the threshold by the margin, every other one misses it by the
    margin, and so does everything unmasked."""
    least, most = predicate.threshold + predicate.margin, predicate.threshold - predicate.margin
    inside = {look.indices[i]: float(predicate.values[i]) for i in predicate.spoken_of(look.known)}
    if not satisfying or not satisfying <= set(inside):
        reason = f"it speaks of regions {sorted(inside)}, not of {sorted(satisfying - set(inside)) or 'none'}"
        return Alignment(accept=False, unmasked_match=False, reason=reason)
    for index, value in inside.items():
        if index in satisfying and value < least:
            reason = f"region {index}: {predicate.say(value)}, at least {predicate.say(least)} needed"
            return Alignment(accept=False, unmasked_match=False, reason=reason)
        if index not in satisfying and value > most:
            reason = f"region {index} is left out: {predicate.say(value)}, at most {predicate.say(most)} allowed"
            return Alignment(accept=False, unmasked_match=False, reason=reason)
    for position in range(look.known, len(look.regions)):
        if not predicate.surely_not(position):
            x, y = look.regions[position].centre
            value = float(predicate.values[position])
            reason = f"unmasked area at {x:.0%} across, {y:.0%} down fits too: {predicate.say(value)}"
            return Alignment(accept=False, unmasked_match=True, reason=reason)
    lowest = min((v for i, v in inside.items() if i in satisfying), default=float("nan"))
    highest = max((v for i, v in inside.items() if i not in satisfying), default=float("nan"))
    reason = f"satisfying: {predicate.say(lowest)} or more; others: {predicate.say(highest)} or less"
    return Alignment(accept=True, unmasked_match=False, reason=reason)


def _mixed(entries: list[T], kind: Callable[[T], tuple[bool, str]]) -> list[T]:
    """The first PROMPTS_A_CONCEPT entries: those that are not doubtful first, of every kind one before a second.

    Args:
        kind: whether an entry is doubtful, and its kind.
    """
    taken: list[T] = []
    waiting = list(entries)
    while waiting and len(taken) < PROMPTS_A_CONCEPT:
        kinds = [kind(entry)[1] for entry in taken]
        best = min(waiting, key=lambda entry: (kind(entry)[0], kinds.count(kind(entry)[1])))
        taken.append(best)
        waiting.remove(best)
    return taken
