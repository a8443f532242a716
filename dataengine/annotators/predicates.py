"""What the annotator `measured` can say of regions: sentences, each with a number for every region behind it.

A predicate holds for a region whose value is above the threshold. It is *clear* for a region whose value is away
from the threshold by the margin. Besides the accepted regions, every other even region of the photo is measured too,
so that a prompt which would also fit something unmasked is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from dataengine.annotators.look import ROUGH, SMOOTH, Look, place_word
from dataengine.measures import COLOURS, FloatArray, Region
from dataengine.records import MAX_WORDS, Strategy

NO_PIXELS = 0.003  # share of the picture: what may be mere noise of a colour that is called absent


@dataclass(frozen=True, eq=False)
class Predicate:
    """One sentence about a scene.

    Attributes:
        family: its concept family.
        text: the prompt.
        values: a number for every region of the Look; NaN where the sentence does not speak of it.
        threshold, margin: in the values' unit.
        say: a value in words.
        decoy: what a reader would look for; for negatives.
        strategy: how it would deceive; for negatives.
        anywhere: share of the picture's pixels that fit by themselves; for negatives.
    """

    family: str
    text: str
    values: FloatArray
    threshold: float
    margin: float
    say: Callable[[float], str]
    decoy: str = ""
    strategy: Strategy = "concept_level_neighbor"
    anywhere: float = field(default=0.0)

    def holds(self, known: int) -> list[int]:
        """Positions of accepted regions above the threshold."""
        return [i for i in range(known) if self.values[i] > self.threshold]

    def spoken_of(self, known: int) -> list[int]:
        """Positions of accepted regions that have a value."""
        return [i for i in range(known) if not np.isnan(self.values[i])]

    def clearance(self, known: int) -> float:
        """By how many margins the least clear region is on its side of the threshold; negative where an unmasked
        region is on the wrong side."""
        of_known = np.abs(self.values[:known] - self.threshold)
        of_others = self.threshold - self.values[known:]
        return float(np.nanmin(np.concatenate([of_known, of_others]))) / self.margin

    def absent(self) -> bool:
        """Whether nothing in the photo comes within the margin, region or stray pixel."""
        nearest = float(np.nanmax(self.values, initial=-np.inf))
        return nearest <= self.threshold - self.margin and self.anywhere <= NO_PIXELS

    def surely_not(self, position: int) -> bool:
        """Whether a region misses the threshold by the margin (or is not spoken of)."""
        return bool(np.isnan(self.values[position]) or self.values[position] <= self.threshold - self.margin)


def _percent(what: str) -> Callable[[float], str]:
    return lambda value: f"{value:.0%} {what}"


def _number(what: str, digits: int = 1) -> Callable[[float], str]:
    return lambda value: f"{what} {value:.{digits}f}"


def _top(
    look: Look, family: str, text: str, values: FloatArray, gap: float, say: Callable[[float], str]
) -> Iterator[Predicate]:
    """A superlative: the threshold lies midway between the best and the second of the accepted regions."""
    ranked = np.sort(values[: look.known])[::-1]
    if len(ranked) >= 2 and not np.isnan(ranked).any() and ranked[0] > ranked[1]:
        yield Predicate(family, text, values, float(ranked[0] + ranked[1]) / 2, gap / 2, say)


def _entities(look: Look) -> Iterator[Predicate]:
    for colour in COLOURS:
        say = _percent(colour)
        yield Predicate("stuff_surfaces_regions", f"Segment every {colour} area", look.share(colour), 0.5, 0.15, say)
    texture = look.each(lambda r: r.texture)
    rough = _number("texture")
    yield Predicate(
        "stuff_surfaces_regions", "Segment the areas with a rough, busy surface", texture, ROUGH, 1.0, rough
    )
    smooth = _number("texture (negated)")
    yield Predicate("materials_and_optics", "Segment the perfectly smooth, even areas", -texture, -SMOOTH, 0.5, smooth)
    lightness = look.each(lambda r: r.lightness)
    light, dark = _number("lightness", 0), _number("darkness", 0)
    yield from _top(look, "materials_and_optics", "Identify the brightest area in the picture", lightness, 6, light)
    yield from _top(look, "materials_and_optics", "Identify the darkest area in the picture", 100 - lightness, 6, dark)
    shade = _number("lightness (negated)", 0)
    yield Predicate("stuff_surfaces_regions", "Segment every dark area", -lightness, -30, 6, shade)
    yield Predicate("stuff_surfaces_regions", "Segment every bright, pale area", lightness, 75, 5, light)
    apart = look.each(
        lambda r: min((float(np.linalg.norm(r.lab - o.lab)) for o in look.regions if o is not r), default=0)
    )
    odd = _number("colour distance to its nearest", 0)
    yield from _top(look, "unusual_entity", "Identify the area whose colour stands most alone", apart, 8, odd)
    pieces = look.each(lambda r: float(r.alike_pieces))
    several = _number("separate, alike pieces", 0)
    yield Predicate("groups_and_piles", "Segment the group of separate, alike patches", pieces, 1.5, 0.5, several)
    for i, name in look.names.items():
        inside = look.against(i, Region.enclosure)
        part = _percent(f"of its surroundings is the {name} area")
        text = f"Identify the part set into the {name} area"
        yield Predicate("object_parts_and_functional_regions", text, inside, 0.65, 0.12, part)


def _spatial(look: Look) -> Iterator[Predicate]:
    xs, ys = look.whole(lambda r: r.centre[0]), look.whole(lambda r: r.centre[1])
    across, down = _percent("across"), _percent("down")
    yield from _top(
        look,
        "egocentric_viewer",
        "Segment the area farthest to the left",
        1 - xs,
        0.08,
        _percent("from the right"),
    )
    yield from _top(look, "egocentric_viewer", "Segment the area farthest to the right", xs, 0.08, across)
    yield from _top(look, "egocentric_viewer", "Segment the lowest area in the picture", ys, 0.08, down)
    yield from _top(look, "egocentric_viewer", "Segment the highest area in the picture", 1 - ys, 0.08, _percent("up"))
    area = look.each(lambda r: r.area)
    covers = _percent("of the picture")
    yield Predicate("metric_bins", "Segment the areas covering over a tenth of the picture", area, 0.1, 0.02, covers)
    yield from _top(look, "metric_bins", "Identify the largest area in the picture", area, 0.04, covers)
    edge = look.each(lambda r: r.at_edge)
    cut = _percent("of its outline on the picture's edge")
    yield Predicate("visibility_occlusion", "Segment the areas cut off by the picture's edge", edge, 0.02, 0.02, cut)
    for i, name in look.names.items():
        contact = look.against(i, Region.contact)
        touches = _percent(f"of its outline on the {name} area")
        yield Predicate("support_contact", f"Segment the areas touching the {name} area", contact, 0.05, 0.04, touches)
        enclosed = look.against(i, Region.enclosure)
        around = _percent(f"enclosed by the {name} area")
        yield Predicate("topological", f"Segment the areas enclosed by the {name} area", enclosed, 0.65, 0.12, around)
        left = look.against(i, lambda r, o: o.box[0] - r.box[2])
        beside = _percent("of the picture's width between them")
        yield Predicate("allocentric_object", f"Segment everything left of the {name} area", left, 0.0, 0.01, beside)
        above = look.against(i, lambda r, o: o.box[1] - r.box[3])
        over = _percent("of the picture's height between them")
        yield Predicate("allocentric_object", f"Segment everything above the {name} area", above, 0.0, 0.01, over)


def _relations(look: Look) -> Iterator[Predicate]:
    upright = look.whole(lambda r: r.axes[0] if r.axes[1] > 65 else 1.0)
    lying = look.whole(lambda r: r.axes[0] if r.axes[1] < 25 else 1.0)
    tall, wide = _number("upright elongation"), _number("level elongation")
    yield Predicate("atomic_posture", "Segment the areas standing tall and narrow", upright, 2.2, 0.4, tall)
    yield Predicate("atomic_posture", "Segment the areas lying long and level", lying, 2.2, 0.4, wide)
    slanted = look.whole(lambda r: r.axes[0] if 25 <= r.axes[1] <= 65 else 1.0)
    yield Predicate(
        "atomic_posture",
        "Segment the areas leaning at a slant",
        slanted,
        1.8,
        0.3,
        _number("slanted elongation"),
    )
    for i, name in look.names.items():
        anchor = look.regions[i]
        carries = look.against(i, lambda r, o: o.support(r))
        holds = _percent(f"of the {name} area stands on it")
        yield Predicate("semantic_role", f"Identify the area carrying the {name} area", carries, 0.5, 0.12, holds)
        wraps = look.against(i, lambda r, o: o.enclosure(r))
        surrounds = _percent(f"of the {name} area's surroundings")
        yield Predicate(
            "semantic_role", f"Identify the area that surrounds the {name} area", wraps, 0.65, 0.12, surrounds
        )
        meets = look.against(i, Region.contact)
        pressed = _percent(f"of its outline against the {name} area")
        yield Predicate("event_state", f"Segment the areas pressed against the {name} area", meets, 0.2, 0.07, pressed)
        for way in ("left", "right"):
            lane = look.against(i, partial(_in_the_way, way))
            covers = _percent(f"of the {name} area's height lies level with it, to its {way}")
            text = f"Segment what the {name} area meets moving {way}"
            yield Predicate("anticipation", text, lane, 0.4, 0.15, covers)
        level = look.against(i, lambda r, o: 1 - abs(r.centre[1] - o.centre[1]))
        height = _percent("level")
        yield Predicate("atomic_posture", f"Segment the areas level with the {name} area", level, 0.9, 0.04, height)
        if anchor.at_edge < 0.02:
            below = look.against(i, lambda r, o: _overhead(o, r))
            would = _percent(f"of the {name} area's width lies straight above it")
            text = f"Segment the areas the {name} area would fall past"
            yield Predicate("anticipation", text, below, 0.5, 0.12, would)


def _affordances(look: Look) -> Iterator[Predicate]:
    room = look.each(lambda r: r.room if r.texture < SMOOTH + 1 else 0.0)
    fits = _percent("of the short side: radius of the plain circle inside")
    yield from _top(
        look, "context_independent", "Identify the plain area with most room for lettering", room, 0.03, fits
    )
    texture = look.each(lambda r: r.texture)
    yield Predicate(
        "negative_affordance",
        "Segment the areas too busy for readable lettering",
        texture,
        ROUGH,
        1.0,
        _number("texture"),
    )
    white = look.each(lambda r: 1.05 / (r.luminance + 0.05))
    black = look.each(lambda r: (r.luminance + 0.05) / 0.05)
    ratio = _number("contrast ratio")
    text = "Segment the areas dark enough for white lettering"
    yield Predicate("state_dependent_and_agent_conditional", text, white, 4.5, 1.0, ratio)
    text = "Segment the areas bright enough for black lettering"
    yield Predicate("counterfactual_affordance", text, black, 7.0, 1.5, ratio)
    smallness = look.each(lambda r: 1 - min(1.0, r.room / 0.2))
    text = "Segment the areas too narrow to hold a logo"
    yield Predicate("negative_affordance", text, smallness, 0.7, 0.1, _percent("short of the room needed"))
    for place in ("left", "right", "top", "bottom"):
        margin = look.each(partial(_room_at, place))
        text = f"Segment the plain area for a note {'on the' if place in ('left', 'right') else 'at the'} {place}"
        yield Predicate("context_dependent", text, margin, 0.08, 0.02, fits)


def _room_at(place: str, region: Region) -> float:
    return region.room if region.texture < SMOOTH + 1 and place in place_word(region) else 0.0


def _physics(look: Look) -> Iterator[Predicate]:
    for i, name in look.names.items():
        held = look.against(i, Region.support)
        rests = _percent(f"of its underside on the {name} area")
        yield Predicate("support_stability", f"Segment the areas resting on the {name} area", held, 0.55, 0.15, rests)
        yield Predicate(
            "counterfactuals",
            f"Identify what loses its footing without the {name} area",
            held,
            0.7,
            0.12,
            rests,
        )
        inside = look.against(i, Region.enclosure)
        closed = _percent(f"closed in by the {name} area")
        yield Predicate(
            "containment_and_flow",
            f"Segment what the {name} area closes in completely",
            inside,
            0.8,
            0.1,
            closed,
        )
        dropping = look.against(i, _overhead)
        above = _percent(f"of its width lies straight above the {name} area")
        yield Predicate("hazard", f"Segment what could drop onto the {name} area", dropping, 0.5, 0.15, above)
    heavy = look.whole(_top_heaviness)
    wider = _number("upper over lower width")
    yield Predicate("hazard", "Segment the areas much wider above than below", heavy, 1.6, 0.25, wider)
    broad = look.whole(lambda r: 1 / max(_top_heaviness(r), 0.01))
    broader = _number("lower over upper width")
    yield Predicate("support_stability", "Segment the areas much broader below than above", broad, 1.6, 0.25, broader)
    footing = look.whole(lambda r: _slenderness(r) if r.axes[1] > 60 else 0.0)
    slender = _number("height over footing")
    yield from _top(look, "hazard", "Identify the tall area on the narrowest footing", footing, 1.0, slender)
    open_room = look.each(lambda r: r.room if r.texture < ROUGH else 0.0)
    free = _percent("of the short side: radius of the open circle inside")
    yield from _top(
        look,
        "collision_obstruction_passability",
        "Identify the widest open, unobstructed area",
        open_room,
        0.03,
        free,
    )
    floating = look.each(lambda r: 1 - r.at_edge - max((r.support(o) for o in look.regions if o is not r), default=0))
    yield Predicate(
        "unusual",
        "Segment the areas with no single thing beneath",
        floating,
        0.55,
        0.1,
        _percent("unsupported"),
    )


def _overhead(above: Region, below: Region) -> float:
    """Share of the upper region's width that lies straight above the lower one, and wholly higher."""
    if above.box[3] > below.box[1] + 0.02:
        return 0.0
    over = min(above.box[2], below.box[2]) - max(above.box[0], below.box[0])
    return max(0.0, over) / (above.box[2] - above.box[0])


def _in_the_way(way: str, other: Region, mover: Region) -> float:
    """Share of the mover's height that lies level with a region wholly to its left or right."""
    apart = other.box[2] <= mover.box[0] + 0.02 if way == "left" else other.box[0] >= mover.box[2] - 0.02
    level = min(mover.box[3], other.box[3]) - max(mover.box[1], other.box[1])
    return max(0.0, level) / (mover.box[3] - mover.box[1]) if apart else 0.0


def _top_heaviness(region: Region) -> float:
    """Mean width of the region's upper third over that of its lower third."""
    widths = region.inside.sum(axis=1)[region.inside.any(axis=1)]
    third = max(1, len(widths) // 3)
    return float(widths[:third].mean() / widths[-third:].mean())


def _slenderness(region: Region) -> float:
    """Height of the region over the width of its lowest tenth, in pixels."""
    rows = np.nonzero(region.inside.any(axis=1))[0]
    foot = rows[-max(1, len(rows) // 10) :]
    width = np.ptp(np.nonzero(region.inside[foot].any(axis=0))[0]) + 1
    return float(len(rows) / width)


_SENTENCES: dict[str, Callable[[Look], Iterator[Predicate]]] = {
    "entities": _entities,
    "spatial": _spatial,
    "relations": _relations,
    "affordances": _affordances,
    "physics": _physics,
}


def predicates(look: Look, concept: str) -> dict[str, Predicate]:
    """Every sentence of a concept about this scene, by its text, in a fixed order."""
    return {p.text: p for p in _SENTENCES[concept](look) if len(p.text.split()) <= MAX_WORDS}


_ABSENT_THING = {
    "entities": ("stuff_surfaces_regions", "Segment every {thing} area"),
    "spatial": ("egocentric_viewer", "Segment the {thing} area nearest the middle"),
    "relations": ("semantic_role", "Identify the {thing} area that surrounds the others"),
    "affordances": ("context_dependent", "Segment the {thing} area with room for lettering"),
    "physics": ("support_stability", "Segment the {thing} area that carries the others"),
}


def decoys(look: Look, concept: str) -> dict[str, Predicate]:
    """Sentences of a concept that nothing in this scene should fit, by their text, in a fixed order.

    Object level: a colour that is absent. Concept level: a region that is there, given a size, place, posture,
    contrast or support that it has not.
    """
    family, sentence = _ABSENT_THING[concept]
    found = [
        Predicate(
            family, sentence.format(thing=colour), look.share(colour), 0.5, 0.3, _percent(colour),
            decoy=f"{colour} area", strategy="object_level_neighbor", anywhere=look.anywhere(colour),
        )
        for colour in COLOURS
    ]  # fmt: skip
    for i, name in look.names.items():
        found.append(_false_claim(look, concept, look.regions[i].colour, name, i))
    return {p.text: p for p in found if len(p.text.split()) <= MAX_WORDS}


def _false_claim(look: Look, concept: str, colour: str, name: str, anchor: int) -> Predicate:
    share = look.share(colour)

    def of_colour(value: Callable[[Region], float]) -> FloatArray:
        """The value for regions that have the colour, even in part; zero for the others."""
        return np.where(share > 0.2, look.each(value), 0.0)

    decoy = f"{name} area"
    if concept == "entities":
        text, rough = f"Segment the {name} area with a rough surface", of_colour(lambda r: r.texture)
        return Predicate("materials_and_optics", text, rough, ROUGH, 2.5, _number("texture"), decoy)
    if concept == "spatial":
        left = look.regions[anchor].centre[0] > 0.5
        side = "left" if left else "right"
        off = of_colour(lambda r: 1 - r.centre[0] if left else r.centre[0])
        text = f"Segment the {name} area at the far {side}"
        return Predicate("egocentric_viewer", text, off, 0.7, 0.15, _percent(f"towards the {side}"), decoy)
    if concept == "relations":
        upright = of_colour(lambda r: r.axes[0] if r.axes[1] > 45 else 0.0)
        text = f"Identify the {name} area standing tall and narrow"
        return Predicate("atomic_posture", text, upright, 2.2, 0.7, _number("upright elongation"), decoy)
    if concept == "affordances":
        white = of_colour(lambda r: 1.05 / (r.luminance + 0.05))
        text = f"Segment the {name} area where white lettering stands out"
        return Predicate("negative_affordance", text, white, 4.5, 1.5, _number("contrast ratio"), decoy)
    held = look.against(anchor, Region.support)
    text = f"Segment whatever rests on the {name} area"
    return Predicate("support_stability", text, held, 0.5, 0.3, _percent(f"of its underside on the {name} area"), decoy)
