"""What a run would do with each image, and why: told from run folders, without asking, writing or reading a picture.

An image whose folder rests on what still holds is done. Else the stages that rest on something else now are asked
again (`first`), and after them those that work on their answers, where these differ (`then`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dataengine.basis import UPSTREAM, Basis, basis, fingerprint
from dataengine.journal import BLOCKED, digest
from dataengine.output_folder import Folders, content_now
from dataengine.parts import Parts
from dataengine.records import CONCEPTS, Failure, RunRecord, Source
from dataengine.run_folder import RunFolder, path_text
from dataengine.settings import Settings
from dataengine.survey import read_failures

What = Literal["done", "new", "unfinished", "failed", "blocked", "redone"]
ORDER: tuple[What, ...] = ("done", "new", "unfinished", "failed", "blocked", "redone")
PART_KINDS = ("annotator", "grounder", "segmenter")
EXAMPLES = 3
_DIGEST = re.compile(r"(^|/)[0-9a-f]{16}$")  # of a journal, alone or at the end of a part's version


@dataclass(frozen=True)
class Finding:
    """What a run would do with one image.

    Attributes:
        why: a reason a line; none where there is nothing to say.
        first: stages that are asked for whatever the others answer.
        then: stages after those, asked for again where the answers before them differ.
        goes_on: stages in neither are asked for too, as far as the journal lacks their answers.
    """

    image: Path
    folder: Path
    what: What
    why: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    goes_on: bool = False


@dataclass
class Group:
    """The images with which a run would do the same, for the same reasons; `names` are of the first few."""

    what: What
    why: tuple[str, ...]
    then: tuple[str, ...]
    images: int = 0
    names: list[str] = field(default_factory=list)


def plan(images: Sequence[Path], output_dir: Path, parts: Parts, settings: Settings) -> Iterator[Finding]:
    """What a run with these parts and settings would do with each image of the input."""
    planner = Planner.of(output_dir, parts, settings)
    folders = Folders(output_dir, images)
    for image in images:
        yield planner.find(image, folders.of(image))


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """The findings by what is done and why; the largest groups of each kind first."""
    groups: dict[tuple[object, ...], Group] = {}
    for found in findings:
        key = (found.what, found.why, found.then)
        group = groups.setdefault(key, Group(found.what, found.why, found.then))
        group.images += 1
        if len(group.names) < EXAMPLES:
            group.names.append(found.image.name)
    return sorted(groups.values(), key=lambda group: (ORDER.index(group.what), -group.images))


def stages_asked(parts: Parts, settings: Settings) -> tuple[str, ...]:
    """The stages of `UPSTREAM` that a run has, in their order: those of its concepts, and its negatives if any."""

    def wanted(stage: str) -> bool:
        question, _, concept = stage.partition("/")
        if question in ("negatives", "detect", "refute") and not settings.negatives:
            return False
        if question == "detect":
            return parts.grounder.detects
        return not concept or concept in settings.concepts

    return tuple(filter(wanted, UPSTREAM))


def after(stages: Iterable[str], asked: Sequence[str]) -> tuple[str, ...]:
    """The stages of a run that work, directly or not, on the answers of these, without these."""
    reached = set(stages)
    for stage in asked:  # in the order of work, so that one pass reaches all
        if reached & set(UPSTREAM[stage]):
            reached.add(stage)
    return tuple(stage for stage in asked if stage in reached - set(stages))


@dataclass(frozen=True)
class Planner:
    """Finds what a run would do with an image.

    Attributes:
        basis: what the stages of this run rest on, as JSON values.
        asked: the stages that this run has.
        failures: the last failures, by image.
    """

    settings: Settings
    basis: Basis
    basis_digest: str
    asked: tuple[str, ...]
    failures: Mapping[str, Failure]

    @classmethod
    def of(cls, output_dir: Path, parts: Parts, settings: Settings) -> Planner:
        """The planner of a run."""
        rests_on = json.loads(json.dumps(basis(parts, settings)))
        return cls(settings, rests_on, digest(rests_on), stages_asked(parts, settings), read_failures(output_dir))

    def find(self, image: Path, folder: RunFolder) -> Finding:
        """What the run would do with an image, whose folder is this."""
        record = folder.record
        if record is None:
            return self._without_folder(image, folder)
        if self.settings.overwrite:
            return Finding(image, folder.path, "redone", ("--overwrite: all of it, paid answers too",), self.asked)
        content = content_now(image, record.source)
        if content is None:
            return Finding(image, folder.path, "failed", ("its file cannot be read now",))
        if content != record.source.sha256:
            why = ("the photo has changed", *self._removed(record))
            return Finding(image, folder.path, "redone", why, self.asked)
        return self._of_same_photo(image, folder, record, content)

    def _without_folder(self, image: Path, folder: RunFolder) -> Finding:
        failure = self.failures.get(path_text(image))
        if failure is None:
            return Finding(image, folder.path, "new", first=self.asked)
        if failure.stage == "read":  # as it will again, unless the file was mended
            return Finding(image, folder.path, "failed", (_failed(failure),))
        return Finding(image, folder.path, "failed", (_failed(failure),), goes_on=True)

    def _of_same_photo(self, image: Path, folder: RunFolder, record: RunRecord, content: str) -> Finding:
        changes = {} if record.fingerprint == fingerprint(content, self.basis_digest) else self._changes(record)
        first = tuple(stage for stage in self.asked if changes.get(stage))
        then = after(first, self.asked)
        why = tuple(_lines({stage: changes[stage] for stage in first}))
        if not record.complete:
            return self._unfinished(image, folder, Finding(image, folder.path, "unfinished", why, first, then, True))
        made, told = self._not_made(folder, record)
        why, first = (*why, *told), tuple(stage for stage in self.asked if stage in (*first, *made))
        if changes:
            why = why or ("what is asked for now is as before: answers are kept, files written anew",)
            then = tuple(stage for stage in then if stage not in made)
            return Finding(image, folder.path, "redone", (*why, *self._removed(record)), first, then)
        if folder.is_complete(record.fingerprint, self.settings.concepts, self.settings.negatives):
            return Finding(image, folder.path, "done")
        why = why or ("a result file is missing: written anew, from answers kept",)
        return Finding(image, folder.path, "redone", why, first)

    def _unfinished(self, image: Path, folder: RunFolder, found: Finding) -> Finding:
        """An image that was begun: it goes on, or failed, or was blocked."""
        failure = self.failures.get(path_text(image))
        if failure is None:
            return found
        if failure.reason == BLOCKED and not found.first:
            return Finding(image, folder.path, "blocked", (f"at {failure.stage}: not asked again",))
        return replace(found, what="failed", why=(_failed(failure), *found.why))

    def _changes(self, record: RunRecord) -> dict[str, tuple[str, ...]]:
        """By stage, what it rests on now that it did not when the folder was made."""
        if not record.basis:
            told = f"made by dataengine {record.dataengine}, which did not note what its answers rest on"
            return dict.fromkeys(self.asked, (told,))
        return {s: differences(record.basis.get(s, {}), self.basis[s], record.source) for s in self.basis}

    def _not_made(self, folder: RunFolder, record: RunRecord) -> tuple[list[str], list[str]]:
        """The stages of concepts and negatives that a complete folder was not asked for, and that in words."""
        concepts, mark = self.settings.concepts, record.fingerprint
        prompts = [c for c in concepts if c not in record.concepts]
        negatives = list(prompts)
        if not record.settings.get("negatives"):
            bare = (c for c in concepts if folder.is_complete(mark, (c,), False))
            negatives += [c for c in bare if c not in prompts and not folder.is_complete(mark, (c,), True)]
        negatives = [c for c in concepts if c in negatives and self.settings.negatives]
        lacking = (("prompts", prompts), ("negatives", negatives))
        told = [f"{kind} not made yet: {', '.join(of)}" for kind, of in lacking if of]
        return [*(f"compose/{c}" for c in prompts), *(f"negatives/{c}" for c in negatives)], told

    def _removed(self, record: RunRecord) -> tuple[str, ...]:
        """Results that go when the folder is made from other inputs, since they are not asked for now."""
        gone = [c for c in record.concepts if c not in self.settings.concepts]
        if record.settings.get("negatives") and not self.settings.negatives:
            gone.append("negatives")
        return (f"results not asked for now are removed: {', '.join(gone)}",) if gone else ()


def _lines(changes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The changes, a line for all stages of which the same has changed."""
    stages: dict[tuple[str, ...], list[str]] = {}
    for stage, told in changes.items():
        stages.setdefault(told, []).append(stage)
    return [f"{named(of_these)}: {'; '.join(told)}" for told, of_these in stages.items()]


def named(stages: Sequence[str]) -> str:
    """Stages in words; a question about all concepts by its own name."""
    words = []
    for stage in stages:
        question = stage.partition("/")[0]
        of_all = question != stage and all(f"{question}/{concept}" in stages for concept in CONCEPTS)
        words.append(question if of_all else stage)
    return ", ".join(dict.fromkeys(words))


def differences(old: Mapping[str, object], new: Mapping[str, object], source: Source) -> tuple[str, ...]:
    """What a stage rests on now that it did not, field by field; sizes that leave this photo as it was are no change.

    Args:
        source: the photo, as the folder was made from it.
    """
    replaced = any(kind in old and old[kind] != new.get(kind) for kind in PART_KINDS)
    told = []
    for name in dict.fromkeys((*new, *old)):
        was, now = old.get(name), new.get(name)
        own = name not in PART_KINDS and (name not in old or name not in new or name.endswith(" version"))
        if was != now and not (replaced and own) and not _same_picture(name, was, now, source):
            told.append(f"{name} {_shown(was, now)}")
    return tuple(told)


def _same_picture(name: str, was: object, now: object, source: Source) -> bool:
    """Whether a limit of size, before and now, gives the same picture."""
    side = max(source.width, source.height)  # after max_side
    old, new = (limit if isinstance(limit, int) else side + 1 for limit in (was, now))
    if name == "max_side":
        return old > side and new >= side
    return name == "vlm_side" and min(old, side) == min(new, side)


def _shown(was: object, now: object) -> str:
    """A change in words; of digests and of what is no plain value only that there is one."""
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = [(old, new) for old, new in zip(was, now, strict=True) if old != new]
        return ", ".join(_shown(old, new) for old, new in pairs)
    if any(isinstance(v, (list, dict)) or (isinstance(v, str) and _DIGEST.search(v)) for v in (was, now)):
        return "changed"
    return f"{_plain(was)} -> {_plain(now)}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


def _failed(failure: Failure) -> str:
    return f"at {failure.stage}: {failure.reason}"
