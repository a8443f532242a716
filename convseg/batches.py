"""Batches for training, made in a DataLoader's workers: which samples each step takes, and the cache of features."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convseg.adapter import PromptReader
from convseg.data import Place, Sample, jittered, read_mask, read_rgb, target_of
from convseg.network import ImageMaps
from dataengine.errors import ImageError, output_error
from dataengine.images import RgbArray

MAPS = tuple(f.name for f in fields(ImageMaps))
AHEAD = 2  # batches that each worker makes ahead
WRITES_AHEAD = 8
GRACE = 20  # seconds


class Order:
    """Which samples each step takes: the data again and again, each time in another order, no batch cut short.

    It follows from the seed and the step alone, so that training can go on at any step.

    Args:
        count: samples.
        batch: samples a step, for each process.
        rank, ranks: of this process among those that train together.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self._count, self._batch, self._seed = count, batch, seed
        self._rank, self._ranks = rank, ranks
        self._kept: tuple[int, Tensor] = (-1, torch.empty(0))

    def at(self, step: int) -> list[int]:
        """The samples of a step, the first of which is 1."""
        first = ((step - 1) * self._ranks + self._rank) * self._batch
        return [self._sample(place) for place in range(first, first + self._batch)]

    def _sample(self, place: int) -> int:
        epoch, position = divmod(place, self._count)
        if self._kept[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._kept = epoch, torch.randperm(self._count, generator=generator)
        return int(self._kept[1][position])


@dataclass(frozen=True)
class Wanted:
    """A sample of a step, with what its changes at random follow from."""

    index: int
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """One sample, made ready. Either `pixels` or `maps` is there."""

    sample: Sample
    key: str
    picture: RgbArray
    pixels: Tensor | None  # (3, side, side) uint8
    maps: ImageMaps | None  # of one photo, without the first axis
    target: Tensor  # (cells, cells) float32
    inside: Tensor  # (cells, cells) bool


@dataclass(frozen=True)
class Batch:
    """B samples of m photos whose features are known and n whose are not; tensors may be moved to a device.

    Attributes:
        samples: B.
        keys, pictures: of the n photos: where their features are to be kept, and what the language model reads.
        pixels: (n, 3, side, side) uint8.
        maps: of the m photos; None where there is none.
        which: (B,) int64, the photo of each sample: the m first, then the n.
        target: (B, cells, cells) float32 in 0..1.
        inside: (B, cells, cells) bool.
        inputs: the language model's.
    """

    samples: list[Sample]
    keys: list[str]
    pictures: list[RgbArray]
    pixels: Tensor
    maps: ImageMaps | None
    which: Tensor
    target: Tensor
    inside: Tensor
    inputs: dict[str, Tensor]

    def to(self, device: str | torch.device) -> Batch:
        """On a device; from pinned memory without waiting."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In memory from which a GPU reads by itself; a DataLoader calls it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Any) -> Batch:
        return replace(
            self,
            pixels=change(self.pixels),
            maps=None if self.maps is None else ImageMaps(*(change(getattr(self.maps, name)) for name in MAPS)),
            which=change(self.which),
            target=change(self.target),
            inside=change(self.inside),
            inputs={key: change(value) for key, value in self.inputs.items()},
        )


@dataclass(frozen=True)
class Shaping:
    """How samples are brought to the model.

    Attributes:
        square: pixels of the square that a photo is brought into.
        side: pixels of what SAM 2 sees.
        cells: side of its logits.
        erode, times: how much thinner masks are made, in pixels of the square.
        augment: change light and colour at random.
    """

    square: int
    side: int
    cells: int
    erode: int
    times: int
    augment: bool

    def pixels(self, rgb: RgbArray, place: Place) -> Tensor:
        """(3, side, side) uint8."""
        square = place.photo(rgb)
        if self.square != self.side:
            how = cv2.INTER_AREA if self.side < self.square else cv2.INTER_LINEAR
            square = np.asarray(cv2.resize(square, (self.side, self.side), interpolation=how), np.uint8)
        return torch.from_numpy(square).permute(2, 0, 1).contiguous()


class FeatureCache:
    """What the frozen image encoder makes of photos, in a folder: a file for each photo, and the picture that the
    language model reads. A photo that changes, and another encoder, have another file.

    Args:
        folder: made where it is missing.
        made_by: what else its content follows from: weights, sizes, precision.
    """

    def __init__(self, folder: Path, made_by: Sequence[object]) -> None:
        self._folder, self._made_by = folder, "|".join(map(str, made_by))
        self._writer: ThreadPoolExecutor | None = None
        self._under_way: list[Future[None]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None, "_under_way": []}  # workers only read

    def key(self, image: Path) -> str:
        """Where a photo's features are, by its path, size and time of change."""
        stat = image.stat()
        told = f"{image.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{self._made_by}"
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> tuple[ImageMaps, RgbArray] | None:
        """A photo's features, without the first axis, and its picture; None where they are not kept, or damaged."""
        try:
            kept = load_file(self._file(key))
            return ImageMaps(*(kept[name] for name in MAPS)), kept["picture"].numpy()
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, keys: Sequence[str], maps: ImageMaps, pictures: Sequence[RgbArray]) -> None:
        """Keep the features of photos, written meanwhile.

        Raises:
            OutputError: an earlier one could not be written.
        """
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1)
        on_cpu = ImageMaps(*(getattr(maps, name).cpu() for name in MAPS))
        for i, (key, picture) in enumerate(zip(keys, pictures, strict=True)):
            tensors = {name: getattr(on_cpu, name)[i].contiguous() for name in MAPS}
            tensors["picture"] = torch.from_numpy(picture)
            self._under_way.append(self._writer.submit(self._write, self._file(key), tensors))
        while len(self._under_way) > WRITES_AHEAD:
            self._under_way.pop(0).result()

    def close(self) -> None:
        """Have all written.

        Raises:
            OutputError: one could not be.
        """
        for future in self._under_way:
            future.result()
        self._under_way.clear()

    @staticmethod
    def _write(path: Path, tensors: dict[str, Tensor]) -> None:
        new = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, new = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            os.close(handle)
            save_file(tensors, new)
            Path(new).replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                Path(new).unlink()
            raise output_error(error if isinstance(error, OSError) else OSError(str(error)), path) from error


class TrainingSet(Dataset[Item]):
    """Samples, read and brought to the model. Indexed by `Wanted`."""

    def __init__(
        self, samples: Sequence[Sample], reader: PromptReader, shaping: Shaping, cache: FeatureCache | None
    ) -> None:
        self._samples, self._reader, self._shaping, self._cache = list(samples), reader, shaping, cache

    def __getitem__(self, wanted: Wanted) -> Item:
        shaping, sample = self._shaping, self._samples[wanted.index]
        mask = read_mask(sample.mask)
        place = Place.of(mask.shape[0], mask.shape[1], shaping.square)
        target = torch.from_numpy(target_of(mask, place, shaping.cells, shaping.erode, shaping.times))
        inside = torch.from_numpy(place.inside(shaping.cells))
        key = self._cache.key(sample.image) if self._cache else ""
        if self._cache and (kept := self._cache.get(key)):
            return Item(sample, key, kept[1], None, kept[0], target, inside)
        rgb = read_rgb(sample.image)
        if shaping.augment:
            rgb = jittered(rgb, np.random.default_rng(wanted.seed))
        return Item(sample, key, self._reader.picture(rgb), shaping.pixels(rgb, place), None, target, inside)


class Collate:
    """Items to a batch: a photo that several share is there once, unless it was changed at random."""

    def __init__(self, reader: PromptReader, shaping: Shaping) -> None:
        self._reader, self._shaping = reader, shaping

    def __call__(self, items: Sequence[Item]) -> Batch:
        photos: dict[object, Item] = {}
        names = [i if self._shaping.augment else item.sample.image for i, item in enumerate(items)]
        for name, item in zip(names, items, strict=True):
            photos.setdefault(name, item)
        known = [name for name, item in photos.items() if item.maps is not None]
        fresh = [name for name, item in photos.items() if item.maps is None]
        place = {name: i for i, name in enumerate([*known, *fresh])}
        maps = [photos[name].maps for name in known]
        pixels = [p for name in fresh if (p := photos[name].pixels) is not None]
        side = self._shaping.side
        return Batch(
            samples=[item.sample for item in items],
            keys=[photos[name].key for name in fresh],
            pictures=[photos[name].picture for name in fresh],
            pixels=torch.stack(pixels) if pixels else torch.empty(0, 3, side, side, dtype=torch.uint8),
            maps=ImageMaps(*(torch.stack([getattr(m, name) for m in maps]) for name in MAPS)) if maps else None,
            which=torch.tensor([place[name] for name in names]),
            target=torch.stack([item.target for item in items]),
            inside=torch.stack([item.inside for item in items]),
            inputs=self._reader([photos[name].picture for name in names], [item.sample.prompt for item in items]),
        )


def batches(
    samples: Sequence[Sample],
    reader: PromptReader,
    shaping: Shaping,
    order: Order,
    steps: range,
    *,
    seed: tuple[int, ...],
    cache: FeatureCache | None,
    workers: int,
    pin: bool,
) -> Generator[Batch, None, None]:
    """The batches of `steps`, made in `workers` processes (0: in this one).

    Args:
        seed: what changes at random follow from, beside the step.

    Raises:
        ImageError: a photo or mask cannot be read any more.
    """
    wanted = ([Wanted(i, (*seed, step, k)) for k, i in enumerate(order.at(step))] for step in steps)
    how: dict[str, Any] = {"prefetch_factor": AHEAD} if workers else {}
    sampler: Any = wanted  # a DataLoader hands on what it gives, also where that is no number
    loader: DataLoader[Item] = DataLoader(
        TrainingSet(samples, reader, shaping, cache),
        batch_sampler=sampler,
        collate_fn=Collate(reader, shaping),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=leave_signals,
        **how,
    )
    return read_by(loader)


def leave_signals(_: int) -> None:
    """A worker's part when its whole group is told to stop: it works on while the process that started it ends its step
    and saves, but no longer than `GRACE` seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


def read_by(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """What a loader gives; its workers end with it, however it ends.

    Raises:
        ImageError: a file cannot be read, by one line without a worker's traceback.
    """
    given = iter(loader)
    try:
        yield from given
    except ImageError as error:
        last = error.message.strip().splitlines()[-1]
        told = last.partition("ImageError: ")[2] or last
        raise ImageError(told, hint=error.hint, reason=error.reason) from None
    finally:
        getattr(given, "_shutdown_workers", lambda: None)()  # not left to whoever still holds the error
