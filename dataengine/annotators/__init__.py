"""Annotators look and judge: they name regions, choose masks, write prompts and judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dataengine.images import Photo, RgbArray
from dataengine.journal import Answer
from dataengine.masks import Mask
from dataengine.records import Alignment, Choice, DescribedRegion, Negative, Prompt, RegionVerdict


@dataclass(frozen=True)
class SceneRegion:
    """An accepted region; `mask` has the photo's size."""

    index: int
    label: str
    description: str
    mask: Mask


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo with its accepted regions: what prompts are written about."""

    photo: Photo
    regions: tuple[SceneRegion, ...]

    @property
    def caption(self) -> str:
        """`index: description`, a line for each region."""
        return "\n".join(f"{region.index}: {region.description}" for region in self.regions)

    def picked(self, indices: list[int]) -> list[Mask]:
        """The masks of the regions with these indices, in that order."""
        by_index = {region.index: region.mask for region in self.regions}
        return [by_index[i] for i in indices]


class Annotator(Protocol):
    """A part that looks and judges. Build it with `Class(settings)`; every method may be awaited side by side.

    Attributes:
        name: as registered.
        version: changes whenever its answers may; it is part of every key in the journal.
        detail: libraries and models it uses, for `run.json`.
        local: it computes on this machine, so that more images at once than cores gain nothing.
        templates: prompt templates by name, for their digests in `run.json`.
    """

    name: str
    version: str
    detail: Mapping[str, str]
    local: bool
    templates: Mapping[str, str]

    def basis(self, question: str, concept: str = "") -> Mapping[str, object]:
        """What its answers to a question rest on beside its inputs and `version`: templates, model, settings.

        Args:
            question: one of `settings.QUESTIONS`.
            concept: where the question is `compose` or `negatives`.
        """
        ...

    async def describe(self, photo: Photo, max_regions: int, with_boxes: bool) -> Answer[list[DescribedRegion]]:
        """At most `max_regions` regions worth asking about; with their boxes where `with_boxes`."""
        ...

    async def verify(
        self, photo: Photo, label: str, masks: Mapping[Choice, Mask], pictures: Mapping[Choice, RgbArray]
    ) -> Answer[RegionVerdict]:
        """Which mask shows what the label says: `initial`, `refined` (where given) or `neither`."""
        ...

    async def compose(self, scene: Scene, concept: str) -> Answer[list[Prompt]]:
        """Up to 3 prompts of the concept."""
        ...

    async def align(self, scene: Scene, prompt: Prompt, picture: RgbArray) -> Answer[Alignment]:
        """Whether the prompt means its satisfying masks, which `picture` shows, and nothing else."""
        ...

    async def compose_negatives(self, scene: Scene, concept: str) -> Answer[list[Negative]]:
        """Up to 3 prompts of the concept that sound right and match no pixel."""
        ...

    async def align_negative(self, scene: Scene, negative: Negative) -> Answer[Alignment]:
        """Accepts where no pixel of the photo fits the prompt."""
        ...
