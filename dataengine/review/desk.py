"""What is judged: the prompts of run folders, their pictures and outlines, and where decisions go. No web in here.

Nothing is read from outside of the folder that was named, whatever is written in its files or linked in it, and nothing
is written but lines of `reviews.jsonl`.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dataengine.errors import DataEngineError, ImageError, UsageError, output_error
from dataengine.finished import Entry, Finished, SkipError, find_runs, read_finished
from dataengine.images import Photo, read_photo, shrunk
from dataengine.journal import digest
from dataengine.jpeg import jpeg
from dataengine.outlines import path, shrunk_mask, widest
from dataengine.overlays import HEX_PALETTE
from dataengine.records import Action, Concept, Decision, Judged, Verdict
from dataengine.review.sampling import stratified
from dataengine.reviews import Key, Reviews, append
from dataengine.run_folder import ORIGINAL, REVIEWS, path_text
from dataengine.sources import Sources, inside, is_within

SIDE = 1600  # most pixels of the long side of what is shown
QUALITY = 88  # of its JPEG
KEPT = 48  # views and photos in memory: some 30 MB
LONGEST_TEXT = 10_000  # characters of a prompt that a person writes
# Control characters, halves of characters, line ends, and what turns the direction of the text around it.
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
LONGEST_NAME = 64  # characters of a reviewer's name
HISTORY = 200  # decisions that a page can undo after it was loaded again

K = TypeVar("K")
V = TypeVar("V")


class RefusedError(DataEngineError):
    """A decision that cannot be written as it is."""

    reason = "refused"


class Asked(BaseModel):
    """A decision as a page sends it.

    Attributes:
        desk: for which it was made.
        prompt, satisfying: as the page shows them: for `edit` and `regions` what they become, else what is judged.
        undoes: the decision to take back, for `undo`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-zA-Z-]{8,64}$")]
    desk: str
    reviewer: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    run: str
    concept: Concept
    negative: bool
    index: int
    basis: str
    action: Action
    prompt: str
    satisfying: Annotated[list[int], Field(max_length=1000)]
    undoes: str | None = None

    @property
    def key(self) -> Key:
        """The prompt it is about."""
        return Key(self.concept, self.negative, self.index, self.basis)


class AnotherDeskError(RefusedError):
    """A decision for another desk: it may be here again when the page asks again."""


class Item(NamedTuple):
    """A prompt to judge."""

    run: str
    key: Key
    entry: Entry


@dataclass
class _Run:
    """A run folder: its decisions as they were when the file was last read, and what is on the desk of it."""

    folder: Path
    entries: dict[Key, Entry]
    reviews: Reviews
    stamp: tuple[int, int] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Recent(OrderedDict[K, V]):
    """The last few results of a function, by what they are of; several threads may ask at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._lock = threading.Lock()

    def of(self, key: K, make: Callable[[], V]) -> V:
        """A result, made where it is not there."""
        with self._lock:
            if key in self:
                self.move_to_end(key)
                return self[key]
        made = make()
        with self._lock:
            self[key] = made
            while len(self) > self._most:
                self.popitem(last=False)
        return made


class Desk:
    """The prompts of a run folder, or of a folder of them.

    Args:
        root: the folder.
        sample: judge only so many, of all concepts and verdicts; None for all.
        seed: of the sample.
        blind: tell nobody the engine's verdicts, or another's.

    Attributes:
        name: of the folder, as a digest: a browser may know many desks by one address.
        items: the prompts, by run folder.
        left_out: run folders that are links to elsewhere, or whose name as text is another's.

    Raises:
        UsageError: there is no run folder, or no prompt in any.
    """

    def __init__(self, root: Path, *, sample: int | None = None, seed: int = 0, blind: bool = False) -> None:
        self.root, self.blind = Path(os.path.realpath(root)), blind
        self.name = digest(path_text(self.root))
        folders = find_runs(root)
        own = [folder for folder in folders if is_within(folder, self.root)]
        self._runs: dict[str, _Run] = {}
        for folder in own:
            self._runs.setdefault(path_text(Path(folder.name)), self._read(folder))
        self.left_out = len(folders) - len(self._runs)
        self.items = [Item(name, key, entry) for name, run in self._runs.items() for key, entry in run.entries.items()]
        if not self.items:
            raise UsageError(f"{root}: no prompt in its run folders", hint="Run images first")
        if sample is not None:
            strata = [(item.entry.concept, item.entry.negative, item.entry.accepted) for item in self.items]
            self.items = [self.items[position] for position in stratified(strata, sample, seed)]
        self._views: _Recent[str, dict[str, object]] = _Recent(KEPT)
        self._photos: _Recent[str, bytes] = _Recent(KEPT)

    def _read(self, folder: Path) -> _Run:
        found = self._finished(folder)
        return _Run(folder, {found.key(entry): entry for entry in found.entries}, Reviews())

    def _finished(self, folder: Path) -> Finished:
        return read_finished(Sources(folder, within=self.root), reviews=False)

    @property
    def images(self) -> int:
        """Run folders with a prompt to judge."""
        return len({item.run for item in self.items})

    def listing(self, reviewer: str) -> dict[str, object]:
        """All prompts, in short, with what people said of them and what the reviewer can undo.

        Every decision that is on the disk is in it. A blind desk tells only the reviewer's own.
        """
        places = {(item.run, item.key): number for number, item in enumerate(self.items)}
        words: dict[int, dict[str, object]] = {}
        own: list[tuple[int, Decision]] = []
        for name in dict.fromkeys(item.run for item in self.items):
            run = self._runs[name]
            with run.lock, contextlib.suppress(OSError):  # one that cannot be read keeps nobody from the others
                reviews = self._fresh(run)
                for key in reviews.prompts():
                    number = places.get((name, key))
                    if number is not None:
                        words[number] = self._words(reviews, key, reviewer)
                        own.extend((number, decision) for decision in reviews.decisions(key, reviewer))
        own.sort(key=lambda entry: entry[1].at)
        return {
            "desk": self.name,
            "blind": self.blind,
            "palette": HEX_PALETTE,
            "prompts": [self._short(item) for item in self.items],
            "words": words,
            "history": [
                {"id": decision.id, "number": number, "before": decision.before.model_dump()}
                for number, decision in own[-HISTORY:]
            ],
        }

    def _short(self, item: Item) -> dict[str, object]:
        told = {"run": item.run, "concept": item.key.concept, "negative": item.key.negative, "index": item.key.index}
        verdict = {} if self.blind else {"accepted": item.entry.accepted}
        return {**told, "basis": item.key.basis, "family": item.entry.family, **verdict}

    def _words(self, reviews: Reviews, key: Key, reviewer: str) -> dict[str, object]:
        words = reviews.words(key)
        return {name: word.model_dump() for name, word in words.items() if name == reviewer or not self.blind}

    def view(self, name: str) -> dict[str, object] | None:
        """What is shown of a run folder: prompts, regions and their outlines; None where there is no such folder."""
        run = self._runs.get(name)
        return self._views.of(name, lambda: self._view(name, run)) if run else None

    def _view(self, name: str, run: _Run) -> dict[str, object]:
        found = self._finished(run.folder)
        photo = self._photo_size(found)
        size = photo or found.masks.size() or (3, 4)
        scale = min(1.0, SIDE / max(size))
        height, width = (max(1, round(side * scale)) for side in size)
        return {
            "run": name,
            "photo": photo is not None,
            "file": found.photo_name,
            "width": width,
            "height": height,
            "regions": list(_regions(found, height, width)),
            "prompts": [self._told(key, entry) for key, entry in run.entries.items()],
        }

    def _told(self, key: Key, entry: Entry) -> dict[str, object]:
        told = {"concept": key.concept, "negative": key.negative, "index": key.index, "basis": key.basis}
        return {
            **told,
            "prompt": entry.prompt,
            "satisfying": entry.satisfying,
            "reason": "" if self.blind else entry.reason,
        }

    def _photo_size(self, found: Finished) -> tuple[int, int] | None:
        """Height and width of the photo; None where there is none that can be read."""
        try:
            photo = self._read_photo(found.folder)
            self._photos.of(path_text(Path(found.folder.name)), lambda: _jpeg(photo))
            return photo.height, photo.width
        except ImageError:
            return None

    def _read_photo(self, folder: Path) -> Photo:
        photo = folder / ORIGINAL
        if not is_within(photo, self.root) or not photo.is_file():
            raise ImageError(f"{photo}: no such file in the folder", reason="missing")
        return read_photo(photo)

    def photo(self, name: str) -> bytes | None:
        """A run folder's photo as a JPEG file's bytes; None where there is none."""
        run = self._runs.get(name)
        if run is None:
            return None
        try:
            return self._photos.of(name, lambda: _jpeg(self._read_photo(run.folder)))
        except ImageError:
            return None

    def decide(self, asked: Asked) -> dict[str, object]:
        """Write a decision; when this returns it is on the disk. One that was written before is not written again.

        Returns:
            What people have said of the prompt now.

        Raises:
            AnotherDeskError: it is for another desk.
            RefusedError: there is no such prompt (any more), or the decision does not fit it.
            OutputError: it cannot be written.
        """
        if asked.desk != self.name:
            raise AnotherDeskError("this server has other run folders", hint="Start the review of those again")
        run = self._runs.get(asked.run)
        entry = run.entries.get(asked.key) if run else None
        found = self._finished(run.folder) if run else None
        if run is None or entry is None or found is None or all(found.key(e) != asked.key for e in found.entries):
            raise RefusedError("no such prompt", hint="Start the review again: its run folder has changed")
        with run.lock:
            try:
                reviews = self._fresh(run)
            except OSError as error:  # what stands in it must be known
                raise output_error(error, run.folder / REVIEWS) from error
            if asked.id not in reviews:
                decision = self._decision(asked, entry, set(found.masks.indices), reviews)
                append(run.folder, decision)
                reviews.add(decision)
            return self._words(reviews, asked.key, asked.reviewer)

    def _decision(self, asked: Asked, entry: Entry, known: set[int], reviews: Reviews) -> Decision:
        as_made = Judged(verdict=None, prompt=entry.prompt, satisfying=list(entry.satisfying))
        own = reviews.decisions(asked.key, asked.reviewer)
        before = own[-1].after if own else as_made
        if asked.action == "undo":
            if not own or own[-1].id != asked.undoes:
                raise RefusedError("only your last decision on a prompt can be undone")
            after = own[-2].after if len(own) > 1 else as_made
        else:
            after = _after(asked, before, known)
        verdict: Verdict = "ACCEPT" if entry.accepted else "REJECT"
        return Decision(
            id=asked.id,
            at=datetime.now(UTC).isoformat(timespec="microseconds"),
            reviewer=asked.reviewer,
            blind=self.blind,
            concept=asked.concept,
            negative=asked.negative,
            index=asked.index,
            basis=asked.basis,
            engine=verdict,
            action=asked.action,
            undoes=asked.undoes if asked.action == "undo" else None,
            before=before,
            after=after,
        )

    def _fresh(self, run: _Run) -> Reviews:
        """A run folder's decisions, those of other processes too."""
        try:
            status = (run.folder / REVIEWS).stat()
        except OSError:
            run.stamp, run.reviews = None, Reviews()
            return run.reviews
        stamp = (status.st_size, status.st_mtime_ns)
        if stamp != run.stamp:
            data = Sources(run.folder, within=self.root).read(inside(REVIEWS)) or b""
            run.reviews, run.stamp = Reviews(data), stamp
        return run.reviews


def _jpeg(photo: Photo) -> bytes:
    return jpeg(shrunk(photo.rgb, SIDE), QUALITY)


def _after(asked: Asked, before: Judged, known: set[int]) -> Judged:
    """What a prompt becomes by a decision; raises RefusedError where that does not fit it.

    Args:
        known: indices of the regions there are.
    """
    if asked.action == "edit":
        text = " ".join(asked.prompt.split())
        if not text or UNSEEN.search(text):
            raise RefusedError("a prompt needs words, and nothing that cannot be seen")
        if len(text) > LONGEST_TEXT:
            raise RefusedError(f"a prompt has at most {LONGEST_TEXT:,} characters")
        return before.model_copy(update={"prompt": text})
    if asked.action == "regions":
        if asked.negative or not (known | set(before.satisfying)).issuperset(asked.satisfying):
            raise RefusedError("there is no such region to choose")
        chosen = sorted(set(asked.satisfying))
        return before.model_copy(update={"satisfying": chosen, "verdict": before.verdict if chosen else None})
    if asked.prompt != before.prompt or sorted(asked.satisfying) != sorted(before.satisfying):
        raise RefusedError("you changed this prompt elsewhere meanwhile", hint="Look at it again")
    if asked.action == "accept" and not asked.negative and known.isdisjoint(before.satisfying):
        raise RefusedError("it means no region", hint="Choose at least one before you accept it")
    return before.model_copy(update={"verdict": "ACCEPT" if asked.action == "accept" else "REJECT"})


def _regions(found: Finished, height: int, width: int) -> Iterator[dict[str, object]]:
    """The accepted regions with their outlines at a size; one whose mask cannot be read has none."""
    for index in found.masks.indices:
        told = {"index": index, "label": found.masks.regions[index].label}
        try:
            mask = shrunk_mask(found.masks.mask(index), height, width)
            yield {**told, "path": path(mask), "at": widest(mask)}
        except SkipError:
            yield {**told, "path": "", "at": (0, 0)}
